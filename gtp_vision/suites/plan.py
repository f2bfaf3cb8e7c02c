"""The runs of a suite: which there are, and how much of each is done.

OUT/TASK/AGENT/seeds_0-3/seed_0   seeds that are trained side by side
OUT/TASK/AGENT/seed_0             a single seed
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.download.sources import d4rl_files
from gtp_vision.datasets.store import Store
from gtp_vision.envs.scores import normalised
from gtp_vision.suites.records import Record
from gtp_vision.suites.suite import BEST_OF, Suite, SuiteTask, settings_of, trained_as
from gtp_vision.training import checkpoint
from gtp_vision.training.data import open_data
from gtp_vision.training.evaluate import check_simulator
from gtp_vision.training.seeds import check_seeds, folders


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One training: a task, an agent, and seeds that share a process."""

    task: str
    agent: str  # the label that is trained
    seeds: tuple[int, ...]
    folder: Path
    settings: tuple[str, ...]  # as `gtp-vision train` takes them
    config: Config  # which they compose to
    done: float  # share of its steps that have been taken


@dataclass
class Plan:
    """All runs of a suite."""

    jobs: list[PlannedRun] = field(default_factory=list)  # in the order of running, with finished ones
    missing: list[str] = field(default_factory=list)  # a sentence for each task that cannot be run here
    stores: dict[str, Store] = field(default_factory=dict)  # the data sets of the tasks, by name
    configs: dict[str, Config] = field(default_factory=dict)  # of the first agent, by task, also of missing ones


def plan(suite: Suite, out: Path, data: Path, *, with_runs: bool = True) -> Plan:
    """The jobs of a suite: every task with every agent; new seeds are trained side by side where possible.

    A task whose data or simulator is missing is left out, with a sentence. Without `with_runs` the plan has
    configurations alone, for tables of what has been run: no data set is opened or downloaded.

    Raises:
        GtpVisionError: a setting is wrong.
    """
    result = Plan()
    agents = list(dict.fromkeys(trained_as(label) for label in suite.agents))
    for task in suite.tasks:
        settings = {agent: settings_for(suite, task, agent, data) for agent in agents}
        composed = agents if with_runs else agents[:1]
        configs = {agent: from_command_line([*settings[agent], "run_dir=unused"]) for agent in composed}
        result.configs[task.name] = configs[agents[0]]
        if not with_runs:
            continue
        try:
            store = open_data(configs[agents[0]])
            check_simulator(configs[agents[0]], store)
        except GtpVisionError as error:
            get = task.get.replace("{data}", shlex.quote(str(data)))
            result.missing.append(f"{task.name} is left out: {error}" + (f"; get its data with: {get}" if get else ""))
            continue
        result.stores[task.name] = store
        for agent in agents:
            folder = out / folder_name(task.name) / agent
            result.jobs += _jobs(suite, folder, task.name, agent, settings[agent], configs[agent], store)
    return result


def records(suite: Suite, out: Path) -> list[Record]:
    """Scores of the runs in a folder so far, in the order of the suite.

    Raises:
        GtpVisionError: evaluations that cannot be read, or returns for which D4RL has no reference.
    """
    result = []
    for task, label, seed in itertools.product(suite.tasks, suite.agents, range(suite.seeds)):
        folder = _run_of(out / folder_name(task.name) / trained_as(label), seed)
        if folder and (record := record_of(suite, task, label, seed, folder)):
            result.append(record)
    return result


def record_of(suite: Suite, task: SuiteTask, label: str, seed: int, folder: Path) -> Record | None:
    """The scores of one run up to the suite's steps; None if it has not been evaluated. Raises GtpVisionError."""
    evaluations = [found for found in _evaluations(folder) if found["step"] <= suite.steps]
    if not evaluations:
        return None
    steps = tuple(evaluation["step"] for evaluation in evaluations)
    scores = tuple(_score(suite, task, _of_label(evaluation, label)) for evaluation in evaluations)
    beside = len(_seeds_in(folder.parent)) or 1  # seeds of one process share its seconds
    is_timed = all("train_seconds" in found for found in evaluations)
    seconds = tuple(found["train_seconds"] / beside for found in evaluations) if is_timed else ()
    return Record(task.name, label, seed, steps, scores, steps[-1] < suite.steps, seconds)


