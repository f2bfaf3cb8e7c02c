from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gtp_vision.agents import AGENTS, label
from gtp_vision.config import schema
from gtp_vision.config.schema import Config, from_command_line, from_run, options, to_yaml
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.encoders import backbones

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [(group, option) for group in schema.GROUPS for option in options(group)]
CHOICES = [(group, option) for group, option in OPTIONS if group != "tuned"]  # those with their agents: test_tuned.py


def composed(*overrides: str, task: str = "demo") -> Config:
    return from_command_line([f"task={task}", *overrides])


def needed(group: str, option: str) -> list[str]:
    """The overrides that a run with this option needs at least."""
    if group == "task":
        return [f"task={option}", *(["task.dataset=mine.h5"] if option == "own" else [])]
    return ["task=demo", f"{group}={option}", *(["agent=bdm"] if option == "alignment" else [])]


def refusal(*overrides: str) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(GtpVisionError) as told:
        from_command_line(overrides)
    assert "\n" not in str(told.value)
    return str(told.value)


# What composes --------------------------------------------------------------------------------------------------


def test_every_file_under_configs_is_an_option() -> None:
    found = set()
    for path in (ROOT / "configs").glob("*/**/*.yaml"):
        group, *option = path.relative_to(ROOT / "configs").with_suffix("").parts
        if group != "suite":  # suites, which stand above configurations
            found.add((group, "/".join(option)))
    assert found == set(OPTIONS)


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_option_composes_with_names_that_exist(group: str, option: str) -> None:
    made = from_command_line(needed(group, option))
    assert made.agent.name in AGENTS
    backbones.check_name(made.encoder.name)
    assert made.task.env or option == "own"
    assert made.run_dir == f"runs/{made.task.name}/{label(made.agent)}-{made.encoder.name.replace('/', '-')}-seed0"


def test_overrides_set_what_they_name_and_nothing_else() -> None:
    plain, changed = (
        composed(),
        composed("training.steps=7", "agent.policy.hidden=[8,9]", "encoder.share=true", "seed=3"),
    )
    assert (changed.training.steps, changed.agent.policy.hidden, changed.encoder.share) == (7, [8, 9], True)
    assert changed.seed == 3
    assert changed.run_dir.endswith("-seed3")
    changed.training.steps, changed.agent.policy.hidden = plain.training.steps, plain.agent.policy.hidden
    changed.encoder.share, changed.seed, changed.run_dir = plain.encoder.share, plain.seed, plain.run_dir
    assert changed == plain


def test_null_is_a_value_where_it_means_something() -> None:
    made = composed("training.clip_gradient=null", "training.eval_envs=null", "task.max_episode_steps=null")
    assert (made.training.clip_gradient, made.training.eval_envs, made.task.max_episode_steps) == (None, None, None)


def test_composing_leaves_no_state_behind() -> None:
    assert composed("seed=1") == composed("seed=1")
    refusal("task=demo", "training.steps=abc")
    assert composed("seed=1").seed == 1


