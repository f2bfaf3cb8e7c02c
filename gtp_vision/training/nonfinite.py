"""Find which step was not finite first, and which terms of its loss and rows of its batch.

    nonfinite.json   [{"step", "seed", "found", "parameters", "terms", "gradients", "rows", "bad_rows", "batch",
                       "told"}]

Batch and noise are functions of (seed, step), so a failed step can be repeated: with the whole batch, and then with
each of its rows alone, on a copy of the agent. The copy has the current parameters if they are finite, else those of
the last checkpoint, else the initial ones.
"""

from __future__ import annotations

import copy
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
from gtp_vision.agents.improvement import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.core.distributed import local_only
from gtp_vision.core.random import NoiseRecorder, NoiseSource, NoiseTape
from gtp_vision.datasets.batch import Batch
from gtp_vision.training import checkpoint
from gtp_vision.training.build import Components, initial_agent
from gtp_vision.training.guard import NONFINITE
from gtp_vision.training.tracking import read_entries, write_entries

FILE = "nonfinite.json"
_REPORTS = 20  # kept in a run folder, the newest
_ROWS = 32  # named in a report


class Fault(Exception):  # noqa: N818 - caught by the training loop; users see the error that `recovery` makes of it
    """A step whose loss, gradient or parameters are not finite.

    Attributes:
        member: index of the run among those trained side by side.
        step: the step, from 1, as metrics count them.
        what: was not finite, as the beginning of a sentence.
        names: of the metrics that were not finite.
    """

    def __init__(self, member: int, step: int, what: str, names: Sequence[str]) -> None:
        super().__init__(what)
        self.member, self.step, self.what, self.names = member, step, what, list(names)


@dataclass
class StepReadings:
    """The metrics of several steps, read from the device at once.

    Attributes:
        rows: metrics of each step; None if it was not applied.
        skipped: indices of the steps that were not applied because they were not finite.
        first: index of the first step that was not finite and was applied; None if there is none.
        names: of what was not finite there; of the first skipped step if there is none.
    """

    rows: list[dict[str, float] | None]
    skipped: list[int]
    first: int | None
    names: list[str]


def read_steps(pending: Sequence[Metrics | None], accelerator: Accelerator, *, skips: bool) -> StepReadings:
    """Read the metrics of steps from the device (None: left out); all processes read together, and get the same means.

    `skips` says whether steps marked as not finite were not applied.
    """
    result = StepReadings([None] * len(pending), [], None, [])
    present = [(index, metrics) for index, metrics in enumerate(pending) if metrics is not None]
    if not present:
        return result
    names = list(dict.fromkeys(name for _, metrics in present for name in metrics))  # they may change between stages
    missing = next(iter(present[0][1].values())).new_zeros(()).float()
    table = torch.stack(
        [torch.stack([m[name].float() if name in m else missing for name in names]) for _, m in present]
    )
    for (index, metrics), values in zip(present, accelerator.reduce(table, "mean").cpu().tolist(), strict=True):
        row = {name: value for name, value in zip(names, values, strict=True) if name in metrics}
        is_marked = row.pop(NONFINITE, 0) > 0
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        wrong = wrong or (["the gradient"] if is_marked else [])
        if skips and is_marked:
            result.skipped.append(index)
            result.names = result.names or wrong
            continue
        result.rows[index] = row
        if wrong and result.first is None:
            result.first, result.names = index, wrong
    return result


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the steps that have it; without steps a loss of NaN."""
    if not rows:
        return {"loss": math.nan}
    columns = {name: [row[name] for row in rows if name in row] for row in rows for name in row}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def diagnose(parts: Components, config: Config, folder: Path, step: int, found: Sequence[str]) -> str:
    """Repeat a step (from 1), all processes together; write the diagnosis, and return it as a clause."""
    agent, origin = _finite_copy(parts, config, folder, step)
    with local_only():
        faults = _Replay(parts, agent, step - 1).faults()
    ranks: list[dict[str, Any]] = gather_object([faults])
    rows = [row for rank in ranks for row in rank["rows"]]
    entry: dict[str, Any] = {
        "step": step,
        "seed": config.seed,
        "found": list(found),
        "parameters": origin,
        **{key: sorted({name for rank in ranks for name in rank[key]}) for key in ("terms", "gradients")},
        "rows": rows[:_ROWS],
        "bad_rows": len(rows),
        "batch": parts.sampler.batch_size,
    }
    entry["told"] = _clause(entry)
    if parts.accelerator.is_main_process:
        earlier = [other for other in read_reports(folder) if other["step"] != step]
        write_entries(folder / FILE, [*earlier, entry][-_REPORTS:])
    return entry["told"]


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports in a run folder; none if the file is missing or damaged."""
    return read_entries(folder / FILE, {"step": int})


