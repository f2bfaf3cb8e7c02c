"""Published settings, configs/tuned/: every file composes with its agent, says what it sets, and sets nothing twice."""

from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from gtp_vision.agents import AGENTS
from gtp_vision.config.schema import Config, from_command_line, from_run, options, to_yaml
from gtp_vision.core.errors import GtpVisionError

ROOT = Path(__file__).resolve().parents[2]
TUNED = [option for option in options("tuned") if option != "none"]
GYM = [f"{body}-{data}" for body in ("halfcheetah", "hopper", "walker2d") for data in ("medium", "medium-replay")]
GYM += [f"{body}-medium-expert" for body in ("halfcheetah", "hopper", "walker2d")]
MAZES = ["umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"]
STATES = ["antmaze-large-navigate", "antmaze-giant-navigate", "humanoidmaze-medium-navigate"]
STATES += ["humanoidmaze-large-navigate", "antsoccer-arena-navigate", "cube-single-play", "cube-double-play"]
STATES += ["scene-play", "puzzle-3x3-play", "puzzle-4x4-play"]
PIXELS = [f"visual-{env}-play" for env in ("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4")]


@cache
def composed(agent: str, tuned: str = "none", *overrides: str) -> Config:
    """An agent with published settings, on data of one's own."""
    return from_command_line(["task=own", "task.dataset=x", f"agent={agent}", f"tuned={tuned}", *overrides])


def written(option: str) -> tuple[dict[str, Any], str]:
    """Every setting in the option's file, and the option that the file starts from."""
    content = yaml.safe_load((ROOT / "configs/tuned" / f"{option}.yaml").read_text())
    base = next((name for name in content.pop("defaults", []) if name != "_self_"), "none")

    def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in node.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    return flat(content), base


def refusal(*overrides: str) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(GtpVisionError) as told:
        from_command_line(["task=own", "task.dataset=x", *overrides])
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("option", TUNED)
def test_every_file_composes_with_its_agent_and_says_nothing_that_holds_already(option: str) -> None:
    agent = option.partition("/")[0]
    settings, base = written(option)
    made, before = composed(agent, option), composed(agent, base)
    assert agent in AGENTS
    assert made.agent.name == agent
    assert settings["tuned"] == option
    assert len(settings) > 1, "it tunes nothing"
    for key, value in settings.items():
        assert attrgetter(key)(made) == value, key
        assert attrgetter(key)(before) != value, f"{key} is {value} already"


@pytest.mark.parametrize("option", TUNED)
def test_every_file_names_its_source(option: str) -> None:
    package, *head = (ROOT / "configs/tuned" / f"{option}.yaml").read_text().splitlines()
    comment = " ".join(line for line in head if line.startswith("# "))
    assert package == "# @package _global_"
    assert "github.com/" in comment or "FQL's paper" in comment


def test_every_published_task_has_a_file() -> None:
    d4rl = [*GYM, *(f"antmaze-{maze}" for maze in MAZES)]
    assert len(d4rl) == 15
    wanted = {f"{agent}/{task}" for agent in ("diffusion_ql", "consistency_ac") for task in d4rl}
    wanted |= {f"fql/{task}" for task in [*STATES, *PIXELS, *(f"antmaze-{maze}" for maze in MAZES)]}
    wanted |= {f"ifql/{task}" for task in STATES}
    for agent in ("iql", "rebrac"):
        published = {*STATES, "visual-cube-single-play"} - {"antsoccer-arena-navigate"}
        wanted |= {f"{agent}/{task}" for task in [*published, "ogbench"]}
    assert wanted == set(TUNED)


# The numbers, from the tables again ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rate", "eta", "max_q", "steps", "clip"),
    [
        ("hopper-medium", 3e-4, 1, False, 2_000_000, 9),
        ("walker2d-medium", 3e-4, 1, False, 2_000_000, 1),
        ("hopper-medium-replay", 3e-4, 1, False, 2_000_000, 4),
        ("halfcheetah-medium-replay", 3e-4, 1, False, 2_000_000, 2),
        ("halfcheetah-medium-expert", 3e-4, 1, False, 2_000_000, 7),
        ("antmaze-umaze", 3e-4, 0.5, False, 1_000_000, 2),
        ("antmaze-medium-play", 1e-3, 2, True, 1_000_000, 2),
        ("antmaze-large-play", 3e-4, 4.5, True, 1_000_000, 10),
        ("antmaze-large-diverse", 3e-4, 3.5, True, 1_000_000, 7),
    ],
)
def test_diffusion_ql_has_the_published_numbers(
    task: str, rate: float, eta: float, max_q: bool, steps: int, clip: float
) -> None:
    made = composed("diffusion_ql", f"diffusion_ql/{task}")
    training, agent = made.training, made.agent
    assert (training.learning_rate, training.schedule, training.batch_size) == (rate, "cosine", 256)
    assert (training.steps, training.clip_gradient) == (steps, clip)
    assert (agent.critic.backup, agent.critic.next_actions) == (("max", 10) if max_q else ("mean", 1))
    assert (agent.improvement.q_weight, made.task.discount) == (eta, 0.99)
    maze = task.startswith("antmaze")
    assert [(r + made.task.reward_shift) * made.task.reward_scale for r in (0, 1)] == ([-2, 2] if maze else [0, 1])


