"""Data made here replay exactly; planted faults of frames, actions and states are named."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import composed

from gtp_vision.cli.main import main
from gtp_vision.collection import collect
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_snapshots, open_store
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.agreement import frame_faults, recorded_states, replay
from gtp_vision.training.evaluate import check_simulator

pytestmark = pytest.mark.simulates
needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is an extra")


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    collect("robosuite/Lift", path, {"episodes": 2, "states_only": True}, processes=1, command="")
    return path


def score(store: Store, name: str, **more: Any) -> Any:
    spec = EnvSpec(name, shown={key: x.shape[1:] for key, x in store.observations.items()}, **more)
    env = spec.make()
    return replay(env, spec.simulator, store, recorded_states(store, range(store.episodes)), 60)


@needs_robosuite
@pytest.mark.usefixtures("cache")
def test_lift_replays_bit_for_bit_and_other_actions_do_not(lift: Path) -> None:
    store = open_store(lift)
    spec = EnvSpec("robosuite", env_args=store.attributes["env_args"], shown={"object": (10,)})
    held = open_snapshots(lift, [1])[0]
    env: Any = spec.make()
    env.reset(seed=5)
    env.unwrapped.restore(held.arrays["states"][0], held.model)
    for row, wanted in zip(
        range(store.episode_starts[1], store.episode_ends[1]), held.arrays["states"][1:], strict=False
    ):
        env.step(np.asarray(store.actions[row]))
        np.testing.assert_array_equal(env.unwrapped.state(), wanted)
    slow = replace(store, actions=np.asarray(store.actions) * np.float32(0.5))
    late = replace(store, actions=np.roll(np.asarray(store.actions), 1, 0))
    for fault in (slow, late):
        found = score(fault, "robosuite", env_args=store.attributes["env_args"])
        assert found.score < 0.5
        assert "step" in found.first


@needs_robosuite
@pytest.mark.usefixtures("cache")
def test_the_command_prints_the_score_and_finds_wrong_units(lift: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(lift), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["env"], found["replay"]["score"], found["problems"]) == ("robosuite", 1.0, [])
    assert found["versions"].keys() == {"robosuite", "mujoco"}
    assert main(["data", "check", str(lift), "--env", "robosuite/Can"]) == 2
    assert "was recorded in 'Lift'" in capsys.readouterr().err


@needs_robosuite
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda xml: xml.replace('name="cube_g0"', 'name="ball"'), "a model of other parts"),
        (lambda xml: "<!DOCTYPE a [<!ENTITY b SYSTEM '/etc/passwd'>]>" + xml, "a model of other parts"),
        (lambda xml: "no XML", "a model of other parts"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_a_model_of_another_version_is_refused(lift: Path, change: Any, message: str) -> None:
    held = open_snapshots(lift, [0])[0]
    env: Any = EnvSpec("robosuite", env_args=open_store(lift).attributes["env_args"], shown={"object": (10,)}).make()
    env.reset(seed=0)
    with pytest.raises(GtpVisionError, match=message):
        env.unwrapped.restore(held.arrays["states"][0], change(held.model))
    with pytest.raises(GtpVisionError, match=r"states of 5 numbers.*dynamics differ"):
        env.unwrapped.restore(np.zeros(5))
    moved = held.model.replace('file="', 'file="/nowhere/')
    env.unwrapped.restore(held.arrays["states"][0], moved)  # only this installation's files are opened


@pytest.mark.parametrize("name", ["cube-single-play", "scene-play", "puzzle-3x3-play", "pointmaze-medium-navigate"])
@pytest.mark.usefixtures("cache")
def test_ogbenchs_recipes_replay(name: str, tmp_path: Path) -> None:
    collect(f"ogbench/{name}", tmp_path, {"episodes": 1, "seed": 3, "limit": 70}, processes=1, command="")
    store = open_store(tmp_path / f"{name}-v0-val.npz")
    found = score(store, f"{name}-v0")
    assert found.steps == 60
    assert found.score == 1.0 if name != "scene-play" else found.score > 0.95, "float32 states; contacts of the drawer"
    assert score(replace(store, actions=-np.asarray(store.actions)), f"{name}-v0").score < 0.7


def test_hopper_replays_from_what_a_policy_sees(tmp_path: Path) -> None:
    env, rng = EnvSpec("Hopper-v4").make(), np.random.default_rng(0)
    rows, actions = [env.reset(seed=0)[0]], rng.uniform(-1, 1, (20, 3)).astype(np.float32)
    rows += [env.step(action)[0] for action in actions[:-1]]
    ends = np.array([20])
    flags = np.zeros(20, bool)
    store = Store({"state": np.array(rows, np.float32)}, actions, np.zeros(20, np.float32), flags, flags, ends)
    assert score(store, "Hopper-v4").score == 1.0
    assert score(replace(store, actions=-actions), "Hopper-v4").score < 0.2
    assert score(store, "cube-single-v0") is None, "qpos is not recorded"
    # Native files keep what the simulator has, which no policy sees.
    arrays = {"simulator/qpos": np.zeros((20, 6)), "simulator/qvel": np.ones((20, 6))}
    native.write(tmp_path / "hopper.h5", store, beside=arrays)
    assert list(open_store(tmp_path / "hopper.h5").observations) == ["state"]
    held = open_snapshots(tmp_path / "hopper.h5", [0])[0].arrays
    assert {key: (x.shape, x.dtype) for key, x in held.items()} == dict.fromkeys(
        ("qpos", "qvel"), ((20, 6), np.float64)
    )

    native.write(tmp_path / "short.h5", store, beside={"simulator/qpos": np.zeros((19, 6))})
    with pytest.raises(GtpVisionError, match=r"simulator/qpos.*19"):
        open_snapshots(tmp_path / "short.h5", [0])


FRAMES = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x, ""),
        (lambda x: x // 8 * 8, ""),
        (lambda x: x[:, ::-1], "front is upside down in the data"),
        (lambda x: x[:, :, ::-1], "front is mirrored left to right"),
        (lambda x: x[:, ::-1, ::-1], "front is turned by 180 degrees"),
        (lambda x: x[..., ::-1], "front has red and blue exchanged"),
    ],
)
def test_faults_of_frames_are_named(change: Any, words: str) -> None:
    rendered = {"front": FRAMES[0], "hand": FRAMES[1]}
    found = list(frame_faults({"front": change(FRAMES[0]), "hand": FRAMES[1]}, rendered))
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_swapped_cameras_are_named_and_other_scenes_are_not() -> None:
    rendered: Mapping[str, Any] = {"front": FRAMES[0], "hand": FRAMES[1]}
    front, hand = frame_faults({"front": FRAMES[1], "hand": FRAMES[0]}, rendered)
    assert "front shows what the simulator shows as hand" in front
    assert "hand shows what the simulator shows as front" in hand
    assert not list(frame_faults({"front": np.roll(FRAMES[0], 3, 1), "hand": FRAMES[1]}, rendered))


@pytest.mark.usefixtures("cache")
def test_a_training_finds_frames_that_are_upside_down() -> None:
    config = composed("task=demo", "agent=gtp_bc", "run_dir=unused")
    from gtp_vision.training.data import open_data

    store = open_data(config)
    check_simulator(config, store)
    frames = np.asarray(store.observations["camera"][:])[:, ::-1]
    with pytest.raises(GtpVisionError, match=r"camera is upside down in the data .* or set task.env=null"):
        check_simulator(config, replace(store, observations={"camera": frames}))
