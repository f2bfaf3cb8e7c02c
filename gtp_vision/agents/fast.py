"""Acting at once: an agent's plan as one compiled function, for robots that wait for a single action.

    eager     `Agent.plan` as it is; always works
    compile   the whole plan (encoder, K steps, choice among candidates) compiled, once for each K that is asked for
    graph     that, captured in a CUDA graph and replayed

Noise is drawn before the compiled part, by the generator that is given, in the order in which `Agent.plan` draws it:
all engines answer the same noise with the same action, within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch

from gtp_vision.agents.base import Agent
from gtp_vision.core.compile import Captured, compiled, first_words, has_compiler
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.random import Draw, NoiseRecorder, NoiseSource, NoiseTape, RandomStream

Observation = Mapping[str, torch.Tensor]
Run = Callable[[dict[str, torch.Tensor], list[torch.Tensor]], torch.Tensor]
"""Contiguous observations and noise to plans."""

ENGINES = ("auto", "eager", "compile", "graph")
_MADE = 8  # functions kept, of different K or settings of acting


class FastPolicy:
    """An agent's `plan` and `act`, quick for few observations at once.

    A function is made when it is first needed, which takes seconds: for each K, each setting in `agent.config.acting`
    and each shape of observations. It reads the agent's weights anew at every call; they may be trained or loaded
    meanwhile, in place, but not moved to another device or precision. Other settings of the agent are read once.

    Args:
        agent: who acts.
        engine: auto, eager, compile or graph; auto is graph on a GPU, and compile where there is a C++ compiler.
        batch: observations a call; with another number of them the agent acts eagerly.
        backend: of torch.compile.

    Attributes:
        engine: eager, compile or graph: what acts. It falls back to eager where the other cannot be; `told` says why.
        told: a sentence about that.

    Raises:
        GtpVisionError: an engine that there is not.
    """

    def __init__(self, agent: Agent, *, engine: str = "auto", batch: int = 1, backend: str = "inductor") -> None:
        if engine not in ENGINES:
            raise GtpVisionError(f"there is no engine '{engine}' to act with: {propose(engine, ENGINES)}")
        self.agent, self.batch, self._backend = agent, batch, backend
        self._device = next(agent.parameters()).device
        self._made: dict[Hashable, _Made] = {}
        cuda = self._device.type == "cuda"
        if engine == "auto":
            engine = "graph" if cuda else "compile"
        self.engine, self.told = engine, f"acting: {engine}"
        if engine == "graph" and not cuda:
            self._fall_back(f"a CUDA graph needs a GPU, and the agent is on {self._device}")
        elif engine == "compile" and not cuda and backend == "inductor" and not has_compiler():
            self._fall_back("there is no C++ compiler to compile with (g++ or clang++)")

    def plan(self, observation: Observation, generator: NoiseSource, steps: int | None = None) -> torch.Tensor:
        """Action chunks (B, H, A) in [-1, 1] for stacked observations, in K = `steps`; as `Agent.plan`."""
        if self.engine == "eager" or any(len(x) != self.batch for x in observation.values()):
            return self.agent.plan(observation, generator, steps)
        acting = self.agent.config.acting
        steps = acting.steps if steps is None else steps
        shapes = ((name, x.shape, x.dtype, x.device) for name, x in observation.items())
        key = (steps, acting.candidates, acting.choose, acting.temperature, acting.noise, *shapes)
        # The compiled code looks at no shape, stride or device any more: the key has, and this does.
        given = {name: x.contiguous() for name, x in observation.items()}
        with torch.no_grad():
            if key in self._made:
                made = self._made[key]
                return made.run(given, NoiseTape.draw(made.draws, generator))
            return self._first(key, given, generator, steps)

    def act(self, observation: Observation, generator: NoiseSource, steps: int | None = None) -> torch.Tensor:
        """The first action (B, A) of each plan."""
        return self.plan(observation, generator, steps)[:, 0]

    def _first(
        self, key: Hashable, observation: dict[str, torch.Tensor], generator: NoiseSource, steps: int
    ) -> torch.Tensor:
        """The plan, and the function that makes the next ones."""
        agent, recorder = self.agent, NoiseRecorder(RandomStream(0, 0, device=self._device))
        agent.plan(observation, recorder, steps)  # refuses what is refused, and tells what will be drawn
        draws = tuple(recorder.draws)
        noise = NoiseTape.draw(draws, generator)
        training = agent.training
        agent.eval()  # while it is traced; the function is that of acting ever after
        try:
            run = self._compiled(draws, steps)
            if self.engine == "graph":
                graph = Captured(run, observation, noise)
                run = lambda seen, drawn: graph(seen, drawn).clone()  # noqa: E731
            actions = run(observation, noise)
        except Exception as error:  # whatever a compiler may raise
            self._fall_back(f"engine={self.engine} does not work here: {first_words(error)}")
            return agent.plan(observation, NoiseTape(draws, noise), steps)
        finally:
            agent.train(training)
        while len(self._made) >= _MADE:
            self._made.pop(next(iter(self._made)))  # the oldest
        self._made[key] = _Made(draws, run)
        return actions

    def _compiled(self, draws: tuple[Draw, ...], steps: int) -> Run:
        agent = self.agent

        def run(observation: dict[str, torch.Tensor], noise: list[torch.Tensor]) -> torch.Tensor:
            return agent.plan(observation, NoiseTape(draws, noise), steps)

        # `plan` makes the checks that matter here; on a CPU, kernels are called from C++, one after the other.
        wrapped = {"cpp_wrapper": True} if self._backend == "inductor" and self._device.type == "cpu" else {}
        return compiled(run, self._backend, **wrapped)

    def _fall_back(self, why: str) -> None:
        self.engine, self.told = "eager", f"acting: eager, because {why}"
        self._made.clear()


class _Made(NamedTuple):
    """What acts with one K: what noise it draws, and what it does with it."""

    draws: tuple[Draw, ...]
    run: Run
