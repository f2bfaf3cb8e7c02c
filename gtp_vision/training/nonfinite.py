"""Which step was not finite first, and which terms of its loss and rows of its batch: the step is taken once more.

    nonfinite.json   [{"step", "seed", "found", "parameters", "terms", "gradients", "rows", "bad_rows", "batch",
                       "told"}]

Batch and noise are functions of (seed, step), so what failed can be looked at again: the whole batch, and then each
of its rows alone, on a copy of the agent. Its parameters are those of the moment if they are finite, else those of
the last checkpoint, else those that the run began with.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils import _pytree as pytree

from gtp_vision.agents import Agent
from gtp_vision.agents.base import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.core.distributed import local_only
from gtp_vision.core.files import atomic_write
from gtp_vision.core.random import Draw, NoiseRecorder, NoiseTape
from gtp_vision.datasets.batch import Batch
from gtp_vision.training import checkpoint
from gtp_vision.training.build import Components, initial_agent
from gtp_vision.training.guard import NONFINITE

FILE = "nonfinite.json"
_REPORTS = 20  # a run keeps, the newest
_ROWS = 32  # a report names


class Fault(Exception):  # noqa: N818 - the loop answers it; a user sees a sentence of `recovery`
    """A step from which nothing can be learnt.

    Attributes:
        member: number of the run among those trained side by side.
        step: the step, from 1, as metrics count them.
        what: was not finite, as the beginning of a sentence.
        names: of the metrics that were not finite.
    """

    def __init__(self, member: int, step: int, what: str, names: Sequence[str]) -> None:
        super().__init__(what)
        self.member, self.step, self.what, self.names = member, step, what, list(names)


@dataclass(frozen=True)
class Reading:
    """What is read of several steps at once.

    Attributes:
        rows: of each step its metrics; None if it was not applied.
        skipped: places of the steps that were not applied because they were not finite.
        first: the place of the first step that was not finite and was applied; None if there is none.
        names: of what was not finite there; of the first that was skipped if there is none.
    """

    rows: list[dict[str, float] | None]
    skipped: list[int]
    first: int | None
    names: list[str]


def reading(pending: Sequence[Metrics | None], accelerator: Accelerator, *, skips: bool) -> Reading:
    """Wait for the device, and read the metrics of steps; all processes read together, and find the same.

    Args:
        pending: of each step; None for one that is left out.
        accelerator: of the processes.
        skips: steps that say that they are not finite were not applied.
    """
    places = [place for place, metrics in enumerate(pending) if metrics is not None]
    told = [metrics for metrics in pending if metrics is not None]
    if not told:
        return Reading([None] * len(pending), [], None, [])
    names = list(dict.fromkeys(name for m in told for name in m))  # a stage may end between two readings
    none = next(iter(told[0].values())).new_zeros(()).float()
    table = torch.stack([torch.stack([m[name].float() if name in m else none for name in names]) for m in told])
    table = accelerator.reduce(table, "mean").cpu()
    flagged = [bool(table[i, names.index(NONFINITE)] > 0) if NONFINITE in names else False for i in range(len(told))]
    wrong = [
        [name for name, value in zip(names, row, strict=True) if not math.isfinite(value)]
        or (["the gradient"] if flagged[i] else [])
        for i, row in enumerate(table.tolist())
    ]
    skipped = [i for i, flag in enumerate(flagged) if skips and flag]
    applied = [i for i in range(len(told)) if i not in set(skipped)]
    first = next((i for i in applied if wrong[i]), None)
    found = wrong[first] if first is not None else wrong[skipped[0]] if skipped else []
    rows: list[dict[str, float] | None] = [None] * len(pending)
    for i in applied:
        values = zip(names, table[i].tolist(), strict=True)
        rows[places[i]] = {name: value for name, value in values if name in told[i] and name != NONFINITE}
    return Reading(rows, [places[i] for i in skipped], None if first is None else places[first], found)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric, over the steps that have it: a stage may end between two lines; without steps a loss of NaN."""
    if not rows:
        return {"loss": math.nan}
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = torch.tensor([[row.get(name, 0.0) for name in names] for row in rows])
    counts = [sum(name in row for row in rows) for name in names]
    return {name: total / count for name, total, count in zip(names, table.sum(0).tolist(), counts, strict=True)}


def report(parts: Components, config: Config, folder: Path, step: int, found: Sequence[str]) -> str:
    """Take a step once more, write what is found into the run folder, and tell it in a clause; all processes together.

    Args:
        parts: of the run.
        config: of the run.
        folder: of the run.
        step: from 1.
        found: names of the metrics that were not finite.
    """
    accelerator = parts.accelerator
    agent, whose = _stand_in(parts, config, folder, step)
    with local_only():
        own = _Replay(parts, agent, step - 1).found()
    ranks: list[dict[str, Any]] = gather_object([own])
    told: dict[str, Any] = {
        "step": step,
        "seed": config.seed,
        "found": list(found),
        "parameters": whose,
        **{key: sorted({name for rank in ranks for name in rank[key]}) for key in ("terms", "gradients")},
        "rows": [row for rank in ranks for row in rank["rows"]][:_ROWS],
        "bad_rows": sum(len(rank["rows"]) for rank in ranks),
        "batch": parts.sampler.batch_size,
    }
    clause = told["told"] = _clause(told)
    if accelerator.is_main_process:
        kept = [one for one in reports(folder) if one["step"] != step]
        with atomic_write(folder / FILE) as aside:
            aside.write_text(json.dumps([*kept, told][-_REPORTS:], indent=1))
    return clause


