import importlib.util

import gymnasium
import mujoco
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec, Rendering, close, make_vector
from gtp_vision.envs.showing import Cameras, space_of

NAMES = ["metaworld/push-v3", "pusht", "aloha/AlohaInsertion-v0"]
LIMITS = {"metaworld/push-v3": 500, "pusht": 300, "aloha/AlohaInsertion-v0": 400}
STATES, CAMERAS = {"state": (2, 5), "joints": (7,)}, ("top",)
simulates = pytest.mark.simulates
needs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("metaworld", "gym_pusht", "gym_aloha")),
    reason="these simulators are extras",
)


def test_what_is_shown_has_the_names_shapes_and_order_of_the_data() -> None:
    shown = {"top": (8, 6, 3), "state": (5,), "joints": (7,)}
    space = space_of("arm", shown, STATES, CAMERAS)
    assert {name: one.shape for name, one in space.items()} == shown
    assert list(space) == list(shown)
    assert space["top"].dtype == np.uint8


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (
            {"jonts": (7,)},
            "arm has no observation 'jonts'; set task.observations to those that it has: did you mean 'jo",
        ),
        ({"state": (4,)}, r"arm shows 'state' in the shape \(2,\) or \(5,\), and the data set holds \(4,\)"),
        ({"top": (8, 8, 1)}, r"arm shows 'top' in the shape \(height, width, 3\)"),
        ({"state": (8, 8, 3)}, "arm shows 'state'"),
    ],
)
def test_other_observations_are_refused(shown: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        space_of("arm", shown, STATES, CAMERAS)


def test_cameras_draw_in_several_sizes_at_the_quality_of_the_data() -> None:
    scene = """<mujoco><worldbody><light pos="0 0 3"/><camera name="top" pos="0 0 2"/>
        <geom type="box" size=".2 .2 .2" pos="0 .4 0" rgba="1 0 0 1"/></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(scene)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    cameras = Cameras(model, Rendering(256, 0))
    for height, width in ((32, 64), (700, 800), (32, 64)):
        frame = cameras.frame(data, "top", height, width)
        assert frame.shape == (height, width, 3)
        red = np.argwhere(frame[..., 0] > 60)
        assert red[:, 0].mean() < height / 2, "the highest row is the first"
    cameras.close()
    assert (model.vis.quality.shadowsize, model.vis.quality.offsamples) == (256, 0)


def rollout(env: gymnasium.Env, seed: int, steps: int = 25) -> list[np.ndarray]:
    observation, _ = env.reset(seed=seed)
    rng, found = np.random.default_rng(seed), [observation["state"]]
    while len(found) <= steps:
        action = rng.uniform(-0.3, 0.3, env.action_space.shape).astype(np.float32)
        observation, reward, *_ = env.step(action)
        found.append(np.append(observation["state"], reward))
    return found


@needs
@simulates
@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_a_function_of_its_seed_in_whatever_environment(name: str) -> None:
    spec = EnvSpec(name, pixels=False)
    first, second = spec.make(), spec.make()
    wanted = rollout(first, 3)
    rollout(first, 4, 40)
    np.random.seed(7)
    for again in (rollout(first, 3), rollout(second, 3)):
        assert all(np.array_equal(*pair) for pair in zip(wanted, again, strict=True))
    assert not np.array_equal(wanted[-1], rollout(second, 5)[-1])
    assert first.reset(seed=0)[1]["instruction"]
    close(first)
    close(second)


@needs
@simulates
@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_environments_in_processes_are_those_in_this_one(name: str) -> None:
    spec = EnvSpec(name, pixels=False)
    vector, env = make_vector(spec, 2), spec.make()
    observations, _ = vector.reset(seed=[1, 2])
    actions = np.full((2, *env.action_space.shape), 0.1, np.float32)
    moved, _, _, _, info = vector.step(actions)
    assert info["success"].tolist() == [0, 0]
    for slot, seed in enumerate((1, 2)):
        assert np.array_equal(env.reset(seed=seed)[0]["state"], observations["state"][slot])
        assert np.array_equal(env.step(actions[slot])[0]["state"], moved["state"][slot])
    vector.close()
    close(env)


@needs
@simulates
@pytest.mark.parametrize("name", NAMES)
def test_an_episode_lasts_as_long_as_the_benchmarks(name: str) -> None:
    env = EnvSpec(name, pixels=False).make()
    state = env.reset(seed=1)[0]["state"]
    hold = state if name.startswith("aloha") else np.zeros(env.action_space.shape)
    if name.startswith("aloha"):
        low, high = (getattr(env.unwrapped.action_space, bound) for bound in ("low", "high"))
        hold = 2 * (state - low) / (high - low) - 1
    ends = [env.step(hold.astype(np.float32))[2:4] for _ in range(LIMITS[name])]
    assert ends == [(False, False)] * (LIMITS[name] - 1) + [(False, True)]
    close(env)


@simulates
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metaworld/reech-v3", "metaworld has no task 'reech-v3': did you mean 'reach-v3'"),
        ("metaworld", "metaworld has no task ''"),
        ("pusht/PushT-v1", "pusht has no task 'PushT-v1': did you mean 'PushT-v0'"),
        ("aloha/AlohaInsertion", "aloha has no task 'AlohaInsertion': did you mean 'AlohaInsertion-v0'"),
    ],
)
def test_unknown_tasks_are_refused(name: str, message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        EnvSpec(name).make()


@simulates
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GtpVisionError, match=rf"pip install 'gtp-vision\[{name.split('/')[0]}\]'"):
        EnvSpec(name, pixels=False).make()
