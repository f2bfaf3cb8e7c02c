from pathlib import Path

import h5py
import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import Edit, hdf5, open_here, put, refused
from samples import maniskill_file

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import detect
from gtp_vision.datasets.inspection import success
from gtp_vision.datasets.validation import validate

pytestmark = pytest.mark.usefixtures("cache")
LENGTHS = (4, 3)


def test_every_frame_and_flag_is_in_its_place(tmp_path: Path) -> None:
    path, contents = maniskill_file(tmp_path / "trajectory.rgb.pd_ee_delta_pose.h5", LENGTHS)
    assert detect(path) == "maniskill"
    store = validate(open_here(path))
    assert set(store.observations) == {"agent_qpos", "extra_tcp_pose", "base_camera_rgb"}
    assert store.episode_ends.tolist() == [5, 9]
    places = {"agent_qpos": "agent/qpos", "extra_tcp_pose": "extra/tcp_pose"}
    places["base_camera_rgb"] = "sensor_data/base_camera/rgb"
    for start, stop, held in zip(store.episode_starts, store.episode_ends, contents, strict=True):
        for name, place in places.items():
            np.testing.assert_array_equal(store.observations[name][start:stop], held[f"obs/{place}"])
        np.testing.assert_array_equal(store.actions[start : stop - 1], held["actions"])
        np.testing.assert_array_equal(store.rewards[start : stop - 1], held["rewards"])
        np.testing.assert_array_equal(store.terminals[start : stop - 1], held["terminated"])
        assert store.timeouts[start:stop].tolist() == [0] * (stop - start - 1) + [1]
    assert store.attributes["env"] == "PickCube-v1"
    assert store.attributes["left_out"] == ["sensor_param"]
    assert success(store)["rate"] == 0.5


def states_alone(file: h5py.File) -> None:
    for number, length in enumerate(LENGTHS):
        del file[f"traj_{number}/obs"]
        file[f"traj_{number}/obs"] = np.zeros((length + 1, 42), np.float32) + number


def test_states_without_groups(tmp_path: Path) -> None:
    path, _ = maniskill_file(tmp_path / "trajectory.h5", LENGTHS)
    hdf5(states_alone)(path)
    path.with_suffix(".json").unlink()
    assert open_here(path).observations["state"][:, 0].tolist() == [0] * 5 + [1] * 4


def of_maniskill_2(file: h5py.File) -> None:
    for trajectory in file.values():
        for name in ("terminated", "truncated", "rewards"):
            del trajectory[name]
        frames = len(trajectory["obs/agent/qpos"])
        trajectory["obs/image/base_camera/depth"] = np.full((frames, 32, 40, 1), 700, np.int16)
        trajectory.move("obs/sensor_param", "obs/camera_param")


def test_files_of_maniskill_2_and_distances(tmp_path: Path) -> None:
    path, contents = maniskill_file(tmp_path / "trajectory.h5", LENGTHS)
    hdf5(of_maniskill_2)(path)
    assert detect(path) == "maniskill"
    store = validate(open_here(path))
    np.testing.assert_array_equal(store.observations["agent_qpos"][:5], contents[0]["obs/agent/qpos"])
    assert (depth.millimeters(np.asarray(store.observations["image_base_camera_depth"])) == 700).all()
    assert store.attributes["left_out"] == ["camera_param"]
    assert store.timeouts.nonzero()[0].tolist() == [4, 8]
    assert not store.terminals.any()
    assert success(store)["rate"] == 0.5


def emptied(file: h5py.File) -> None:
    del file["traj_0/obs"]
    file.create_group("traj_0/obs")


REPLAY = "mani_skill.trajectory.replay_trajectory --traj-path trajectory.h5 --save-traj --obs-mode rgb"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("traj_0/obs", None), ("only states of the simulator", REPLAY)),
        (hdf5(emptied), (REPLAY,)),
        (put("traj_0/obs/agent/qpos", np.zeros((4, 9))), ("qpos", "4 rows, wanted 5")),
        (put("traj_1/obs/extra/tcp_pose", None), ("'extra_tcp_pose' is in 'traj_0' and not in 'traj_1'",)),
        (put("traj_1/terminated", np.zeros(2, bool)), ("terminated", "2 rows, wanted 3")),
        (put("traj_00", h5py.SoftLink("/traj_0")), ("'traj_0' and 'traj_00' have the same number",)),
        (put("traj_1", h5py.SoftLink("/traj_0")), ("link",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_damage_is_named(tmp_path: Path, edit: Edit, words: tuple[str, ...]) -> None:
    path, _ = maniskill_file(tmp_path / "trajectory.h5", LENGTHS)
    edit(path)
    refused(path, *words)


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    path, _ = maniskill_file(tmp_path / "trajectory.h5", LENGTHS)
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(
        GtpVisionError, match=r"trajectory\.json, which holds the environment, cannot be read as a JSON"
    ):
        open_here(path)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["agent/q", "extra/deep/er"]), arrays_of.array_shapes(max_dims=2), min_size=1),
    st.sampled_from([np.float32, np.float64, np.int32, bool]),
    st.booleans(),
)
def test_any_small_file_is_read_as_h5py_reads_it(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], states: dict, dtype: type, rewarded: bool
) -> None:
    path, random = tmp_path_factory.mktemp("maniskill") / "a.h5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, length in enumerate(lengths):
            held = {name: random.uniform(-9, 9, (length + 1, *shape)).astype(dtype) for name, shape in states.items()}
            held = {f"obs/{name}": array for name, array in held.items()}
            held |= {"actions": random.uniform(-1, 1, (length, 2)).astype(np.float32)}
            held |= {name: random.integers(0, 2, length) > 0 for name in ("terminated", "truncated")}
            held |= {"rewards": random.normal(size=length)} if rewarded else {}
            for name, array in held.items():
                file[f"traj_{number}/{name}"] = array
    store = open_here(path)
    with h5py.File(path) as file:
        for number, (start, stop) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
            one = file[f"traj_{number}"]
            np.testing.assert_array_equal(store.actions[start : stop - 1], one["actions"])
            np.testing.assert_array_equal(store.terminals[start : stop - 1], one["terminated"])
            if rewarded:
                np.testing.assert_array_equal(store.rewards[start : stop - 1], np.float32(one["rewards"]))
            for name in states:
                found = np.asarray(store.observations[name.replace("/", "_")])[start:stop]
                np.testing.assert_array_equal(found, np.float32(one[f"obs/{name}"]).reshape(found.shape))