def reports(folder: Path) -> list[dict[str, Any]]:
    """The reports in a run folder; none if the file is missing, or no longer what was written."""
    try:
        stored = json.loads((folder / FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return []
    known = stored if isinstance(stored, list) else []
    return [one for one in known if isinstance(one, dict) and isinstance(one.get("step"), int)]


def _clause(told: dict[str, Any]) -> str:
    terms = ", ".join(told["terms"][:4]) or "the gradient of " + ", ".join(told["gradients"][:4])
    whose = f"with the parameters of {told['parameters']}"
    if not told["terms"] and not told["gradients"]:
        return f"its batch is finite {whose}, so the parameters ran away since"
    if not told["rows"]:
        return f"{terms} of its batch are not finite {whose}, but of no row alone"
    first = told["rows"][0]
    return (
        f"it comes of {told['bad_rows']} of the {told['batch']} rows of its batch, first row {first['row']} (episode "
        f"{first['episode']}, frame {first['frame']}): {terms} ({whose})"
    )


def _stand_in(parts: Components, config: Config, folder: Path, step: int) -> tuple[Agent, str]:
    """A copy of the agent that the step can be taken with once more, and a word for its parameters."""
    if all(bool(x.isfinite().all()) for x in parts.agent.state_dict().values()):
        return copy.deepcopy(parts.agent), "the moment"
    kept = checkpoint.newest(folder / "checkpoints")
    if kept is None or checkpoint.step_of(kept) >= step:
        return initial_agent(parts, config), "the beginning"
    agent = copy.deepcopy(parts.agent)
    checkpoint.load(kept, agent)
    return agent, f"checkpoints/{kept.name}"


class _Replay:
    """A step that is taken once more, and moves nothing.

    Args:
        parts: of the run.
        agent: a copy that may be changed.
        step: from 0.
    """

    def __init__(self, parts: Components, agent: Agent, step: int) -> None:
        self._agent, self._store = agent, parts.store
        rank, world_size = parts.accelerator.process_index, parts.accelerator.num_processes
        self._batch, self._step = parts.batch(step), step
        self._rows = parts.sampler.rows(step, rank, world_size)
        self._recorder = NoiseRecorder(parts.stream(step))
        agent.train()
        agent.begin(step)
        self._whole = self._faults(self._batch, self._recorder)
        agent.eval()  # a row alone has no statistics of a batch
        self._drawn = NoiseTape.draw(self._recorder.draws, parts.stream(step))

    def found(self) -> dict[str, Any]:
        """`terms` and modules with `gradients` of the batch that are not finite, and the `rows` that are so alone."""
        terms, gradients = self._whole
        if not terms and not gradients:
            return {"terms": [], "gradients": [], "rows": []}
        count = len(self._rows)
        size = math.isqrt(count - 1) + 1
        bad = []
        for first in range(0, count, size):
            group = list(range(first, min(first + size, count)))
            if any(self._of(group)):
                bad += [place for place in group if any(self._of([place]))]
        return {"terms": terms, "gradients": gradients, "rows": [self._named(place, terms) for place in bad]}

    def _named(self, place: int, terms: Sequence[str]) -> dict[str, Any]:
        row = int(self._rows[place])
        episode = int(self._store.episode_of(self._rows[place : place + 1])[0])
        numbers = self._store.numbers
        return {
            "row": row,
            "episode": episode if numbers is None else int(numbers[episode]),
            "frame": row - int(self._store.episode_starts[episode]),
            "terms": [name for name in self._of([place])[0] if name in terms],
        }

    def _of(self, places: list[int]) -> tuple[list[str], list[str]]:
        """As `_faults`, of some rows of the batch, with the noise that is theirs; nothing if their loss is finite."""
        rows = pytree.tree_map(lambda x: x[places], self._batch)
        return self._faults(rows, _NoiseOfRows(self._recorder.draws, self._drawn, places, len(self._rows)))

    def _faults(self, batch: Batch, noise: Any) -> tuple[list[str], list[str]]:
        """Names of metrics and of modules with a gradient that are not finite; none if loss and gradients are."""
        named = [(name, x) for name, x in self._agent.named_parameters() if x.requires_grad]
        with torch.enable_grad():
            loss, metrics = self._agent(batch, noise, self._step)
            gradients = torch.autograd.grad(loss, [x for _, x in named], allow_unused=True)
        wrong = {
            ".".join(name.split(".")[:2])
            for (name, _), x in zip(named, gradients, strict=True)
            if x is not None and not bool(x.square().sum().isfinite())
        }
        if bool(loss.isfinite()) and not wrong:
            return [], []
        return [name for name, value in metrics.items() if not bool(value.isfinite())], sorted(wrong)


class _NoiseOfRows:
    """The noise of some rows of a batch, cut out of that of all: draws of one row stand side by side.

    Args:
        draws: what the batch asked for.
        drawn: what it got.
        places: of the rows in the batch.
        rows: of the batch.
    """

    def __init__(self, draws: Sequence[Draw], drawn: Sequence[torch.Tensor], places: list[int], rows: int) -> None:
        self._places = places
        cut = [x.unflatten(0, (rows, -1))[places].flatten(0, 1) for x in drawn]
        self._cut = list(zip(draws, cut, strict=True))

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """The next draw, (rows, *shape)."""
        return self._next(rows)

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """The next draw, (rows, *shape)."""
        return self._next(rows)

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """The next draw, (rows, *shape)."""
        return self._next(rows)

    def _next(self, rows: int) -> torch.Tensor:
        draw, drawn = self._cut.pop(0)
        if len(drawn) != rows:
            raise ValueError(f"{draw} of the batch is no {rows} rows of {len(self._places)}")
        return drawn
