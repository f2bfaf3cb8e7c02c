"""What happens before the first step: runs are built, their checkpoints loaded, and their folders written.

    configuration and folder -> Start, where a run is resumed -> parts, checked -> checkpoints -> folders -> runs

Nothing is written or removed before everything that can be refused has been.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gtp_vision.config.compose import to_yaml
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.progress import Progress
from gtp_vision.datasets import rewards, scaling
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.datasets.record import DataRecord
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import vision
from gtp_vision.training import checkpoint, engines, model_summary, online, recovery, segments
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.data import STATISTICS, constant_dimensions
from gtp_vision.training.evaluate import check_simulator
from gtp_vision.training.ranks import batch_shares, is_first
from gtp_vision.training.rounds import described
from gtp_vision.training.run import TrainingRun, pending_metrics_of, train_seconds_of
from gtp_vision.training.run_lock import clear_folder
from gtp_vision.training.seeds import check_same_seeds, folders, seeds_of
from gtp_vision.training.segments import Segment, changed_by_segment, continued
from gtp_vision.training.step_cost import StepCost, step_cost
from gtp_vision.training.trackers import check_trackers
from gtp_vision.training.warm_start import Source

Log = Callable[[str], None]
"""Prints a line for the user; does nothing for an empty one."""


@dataclass(frozen=True)
class Start:
    """Where runs begin.

    Attributes:
        config: of all seeds.
        checkpoints: of each seed, to continue from; none at step 0.
        past: the segments of each seed until there.
        accepted: fingerprint of other data than before that were accepted when the run was stopped.
        new_segment: whether other data and settings are accepted.
    """

    config: Config
    checkpoints: Sequence[Path] = ()
    past: Sequence[list[Segment]] = ()
    accepted: str | None = None
    new_segment: bool = False

    @property
    def step(self) -> int:
        """Steps that have been taken."""
        return checkpoint.step_of(self.checkpoints[0]) if self.checkpoints else 0

    @property
    def last(self) -> Segment | None:
        """The segment of the first seed that is continued."""
        return self.past[0][-1] if self.past else None


@dataclass
class _Progress:
    """What the checkpoints hold beside weights, of each seed."""

    train_seconds: float
    skips: list[set[int]]
    pending: list[list[dict[str, float]]]


def prepare(
    config: Config,
    enter: Callable[[], None],
    *,
    resume: bool,
    new_segment: bool,
    open_source: Callable[[str], Source],
    log: Log,
) -> tuple[list[TrainingRun], int]:
    """Build the runs of all seeds, load their checkpoints, write their folders.

    Args:
        config: with `run_dir`.
        enter: enters the lock of the folder, before anything is written.
        resume: continue from the newest intact checkpoint.
        new_segment: accept other data and settings than before.
        open_source: reads `init.source`.
        log: prints a line.

    Returns:
        The runs, and the step to continue from.

    Raises:
        GtpVisionError: what cannot be trained, with the reason.
    """
    folder = Path(config.run_dir)
    start = _resumed(config, new_segment) if resume else Start(config)
    config = start.config
    configs, run_folders = seeds_of(config), folders(config)
    history: list[list[Segment]] = []

    def compare(record: DataRecord, rows: int) -> None:
        accepts = start.new_segment or start.accepted == record.fingerprint
        for index, own in enumerate(configs):
            now = Segment(start.step, own, record, rows)
            if start.past:
                at = run_folders[index] / STATISTICS
                history.append(continued(start.past[index], now, new_segment=accepts, statistics=at))
            else:
                history.append([now])

    first = _first(start, open_source, compare, log)
    cost = step_cost(first)
    parts = [first, *(components_for_seed(first, other) for other in configs[1:])]
    moments = 0
    if first.initial is not None and config.init.optimizer:
        moments = max(first.initial.fill_optimizer(each.optimizer, each.agent) for each in parts)
    loaded = _loaded(start, parts, history[0])
    accelerator = first.accelerator
    if resume and not start.checkpoints:
        accelerator.print(f"no intact checkpoint in {folder}: starting from step 0")
    if accelerator.is_main_process:
        enter()
        _write_folder(folder, config, history[0], empty=not resume)
        for own, run_folder, of_run in zip(configs, run_folders, history, strict=True):
            if run_folder != folder:
                run_folder.mkdir(exist_ok=True)
                _write_folder(run_folder, own, of_run, empty=False)
            if first.initial is not None:
                first.initial.write(run_folder, described(config, first.split.training), moments)
    for line in _described(config, first, cost):
        log(line)
    accelerator.wait_for_everyone()
    runs = [
        TrainingRun(
            configs[index],
            run_folders[index],
            parts[index],
            index=index,
            segments=history[index],
            start=start.step,
            train_seconds=loaded.train_seconds,
            resume_with=folder,
            skips=loaded.skips[index],
            pending=loaded.pending[index],
            log=log if len(configs) == 1 else _prefixed(log, f"seed {configs[index].seed}: "),
        )
        for index in range(len(configs))
    ]
    if accelerator.is_main_process and not resume:
        _warn_of_data(runs, log)
    return runs, start.step


def refuse_occupied(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it is resumed or overwritten."""
    if (folder / "config.yaml").exists() and not (resume or overwrite):
        raise GtpVisionError(
            f"{folder} already holds a run; give --resume to continue it, --overwrite to replace it, "
            f"or another run_dir=..."
        )


