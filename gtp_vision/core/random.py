"""Random numbers as a function of (seed, step): resuming, prefetching and process counts cannot change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch


def counter_rng(*key: int) -> np.random.Generator:
    """A NumPy generator that is a pure function of `key` (non-negative integers), by the counter-based Philox."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class NoiseSource(Protocol):
    """What policies and augmentations draw from; the first axis is the local batch."""

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal (rows, *shape)."""

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""


class RandomStream:
    """The random numbers of one training step, of which each process takes its rows.

    Every draw is made for the global batch and cut to this process's rows, so `world_size` processes together use
    exactly the numbers that one process would use. The first axis of every draw is the local batch. Two steps share no
    numbers; CPU and GPU streams differ from each other.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside [0, {world_size})")
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        key = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator(self.device)
        self._generator.manual_seed(int(key) & (2**63 - 1))

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal float32 of shape (rows, *shape)."""
        return self._own(torch.randn(self._global(rows, shape), generator=self._generator, device=self.device))

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform float32 in [0, 1) of shape (rows, *shape)."""
        return self._own(torch.rand(self._global(rows, shape), generator=self._generator, device=self.device))

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform int64 in [0, high) of shape (rows, *shape)."""
        draw = torch.randint(high, self._global(rows, shape), generator=self._generator, device=self.device)
        return self._own(draw)

    def _global(self, rows: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (rows * self.world_size, *shape)

    def _own(self, draw: torch.Tensor) -> torch.Tensor:
        rows = draw.shape[0] // self.world_size
        return draw[self.rank * rows : (self.rank + 1) * rows]


class Draw(NamedTuple):
    """A draw from a `NoiseSource`: the name of its method, and its arguments."""

    kind: str
    numbers: tuple[int, ...]

    def of_rows(self, rows: int) -> Draw:
        """The same draw for another number of rows."""
        bound = self.numbers[:1] if self.kind == "integers" else ()
        return Draw(self.kind, (*bound, rows, *self.numbers[len(bound) + 1 :]))


class NoiseRecorder:
    """A `NoiseSource` that passes on the draws of another and records them in order in `draws`."""

    def __init__(self, source: NoiseSource) -> None:
        self._source, self.draws = source, list[Draw]()

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """As the source's."""
        return self._passed("normal", rows, *shape)

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """As the source's."""
        return self._passed("uniform", rows, *shape)

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """As the source's."""
        return self._passed("integers", high, rows, *shape)

    def _passed(self, kind: str, *numbers: int) -> torch.Tensor:
        self.draws.append(Draw(kind, numbers))
        return getattr(self._source, kind)(*numbers)


class NoiseTape:
    """A `NoiseSource` that returns what was drawn before, in order: compiled code takes tensors, not generators."""

    def __init__(self, draws: Sequence[Draw], drawn: Sequence[torch.Tensor]) -> None:
        self._draws, self._drawn, self._place = draws, drawn, 0

    @staticmethod
    def draw(draws: Sequence[Draw], source: NoiseSource) -> list[torch.Tensor]:
        """What a source answers to these draws."""
        return [getattr(source, draw.kind)(*draw.numbers) for draw in draws]

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """The next draw."""
        return self._next("normal", rows, *shape)

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """The next draw."""
        return self._next("uniform", rows, *shape)

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """The next draw."""
        return self._next("integers", high, rows, *shape)

    def _next(self, kind: str, *numbers: int) -> torch.Tensor:
        place, self._place = self._place, self._place + 1
        if place >= len(self._draws) or (self._draws[place].kind, self._draws[place].numbers) != (kind, numbers):
            raise ValueError(f"draw {place} is {kind}{numbers}, which is not what was recorded")
        return self._drawn[place]


class EpisodeNoise:
    """Random numbers that depend on (seed, episode, step of the episode) alone, not on who runs beside it.

    A `NoiseSource` whose rows are the episodes in progress, or several draws for each, side by side; `steps` are the
    actions that each of `episodes` has taken.
    """

    def __init__(self, seed: int, episodes: Sequence[int], steps: Sequence[int], device: torch.device) -> None:
        self.episodes, self.steps = list(episodes), list(steps)
        self._generators = [counter_rng(seed, *key) for key in zip(episodes, steps, strict=True)]
        self._device = device

    def select(self, rows: Sequence[int]) -> EpisodeNoise:
        """The same for some of the episodes; what was drawn before is not drawn again."""
        some = EpisodeNoise(0, [], [], self._device)
        some.episodes, some.steps = [self.episodes[r] for r in rows], [self.steps[r] for r in rows]
        some._generators = [self._generators[r] for r in rows]
        return some

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal (rows, *shape)."""
        return self._drawn(rows, lambda generator, each: generator.standard_normal((each, *shape), np.float32))

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        return self._drawn(rows, lambda generator, each: generator.random((each, *shape), np.float32))

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""
        return self._drawn(rows, lambda generator, each: generator.integers(0, high, (each, *shape)))

    def _drawn(self, rows: int, draw: Callable[[np.random.Generator, int], np.ndarray]) -> torch.Tensor:
        each, rest = divmod(rows, len(self._generators))
        if rest:
            raise ValueError(f"{rows} rows cannot be shared by {len(self._generators)} episodes")
        return torch.from_numpy(np.concatenate([draw(g, each) for g in self._generators])).to(self._device)
