"""From a suite to the runs that are still to be trained, and what they will cost.

OUT/TASK/AGENT/seeds_0-3/seed_0   seeds that are trained side by side
OUT/TASK/AGENT/seed_0             a seed on its own
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gtp_vision.config.schema import Config, from_command_line
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
    """One training: a task, an agent, and seeds that share a process.

    Attributes:
        task: its name.
        agent: the label that is trained.
        seeds: which.
        folder: of the run.
        settings: as `gtp-vision train` takes them.
        config: what they come to.
        done: share of its steps that have been taken.
    """

    task: str
    agent: str
    seeds: tuple[int, ...]
    folder: Path
    settings: tuple[str, ...]
    config: Config
    done: float


@dataclass
class Plan:
    """What a suite comes to.

    Attributes:
        jobs: in the order in which they are run, the finished ones too.
        missing: a sentence for each task that cannot be run here.
        stores: the data sets of the tasks, by name.
    """

    jobs: list[PlannedRun] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    stores: dict[str, Store] = field(default_factory=dict)


def plan(suite: Suite, out: Path, data: Path) -> Plan:
    """The jobs of a suite: every task with every agent, and seeds that have no run yet together where they can be.

    A task whose data or simulator is missing is left out, with a sentence.

    Raises:
        GtpVisionError: a setting is wrong.
    """
    found = Plan()
    agents = list(dict.fromkeys(trained_as(label) for label in suite.agents))
    for task in suite.tasks:
        given = {agent: settings_for(suite, task, agent, data) for agent in agents}
        configs = {agent: from_command_line([*settings, "run_dir=unused"]) for agent, settings in given.items()}
        try:
            store = open_data(configs[agents[0]])
            check_simulator(configs[agents[0]], store)
        except GtpVisionError as error:
            get = task.get.replace("{data}", str(data))
            found.missing.append(f"{task.name} is left out: {error}" + (f"; get its data with: {get}" if get else ""))
            continue
        found.stores[task.name] = store
        for agent in agents:
            found.jobs += _jobs(
                suite, out / _plain(task.name) / agent, task.name, agent, given[agent], configs[agent], store
            )
    return found


def records(suite: Suite, out: Path) -> list[Record]:
    """What the runs in a folder have scored so far, in the order of the suite.

    Raises:
        GtpVisionError: evaluations that cannot be read, or returns that D4RL has no reference for.
    """
    told = []
    for task, label, seed in itertools.product(suite.tasks, suite.agents, range(suite.seeds)):
        folder = _run_of(out / _plain(task.name) / trained_as(label), seed)
        evaluations = _evaluations(folder) if folder else []
        if evaluations:
            chosen = [_chosen(evaluation, label) for evaluation in evaluations]
            told.append(
                Record(
                    task.name,
                    label,
                    seed,
                    tuple(evaluation["step"] for evaluation in evaluations),
                    tuple(_score(suite, task, found) for found in chosen),
                    unfinished=evaluations[-1]["step"] < suite.steps,
                )
            )
    return told


def settings_for(suite: Suite, task: SuiteTask, agent: str, data: Path) -> tuple[str, ...]:
    """What the runs of an agent on a task are told, as `gtp-vision train` takes it; what comes later wins."""
    every = [
        *("task=own", f"task.name={task.name}", *settings_of(agent)),
        *("training.videos=0", "training.probe_rows=0", "training.keep_checkpoints=2"),
        *suite.settings,
        *suite.agent_settings.get(agent, ()),
        *task.settings,
        *task.agent_settings.get(agent, ()),
        *(f"training.steps={suite.steps}", f"training.eval_every={suite.eval_every}"),
        f"training.eval_episodes={suite.episodes}",
        *([f"training.eval_candidates=[{BEST_OF}]"] if agent in suite.best_of else []),
    ]
    put = {"{data}": str(data), "{name}": task.name, "{d4rl}": Path(d4rl_files().get(task.name, "")).name}
    return tuple(_filled(setting, put) for setting in every)


def _filled(text: str, put: Mapping[str, str]) -> str:
    for mark, word in put.items():
        text = text.replace(mark, word)
    return text


def _jobs(
    suite: Suite, folder: Path, task: str, agent: str, settings: Sequence[str], config: Config, store: Store
) -> Iterator[PlannedRun]:
    # A folder without a configuration is one of a run that was killed before its first step: there is no such run.
    begun = {path: tuple(_seeds_in(path)) for path in folder.glob("seed*") if (path / "config.yaml").exists()}
    there = {seed for seeds in begun.values() for seed in seeds}
    for path, seeds in sorted(begun.items(), key=lambda item: min(item[1], default=0)):
        if set(seeds) & set(range(suite.seeds)):
            yield _job(task, agent, seeds, path, settings, config)
    new = tuple(seed for seed in range(suite.seeds) if seed not in there)
    if len(new) > 1 and _side_by_side(config, store) and new == tuple(range(new[0], new[-1] + 1)):
        yield _job(task, agent, new, folder / f"seeds_{new[0]}-{new[-1]}", settings, config)
        return
    for seed in new:
        yield _job(task, agent, (seed,), folder / f"seed_{seed}", settings, config)


def _job(
    task: str, agent: str, seeds: tuple[int, ...], path: Path, settings: Sequence[str], config: Config
) -> PlannedRun:
    training = replace(config.training, seeds=len(seeds))
    config = replace(config, seed=seeds[0], run_dir=str(path), training=training)
    newest = [checkpoint.newest(each / "checkpoints") for each in folders(config)]
    taken = [int(each.name.removeprefix("step_")) if each else 0 for each in newest]
    finished = all((each / "results.json").exists() for each in folders(config))
    every = (*settings, f"seed={seeds[0]}", f"training.seeds={len(seeds)}")
    return PlannedRun(
        task, agent, seeds, path, every, config, 1.0 if finished else min(0.999, min(taken) / training.steps)
    )


def _side_by_side(config: Config, store: Store) -> bool:
    try:
        check_seeds(replace(config, training=replace(config.training, seeds=2)), store, 1)
    except GtpVisionError:
        return False
    return True


def _seeds_in(path: Path) -> range:
    """The seeds of a run folder, by its name; none of other folders and of logs."""
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
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise GtpVisionError(f"{path} is damaged ({error}); remove the run folder and start the suite again") from error


def _chosen(evaluation: Mapping, label: str) -> Mapping:
    if not label.endswith("+n"):
        return evaluation
    if str(BEST_OF) not in evaluation.get("candidates", {}):
        raise GtpVisionError(
            f"the runs of {trained_as(label)} were not evaluated with {BEST_OF} candidates; leave out {label}"
        )
    return dict(evaluation["candidates"][str(BEST_OF)])


def _score(suite: Suite, task: SuiteTask, found: Mapping) -> float:
    how = task.score or suite.score
    if how == "success":
        return 100.0 * found["success"]
    return float(found["return"]) if how == "return" else normalised(task.reference or task.name, found["return"])


def _plain(name: str) -> str:
    return name.replace("/", "-")
