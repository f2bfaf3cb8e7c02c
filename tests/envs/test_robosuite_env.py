import gc
import importlib.util
import os
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gtp_vision.collection.lift import lift_episode
from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec
from gtp_vision.envs.robosuite import RobosuiteEnv, lift_env_args

pytestmark = [
    pytest.mark.simulates,
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is an extra"),
]


@pytest.fixture(scope="module")
def lift() -> RobosuiteEnv:
    return RobosuiteEnv(lift_env_args())


def test_a_reset_depends_on_its_seed_alone(lift: RobosuiteEnv) -> None:
    first, _ = lift.reset(seed=3)
    shapes = {"robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,), "object": (10,)}
    assert {key: array.shape for key, array in first.items()} == shapes, "robomimic's keys"
    assert {key: space.shape for key, space in lift.observation_space.spaces.items()} == shapes
    model, state = lift.model_file(), lift.state()
    other, _ = lift.reset(seed=4)
    again, info = lift.reset(seed=3)
    assert info == {"success": False}
    np.testing.assert_equal(again, first)
    assert lift.model_file() == model
    np.testing.assert_array_equal(lift.state(), state)
    assert not np.array_equal(first["object"], other["object"])


def test_the_script_lifts_the_cube_unless_the_limit_comes_first(lift: RobosuiteEnv) -> None:
    episode = lift_episode(lift, 0, noise=0.1, limit=60)
    assert episode["success"]
    assert np.flatnonzero(episode["rewards"]).tolist() == [len(episode["actions"]) - 1]
    assert len(episode["obs/object"]) == len(episode["actions"]) + 1 == len(episode["states"]) + 1
    assert episode["obs/object"][-1, 2] > 0.84, "the table is 0.8 m high"
    assert np.abs(episode["actions"]).max() <= 1
    short = lift_episode(lift, 0, noise=0.0, limit=5)
    assert (short["success"], short["rewards"].tolist()) == (False, [0] * 5)


def test_frames_stand_upright() -> None:
    """A cube that is moved upwards moves towards the first row of the frame."""
    env = RobosuiteEnv(lift_env_args(["frontview"], 64))
    env.reset(seed=0)
    rows = []
    joint = env.simulator.cube.joints[0]
    for height in (0.83, 1.3):
        place = env.simulator.sim.data.get_joint_qpos(joint).copy()
        place[:3] = 0.15, 0.25, height
        env.simulator.sim.data.set_joint_qpos(joint, place)
        env.simulator.sim.forward()
        frame = env._observed(env.simulator._get_observations(force_update=True))["frontview_image"].astype(int)
        assert frame.shape == (64, 64, 3)
        rows.append(np.argwhere(frame[..., 0] - frame[..., 1:].max(-1) > 40)[:, 0].mean())
    env.close()
    assert rows[1] < rows[0] - 5


def test_distances_are_those_of_the_scene() -> None:
    """The cube's upper side, seen from the camera 3 m above the floor, at the place that the image shows."""
    shown = {"birdview_depth": (256, 256, 2), "object": (10,), "birdview_image": (256, 256, 3)}
    env = RobosuiteEnv(lift_env_args(), shown)
    assert {key: space.shape for key, space in env.observation_space.spaces.items()} == shown
    env.reset(seed=0)
    joint, seen = env.simulator.cube.joints[0], []
    for height in (0.83, 1.03):
        place = env.simulator.sim.data.get_joint_qpos(joint).copy()
        place[:3] = 0.1, 0.2, height
        env.simulator.sim.data.set_joint_qpos(joint, place)
        env.simulator.sim.forward()
        observed = env._observed(env.simulator._get_observations(force_update=True))
        image, distances = observed["birdview_image"].astype(int), depth.millimeters(observed["birdview_depth"])
        seen.append(np.median(distances[image[..., 0] - image[..., 1:].max(-1) > 40]))
    env.close()
    np.testing.assert_allclose(seen, [3000 - 850, 3000 - 1050], atol=3)


@pytest.mark.parametrize("numbers", ["", "0", "3", "0,1", "-1", "GPU-8a1b", "MIG-GPU-8a1b/1/0", "NoDevFiles"])
def test_frames_are_drawn_whatever_gpus_training_may_use(monkeypatch: pytest.MonkeyPatch, numbers: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", numbers)
    lift_env_args(["frontview"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == numbers
    egl_context = pytest.importorskip("robosuite.renderers.context.egl_context")
    context = egl_context.EGLGLContext(16, 16, device_id=-1)
    context.make_current()
    context.free()


def test_each_frame_is_drawn_whatever_is_collected_or_drawn_meanwhile() -> None:
    """robosuite's contexts of earlier episodes, once freed late, took the framebuffer of the current one with them."""
    make = partial(RobosuiteEnv, lift_env_args(["frontview"], 16))
    env, other = make(), None
    episodes = []
    for disturbs in (False, True):
        frames = [env.reset(seed=0)[0]["frontview_image"]]
        if disturbs:
            other = make()
            other.reset(seed=1)
        for number in range(4):
            if disturbs:
                gc.collect()
                if number == 2:
                    other.close()
                    other = None
            frames.append(env.step(np.full(7, 0.5))[0]["frontview_image"])
        episodes.append(np.stack(frames))
    env.close()
    np.testing.assert_array_equal(*episodes)
    assert all(frame.std() > 20 for frame in episodes[0])


@pytest.mark.parametrize(
    ("env_args", "message"),
    [
        ({"env_name": "Lfit", "env_kwargs": {}}, "did you mean 'Lift'"),
        ({"env_name": "Lift", "env_kwargs": 3}, "env_kwargs"),
        ({"env_name": "Lift", "env_kwargs": {"robots": ["Panda"], "wheels": 4}}, "robosuite 1"),
        ({"env_name": "Lift", "env_kwargs": {"robots": ["Toaster"]}}, "cannot make 'Lift'"),
        ({}, "unknown robosuite environment ''"),
    ],
)
def test_what_cannot_be_made_is_refused(env_args: dict[str, Any], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message) as raised:
        RobosuiteEnv(env_args)
    assert "\n" not in str(raised.value)


def test_unknown_cameras_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GtpVisionError, match="did you mean 'agentview'"):
        lift_env_args(["agentvew"])
    with pytest.raises(GtpVisionError, match=r"cannot make 'Lift'.*topview"):
        RobosuiteEnv(lift_env_args(), {"topview_image": (8, 8, 3)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GtpVisionError, match=r"pip install 'gtp-vision\[robosuite\]'"):
        lift_env_args()


def test_robosuite_says_nothing_of_itself_and_takes_no_gpu_of_training_for_its_own() -> None:
    script = "from gtp_vision.envs.robosuite import *; RobosuiteEnv(lift_env_args()).reset(seed=0)"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "1,2", "MUJOCO_EGL_DEVICE_ID": "0"}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_is_shown_is_what_was_asked_for_in_that_order() -> None:
    shown = {"robot0_joint_pos": (7,), "object": (10,), "cube_pos": (3,)}
    env = RobosuiteEnv(lift_env_args(["frontview"], 16), shown)
    assert {key: space.shape for key, space in env.observation_space.spaces.items()} == shown
    first, _ = env.reset(seed=0)
    later = [env.step(np.array([1.0, 0, 0, 0, 0, 0, -1]))[0] for _ in range(5)][-1]
    assert list(first) == list(later) == list(shown) == list(env.observation_space.spaces)
    np.testing.assert_array_equal(later["object"][:3], later["cube_pos"])
    assert np.abs(later["robot0_joint_pos"] - first["robot0_joint_pos"]).max() > 0.01
    assert not env.simulator.has_offscreen_renderer, "no camera is asked for"


def test_an_episode_lasts_as_long_as_robomimics() -> None:
    env = EnvSpec("robosuite", env_args=lift_env_args(), shown={"object": (10,)}).make()
    env.reset(seed=0)
    ends = [env.step(np.zeros(7))[2:4] for _ in range(400)]
    assert ends == [(False, False)] * 399 + [(False, True)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"env_args": {"env_name": "Lift", "type": 2}}, "the data set has none"),
        (
            {"env_args": {"env_name": "PickPlaceCan", "type": 1}},
            "was recorded in 'PickPlaceCan'; set task.env=robosuite",
        ),
        ({"env_args": {"env_name": "Lift", "type": 1}, "goals": True}, "set task.goals=null"),
    ],
)
def test_env_args_that_do_not_fit_are_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(GtpVisionError, match=told):
        EnvSpec("robosuite/Lift", **arguments).make()


