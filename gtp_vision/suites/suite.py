"""A suite as it is written down: tasks, settings, and the protocol that makes its numbers comparable.

configs/suite/NAME.yaml, or a file of one's own -> Suite
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gtp_vision.agents import AGENTS, IMPROVEMENTS
from gtp_vision.config.schema import options
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs.scores import has_reference
from gtp_vision.suites.records import SELECTIONS

BEST_OF = 32  # candidates of `+n`
SCORES = ("success", "return", "d4rl")


@dataclass
class SuiteTask:
    """One task of a suite.

    Attributes:
        name: as published.
        settings: of its runs, as `gtp-vision train` takes them.
        agent_settings: by agent, after the suite's own.
        score: what counts; empty is the suite's.
        get: the command that gets or makes its data.
        reference: D4RL's name whose reference returns normalise the score; empty is the task's name.
        each: words that `{each}` stands for in turn, in all of the above: a task for each.
    """

    name: str = ""
    settings: list[str] = field(default_factory=list)
    agent_settings: dict[str, list[str]] = field(default_factory=dict)
    score: str = ""
    get: str = ""
    reference: str = ""
    each: list[str] = field(default_factory=list)


@dataclass
class Suite:
    """Tasks under one protocol.

    Attributes:
        title: of its tables.
        protocol: sentences that a reader of its numbers must know.
        data: folder of its data sets, for which `{data}` stands in settings and commands.
        selection: which evaluation of a run counts, see `records.SELECTIONS`.
        score: success (percent of episodes), return, or d4rl (normalised return).
        steps: gradient steps of a run.
        eval_every: steps between two evaluations.
        episodes: of each evaluation.
        seeds: how many, from 0 on.
        agents: labels, `gtp+n` for the best of 32 actions of `gtp` by Q.
        best_of: whose runs are evaluated with 32 candidates, too: all that the file or the command names with `+n`, so
            that asking for fewer agents asks for the same runs.
        settings: of all runs.
        agent_settings: by agent.
        tasks: see `SuiteTask`.
    """

    title: str = ""
    protocol: list[str] = field(default_factory=list)
    data: str = "data"
    selection: str = "last"
    score: str = "success"
    steps: int = 0
    eval_every: int = 0
    episodes: int = 0
    seeds: int = 1
    agents: list[str] = field(default_factory=list)
    best_of: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    agent_settings: dict[str, list[str]] = field(default_factory=dict)
    tasks: list[SuiteTask] = field(default_factory=list)

    def chosen(self, *, agents: list[str], tasks: list[str]) -> Suite:
        """The suite with some of its agents and tasks; all, where none are named.

        Raises:
            GtpVisionError: there is no such agent or task.
        """
        known = [task.name for task in self.tasks]
        for name in tasks:
            if name not in known:
                raise GtpVisionError(f"the suite has no task '{name}': {propose(name, known)}")
        labels = [label.replace("-bc", "_bc") for label in agents or self.agents]
        for label in labels:
            settings_of(label)
        best_of = [*self.best_of, *(trained_as(label) for label in [*self.agents, *labels] if label.endswith("+n"))]
        return replace(
            self,
            agents=list(dict.fromkeys(labels)),
            best_of=list(dict.fromkeys(best_of)),
            tasks=[task for task in self.tasks if not tasks or task.name in tasks],
        )


def load(name: str) -> Suite:
    """A suite by its name, or from a YAML file.

    Raises:
        GtpVisionError: there is none, or it is no suite.
    """
    if name.endswith((".yaml", ".yml")):
        text, where = _read(Path(name)), name
    else:
        if name not in options("benchmark"):
            raise GtpVisionError(f"there is no suite '{name}': {propose(name, options('benchmark'))}")
        where = f"configs/suite/{name}.yaml"
        text = files("gtp_vision.configs").joinpath(f"suite/{name}.yaml").read_text()
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), OmegaConf.create(text)))
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise GtpVisionError(f"{where} is no suite: {str(error).splitlines()[0]}; compare it with d4rl-gym") from error
    assert isinstance(found, Suite)
    found.tasks = [one for task in found.tasks for one in _each(task)]
    for fault in _faults(found):
        raise GtpVisionError(f"{where}: {fault}")
    return found.chosen(agents=[], tasks=[])


def settings_of(label: str) -> tuple[str, ...]:
    """The settings that a label stands for, without what `+n` means: `gtp+q` is agent=gtp improvement=q_gradient.

    Raises:
        GtpVisionError: no such agent, or no such mark.
    """
    name, *marks = label.split("+")
    if name not in AGENTS:
        raise GtpVisionError(f"there is no agent '{name}' (of '{label}'): {propose(name, AGENTS)}")
    settings = [f"agent={name}"]
    improvements = {improvement.label_suffix: name for name, improvement in IMPROVEMENTS.items()}
    for mark in marks:
        if mark in improvements:
            settings.append(f"improvement={improvements[mark]}")
        elif mark != "n":
            raise GtpVisionError(f"'+{mark}' of '{label}' is unknown: {propose(mark, [*improvements, 'n'])}")
    return tuple(settings)


def trained_as(label: str) -> str:
    """The label of the run that a label's numbers come from: `gtp+n` is an evaluation of `gtp`."""
    return label.removesuffix("+n")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise GtpVisionError(f"the suite {path} cannot be read ({error}); check the path") from error


def _each(task: SuiteTask) -> list[SuiteTask]:
    """The tasks that one with `each` stands for."""
    if not task.each:
        return [task]

    def put(text: str, word: str) -> str:
        return text.replace("{each}", word)

    return [
        SuiteTask(
            put(task.name, word),
            [put(setting, word) for setting in task.settings],
            {agent: [put(setting, word) for setting in own] for agent, own in task.agent_settings.items()},
            task.score,
            put(task.get, word),
            put(task.reference, word),
        )
        for word in task.each
    ]


def _faults(suite: Suite) -> list[str]:
    faults = [
        f"{name}={value} must be at least 1"
        for name in ("steps", "eval_every", "episodes", "seeds")
        if (value := getattr(suite, name)) < 1
    ]
    if suite.selection not in SELECTIONS:
        faults.append(f"selection={suite.selection} is unknown: {propose(suite.selection, SELECTIONS)}")
    for score in [suite.score, *(task.score for task in suite.tasks if task.score)]:
        if score not in SCORES:
            faults.append(f"score={score} is unknown: {propose(score, SCORES)}")
    for task in suite.tasks:
        if (task.score or suite.score) == "d4rl" and not has_reference(task.reference or task.name):
            faults.append(
                f"'{task.reference or task.name}' has no reference returns for score=d4rl; set the task's score to "
                f"return, or its reference to a name of D4RL's"
            )
    names = [task.name for task in suite.tasks]
    if not names or not all(names) or len(set(names)) < len(names):
        faults.append("tasks must be some, with a name each that no other has")
    return faults
