from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from gtp_vision.agents import AGENTS, IMPROVEMENTS, Recipe, label
from gtp_vision.config import compose, presets
from gtp_vision.config.compose import from_command_line, layers
from gtp_vision.config.presets import options
from gtp_vision.config.schema import Config
from gtp_vision.core.settings import settings_of
from gtp_vision.encoders import backbones
from gtp_vision.models import FAMILIES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.glob("*/**/*.yaml"))]
FILES = [file for file in FILES if not file.startswith(("suite/", "published/"))]  # lists of overrides, and tables
TUNED = [option for option in options("tuned") if option != "none"]


def with_option(group: str, option: str) -> list[str]:
    """The shortest command line with this option."""
    if group == "task":
        return [f"task={option}", *(["task.dataset=mine.h5"] if option == "own" else [])]
    if group == "tuned" and option != "none":
        return ["task=own", "task.dataset=x", f"agent={option.partition('/')[0]}", f"tuned={option}"]
    return ["task=demo", f"{group}={option}", *(["agent=bdm"] if option == "alignment" else [])]


@cache
def composed(agent: str, tuned: str = "none", *overrides: str) -> Config:
    """An agent with published settings, on data of one's own."""
    return from_command_line(["task=own", "task.dataset=x", f"agent={agent}", f"tuned={tuned}", *overrides])


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {key: value for name, inner in values.items() for key, value in flat(inner, f"{prefix}{name}.").items()}


def redundant(overrides: list[str], source: str) -> set[str]:
    """The settings of a preset that the layers below it hold already."""
    composed = layers(overrides)
    position = next(i for i, layer in enumerate(composed) if layer.source == source)
    below: dict[str, Any] = {}
    for layer in composed[:position]:
        below |= flat(layer.values)
    mine = flat(composed[position].values)
    if settings := IMPROVEMENTS.get(mine.get("agent.improvement.name", below.get("agent.improvement.name"))):
        defaults = {key: value for key, value, _ in settings_of(settings.Settings(), "agent.improvement.")}
        below = {**defaults, "agent.improvement.name": None} | below
    return {key for key, value in mine.items() if key in below and below[key] == value}


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_an_option_that_composes(file: str) -> None:
    group, _, option = file.removesuffix(".yaml").partition("/")
    assert option in options(group)
    if group != "family":
        made = from_command_line(with_option(group, option))
        assert made.run_dir == f"runs/{made.task.name}/{label(made.agent)}-{made.encoder.name.replace('/', '-')}-seed0"
        backbones.check_name(made.encoder.name)


@pytest.mark.parametrize("file", FILES)
def test_every_file_states_only_what_differs(file: str) -> None:
    group, _, option = file.removesuffix(".yaml").partition("/")
    if group == "family":
        agents = [name for name, recipe in AGENTS.items() if recipe.family == option]
        commands = [["task=demo", f"agent={name}"] for name in agents]
        commands = [command for command in commands if file in [layer.source for layer in layers(command)]]
    elif group in ("acting", "improvement"):  # they compose with every agent: what holds for one differs for another
        agents = ["gtp", "gtp_ql"] if option == "q_gradient" else ["gtp", "diffusion_ql"]
        agents += ["gtp_ql"] if group == "acting" else []  # the only one of these that acts without noise
        commands = [["task=demo", f"agent={name}", f"{group}={option}"] for name in agents]
    else:
        commands = [with_option(group, option)]
    assert not set.intersection(*(redundant(command, file) for command in commands))


def test_an_agent_without_a_file_inherits_the_preset_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("quick_ql", "a package of its own", "vp_diffusion", "mean", "q_gradient")
    monkeypatch.setitem(AGENTS._found, "quick_ql", recipe)
    monkeypatch.setattr(ConfigStore.instance(), "repo", ConfigStore.instance().repo | {})
    presets.register("agent")
    found, published = (from_command_line(["task=demo", f"agent={name}"]) for name in ("quick_ql", "diffusion_ql"))
    assert found.agent.name == "quick_ql"
    assert (found.agent.policy, found.agent.critic) == (published.agent.policy, published.agent.critic)
    assert found.agent.improvement == published.agent.improvement
    assert "agent/quick_ql (generated)" in [layer.source for layer in layers(["task=demo", "agent=quick_ql"])]