def test_data_without_env_args_need_the_tasks_name() -> None:
    with pytest.raises(GtpVisionError, match=r"task.env=robosuite needs a robomimic file.* e.g. robosuite/Can"):
        EnvSpec("robosuite").make()
    with pytest.raises(GtpVisionError, match="'Sqare': did you mean 'Square'"):
        EnvSpec("robosuite/Sqare").make()


@pytest.mark.parametrize(
    ("name", "numbers", "limit"),
    [("Can", 14, 400), ("Square", 14, 400), ("NutAssembly", 28, 400), ("ToolHang", 44, 700)],
)
def test_robomimics_tasks_by_their_names(name: str, numbers: int, limit: int) -> None:
    env: Any = EnvSpec(f"robosuite/{name}", shown={"object": (numbers,)}).make()
    first, again = (env.reset(seed=3)[0]["object"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first.shape, env.action_space.shape, env.get_wrapper_attr("_max_episode_steps")) == (
        (numbers,),
        (7,),
        limit,
    )
    assert env.step(np.zeros(7, np.float32))[4] == {"success": False}


OLD_OSC = {  # of robosuite 1.2 to 1.4, as robomimic's files of that time hold it
    **{"type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping": 1, "impedance_mode": "fixed"},
    **{"output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3, "kp_limits": [0, 300]},
    **{"damping_limits": [0, 10], "position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True},
    **{"control_delta": True, "interpolation": None, "ramp_ratio": 0.2},
}


def test_controllers_of_older_versions_are_converted_and_the_version_is_named() -> None:
    old = lift_env_args() | {"env_version": "1.2.1"}
    old["env_kwargs"] = old["env_kwargs"] | {"controller_configs": OLD_OSC, "lite_physics": True}
    ends, actions = [], np.random.default_rng(0).uniform(-1, 1, (10, 7))
    for env_args in (lift_env_args(), old):
        env = RobosuiteEnv(env_args)
        env.reset(seed=0)
        ends.append([env.step(action)[0]["robot0_eef_pos"] for action in actions][-1])
    np.testing.assert_allclose(*ends, atol=1e-6)
    assert "recorded by robosuite 1.2.1, and robosuite 1" in env.notice
    still = OLD_OSC | {"control_delta": False}
    env = RobosuiteEnv(old | {"env_kwargs": old["env_kwargs"] | {"controller_configs": still}})
    place = env.reset(seed=0)[0]["robot0_eef_pos"] + [0, 0, 0.05]
    pose = Rotation.from_matrix(env.simulator.robots[0].part_controllers["right"].ref_ori_mat).as_rotvec()
    for _ in range(15):
        seen = env.step(np.array([*place, *pose, -1]))[0]
    np.testing.assert_allclose(seen["robot0_eef_pos"], place, atol=0.02)