def _clause(entry: dict[str, Any]) -> str:
    origin = f"with the {entry['parameters']}"
    if not entry["terms"] and not entry["gradients"]:
        return f"its batch is finite {origin}, so the parameters diverged after that"
    terms = ", ".join(entry["terms"][:4]) or "the gradient of " + ", ".join(entry["gradients"][:4])
    if not entry["rows"]:
        return f"{terms} of its batch are not finite {origin}, but of no single row"
    first = entry["rows"][0]
    return (
        f"caused by {entry['bad_rows']} of the {entry['batch']} rows of its batch, first row {first['row']} (episode "
        f"{first['episode']}, frame {first['frame']}): {terms} ({origin})"
    )


def _finite_copy(parts: Components, config: Config, folder: Path, step: int) -> tuple[Agent, str]:
    """A copy of the agent with finite parameters, for repeating the step, and where the parameters come from."""
    if all(bool(x.isfinite().all()) for x in parts.agent.state_dict().values()):
        return copy.deepcopy(parts.agent), "current parameters"
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None or checkpoint.step_of(newest) >= step:
        return initial_agent(parts, config), "initial parameters"
    agent = copy.deepcopy(parts.agent)
    checkpoint.load(newest, agent)
    return agent, f"parameters of checkpoints/{newest.name}"


class _Replay:
    """A training step (from 0) that is repeated without an update, on a copy of the agent that may be changed."""

    def __init__(self, parts: Components, agent: Agent, step: int) -> None:
        self._agent, self._store = agent, parts.store
        self._batch, self._step = parts.batch(step), step
        self._rows = parts.sampler.rows(step, parts.accelerator.process_index, parts.accelerator.num_processes)
        recorder = NoiseRecorder(parts.stream(step))
        agent.train()
        agent.begin(step)
        self._of_batch = self._terms_and_gradients(self._batch, recorder)
        agent.eval()  # a single row has no batch statistics
        self._draws, self._drawn = recorder.draws, NoiseTape.draw(recorder.draws, parts.stream(step))

    def faults(self) -> dict[str, Any]:
        """`terms` and modules with `gradients` of the batch that are not finite, and the `rows` that cause it alone."""
        terms, gradients = self._of_batch
        if not terms and not gradients:
            return {"terms": [], "gradients": [], "rows": []}
        everything, size = range(len(self._rows)), math.isqrt(len(self._rows) - 1) + 1
        groups = [list(everything[first : first + size]) for first in everything[::size]]
        suspects = [index for group in groups if any(self._of(group)) for index in group]
        alone = {index: self._of([index]) for index in suspects}
        rows = [self._describe(index, [x for x in bad[0] if x in terms]) for index, bad in alone.items() if any(bad)]
        return {"terms": terms, "gradients": gradients, "rows": rows}

    def _describe(self, index: int, terms: list[str]) -> dict[str, Any]:
        row = int(self._rows[index])
        episode = int(self._store.episode_of(self._rows[index : index + 1])[0])
        numbers = self._store.numbers
        return {
            "row": row,
            "episode": episode if numbers is None else int(numbers[episode]),
            "frame": row - int(self._store.episode_starts[episode]),
            "terms": terms,
        }

    def _of(self, indices: list[int]) -> tuple[list[str], list[str]]:
        """As `_terms_and_gradients`, of some rows of the batch with their own noise."""
        batch = len(self._rows)  # draws of one row are adjacent
        noise = [x.unflatten(0, (batch, -1))[indices].flatten(0, 1) for x in self._drawn]
        draws = [draw.of_rows(len(x)) for draw, x in zip(self._draws, noise, strict=True)]
        rows = pytree.tree_map(lambda x: x[indices], self._batch)
        return self._terms_and_gradients(rows, NoiseTape(draws, noise))

    def _terms_and_gradients(self, batch: Batch, noise: NoiseSource) -> tuple[list[str], list[str]]:
        """Names of metrics, and of modules with a gradient, that are not finite; none if loss and gradients are."""
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
