from pathlib import Path

import pytest

from gtp_vision.config.compose import from_command_line
from gtp_vision.config.presets import options
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites.plan import settings_for
from gtp_vision.suites.suite import load, settings_of, trained_as

SMALL = """
title: small
steps: 10
eval_every: 5
episodes: 2
agents: [gtp, gtp+n]
tasks: [{name: one, settings: [task.dataset=x.h5]}]
"""


def write(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


@pytest.mark.parametrize("name", options("suite"))
def test_every_run_of_every_suite_is_a_configuration(name: str) -> None:
    suite = load(name)
    for task in suite.tasks[:: max(1, len(suite.tasks) // 3)]:
        for agent in dict.fromkeys(trained_as(label) for label in suite.agents):
            settings = settings_for(suite, task, agent, Path("/data"))
            config = from_command_line([*settings, "run_dir=unused"])
            assert config.task.name == task.name
            assert config.training.steps == suite.steps
            assert "{" not in "".join(settings)


def test_published_settings_reach_the_runs() -> None:
    suite = load("ogbench-state")
    task = next(task for task in suite.tasks if task.name == "puzzle-4x4-play-singletask-task3")
    config = from_command_line([*settings_for(suite, task, "fql", Path("/data")), "run_dir=unused"])
    assert config.agent.improvement.distill_weight == 1000
    assert config.task.env == "puzzle-4x4-play-singletask-task3-v0"
    suite = load("d4rl-antmaze-v0")
    settings = settings_for(suite, suite.tasks[0], "diffusion_ql", Path("/d [1], ü"))
    config = from_command_line([*settings, "run_dir=unused"])
    assert (config.task.reward_shift, config.task.reward_scale) == (-0.5, 4.0)
    assert config.agent.improvement.q_weight == 0.5
    assert config.task.dataset == "/d [1], ü/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5"


def test_some_agents_and_tasks_can_be_chosen() -> None:
    suite = load("d4rl-gym").chosen(agents=["gtp-bc", "iql"], tasks=["hopper-medium-v2"])
    assert (suite.agents, [task.name for task in suite.tasks]) == (["gtp_bc", "iql"], ["hopper-medium-v2"])
    with pytest.raises(GtpVisionError, match="no task 'hopper-v2'"):
        load("d4rl-gym").chosen(agents=[], tasks=["hopper-v2"])


def test_a_file_of_the_user_is_a_suite(tmp_path: Path) -> None:
    suite = load(write(tmp_path, SMALL))
    assert (suite.steps, suite.agents, suite.best_of) == (10, ["gtp", "gtp+n"], ["gtp"])
    assert suite.tasks[0].settings == ["task.dataset=x.h5"]
    chosen = suite.chosen(agents=["gtp+q+b"], tasks=[])
    assert (chosen.agents, chosen.beam, trained_as("gtp+q+b")) == (["gtp+q+b"], ["gtp+q"], "gtp+q")
    (task,) = suite.tasks
    for agent, is_beam in (("gtp", False), ("gtp+q", True)):
        assert ("training.eval_acting=[beam]" in settings_for(chosen, task, agent, tmp_path)) == is_beam


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("steps: 10", "steps: 0"), "steps=0 must be at least 1"),
        (("steps: 10", "stepz: 10"), "is not a suite: Key 'stepz' not in 'Suite'"),
        (("steps: 10", "steps: many"), "is not a suite"),
        (("title: small", "selection: first"), "selection=first is unknown"),
        (("title: small", "score: points"), "score=points is unknown"),
        (("name: one", "name: ''"), "unique names"),
        (("title: small", "score: d4rl"), "'one' has no reference returns for score=d4rl"),
        (("title: small", "title: ["), "is not a suite"),
    ],
)
def test_an_invalid_suite_is_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    with pytest.raises(GtpVisionError) as error:
        load(write(tmp_path, SMALL.replace(*change)))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_suites_and_agents_are_refused(tmp_path: Path) -> None:
    for label, message in (("gpt", "did you mean 'gtp'"), ("gtp+z", r"'\+z' in 'gtp\+z'")):
        with pytest.raises(GtpVisionError, match=message):
            settings_of(label)
    with pytest.raises(GtpVisionError, match="did you mean 'd4rl-gym'"):
        load("d4rl-gyms")
    with pytest.raises(GtpVisionError, match="cannot be read"):
        load(str(tmp_path / "none.yaml"))