# What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stesp=3", ("training.stesp", "'training.steps'")),
        ("trainig.steps=3", ("trainig.steps", "'training.steps'")),
        ("agent.policy.sigma_mx=3", ("agent.policy.sigma_mx", "'agent.policy.sigma_max'")),
        ("sed=3", ("sed", "'seed'")),
        ("+encoder.augmentation.shift_probablity=1", ("'encoder.augmentation.shift_probability'",)),
        ("agnet=gtp", ("agnet", "'agent'")),
        ("agent=gtp_b", ("agent 'gtp_b'", "'gtp_bc'")),
        ("agent=gpt", ("agent 'gpt'", "'gtp'")),
        ("encoder=impalla", ("encoder 'impalla'", "'impala'")),
        ("training=dmeo", ("training 'dmeo'", "'demo'")),
        (
            "task=ogbench/visual-cube-singl-play-singletask-task1",
            ("'ogbench/visual-cube-single-play-singletask-task1'",),
        ),
        ("training.schedule=cosin", ("training.schedule=cosin", "'cosine'")),
        ("training.device=cpuu", ("training.device=cpuu", "'cpu'")),
        ("training.precision=bf15", ("training.precision=bf15", "'bf16'")),
        ("agent.policy.residual=pih", ("agent.policy.residual=pih", "'phi'")),
        ("agent.name=gtp_cb", ("agent.name=gtp_cb", "'gtp_bc'")),
        ("encoder.name=impalla", ("encoder.name=impalla", "'impala'")),
        ("agent.policy.activation=gelo", ("agent.policy.activation=gelo", "'gelu'")),
        ("agent.critic.activation=mich", ("agent.critic.activation=mich", "'mish'")),
    ],
)
def test_a_mistyped_key_choice_or_value_is_refused_with_the_nearest(override: str, words: tuple[str, ...]) -> None:
    told = refusal("task=demo", override)
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=abc",
        "training.steps=1.5",
        "training.steps=null",
        "training.learning_rate=fast",
        "encoder.share=perhaps",
        "agent.policy.hidden=3",
        "agent.policy.hidden=[8,wide]",
        "task.name=null",
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(override: str) -> None:
    assert override.partition("=")[0] in refusal("task=demo", override)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["agent=gtp_bc", "encoder.share=true", "encoder.gradient=critic"], "agent=gtp_bc has no critic"),
        (["encoder.gradient=actor", "encoder.share=false"], "set encoder.share=true"),
        (["training.steps=10", "encoder.unfreeze_step=10"], "must be below training.steps=10"),
        (["task.goals=hindsight", "task.n_step=1", "task.discount=1"], "task.discount=1"),
        (["encoder.fusion_layers=5"], "encoder.fusion_layers is of encoder.fusion=transformer"),
        (["encoder=state", "encoder.share_cameras=true"], "encoder.share_cameras is about cameras"),
        (["encoder.weights=''"], "encoder.weights is empty"),
        (["encoder.state_hidden=[8,0]"], "widths of at least 1"),
        (["encoder.cameras.wrist.sze=[8,8]"], "no setting 'encoder.cameras.wrist.sze'"),
        (["encoder.cameras={wrist:{sze:[8,8]}}"], "no setting 'encoder.cameras.wrist.sze': did you mean 'size'"),
        (["encoder.cameras.wrist=3"], "encoder.cameras.wrist=3 must be settings"),
        (["encoder.cameras.wrist.size=[8]"], "encoder.cameras.wrist.size=[8] must be a height and a width"),
    ],
)
def test_settings_of_encoders_that_do_not_fit_are_refused(overrides: list[str], told: str) -> None:
    assert told in refusal("task=demo", *overrides)


@pytest.mark.parametrize("camera", ["wrist", "observation.images.top"])
def test_each_camera_has_settings_of_its_own(camera: str) -> None:
    key = f"encoder.cameras.{camera}"
    made = composed(f"{key}.crop=[20,20]", f"{key}.size=[9,8]", "encoder.cameras.other={size:[4,4]}")
    looks = {name: (look.crop, look.size) for name, look in made.encoder.cameras.items()}
    assert looks == {camera: ([20, 20], [9, 8]), "other": (None, [4, 4])}


@pytest.mark.parametrize("override", ["training.steps", "cosine", "--fast"])
def test_a_word_that_sets_nothing_is_refused_with_an_example(override: str) -> None:
    told = refusal("task=demo", override)
    assert override in told
    assert "key=value" in told


@pytest.mark.parametrize("override", ["seed=0,1", "agent.policy.hidden=[1,", "run_dir=${nope}", "hydra.nope=1"])
def test_what_hydra_refuses_is_one_sentence_too(override: str) -> None:
    assert refusal("task=demo", override)


def test_a_missing_task_is_refused_with_the_known_ones() -> None:
    for overrides in ((), ("seed=3",), ("task.env=x",)):
        told = refusal(*overrides)
        assert "task=" in told
        assert "'demo'" in told
    assert "'demo'" in refusal("task=")


