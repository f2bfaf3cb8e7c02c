"""Hyperparameter search by Hydra's Optuna sweeper: a run for each trial, and which settings mattered.

    FOLDER/trial_0  trial_1  ...   run folders
    FOLDER/search.json             trials with their settings and values, the best one, importances

The study is rebuilt from the run folders, so it does not matter where a launcher ran them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_vision.config.overrides import quoted
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.safe_json import read_json

SWEEPER = "hydra/sweeper=optuna"
_SETTINGS = "search.json"  # in a trial's folder: the settings that the sweeper chose
_TREES = 64
_SHOWN = 10


@dataclass(frozen=True)
class Search:
    """A search in `folder`, with the sweeper's overrides."""

    folder: Path
    overrides: Sequence[str]

    @staticmethod
    def of(overrides: Sequence[str]) -> Search | None:
        """The search that overrides ask for, or None. Raises GtpVisionError: it has no folder, or a direction."""
        if SWEEPER not in overrides:
            return None
        last = {override.partition("=")[0].lstrip("+"): override for override in overrides}  # of each key
        given = {key: override.partition("=")[2] for key, override in last.items()}
        folder = given.get("run_dir", "").strip("'\"")
        if not folder or "${" in folder:
            raise GtpVisionError("a search needs a folder for its trials; add run_dir=FOLDER, e.g. run_dir=runs/search")
        if given.get("hydra.sweeper.direction", "maximize") != "maximize":
            raise GtpVisionError(
                "a search maximizes: score, success, return, or the negative energy score of held-out episodes; leave "
                "hydra.sweeper.direction out"
            )
        added = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.sampler.seed": "0"}
        if not any(key.startswith("hydra/launcher") for key in given):
            added["hydra.sweeper.n_jobs"] = "1"  # one after the other anyway, so that each learns from all before
        if "hydra/sweeper/sampler" in given:
            del added["hydra.sweeper.sampler.seed"]  # not every sampler has one
        return Search(
            Path(folder).expanduser(),
            [*last.values(), *(f"{key}={value}" for key, value in added.items() if key not in given)],
        )

    def trial(self, number: int) -> str:
        """The run folder of a trial, as a setting."""
        return quoted("run_dir", self.folder / f"trial_{number}")

    def report(self) -> str:
        """Write search.json, and return a table of the best trials and of the settings' importances."""
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        space = create_params_from_overrides(list(self.overrides))[0]
        space = {name.lstrip("+"): kind for name, kind in space.items()}
        trials = sorted(self._trials(space), key=lambda trial: trial["value"], reverse=True)
        if not trials:
            raise GtpVisionError(f"{self.folder} holds no finished trial; see the messages above")
        found = {
            "objective": trials[0]["objective"],
            "importances": _importances(trials, space),
            "best": trials[0],
            "trials": trials,
        }
        with atomic_write(self.folder / "search.json") as aside:
            aside.write_text(json.dumps(found, indent=1))
        return "\n".join(_lines(found, list(space)))

    def _trials(self, space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for path in self.folder.glob(f"trial_*/{_SETTINGS}"):
            results = path.with_name("results.json")
            if results.exists():
                name, value = objective(read_json(results, advice=""))
                stored = read_json(path, advice="")
                values = {
                    key: kind.to_external_repr(kind.to_internal_repr(_as_kind(stored[key], kind)))
                    for key, kind in space.items()
                    if key in stored
                }
                yield {"run": path.parent.name, "objective": name, "value": value, "settings": values}


def note_settings(run: Path, overrides: Sequence[str]) -> None:
    """Write what the sweeper chose into a trial's folder."""
    chosen = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    with atomic_write(run / _SETTINGS) as aside:
        aside.write_text(json.dumps(chosen, indent=1))


def objective(results: Mapping[str, Any]) -> tuple[str, float]:
    """The name and value of what a search maximizes, of results.json of a run, or of its seeds.

    The last evaluation's score, success or return; without a simulator the last validation's negative energy score.

    Raises:
        GtpVisionError: the run was neither evaluated nor validated.
    """
    last = results.get("last", {})
    for name in ("score", "success", "return"):
        if last.get(name) is not None:
            return name, float(last[name])
    runs = [run["validation"]["last"]["energy"] for run in results.get("runs", [results]) if "validation" in run]
    if not runs:
        raise GtpVisionError(
            "a search compares evaluations or validations, and this run has none; set task.env and "
            "training.eval_episodes, or task.validation and training.validation_rows"
        )
    return "negative energy score", -sum(runs) / len(runs)


def _as_kind(text: str, kind: Any) -> Any:
    """A stored setting as an element of a distribution."""
    choices = getattr(kind, "choices", None)
    if choices is not None:
        return next(choice for choice in choices if str(choice) == text)
    return float(text)


def _importances(trials: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> dict[str, float]:
    """Each setting's share of the decrease of variance in a forest that predicts the value; empty without differences.

    fANOVA, Optuna's default, does not run on scikit-learn 1.9 in the Optuna that the sweeper takes.
    """
    import optuna

    if len({trial["value"] for trial in trials}) < 3:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize")
        for trial in trials:
            own = {name: space[name] for name in trial["settings"]}
            study.add_trial(
                optuna.trial.create_trial(params=trial["settings"], distributions=own, value=trial["value"])
            )
        forest = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(n_trees=_TREES, seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=forest))


def _lines(found: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    trials = found["trials"]
    yield f"{len(trials)} trials, best first ({found['objective']}: higher is better)"
    rows = [("run", "value", *names)]
    for trial in trials[:_SHOWN]:
        values = (trial["settings"].get(name, "-") for name in names)
        texts = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        rows.append((trial["run"], f"{trial['value']:.4g}", *texts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if found["importances"]:
        shares = (f"{name} {share:.0%}" for name, share in found["importances"].items())
        yield f"what mattered (share of the differences that a forest explains by it): {', '.join(shares)}"
    else:
        yield "too few different values to say which setting mattered"
