from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gtp_vision.agents import improvement_settings
from gtp_vision.agents.diffusion_ql import QGradientSettings
from gtp_vision.cli.main import main
from gtp_vision.config.compose import acting_of, acting_with, from_command_line, from_run, to_yaml
from gtp_vision.config.explain import explain, without_effect
from gtp_vision.config.schema import Config, TrainingConfig
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.settings import settings_of


def composed(*overrides: str) -> Config:
    return from_command_line(["task=demo", *overrides])


def refusal(*overrides: str, task: str = "task=demo") -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(GtpVisionError) as error:
        from_command_line([task, *overrides] if task else overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_overrides_set_what_they_name_and_nothing_else() -> None:
    plain = composed()
    changed = composed("training.steps=7", "agent.policy.hidden=[8,9]", "encoder.share=true", "seed=3")
    assert (changed.training.steps, changed.agent.policy.hidden, changed.encoder.share) == (7, [8, 9], True)
    assert changed.run_dir.endswith("-seed3")
    changed.training.steps, changed.agent.policy.hidden = plain.training.steps, plain.agent.policy.hidden
    changed.encoder.share, changed.seed, changed.run_dir = plain.encoder.share, plain.seed, plain.run_dir
    assert changed == plain == composed(), "a composition that is changed leaves the next one alone"


@pytest.mark.parametrize("camera", ["wrist", "observation.images.top"])
def test_each_camera_has_its_own_settings(camera: str) -> None:
    key = f"encoder.cameras.{camera}"
    cameras = composed(f"{key}.crop=[20,20]", f"{key}.size=[9,8]", "encoder.cameras.other={size:[4,4]}").encoder.cameras
    sizes = {name: (settings.crop, settings.size) for name, settings in cameras.items()}
    assert sizes == {camera: ([20, 20], [9, 8]), "other": (None, [4, 4])}


def test_another_improvement_brings_its_own_settings() -> None:
    plain, other = composed(), composed("improvement=q_gradient", "acting=best_of_n")
    assert plain.agent.improvement == improvement_settings("advantage")
    assert other.agent.improvement == QGradientSettings(name="q_gradient", q_steps=1)
    assert (other.agent.acting.steps, other.agent.acting.candidates) == (1, 32)  # the single jump that Q improves
    assert other.agent.policy == plain.agent.policy
    assert other.run_dir == "runs/demo/gtp+q+n-impala_small-seed0"
    assert composed("agent=td3_bc", "improvement=distillation").agent.improvement.q_weight == 1  # type: ignore[attr-defined]
    named = composed("agent.improvement.q_steps=3", "agent.acting.steps=3", "agent.improvement.name=q_gradient")
    assert named.agent.improvement == QGradientSettings(name="q_gradient", q_steps=3)
    assert composed("agent=iql", "improvement=advantage") == composed("agent=iql"), "its own keeps its settings"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stesp=3", ("training.stesp", "'training.steps'")),
        ("agent.policy.sigma_mx=3", ("agent.policy.sigma_mx", "'agent.policy.sigma_max'")),
        ("~training.steps=3", ("~training.steps", "'training.steps'")),
        ("+encoder.augmentation.shift_probablity=1", ("'encoder.augmentation.shift_probability'",)),
        ("agnet=gtp", ("agnet", "'agent'")),
        ("agent.eta=1", ("'agent.improvement.eta'",)),
        ("agent=gtp_b", ("agent 'gtp_b'", "'gtp_bc'")),
        ("task=ogbench/visual-cube-singl-play-singletask-task1", ("'ogbench/visual-cube-single-play",)),
        ("training.schedule=cosin", ("training.schedule=cosin", "'cosine'")),
        ("agent.improvement.etaa=1", ("agent.improvement.etaa", "'agent.improvement.eta'")),
        ("agent.improvement.q_weight=1", ("improvement=advantage has no setting 'q_weight'",)),
        # Another type.
        ("training.steps=1.5", ("training.steps",)),
        ("agent.improvement.eta=much", ("agent.improvement.eta",)),
        ("agent.policy.hidden=3", ("agent.policy.hidden", "[one,two]")),
        # Out of range.
        ("task.discount=1.5", ("task.discount=1.5 must be between 0 and 1",)),
        ("task.discount=nan", ("task.discount=nan must be finite",)),
        ("training.steps=0", ("training.steps=0 must be at least 1",)),
        ("training.learning_rate=0", ("training.learning_rate=0.0 must be above 0",)),
        ("agent.policy.hidden=[]", ("agent.policy.hidden=[]",)),
        ("agent.policy.sigma_last=0.001", ("sigma_min=0.002, sigma_last=0.001", "grow in this order")),
        # No setting at all.
        ("training.steps", ("'training.steps' is not a setting", "key=value")),
        ("seed=0,1", ("seed=0,1", "add -m")),
        ("agent.policy.hidden=[1,", ()),
        ("run_dir=${nope}", ("nope",)),
    ],
)
def test_a_mistake_is_refused_with_the_key_and_the_nearest_right_word(override: str, words: tuple[str, ...]) -> None:
    message = refusal(override)
    assert all(word in message for word in words), message