@pytest.mark.parametrize(
    "override",
    [
        "task.frame_stack=0",
        "task.n_step=0",
        "task.discount=1.5",
        "task.discount=-0.1",
        "task.discount=nan",
        "task.max_episode_steps=0",
        "training.steps=0",
        "training.batch_size=0",
        "training.log_every=0",
        "training.checkpoint_every=0",
        "training.keep_checkpoints=0",
        "training.eval_every=-1",
        "training.eval_episodes=-1",
        "training.eval_envs=0",
        "training.eval_steps=0",
        "training.videos=-1",
        "training.warmup_steps=-1",
        "training.learning_rate=-0.1",
        "training.clip_gradient=-1",
        "agent.improvement.value_samples=0",
        "agent.critic.next_steps=0",
        "agent.acting.steps=0",
        "agent.improvement.eta=-1",
        "agent.improvement.eta=nan",
        "agent.tau=1.5",
        "agent.tau=-0.1",
        "agent.improvement.weight_clip=0",
        "agent.policy.grid=1",
        "agent.policy.sigma_min=0",
        "agent.policy.rho=0",
        "agent.policy.lambda_flow=-1",
        "agent.policy.hidden=[0]",
        "agent.critic.members=0",
        "encoder.features=0",
        "encoder.augmentation.shift=-1",
        "encoder.augmentation.shift_probability=1.5",
        "seed=-1",
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key_and_value(override: str) -> None:
    key, _, value = override.partition("=")
    told = refusal("task=demo", override)
    assert key in told
    assert value.strip("[]") in told


@pytest.mark.parametrize(
    "override",
    [
        "task.discount=0",
        "task.discount=1",
        "training.eval_episodes=0",
        "training.eval_every=0",
        "training.videos=0",
        "agent.improvement.eta=0",
        "agent.tau=1",
        "agent.policy.grid=2",
        "encoder.augmentation.shift=0",
        "encoder.augmentation.shift_probability=1",
        "seed=0",
    ],
)
def test_the_ends_of_the_ranges_are_let_pass(override: str) -> None:
    composed(override)


def test_a_key_that_has_moved_is_told_where_to() -> None:
    assert "'agent.improvement.eta'" in refusal("task=demo", "agent.eta=1")


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_a_run_has_the_configuration_it_was_made_with(tmp_path: Path, group: str, option: str) -> None:
    changed = ["training.learning_rate=1e-5", "run_dir='some where/ä'", "seed=12"]
    made = from_command_line([*needed(group, option), *changed])
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert from_run(tmp_path) == made


def test_a_run_of_an_older_version_gets_the_defaults_of_what_it_lacks(tmp_path: Path) -> None:
    made = composed()
    stored = OmegaConf.create(to_yaml(made))
    del stored["training"]["videos"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    assert from_run(tmp_path).training.videos == schema.TrainingConfig().videos


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(GtpVisionError, match="no run folder") as told:
            from_run(folder)
        assert str(folder) in str(told.value)


def with_value(key: str, value: Any) -> bytes:
    stored = OmegaConf.create(to_yaml(composed()))
    OmegaConf.update(stored, key, value)
    return OmegaConf.to_yaml(stored).encode()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", ""),
        (b"3", ""),
        (b"[1, 2]", ""),
        (b"text", "text"),
        (b"task: {", ""),
        (b"\xff\xfe\x00", ""),
        (b"task: 3", ""),
        (b"seed: 1", "run_dir"),
        (with_value("training.tempo", 3), "tempo"),
        (with_value("training.steps", "many"), "training.steps"),
        (with_value("training.steps", 0), "training.steps"),
        (with_value("agent.name", "sac"), "agent.name=sac"),
    ],
    ids=[
        "empty",
        "number",
        "list",
        "text",
        "broken",
        "binary",
        "no group",
        "too little",
        "key",
        "type",
        "range",
        "name",
    ],
)
def test_a_damaged_configuration_is_refused_in_one_sentence(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(GtpVisionError) as told:
        from_run(tmp_path)
    assert word in str(told.value)
    assert "\n" not in str(told.value)


# Proposals ------------------------------------------------------------------------------------------------------


def test_proposals_are_the_nearest_or_all_that_is_known() -> None:
    assert propose("gpt", ["gtp", "gtp_bc"]).startswith("did you mean 'gtp'")
    assert propose("zzz", ["b", "a"]) == "known: 'a', 'b'."
    assert propose("x", []) == "there are none."
    assert len(propose("", [f"name{i:02}" for i in range(50)]).split(",")) < 20


def test_noise_levels_that_do_not_grow_are_refused() -> None:
    for override in (
        "agent.policy.sigma_max=0.01",
        "agent.policy.sigma_max=inf",
        "agent.policy.sigma_min=1",
        "agent.policy.sigma_last=0.001",
    ):
        assert "sigma_min=" in refusal("task=demo", override)


def test_another_improvement_or_way_of_acting_replaces_the_agents_own() -> None:
    plain, other = composed(), composed("improvement=q_gradient", "acting=best_of_n")
    assert (plain.agent.improvement.name, plain.agent.acting.candidates) == ("advantage", 1)
    assert (other.agent.improvement.name, other.agent.acting.candidates) == ("q_gradient", 32)
    assert other.agent.policy == plain.agent.policy
    assert (plain.agent.acting.steps, other.agent.acting.steps) == (5, 1)  # the single jump that Q improves
    assert other.run_dir == "runs/demo/gtp+q+n-impala_small-seed0"
