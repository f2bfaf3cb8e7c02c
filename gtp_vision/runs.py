"""What the command line does, from Python.

    run = gtp_vision.train("own", dataset="my.hdf5", agent="gtp", settings={"training.steps": 2000})
    run.judge()
    run.export("policy")

Errors are those of the command line, as `GtpVisionError`. In a notebook a run and a judgement show their pages.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_vision.config.compose import from_command_line, from_run
from gtp_vision.config.overrides import quoted
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.html import data_uri
from gtp_vision.core.safe_json import read_json
from gtp_vision.evaluation.fqe import FQESettings
from gtp_vision.evaluation.metrics.success import success_text
from gtp_vision.report import judge_page
from gtp_vision.serving import export as exporting
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.warm_start import open_source
from gtp_vision.training import trainer
from gtp_vision.training.evaluate import evaluate_run
from gtp_vision.training.judge import judge

_HEIGHT = 700  # pixels of a page in a notebook
_FILMS = 4  # shown there, of an evaluation


@dataclass(frozen=True)
class Page:
    """Results and the page that shows them.

    Attributes:
        results: JSON-able.
        path: of the page, self-contained HTML.
        text: the results as a table.
    """

    results: dict[str, Any]
    path: Path
    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return _framed(self.path)


class Evaluation(dict[str, Any]):
    """What `training.evaluate.evaluate_run` returns; a notebook shows success and the first films.

    Attributes:
        videos: folder of the films, None if there are none.
    """

    videos: Path | None = None

    def _repr_html_(self) -> str:
        films = sorted(self.videos.glob("*.mp4"))[:_FILMS] if self.videos else []
        shown = (
            f'<video controls loop width="240" src="{data_uri(film.read_bytes(), "video/mp4")}"></video>'
            for film in films
        )
        return f"<p>{html.escape(success_text(self))}, return {self['return']:.1f}</p>{''.join(shown)}"


@dataclass(frozen=True)
class Run:
    """A run folder; see `train`, `fine_tune` and `open_run`."""

    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """The contents of results.json. Raises GtpVisionError: the run has not ended."""
        if not (path := self.folder / "results.json").exists():
            raise GtpVisionError(f"{self.folder} has no results yet; finish it with .train()")
        return read_json(path)

    def train(
        self, settings: Mapping[str, Any] | None = None, *, new_segment: bool = False, progress: bool = True
    ) -> Run:
        """Continue from the newest checkpoint, e.g. with `{"training.steps": 4000}`, as `train --resume`."""
        config = from_run(self.folder, list(_words(settings or {})))
        config.run_dir = str(self.folder)
        trainer.train(config, resume=True, new_segment=new_segment, progress=progress, open_source=open_source)
        return self

    def evaluate(self, acting: Sequence[str] = (), *, videos: str | Path | None = None, **options: Any) -> Evaluation:
        """Evaluate it in its simulator; options as of `training.evaluate.evaluate_run`."""
        folder = Path(videos).expanduser() if videos else None
        found = Evaluation(evaluate_run(self.folder, acting=acting, videos=folder, **options))
        found.videos = folder
        return found

    def judge(
        self,
        *others: Run | str | Path,
        output: Path | None = None,
        fit: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Page:
        """Estimate without a simulator how good it is, beside other runs.

        `fit` are fields of `evaluation.fqe.FQESettings`, e.g. `{"steps": 1000}`; options are those of
        `training.judge.judge`.
        """
        if fit is not None:
            options["settings"] = FQESettings(**fit)
        folders = [self.folder, *(other.folder if isinstance(other, Run) else Path(other) for other in others)]
        found = judge(folders, **options)
        page = judge_page.write(output or self.folder, found.results, found.pictures)
        return Page(found.results, page, judge_page.table(found.results))

    def export(self, out: str | Path, **options: Any) -> Policy:
        """Write its policy as an artifact, and return it as it is loaded; options as of `serving.export.export`."""
        return exporting.export(self.folder, Path(out), **options)

    def _repr_html_(self) -> str | None:
        return _framed(path) if (path := self.folder / "report.html").exists() else None


def train(
    task: str,
    settings: Mapping[str, Any] | None = None,
    *,
    dataset: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **groups: str,
) -> Run:
    """Train a run, as `gtp-vision train`.

    Args:
        task: preset of the task, `own` for data without a simulator.
        settings: key to value, e.g. `{"training.steps": 2000, "run_dir": "runs/mine"}`.
        dataset: file or folder of the data, `task.dataset`.
        resume: continue the run of the folder if it has begun.
        overwrite: replace what is in the run folder.
        progress: show bars and lines.
        groups: presets by group: agent, encoder, training, improvement, acting.

    Raises:
        GtpVisionError: as the command line.
    """
    words = [f"task={task}", *(f"{group}={preset}" for group, preset in groups.items())]
    words += _words(({} if dataset is None else {"task.dataset": Path(dataset).expanduser()}) | dict(settings or {}))
    return _trained(from_command_line(words), overwrite, progress, resume)


def fine_tune(
    source: Run | str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    append: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train a run that begins with the weights and settings of a run, a checkpoint or an artifact, as `train --init`.

    `append` names further data, `FILE` or `FILE:WEIGHT`; else as `train`.
    """
    given = source.folder if isinstance(source, Run) else source
    return _trained(open_source(str(given)).new_run(list(_words(settings or {})), append), overwrite, progress)


def _trained(config: Config, overwrite: bool, progress: bool, resume: bool = False) -> Run:
    trainer.train(config, resume=resume, overwrite=overwrite, progress=progress, open_source=open_source)
    return Run(Path(config.run_dir))


def open_run(folder: str | Path) -> Run:
    """The run of a folder. Raises GtpVisionError: it is none."""
    found = Path(folder).expanduser()
    from_run(found)
    return Run(found)


def evaluate(run: Run | str | Path, acting: Sequence[str] = (), **options: Any) -> Evaluation:
    """Evaluate a run, or the run of a folder, in its simulator, as `gtp-vision eval`; options as of `Run.evaluate`."""
    return (run if isinstance(run, Run) else open_run(run)).evaluate(acting, **options)


def _words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings as words of the command line."""
    for key, value in settings.items():
        yield quoted(key, value) if isinstance(value, str | Path) else f"{key}={json.dumps(value)}"


def _framed(page: Path) -> str:
    """A page within a notebook's, apart from its styles."""
    content = html.escape(page.read_text(encoding="utf-8"), quote=True)
    return f'<iframe srcdoc="{content}" width="100%" height="{_HEIGHT}" style="border:0"></iframe>'