def _resumed(config: Config, new_segment: bool) -> Start:
    """Where the run in the folder stands, and its settings."""
    folder, run_folders = Path(config.run_dir), folders(config)
    check_same_seeds(folder, config)
    found = checkpoint.newest_of_all([each / "checkpoints" for each in run_folders], _warn)
    if not found:
        return Start(replace(config, training=replace(config.training, schedule_start=0)), new_segment=new_segment)
    past = [segments.past_of(*each) for each in zip(found, run_folders, strict=True)]
    before, step = past[0][-1].config, checkpoint.step_of(found[0])
    accepted = segments.accepted_data(folder, step, before, config)
    config = _begun_as(before, config)
    config = segments.resumed(config, before, step, new_segment=new_segment or accepted is not None)
    return Start(config, found, past, accepted, new_segment)


def _begun_as(past: Config, config: Config) -> Config:
    """The configuration of a run that is resumed, with the weights that it began with recorded as they were."""
    if config.init.source not in (None, past.init.source):
        raise GtpVisionError(
            f"{config.run_dir} did not begin with the weights of init.source={config.init.source}; leave it out to "
            f"resume the run, or choose another run_dir=... for a new one"
        )
    return replace(config, init=past.init)


def _first(
    start: Start, open_source: Callable[[str], Source], compare: Callable[[DataRecord, int], None], log: Log
) -> Components:
    """The parts of the first seed, after all checks of settings, data, simulator, trackers and engine."""
    config, past = start.config, start.last
    source = open_source(config.init.source) if config.init.source and not start.checkpoints else None
    if source is not None:
        source.check_folder(Path(config.run_dir))

    def check_environment(store: Store) -> None:
        sentence, is_converted = check_simulator(config, store)
        if is_converted:
            Progress.write(sentence, file=sys.stderr)
        else:
            log(sentence)

    first = build(
        config,
        resumes=start.checkpoints[0] if start.checkpoints else None,
        past=past.data if past else None,
        source=source,
        compare=compare,
        check=check_environment if config.training.eval_episodes > 0 or config.online.steps else None,
    )
    check_trackers(config)
    engines.check(config, first)
    online.check(config, first, past.config if past else None)
    return first


def _loaded(start: Start, parts: Sequence[Components], history: Sequence[Segment]) -> _Progress:
    """Load the checkpoints, if there are any, into agents and optimisers."""
    if not start.checkpoints:
        return _Progress(0.0, [set[int]() for _ in parts], [[] for _ in parts])
    pairs = list(zip(start.checkpoints, parts, strict=True))
    states: list[dict[str, Any]] = [checkpoint.load(path, each.agent, each.optimizer) for path, each in pairs]
    at = list(zip(states, start.checkpoints, strict=True))
    newest = start.checkpoints[0]
    parts[0].accelerator.print(f"resuming from step {start.step} ({newest})")
    if start.last is not None and start.last.data is None:
        _warn(f"{newest} is of an earlier version and holds no record of its data: taken to be those of today")
    for sentence in segments.sentences(history, start.step):
        parts[0].accelerator.print(sentence)
    skips, pending = [recovery.skips_of(*each) for each in at], [pending_metrics_of(*each) for each in at]
    return _Progress(train_seconds_of(*at[-1]), skips, pending)


def _write_folder(folder: Path, config: Config, history: Sequence[Segment], *, empty: bool) -> None:
    """Make the run folder, without an earlier run if `empty`, and write the configuration of all its segments."""
    try:
        if empty and (folder / "config.yaml").exists():
            clear_folder(folder)
        with atomic_write(folder / "config.yaml") as aside:
            aside.write_text(to_yaml(config, changed_by_segment(history)))
    except OSError as error:
        raise GtpVisionError(
            f"the run folder {folder} cannot be written ({error}); choose another run_dir=..."
        ) from error


def _described(config: Config, parts: Components, cost: StepCost | None) -> list[str]:
    """What the user should know of a training before it begins."""
    return [
        vision.note(),
        batch_shares(parts.accelerator.num_processes, parts.sampler.batch_size),
        parts.where,
        "" if parts.initial is None else parts.initial.table(),
        online.sentence(config),
        *model_summary.loaded(parts.agent),
        model_summary.summary(parts.agent, config),
        "" if cost is None else cost.sentence(parts.accelerator.device),
        scaling.sentence(parts.store),
        parts.split.sentence,
        rewards.sentence(parts.store) if config.task.goals is None else "",
        constant_dimensions(parts.statistics),
    ]


def _warn_of_data(runs: Sequence[TrainingRun], log: Log) -> None:
    """Print likely mistakes in the data, and keep them with every run."""
    first = runs[0].parts
    odd = pitfalls(first.store, first.statistics, rewarded=runs[0].config.task.goals is None)
    for number, warning in enumerate(odd):
        lines = [line for run in runs for line in run.health.add(0, f"data_{number}", warning)]
        for line in lines[:1]:  # all seeds have the same data
            log(line)


def _prefixed(log: Log, prefix: str) -> Log:
    return lambda line: log(prefix + line if line else "")


def _warn(line: str) -> None:
    """Print a warning that is shown even where no bars are."""
    if is_first():
        Progress.write(f"warning: {line}", file=sys.stderr)
