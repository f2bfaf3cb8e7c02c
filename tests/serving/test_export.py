import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ended
from safetensors.torch import load_file
from small_policies import observations

import gtp_vision
from gtp_vision.agents.acting import FrameStack
from gtp_vision.cli.main import main
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.serving import artifact
from gtp_vision.serving.card import card
from gtp_vision.serving.export import provenance
from gtp_vision.serving.limits import Limits
from gtp_vision.training.evaluate import actor_of, restore

pytestmark = pytest.mark.trains

Exported = Callable[[str], tuple[Path, Path]]
ACTING = {"actor_encoder", "policy"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("beam", ACTING | {"critic_target", "actor_encoder_target"}),
        ("chunks", ACTING),
        ("constant", None),
        ("fql", ACTING | {"improvement"}),  # acts by its one-step policy
        ("goals", ACTING),
        ("guidance", None),
        ("pixels", ACTING),
        ("softmax", ACTING | {"critic_target", "critic_encoder_target"}),
        ("units", ACTING),
    ],
)
def test_a_policy_acts_as_its_run_is_evaluated(exported: Exported, name: str, parts: set[str] | None) -> None:
    run, out = exported(name)
    policy = gtp_vision.load_policy(out)
    session, schema = policy.session(seed=7), policy.schema
    actor = actor_of(restore(run)[1].agent)
    for episode in range(2):
        frames = FrameStack(schema.frame_stack)
        for step, seen in enumerate(observations(schema, 5)):
            frames.push({name: array[None] for name, array in seen.items()})
            with torch.no_grad():
                action = actor(frames.tensors(), EpisodeNoise(7, [episode], [step], torch.device("cpu")))[0].numpy()
            np.testing.assert_array_equal(session.act(seen), schema.in_units(action))
        session.reset()
    stored = {key.partition(".")[0] for key in load_file(out / artifact.WEIGHTS)}
    assert parts is None or stored == parts, "what acting needs and no more"


def test_constant_actions_are_answered_as_their_constant(exported: Exported) -> None:
    policy = gtp_vision.load_policy(exported("constant")[1])
    answers = [policy.act(seen).tolist() for seen in observations(policy.schema, 3)]
    assert answers == [[2.5, pytest.approx(50, rel=1e-6)]] * 3, "low == high, and 0.2 of the way from 0 to 250"


def test_the_card_holds_the_origin(exported: Exported, tmp_path: Path) -> None:
    run, out = exported("pixels")
    card, text = gtp_vision.load_policy(out).card, (out / artifact.CARD).read_text()
    assert (card["run"], card["step"], card["data"]["frames"]) == ("pixels/run", 1, 50)
    assert len(card["data"]["fingerprint"]) == 32
    assert card["licences"] == {"weights": "unknown", "data": "unknown", "backbone": "unknown"}
    assert "license: other" in text
    assert "`front` | frames, uint8 (16, 16, 3)" in text
    options = ["--license", "apache-2.0", "--data-license", "cc-by-4.0", "--steps", "2", "--checkpoint", "step_1"]
    assert main(["export", str(run), str(tmp_path / "policy"), *options]) == 0
    policy = gtp_vision.load_policy(tmp_path / "policy")
    assert (policy.schema.steps, policy.agent.config.acting.steps) == (2, 2)
    assert policy.card["licences"] == {"weights": "apache-2.0", "data": "cc-by-4.0", "backbone": "unknown"}
    assert "license: apache-2.0" in (tmp_path / "policy" / artifact.CARD).read_text()


@pytest.mark.processes
def test_weights_that_the_encoder_began_with_are_named(exported: Exported) -> None:
    run, out = exported("pixels")
    config, trained = restore(run)
    begun = replace(config, encoder=replace(config.encoder, weights="/elsewhere/hub/resnet18.pth"))
    origin = provenance(run, begun, trained.record, 1, {})
    assert origin["encoder_weights"] == "hub/resnet18.pth"
    assert "its encoder beginning with hub/resnet18.pth" in " ".join(
        card(gtp_vision.load_policy(out).schema, origin).split()
    )
    assert provenance(run, config, trained.record, 1, {})["encoder_weights"] is None


def test_acting_imports_no_data_simulator_or_training_code(exported: Exported, tmp_path: Path) -> None:
    moved = shutil.copytree(exported("pixels")[1], tmp_path / "moved")
    code = (
        "import sys, numpy as np, gtp_vision\n"
        f"policy = gtp_vision.load_policy({str(moved)!r})\n"
        "seen = {name: np.zeros(shape, np.uint8) for name, shape in policy.schema.cameras.items()}\n"
        "policy.act(seen | {name: np.zeros(width) for name, width in policy.schema.states.items()}, steps=2)\n"
        "heavy = ('mujoco', 'ogbench', 'gymnasium', 'robosuite', 'accelerate', 'gtp_vision.training')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert ended("-c", code)[0] == "[]\n"


def test_only_an_artifact_is_replaced_and_only_with_overwrite(exported: Exported, tmp_path: Path) -> None:
    run, out = str(exported("units")[0]), str(tmp_path / "policy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert main(["export", run, str(tmp_path / "mine"), "--overwrite"]) == 2
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert main(["export", run, out]) == 0
    assert main(["export", run, out]) == 2
    assert main(["export", run, out, "--overwrite"]) == 0
    assert main(["export", run, out, "--overwrite", "--steps", "0"]) == 2
    gtp_vision.load_policy(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "policy"], "no temporary folder is left"


def test_limits_are_the_datas_and_those_set_by_hand(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(exported("units")[0]), str(tmp_path / "policy")

    def limits(*words: str) -> Limits | None:
        options = [option for word in words for option in ("--limits", word)]
        assert main(["export", run, out, "--overwrite", *options, "--rate", "10"]) == 0
        return gtp_vision.load_policy(out).schema.limits

    found = limits()
    assert found is not None
    assert (found.low, found.high, found.rate) == ((-3.0, 0.0), (1.0, 250.0), 10.0)
    assert found.speed == (None, None), "random actions jump from end to end"
    assert limits("off") is None
    assert limits("data", "speed=1,off", "low=-2,0") == replace(found, low=(-2.0, 0.0), speed=(1.0, None))
    assert limits("off", "jerk=5") == replace(Limits.position(found.low, found.high, 10.0), jerk=(5.0, 5.0))
    capsys.readouterr()
    for words, message in (
        (["speed=1"], "add --rate"),
        (["low=1", "high=0"], "leave nothing"),
        (["low=1,2,3"], "3 numb"),
    ):
        options = [option for word in words for option in ("--limits", word)]
        assert main(["export", run, out, "--overwrite", *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    data = Path(run).parent / "data.h5"
    data.rename(tmp_path / "elsewhere.h5")
    try:
        assert main(["export", run, out, "--overwrite", "--limits", "data"]) == 2
        assert main(["export", run, out, "--overwrite"]) == 0
        assert "which cannot be read" in capsys.readouterr().out
        assert gtp_vision.load_policy(out).schema.limits == replace(found, rate=None)
    finally:
        (tmp_path / "elsewhere.h5").rename(data)