def test_an_agent_without_settings_has_the_networks_of_gtp() -> None:
    reference = from_command_line(["task=demo", "agent=gtp"]).agent
    assert reference.critic.next_steps == 1, "what GTP's preset states"
    assert (Config().agent.policy, Config().agent.critic) == (reference.policy, replace(reference.critic, next_steps=5))
    assert set(options("family")) == set(FAMILIES)


@pytest.mark.parametrize("option", TUNED)
def test_published_settings_name_themselves_and_their_source(option: str) -> None:
    made = from_command_line(with_option("tuned", option))
    assert (made.tuned, made.agent.name) == (option, option.partition("/")[0])
    table = f"published/{option.partition('/')[0]}.yaml"
    assert "github.com/" in (CONFIGS / table).read_text()
    assert not redundant(with_option("tuned", option), table)


DQL = ["training.learning_rate", "agent.improvement.q_weight", "agent.critic.backup", "training.steps"]
DQL += ["training.clip_gradient"]
AC = ["training.learning_rate", "agent.improvement.q_weight", "agent.improvement.q_steps", "agent.critic.backup"]
AC += ["training.clip_gradient"]
FQL = ["agent.improvement.distill_weight", "agent.critic.aggregate", "task.discount", "training.steps"]
FQL += ["task.reward_shift", "task.frame_stack"]
IQL = ["agent.improvement.eta", "agent.critic.expectile", "agent.policy.hidden", "agent.critic.hidden"]
REBRAC = ["agent.improvement.bc_weight", "agent.critic.next_penalty", "agent.policy.activation"]


@pytest.mark.parametrize(
    ("tuned", "keys", "numbers"),
    [  # from the tables of the papers
        ("diffusion_ql/hopper-medium", DQL, (3e-4, 1, "mean", 2_000_000, 9)),
        ("diffusion_ql/antmaze-medium-play", DQL, (1e-3, 2, "max", 1_000_000, 2)),
        ("consistency_ac/walker2d-medium-replay", AC, (3e-4, 0.1, 5, "mean", 4)),
        ("consistency_ac/antmaze-medium-play", AC, (1e-3, 0.01, 2, "max", 2)),
        ("fql/antmaze-giant-navigate", FQL, (10, "min", 0.995, 1_000_000, 0, 1)),
        ("fql/antmaze-large-play", FQL, (3, "mean", 0.99, 500_000, -1, 1)),
        ("fql/visual-cube-single-play", FQL, (300, "mean", 0.99, 500_000, 0, 3)),
        ("ifql/scene-play", ["agent.acting.candidates"], (32,)),
        ("iql/antmaze-giant-navigate", IQL, (10, 0.9, [512] * 4, [512] * 4)),
        ("rebrac/antmaze-large-navigate", REBRAC, (0.003, 0.01, "gelu")),
        ("rebrac/cube-single-play", REBRAC, (1, 0, "gelu")),
    ],
)
def test_published_settings_hold_the_published_numbers(tuned: str, keys: list[str], numbers: tuple[Any, ...]) -> None:
    made = composed(tuned.partition("/")[0], tuned)
    assert attrgetter(*keys)(made) == (numbers if len(keys) > 1 else numbers[0])
    if tuned.startswith("diffusion_ql"):
        shown = [(reward + made.task.reward_shift) * made.task.reward_scale for reward in (0, 1)]
        assert shown == ([-2, 2] if "antmaze" in tuned else [0, 1])
        assert (made.training.schedule, made.agent.critic.next_actions) == ("cosine", 10 if numbers[2] == "max" else 1)


def test_published_settings_outrank_the_task_and_the_command_line_outranks_them() -> None:
    task = "task=ogbench/pointmaze-medium-navigate-singletask-task1"
    made = from_command_line([task, "agent=fql", "tuned=fql/antmaze-giant-navigate", "training.steps=7"])
    assert (made.task.discount, made.training.steps) == (0.995, 7)
    assert compose.GROUPS[-1] == "tuned"