def test_a_mistake_is_refused_under_a_debugger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OC_CAUSE", "1")  # as with sys.settrace: omegaconf's errors are their own cause
    assert refusal("training.steps=2.5").startswith("training.steps: Value '2.5'")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["agent=gtp_bc", "encoder.share=true", "encoder.gradient=critic"], "agent=gtp_bc has no critic"),
        (["encoder.gradient=actor", "encoder.share=false"], "set encoder.share=true"),
        (["training.steps=10", "encoder.unfreeze_step=10"], "must be below training.steps=10"),
        (["task.goals=hindsight"], "task.n_step=10 does not fit task.goals=hindsight"),
        (["task.goals=hindsight", "task.n_step=1", "task.discount=1"], "task.discount=1"),
        (["task.text_encoder=there"], "task.instructions=null shows none; set task.instructions=text"),
        (["task.instructions=id", "task.text_encoder=there"], "task.instructions=id shows none"),
        (["run_dir=s3://bucket/run"], "run_dir=s3://bucket/run is an address"),
        (["task.datasets=[a]"], "task.dataset and task.datasets are both given"),
        (["task.dataset=null", "task.datasets=[]"], "task.datasets=[] names no data set"),
        (["task.dataset=null", "task.datasets=[a,b]", "task.shares=[1]"], "for each of the 2 data sets"),
        (["task.dataset=null", "task.datasets=[b]", "task.shares=[0]"], "above 0"),
        (["task.dataset=null", "task.datasets=a.h5"], "brackets"),
        (["task.observations=[]"], "task.observations=[] leaves nothing"),
        (["task.env=null", "task.dataset=null"], "task.env=null names no data set"),
        (["encoder.fusion_layers=5"], "encoder.fusion_layers is of encoder.fusion=transformer"),
        (["encoder=state", "encoder.share_cameras=true"], "encoder.share_cameras is about cameras"),
        (["encoder.weights=''"], "encoder.weights is empty"),
        (["encoder.cameras.wrist.sze=[8,8]"], "no setting 'encoder.cameras.wrist.sze'"),
        (["encoder.cameras={wrist:{sze:[8,8]}}"], "no setting 'encoder.cameras.wrist.sze': did you mean 'size'"),
        (["encoder.cameras.wrist=3"], "encoder.cameras.wrist=3 must hold settings"),
        (["encoder.cameras.wrist.size=[8]"], "encoder.cameras.wrist.size=[8] must be a height and a width"),
        (["agent=td3_bc", "training.eval_candidates=[2]"], "training.eval_candidates=[2] do not fit"),
        (["agent=iql", "training.eval_acting=[beam]"], "training.eval_acting=[beam] does not fit: agent.acting.rou"),
        (["training.eval_acting=[beem]"], "there is no acting 'beem': did you mean 'beam'"),
        (["agent=iql", "tuned=diffusion_ql/antmaze-large-play"], "set agent=diffusion_ql, or tuned=none"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


def test_how_a_trained_agent_acts_is_chosen_by_options_and_settings() -> None:
    trained = composed("acting=softmax", "agent.acting.noise=0.5", "agent.acting.temperature=2").agent
    beam = acting_of(trained.acting, ["acting=beam", "agent.acting.renoise=0.3"])
    assert (beam.candidates, beam.rounds, beam.beam, beam.renoise) == (32, 2, 8, 0.3)
    assert (beam.choose, beam.temperature, beam.noise, beam.steps) == ("argmax", 1, 1, trained.acting.steps)
    assert acting_of(trained.acting, ["acting=single"]).noise == 0.5
    assert acting_of(beam, ["acting=single"]) == replace(beam, candidates=1, rounds=0, beam=1, renoise=0.5)
    assert acting_of(beam, ["acting=own"]) == beam
    assert acting_with(trained, [], steps=2).acting == replace(trained.acting, steps=2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=3"], "'seed=3' does not say how to act"),
        (["acting=beem"], "did you mean 'beam'"),
        (["agent.acting.beem=3"], "did you mean 'agent.acting.beam'"),
        (["agent.acting.rounds=many"], "agent.acting.rounds=many: "),
        (["agent.acting.candidates=0"], "agent.acting.candidates=0 must be at least 1"),
        (["agent.acting.beam=2"], "agent.acting.beam=2 keeps more actions"),
    ],
)
def test_ways_of_acting_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(GtpVisionError) as error:
        acting_with(composed().agent, overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("overrides", [(), ("seed=3",), ("task.env=x",), ("task=",)])
def test_a_missing_task_is_refused_with_the_known_ones(overrides: tuple[str, ...]) -> None:
    message = refusal(*overrides, task="")
    assert "task" in message
    assert "'demo'" in message


def test_proposals_are_the_nearest_or_all_that_is_known() -> None:
    assert propose("gpt", ["gtp", "gtp_bc"]).startswith("did you mean 'gtp'")
    assert propose("zzz", ["b", "a"]) == "known: 'a', 'b'."
    assert propose("x", []) == "there are none."
    assert len(propose("", [f"name{i:02}" for i in range(50)]).split(",")) < 20


@pytest.mark.parametrize("overrides", [["agent=iql", "tuned=iql/scene-play"], ["encoder.cameras.top.size=[4,4]"]])
def test_a_run_has_the_configuration_it_was_made_with(tmp_path: Path, overrides: list[str]) -> None:
    made = composed(*overrides, "training.learning_rate=1e-5", "run_dir='some where/ä'")
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert from_run(tmp_path) == made


def with_values(**values: Any) -> bytes:
    """A stored configuration with some values changed; `__` stands for a dot."""
    stored = OmegaConf.create(to_yaml(composed()))
    for key, value in values.items():
        OmegaConf.update(stored, key.replace("__", "."), value)
    return OmegaConf.to_yaml(stored).encode()


def test_a_run_of_an_older_version_is_read(tmp_path: Path) -> None:
    of_others = {"agent__improvement__q_weight": 3.0, "agent__improvement__pretrain_steps": 0}
    stored = OmegaConf.create(with_values(training__precision="no", **of_others).decode())
    stored["encoder"]["standardize"] = True
    del stored["training"]["videos"], stored["task"]["action_scaling"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    found = from_run(tmp_path)
    assert found == composed()
    assert found.training.videos == TrainingConfig().videos


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(b"", "holds no settings", id="empty"),
        pytest.param(b"[1, 2]", "holds no settings", id="list"),
        pytest.param(b"task: {", "", id="broken"),
        pytest.param(b"\xff\xfe\x00", "", id="binary"),
        pytest.param(b"task: 3", "", id="no group"),
        pytest.param(b"agent: {improvement: 3}", "", id="no improvement"),
        pytest.param(b"seed: 1", "run_dir", id="incomplete"),
        pytest.param(with_values(training__tempo=3), "tempo", id="key"),
        pytest.param(with_values(agent__improvement__tempo=3), "tempo", id="key of no improvement"),
        pytest.param(with_values(agent__improvement__name="magic"), "agent.improvement.name=magic", id="improvement"),
        pytest.param(with_values(training__steps="many"), "training.steps", id="type"),
        pytest.param(with_values().replace(b"seed: 0", b"seed: 0x" + b"f" * 9000), "seed is a number of", id="digits"),
        pytest.param(with_values(training__steps=0), "training.steps", id="range"),
        pytest.param(with_values(agent__name="sac"), "agent.name=sac", id="name"),
    ],
)
def test_a_damaged_configuration_is_refused_in_one_sentence(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(GtpVisionError) as error:
        from_run(tmp_path)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=f"{tmp_path} is not a run folder"):
        from_run(tmp_path)


