"""Definition of a suite: tasks, settings, and the protocol that makes its numbers comparable.

configs/suite/NAME.yaml, or a file of the user -> Suite
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gtp_vision.agents import AGENTS, IMPROVEMENTS
from gtp_vision.config.presets import options
from gtp_vision.core.errors import GtpVisionError, first_line, propose
from gtp_vision.envs.scores import has_reference
from gtp_vision.suites.records import SELECTIONS

BEST_OF = 32  # candidates of `+n`
SCORES = ("success", "return", "d4rl")


@dataclass
class SuiteTask:
    """One task of a suite."""

    name: str = ""  # as published
    settings: list[str] = field(default_factory=list)  # of its runs, as `gtp-vision train` takes them
    agent_settings: dict[str, list[str]] = field(default_factory=dict)  # by agent, after the suite's own
    score: str = ""  # empty is the suite's
    get: str = ""  # the command that downloads or makes its data
    reference: str = ""  # D4RL's name whose reference returns normalise the score; empty is the task's name
    # words that replace `{each}` in all of the above: a task for each
    each: list[str] = field(default_factory=list)


@dataclass
class Suite:
    """Tasks under one protocol."""

    title: str = ""  # of its tables
    protocol: list[str] = field(default_factory=list)  # sentences that a reader of its numbers must know
    data: str = "data"  # folder of its data sets, for which `{data}` stands in settings and commands
    selection: str = "last"  # which evaluation of a run counts, see `records.SELECTIONS`
    score: str = "success"  # success (percent of episodes), return, or d4rl (normalised return)
    reach: float = 50.0  # the score until which training is timed
    steps: int = 0  # gradient steps of a run
    eval_every: int = 0  # steps between two evaluations
    episodes: int = 0  # of each evaluation
    seeds: int = 1  # number, from 0
    agents: list[str] = field(default_factory=list)  # labels, `gtp+n` for the best of 32 actions of `gtp` by Q
    # agents whose runs are also evaluated with 32 candidates: all that the file or the command names with `+n`, so that
    # fewer agents on the command line mean the same runs
    best_of: list[str] = field(default_factory=list)
    beam: list[str] = field(default_factory=list)  # the same of `+b`, evaluated by beam search (acting=beam)
    settings: list[str] = field(default_factory=list)  # of all runs
    agent_settings: dict[str, list[str]] = field(default_factory=dict)  # by agent
    tasks: list[SuiteTask] = field(default_factory=list)  # see `SuiteTask`

    def chosen(self, *, agents: list[str], tasks: list[str]) -> Suite:
        """The suite with some of its agents and tasks; an empty list means all.

        Raises:
            GtpVisionError: unknown agent or task.
        """
        known = [task.name for task in self.tasks]
        for name in tasks:
            if name not in known:
                raise GtpVisionError(f"the suite has no task '{name}': {propose(name, known)}")
        labels = [label.replace("-bc", "_bc") for label in agents or self.agents]
        for label in labels:
            settings_of(label)
        named = [*self.agents, *labels]
        best_of = [*self.best_of, *(trained_as(label) for label in named if label.endswith("+n"))]
        beam = [*self.beam, *(trained_as(label) for label in named if label.endswith("+b"))]
        return replace(
            self,
            agents=list(dict.fromkeys(labels)),
            best_of=list(dict.fromkeys(best_of)),
            beam=list(dict.fromkeys(beam)),
            tasks=[task for task in self.tasks if not tasks or task.name in tasks],
        )


def load(name: str) -> Suite:
    """Load a suite by its name, or from a YAML file. Raises GtpVisionError: it does not exist, or is invalid."""
    if name.endswith((".yaml", ".yml")):
        text, where = _read(Path(name)), name
    else:
        if name not in options("suite"):
            raise GtpVisionError(f"unknown suite '{name}': {propose(name, options('suite'))}")
        where = f"configs/suite/{name}.yaml"
        text = files("gtp_vision.configs").joinpath(f"suite/{name}.yaml").read_text()
    try:
        suite = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), OmegaConf.create(text)))
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise GtpVisionError(f"{where} is not a suite: {first_line(error)}; compare it with d4rl-gym") from error
    assert isinstance(suite, Suite)
    suite.tasks = [member for task in suite.tasks for member in _expand(task)]
    for problem in _errors(suite):
        raise GtpVisionError(f"{where}: {problem}")
    return suite.chosen(agents=[], tasks=[])


def settings_of(label: str) -> tuple[str, ...]:
    """The settings of a label but for `+n` and `+b`, e.g. agent=gtp improvement=q_gradient of `gtp+q`.

    Raises:
        GtpVisionError: unknown agent or mark.
    """
    name, *marks = label.split("+")
    if name not in AGENTS:
        raise GtpVisionError(f"unknown agent '{name}' in '{label}': {propose(name, AGENTS)}")
    settings = [f"agent={name}"]
    improvements = {improvement.label_suffix: name for name, improvement in IMPROVEMENTS.items()}
    for mark in marks:
        if mark in improvements:
            settings.append(f"improvement={improvements[mark]}")
        elif mark not in ("n", "b"):
            raise GtpVisionError(f"unknown mark '+{mark}' in '{label}': {propose(mark, [*improvements, 'n', 'b'])}")
    return tuple(settings)


def trained_as(label: str) -> str:
    """The label of the trained run: `gtp+n` and `gtp+b` are evaluations of `gtp`."""
    return label.removesuffix("+n").removesuffix("+b")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise GtpVisionError(f"the suite {path} cannot be read ({error}); check the path") from error


def _expand(task: SuiteTask) -> list[SuiteTask]:
    """A task for each word of `each`."""
    if not task.each:
        return [task]

    def fill(value: Any, word: str) -> Any:
        if isinstance(value, dict):
            return {key: fill(item, word) for key, item in value.items()}
        return [fill(item, word) for item in value] if isinstance(value, list) else value.replace("{each}", word)

    settings = {name: value for name, value in vars(task).items() if name != "each"}
    return [SuiteTask(**fill(settings, word)) for word in task.each]


def _errors(suite: Suite) -> list[str]:
    errors = [
        f"{name}={value} must be at least 1"
        for name in ("steps", "eval_every", "episodes", "seeds")
        if (value := getattr(suite, name)) < 1
    ]
    if suite.selection not in SELECTIONS:
        errors.append(f"selection={suite.selection} is unknown: {propose(suite.selection, SELECTIONS)}")
    for score in [suite.score, *(task.score for task in suite.tasks if task.score)]:
        if score not in SCORES:
            errors.append(f"score={score} is unknown: {propose(score, SCORES)}")
    for task in suite.tasks:
        if (task.score or suite.score) == "d4rl" and not has_reference(task.reference or task.name):
            errors.append(
                f"'{task.reference or task.name}' has no reference returns for score=d4rl; set the task's score to "
                f"return, or its reference to a name of D4RL's"
            )
    names = [task.name for task in suite.tasks]
    if not names or not all(names) or len(set(names)) < len(names):
        errors.append("the suite needs tasks with unique names")
    return errors