@pytest.mark.parametrize(
    ("task", "rate", "eta", "steps", "max_q", "clip"),
    [
        ("hopper-medium", 3e-4, 0.1, 2, False, 9),
        ("walker2d-medium", 3e-4, 1, 5, False, 1),
        ("walker2d-medium-replay", 3e-4, 0.1, 5, False, 4),
        ("walker2d-medium-expert", 3e-4, 1, 2, False, 5),
        ("antmaze-umaze", 3e-4, 0.01, 2, False, 2),
        ("antmaze-medium-play", 1e-3, 0.01, 2, True, 2),
        ("antmaze-large-diverse", 3e-4, 3.5, 2, True, 2),
    ],
)
def test_consistency_ac_has_the_published_numbers(
    task: str, rate: float, eta: float, steps: int, max_q: bool, clip: float
) -> None:
    made = composed("consistency_ac", f"consistency_ac/{task}")
    agent = made.agent
    assert (made.training.learning_rate, made.training.clip_gradient) == (rate, clip)
    assert agent.improvement.q_weight == eta
    assert agent.acting.steps == agent.critic.next_steps == agent.improvement.q_steps == steps
    assert agent.critic.backup == ("max" if max_q else "mean")


@pytest.mark.parametrize(
    ("task", "alpha", "aggregate", "discount", "steps", "shift"),
    [
        ("antmaze-large-navigate", 10, "min", 0.99, 1_000_000, 0),
        ("antmaze-giant-navigate", 10, "min", 0.995, 1_000_000, 0),
        ("humanoidmaze-large-navigate", 30, "mean", 0.995, 1_000_000, 0),
        ("antsoccer-arena-navigate", 10, "mean", 0.995, 1_000_000, 0),
        ("cube-double-play", 300, "mean", 0.99, 1_000_000, 0),
        ("puzzle-4x4-play", 1000, "mean", 0.99, 1_000_000, 0),
        ("antmaze-umaze", 10, "mean", 0.99, 500_000, -1),
        ("antmaze-large-play", 3, "mean", 0.99, 500_000, -1),
        ("visual-cube-single-play", 300, "mean", 0.99, 500_000, 0),
        ("visual-scene-play", 100, "mean", 0.99, 500_000, 0),
    ],
)
def test_fql_has_the_published_numbers(
    task: str, alpha: float, aggregate: str, discount: float, steps: int, shift: float
) -> None:
    made = composed("fql", f"fql/{task}")
    assert (made.agent.improvement.distill_weight, made.agent.critic.aggregate) == (alpha, aggregate)
    assert (made.task.discount, made.training.steps, made.task.reward_shift) == (discount, steps, shift)
    assert made.task.frame_stack == (3 if task.startswith("visual") else 1)


def test_fqls_baselines_have_the_published_numbers() -> None:
    assert {
        composed("ifql", f"ifql/{task}").agent.acting.candidates for task in ("scene-play", "cube-single-play")
    } == {32}
    alphas = {"antmaze-giant-navigate": 10, "cube-single-play": 1, "cube-double-play": 0.3, "puzzle-4x4-play": 3}
    for task, alpha in alphas.items():
        agent = composed("iql", f"iql/{task}").agent
        assert (agent.improvement.eta, agent.critic.expectile) == (alpha, 0.9)
        assert agent.policy.hidden == agent.critic.hidden == [512] * 4
    pairs = {"antmaze-large-navigate": (0.003, 0.01), "humanoidmaze-medium-navigate": (0.01, 0.01)}
    pairs |= {"cube-single-play": (1, 0), "scene-play": (0.1, 0.01), "puzzle-3x3-play": (0.3, 0.01)}
    for task, pair in pairs.items():
        agent = composed("rebrac", f"rebrac/{task}").agent
        assert (agent.improvement.bc_weight, agent.critic.next_penalty) == pair
        assert agent.policy.activation == agent.critic.activation == "gelu"


# Beside other choices --------------------------------------------------------------------------------------------


def test_published_settings_outrank_the_task_and_the_command_line_outranks_them() -> None:
    task = "task=ogbench/pointmaze-medium-navigate-singletask-task1"
    made = from_command_line([task, "agent=fql", "tuned=fql/antmaze-giant-navigate", "training.steps=7"])
    assert (made.task.discount, made.training.steps) == (0.995, 7)


@pytest.mark.parametrize("agent", ["iql", "gtp", "consistency_ac", "diffusion_bc"])
def test_settings_of_another_agent_are_refused_with_both_mends(agent: str) -> None:
    told = refusal(f"agent={agent}", "tuned=diffusion_ql/antmaze-large-play")
    assert all(word in told for word in (agent, "set agent=diffusion_ql", "tuned=none")), told


def test_settings_that_were_not_published_are_refused_with_the_nearest() -> None:
    assert "'fql/scene-play'" in refusal("agent=fql", "tuned=fql/scene-ply")


def test_a_run_remembers_which_settings_it_took(tmp_path: Path) -> None:
    made = composed("iql", "iql/scene-play", "run_dir=x")
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert from_run(tmp_path) == made
    assert from_run(tmp_path).tuned == "iql/scene-play"