def test_each_setting_has_a_line_with_what_set_it() -> None:
    overrides = ["task=own", "task.dataset=x", "agent=qgpo", "encoder=drq", "agent.improvement.alpha=2", "seed=1"]
    lines = {line.split()[0]: line.split()[1:] for line in explain(overrides).splitlines()}
    assert list(lines) == [key for key, _, _ in settings_of(from_command_line(overrides))]
    expected = {
        "seed": ("1", "command", "line"),
        "data_dir": ("~/.ogbench/data", "config.yaml"),
        "task.name": ("own", "task/own.yaml"),
        "agent.policy.activation": ("silu", "family/diffusion.yaml"),
        "agent.critic.backup": ("softmax", "agent/qgpo.yaml"),
        "agent.improvement.alpha": ("2.0", "command", "line"),
        "agent.tau": ("0.005", "default", "Polyak", "rate"),
        "encoder.features": ("50", "encoder/drq.yaml"),
        "training.eval_episodes": ("0", "task.env=null"),
    }
    assert {key: tuple(lines[key][: len(words)]) for key, words in expected.items()} == expected


def test_settings_that_change_nothing_are_named() -> None:
    overrides = ["task=demo", "agent=fql", "agent.policy.teacher=data", "agent.critic.expectile=0.9", "agent.tau=0.1"]
    assert without_effect(from_command_line(overrides), overrides) == [
        "agent.policy.teacher has no effect with agent.policy.family=flow_matching",
        "agent.critic.expectile has no effect with agent.critic.backup=mean",
    ]
    (line,) = [line for line in explain(overrides).splitlines() if line.startswith("agent.policy.teacher ")]
    assert line.split(maxsplit=4)[1:4] == ["data", "command", "line"]
    assert line.endswith("  no effect with agent.policy.family=flow_matching")
    overrides = ["task=demo", "agent=iql", "agent.improvement.value_samples=4"]
    assert without_effect(from_command_line(overrides), overrides) == [
        "agent.improvement.value_samples has no effect with agent.critic.backup=expectile"
    ]


def test_the_command_explains_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "task=demo", "--explain"]) == 0
    assert capsys.readouterr().out.startswith("seed ")
    assert main(["train", "task=demo", "training.stesp=1", "--explain"]) == 2
    assert main(["train", "task=demo", "--explain", "-m"]) == 2
