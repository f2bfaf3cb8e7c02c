"""Validation of a run on the episodes that are held out of its training.

    validation.json   {"split": [{"path", "episodes", "how"}], "steps": [{"step": 2000, "energy": 0.12, ...}]}

At each planned checkpoint, on the same rows and with the same noise: what changes is the agent. Of a run without a
simulator, the checkpoint of the least energy score is `best`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.safe_json import read_json
from gtp_vision.evaluation.held_out import Draws, draws_of, rank_correlation, returns_to_go, steps_of, values_of
from gtp_vision.training.build import Components
from gtp_vision.training.probes import evenly_spaced

FILE = "validation.json"
_NUMBERS = ("step", "energy", "energy_training")


class Validation:
    """The validations of one run (`entries`, as in validation.json), of which those after step `start` are dropped.

    Raises:
        GtpVisionError: the file of a run that continues is damaged.
    """

    def __init__(self, folder: Path, config: Config, parts: Components, *, start: int) -> None:
        assert parts.held_out is not None
        self._path, self._parts = folder / FILE, parts
        self._held_out, self._training = parts.held_out, parts.sampler
        count = config.training.validation_rows
        both = (self._held_out, self._training)
        self._rows, self._trained = (evenly_spaced(each.store.transitions, count, 0) for each in both)
        self._returns = returns_to_go(self._held_out, self._rows)
        low, high = (np.asarray(bound) for bound in parts.record.action_bounds)
        self._unit = (high - low) / 2  # of the data's actions, for each unit of the policy's
        self.entries = [entry for entry in read_entries(folder) if entry["step"] <= start]

    def measure(self, step: int) -> dict[str, float]:
        """Measure the agent after training step `step`, write the file, and return the metrics to log."""
        began, agent, device = time.perf_counter(), self._parts.agent, self._parts.accelerator.device
        own, steps = agent.config.acting.steps, steps_of(agent)
        drawn = draws_of(agent, self._held_out, self._rows, steps, device)
        trained = draws_of(agent, self._training, self._trained, (own,), device)[own]
        energies = {k: each.energy() for k, each in drawn.items()}
        entry: dict[str, Any] = {
            "step": step,
            "energy": float(energies[own].mean()),
            "energy_training": float(trained.energy().mean()),
            "by_episode": self._by_episode(energies[own]),
            "error": {str(k): self._in_units(each) for k, each in drawn.items()},
        }
        metrics = {"valid/energy": entry["energy"], "valid/energy_training": entry["energy_training"]}
        metrics |= {f"valid/error_K{k}": float(np.nanmean(each.error())) for k, each in drawn.items()}
        if agent.judges_actions and not agent.clones(step) and self._held_out.goals is None:
            values = values_of(agent, self._held_out, self._rows, device)
            known = np.isfinite(self._returns)
            entry["q_correlation"] = rank_correlation(values, self._returns)
            entry["q_bias"] = float((values - self._returns)[known].mean()) if known.any() else math.nan
            metrics |= {f"valid/{key}": entry[key] for key in ("q_correlation", "q_bias") if math.isfinite(entry[key])}
            entry |= {key: None for key in ("q_correlation", "q_bias") if not math.isfinite(entry[key])}
        self.entries = [*(known for known in self.entries if known["step"] != step), entry]
        with atomic_write(self._path) as aside:
            aside.write_text(json.dumps({"split": self._parts.split.origin, "steps": self.entries}))
        return metrics | {"time/validation_s": time.perf_counter() - began}

    def best(self) -> int | None:
        """The step of the least energy score; None before the first validation."""
        return min(self.entries, key=lambda entry: entry["energy"])["step"] if self.entries else None

    def go_back(self, step: int) -> None:
        """Forget what was measured after a step."""
        self.entries = [entry for entry in self.entries if entry["step"] <= step]

    def summary(self) -> dict[str, Any]:
        """For results.json: the held-out episodes, the last validation, and that of the least energy score."""
        best = next(entry for entry in self.entries if entry["step"] == self.best())
        return {"split": self._parts.split.origin, "last": self.entries[-1], "best": best}

    def _by_episode(self, values: np.ndarray) -> list[float]:
        """The mean of each held-out episode's rows."""
        homes = self._held_out.store.episode_of(self._rows)
        return [float(values[homes == home].mean()) for home in np.unique(homes)]

    def _in_units(self, drawn: Draws) -> list[list[float | None]]:
        """The error in the units of the data's actions, by place in the chunk and dimension; None where unknown."""
        errors = drawn.error() * self._unit
        return [[float(x) if math.isfinite(x) else None for x in row] for row in errors]


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """The validations in a run folder; none if there is no file. Raises GtpVisionError: it is damaged."""
    path = folder / FILE
    if not path.exists():
        return []
    entries = read_json(path, advice="").get("steps")
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise GtpVisionError(f"{path} is damaged; remove it to continue without it")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("by_episode"), list):
        return False
    numbers = [*(entry.get(name) for name in _NUMBERS), *entry["by_episode"]]
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