def settings_for(suite: Suite, task: SuiteTask, agent: str, data: Path) -> tuple[str, ...]:
    """The settings of an agent's runs on a task, as `gtp-vision train` takes them; later ones override earlier ones."""
    settings = [
        *("task=own", quoted("task.name", task.name), *settings_of(agent)),
        *("training.videos=0", "training.probe_rows=0", "training.keep_checkpoints=2"),
        "task.validation=0",  # published numbers are of all episodes
        *suite.settings,
        *suite.agent_settings.get(agent, ()),
        *task.settings,
        *task.agent_settings.get(agent, ()),
        *(f"training.steps={suite.steps}", f"training.eval_every={suite.eval_every}"),
        f"training.eval_episodes={suite.episodes}",
        *([f"training.eval_candidates=[{BEST_OF}]"] if agent in suite.best_of else []),
        *(["training.eval_acting=[beam]"] if agent in suite.beam else []),
    ]
    values = {"{data}": str(data), "{name}": task.name, "{d4rl}": Path(d4rl_files().get(task.name, "")).name}

    def filled(setting: str) -> str:
        key, _, value = setting.partition("=")
        whole = re.sub(r"\{data\}|\{name\}|\{d4rl\}", lambda match: values[match[0]], value)
        return quoted(key, whole) if value.startswith("{data}") else f"{key}={whole}"

    return tuple(map(filled, settings))


def _jobs(
    suite: Suite, folder: Path, task: str, agent: str, settings: Sequence[str], config: Config, store: Store
) -> Iterator[PlannedRun]:
    # A run that was killed before its first step has left a folder without a configuration, which does not count.
    begun = {path: tuple(_seeds_in(path)) for path in folder.glob("seed*") if (path / "config.yaml").exists()}
    existing = {seed for seeds in begun.values() for seed in seeds}
    for path, seeds in sorted(begun.items(), key=lambda item: min(item[1], default=0)):
        if set(seeds) & set(range(suite.seeds)):
            yield _job(task, agent, seeds, path, settings, config)
    new = tuple(seed for seed in range(suite.seeds) if seed not in existing)
    if len(new) > 1 and _can_share(config, store) and new == tuple(range(new[0], new[-1] + 1)):
        yield _job(task, agent, new, folder / f"seeds_{new[0]}-{new[-1]}", settings, config)
        return
    for seed in new:
        yield _job(task, agent, (seed,), folder / f"seed_{seed}", settings, config)


def _job(
    task: str, agent: str, seeds: tuple[int, ...], path: Path, settings: Sequence[str], config: Config
) -> PlannedRun:
    training = replace(config.training, seeds=len(seeds))
    config = replace(config, seed=seeds[0], run_dir=str(path), training=training)
    newest = [checkpoint.newest(run / "checkpoints") for run in folders(config)]
    steps = min(int(path.name.removeprefix("step_")) if path else 0 for path in newest)
    is_finished = all((run / "results.json").exists() for run in folders(config))
    settings = (*settings, f"seed={seeds[0]}", f"training.seeds={len(seeds)}")
    done = 1.0 if is_finished else min(0.999, steps / training.steps)
    return PlannedRun(task, agent, seeds, path, settings, config, done)


def _can_share(config: Config, store: Store) -> bool:
    try:
        check_seeds(replace(config, training=replace(config.training, seeds=2)), store, 1)
    except GtpVisionError:
        return False
    return True


def _seeds_in(path: Path) -> range:
    """The seeds of a run folder, by its name; none for other folders and logs."""
    first, _, last = path.name.removeprefix("seeds_").removeprefix("seed_").partition("-")
    if not path.is_dir() or not first.isdigit() or not (last or first).isdigit():
        return range(0)
    return range(int(first), int(last or first) + 1)


def _run_of(folder: Path, seed: int) -> Path | None:
    for path in folder.glob("seed*"):
        if seed in _seeds_in(path) and (path / "config.yaml").exists():
            return path if path.name == f"seed_{seed}" else path / f"seed_{seed}"
    return None


def _evaluations(folder: Path) -> list[dict]:
    path = folder / "evaluations.json"
    try:
        found = list(json.loads(path.read_text()))
        if not all({"step", "success", "return"} <= evaluation.keys() for evaluation in found):
            raise ValueError("an evaluation lacks its step, success or return")
        return found
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, AttributeError) as error:
        raise GtpVisionError(f"{path} is damaged ({error}); remove the run folder and run the suite again") from error


def _of_label(evaluation: Mapping, label: str) -> Mapping:
    if label == trained_as(label):
        return evaluation
    kind, name = ("candidates", str(BEST_OF)) if label.endswith("+n") else ("acting", "beam")
    if name not in evaluation.get(kind, {}):
        raise GtpVisionError(f"the runs of {trained_as(label)} were not evaluated with {kind}={name}; omit {label}")
    return dict(evaluation[kind][name])


def _score(suite: Suite, task: SuiteTask, evaluation: Mapping) -> float:
    score = task.score or suite.score
    if score == "success":
        return math.nan if evaluation["success"] is None else 100.0 * evaluation["success"]
    value = float(evaluation["return"])
    return value if score == "return" else normalised(task.reference or task.name, value)


def folder_name(name: str) -> str:
    """The folder of a task."""
    return name.replace("/", "-")
