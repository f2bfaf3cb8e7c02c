"""Trackers beside TensorBoard, by name (`training.trackers`): W&B and MLflow through Accelerate.

    trackers.json   the run's number in each tracker, with which a resumed run continues there

A tracker never ends a training: where it fails once the run has begun, the run continues without it. What it had
before a kill is not sent twice: W&B leaves out steps that it has.
"""

from __future__ import annotations

import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, WandBTracker

from gtp_vision.config.compose import plain_values
from gtp_vision.config.schema import TRACKERS, Config
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import require
from gtp_vision.core.files import atomic_write
from gtp_vision.core.safe_json import read_json

FILE = "trackers.json"
_PROJECT = "gtp-vision"


class _Kind(ABC):
    """A kind of tracker: how a run begins there, and how files and tables reach it."""

    package: ClassVar[str]
    needs_login: ClassVar[str] = ""  # what to do about it
    tracker: GeneralTracker
    options: Mapping[str, Any] = MappingProxyType({})  # of each `log`

    @classmethod
    def has_login(cls) -> bool:
        """Whether a run can begin."""
        return True

    @abstractmethod
    def start(self, folder: Path, config: Config, number: str | None) -> str:
        """Begin a run, or continue `number`; return its number."""

    @abstractmethod
    def videos(self, step: int, paths: Sequence[Path]) -> None:
        """Log mp4 files."""

    @abstractmethod
    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table whose rows have the same keys."""


class _WandB(_Kind):
    package = "wandb"
    needs_login = "run wandb login, or set WANDB_MODE=offline and send the run later by wandb sync"

    @classmethod
    def has_login(cls) -> bool:
        import wandb

        is_online = os.environ.get("WANDB_MODE", "online") in ("online", "shared")
        return not is_online or bool(wandb.login(prompt=False, verify=False))

    def start(self, folder: Path, config: Config, number: str | None) -> str:
        import wandb

        number = number or uuid.uuid4().hex[:8]
        self.tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", _PROJECT),
            **{"dir": str(folder), "id": number, "name": _label(folder), "resume": "allow", "reinit": "create_new"},
            config=plain_values(config),
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.tracker.start()
        return number

    def videos(self, step: int, paths: Sequence[Path]) -> None:
        import wandb

        filmed = {f"videos/{path.stem}": wandb.Video(str(path), format="mp4") for path in paths}
        self.tracker.log(filmed, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tracker.log_table(name, columns=list(rows[0]), data=[list(row.values()) for row in rows])


class _MLflow(_Kind):
    package = "mlflow"

    def start(self, folder: Path, config: Config, number: str | None) -> str:
        self.tracker = MLflowTracker(_PROJECT, run_id=number, run_name=_label(folder), nested_run=True)
        self.tracker.start()
        if number is None:
            self.tracker.store_init_configuration(_flat(plain_values(config)))
        number = str(self.tracker.tracker.info.run_id)
        self.options = {"run_id": number}  # of seeds side by side the last one to begin is MLflow's active run
        return number

    def videos(self, step: int, paths: Sequence[Path]) -> None:
        import mlflow

        for path in paths:
            mlflow.log_artifact(str(path), f"videos/step_{step}", **self.options)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import mlflow

        columns = {key: [row[key] for row in rows] for key in rows[0]}
        mlflow.log_dict(columns, f"{name}.json", **self.options)


_KINDS: dict[str, type[_Kind]] = {"wandb": _WandB, "mlflow": _MLflow}
assert tuple(_KINDS) == TRACKERS


def check_trackers(config: Config) -> None:
    """Refuse trackers without their package or login, before anything is written."""
    for name in config.training.trackers or ():
        require(name, f"training.trackers=[{name}]", _KINDS[name].package)
        if not _KINDS[name].has_login():
            raise GtpVisionError(f"training.trackers=[{name}] needs a login; {_KINDS[name].needs_login}")


class Trackers:
    """The trackers of one run in `folder`, begun or continued; `tell` is called with a sentence where one fails later.

    Raises:
        GtpVisionError: one does not begin.
    """

    def __init__(self, folder: Path, config: Config, tell: Callable[[str], None]) -> None:
        self._tell, self._open = tell, dict[str, _Kind]()
        path = folder / FILE
        numbers = read_json(path, advice="remove it to begin new runs there") if path.exists() else {}
        PartialState()
        for name in config.training.trackers or ():
            kind = _KINDS[name]()
            known = numbers.get(name)
            try:
                numbers[name] = kind.start(folder, config, known if isinstance(known, str) else None)
            except Exception as error:  # whatever a client raises
                raise GtpVisionError(
                    f"training.trackers=[{name}] does not begin ({first_line(error)}); leave it out, or see its server"
                ) from error
            self._open[name] = kind
        if self._open:
            with atomic_write(path) as aside:
                aside.write_text(json.dumps(numbers))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers."""
        self._each(lambda kind: kind.tracker.log(dict(metrics), step=step, **kind.options))

    def videos(self, step: int, paths: Sequence[Path]) -> None:
        """Log mp4 files of an evaluation."""
        self._each(lambda kind: kind.videos(step, paths))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table; none without rows."""
        if rows:
            self._each(lambda kind: kind.table(name, rows))

    def close(self) -> None:
        """End all."""
        self._each(lambda kind: kind.tracker.finish())
        self._open = {}

    def _each(self, use: Callable[[_Kind], None]) -> None:
        for name, kind in list(self._open.items()):
            try:
                use(kind)
            except Exception as error:
                del self._open[name]
                self._tell(
                    f"warning: {name} fails ({first_line(error)}); the run continues without it, and metrics.jsonl has "
                    f"everything"
                )


def _label(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
