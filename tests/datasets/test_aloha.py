import resource
from pathlib import Path

import h5py
import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import Edit, open_here, put, refused
from samples import aloha_folder

from gtp_vision.core import depth
from gtp_vision.datasets.formats import detect
from gtp_vision.datasets.validation import validate

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", [".", "episode_1.hdf5"])
def test_every_frame_and_action_is_in_its_place(tmp_path: Path, name: str) -> None:
    folder, contents = aloha_folder(tmp_path / "aloha", (4, 3))
    contents = contents if name == "." else contents[1:]
    assert detect(folder / name) == "aloha"
    store = validate(open_here(folder / name))
    expected = {name: np.concatenate([part[name] for part in contents]) for name in contents[0] if "wrist" not in name}
    for state in ("qpos", "qvel"):
        np.testing.assert_array_equal(store.observations[state], expected[f"observations/{state}"])
    np.testing.assert_array_equal(store.observations["cam_high"], expected["observations/images/cam_high"])
    np.testing.assert_array_equal(store.actions, expected["action"])
    assert np.abs(np.asarray(store.observations["cam_wrist"]).astype(int) - expected["colors"]).max() < 8
    lengths = [len(part["action"]) for part in contents]
    assert store.episode_ends.tolist() == np.cumsum(lengths).tolist()
    assert store.timeouts.nonzero()[0].tolist() == (np.cumsum(lengths) - 1).tolist()
    assert not store.rewards.any()
    assert not store.terminals.any()


def test_compressed_frames_are_what_opencv_decodes(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    folder, contents = aloha_folder(tmp_path / "aloha", (3,))
    decoded = [cv2.imdecode(row, 1) for row in contents[0]["observations/images/cam_wrist"]]
    found = np.asarray(open_here(folder).observations["cam_wrist"]).astype(int)
    assert np.abs(found - np.stack(decoded)).max() <= 2  # by rounding of two decoders


def test_episodes_are_in_the_order_of_their_numbers_among_other_files(tmp_path: Path) -> None:
    folder, contents = aloha_folder(tmp_path / "aloha", (2, 3, 4))
    for number in (1, 2):
        (folder / f"episode_{number}.hdf5").rename(folder / f"episode_{12 - number}.hdf5")
    for name in ("episode_0.mp4", "dataset_stats.pkl", "._episode_0.hdf5", "episode_3.hdf5.part"):
        (folder / name).write_bytes(b"x")
    store = open_here(folder)
    expected = np.concatenate([contents[number]["action"] for number in (0, 2, 1)])
    np.testing.assert_array_equal(store.actions, expected)


def test_the_base_of_a_mobile_robot_is_appended(tmp_path: Path) -> None:
    folder, contents = aloha_folder(tmp_path / "aloha", (3,), more={"base_action": [0.25, -0.5]})
    store = open_here(folder)
    np.testing.assert_array_equal(store.actions[:, :14], contents[0]["action"])
    np.testing.assert_array_equal(store.actions[:, 14:], [[0.25, -0.5]] * 3)
    assert store.attributes["action_parts"] == {"action": 14, "base_action": 2}


@pytest.mark.parametrize("is_text", [False, True])
def test_efforts_and_frames_that_are_stored_otherwise(tmp_path: Path, is_text: bool) -> None:
    """RDT and RoboTwin store JPEG files as text of one length."""
    folder, contents = aloha_folder(tmp_path / "aloha", (3,), more={"observations/effort": np.arange(14.0)})
    rows = contents[0]["observations/images/cam_wrist"]
    put("observations/images/cam_wrist", rows.view(f"S{rows.shape[1]}")[:, 0] if is_text else None)(
        folder / "episode_0.hdf5"
    )
    if not is_text:
        with h5py.File(folder / "episode_0.hdf5", "r+") as file:
            ragged = file.create_dataset("observations/images/cam_wrist", len(rows), h5py.vlen_dtype(np.uint8))
            for number, row in enumerate(rows):
                ragged[number] = row[: np.flatnonzero(row)[-1] + 1]
    store = open_here(folder)
    np.testing.assert_array_equal(store.observations["effort"], [np.arange(14)] * 3)
    assert np.abs(np.asarray(store.observations["cam_wrist"]).astype(int) - contents[0]["colors"]).max() < 8


def test_distances_beside_the_images(tmp_path: Path) -> None:
    millimeters = np.random.default_rng(0).integers(0, 1 << 16, (36, 40)).astype(np.uint16)
    folder, _ = aloha_folder(tmp_path / "aloha", (3, 2), more={"observations/images_depth/cam_high": millimeters})
    store = open_here(folder)
    found = depth.millimeters(np.asarray(store.observations["images_depth_cam_high"]))
    np.testing.assert_array_equal(found, [millimeters] * 5)
    assert store.attributes["depth"] == ["images_depth_cam_high"]


def test_more_episodes_than_files_may_be_open(tmp_path: Path) -> None:
    folder, contents = aloha_folder(tmp_path / "aloha", (1,) * 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard))
    try:
        store = open_here(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(store.actions, np.concatenate([part["action"] for part in contents]))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("observations/qvel", None), ("'qvel' is in", "every episode needs the same")),
        (put("observations/qpos", np.zeros((2, 14), np.float32)), ("qpos", "2 rows, wanted 3")),
        (put("observations/images/cam_wrist", np.ones((3, 9), np.uint8)), ("cam_wrist", "its bytes are of another")),
        (put("observations/images/cam_high", np.zeros((3, 8, 8, 3), np.uint8)), ("cam_high", "all episodes need")),
        (put("action", np.zeros((3, 7), np.float32)), ("7 dimensions in 'episode_1.hdf5'",)),
        (put("base_action", np.zeros((2, 2), np.float32)), ("'base_action' has 2 rows and 'action' 3",)),
        (put("observations/cam_high", np.zeros((3, 2))), ("a state and a camera have the name 'cam_high'",)),
        (put("action", None), ("is not an episode of ALOHA", "move it elsewhere")),
        (put("action", h5py.ExternalLink("/etc/passwd", "/x")), ("action", "link")),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), ("truncated",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_damage_in_one_episode_is_named(tmp_path: Path, edit: Edit, words: tuple[str, ...]) -> None:
    folder, _ = aloha_folder(tmp_path / "aloha", (4, 3))
    edit(folder / "episode_1.hdf5")
    assert "aloha" in refused(folder, *words)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["qpos", "effort", "x/y"]), arrays_of.array_shapes(max_dims=1), min_size=1),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_small_folder_is_read_as_h5py_reads_it(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], states: dict, dtype: type
) -> None:
    folder, random = tmp_path_factory.mktemp("aloha"), np.random.default_rng(0)
    for number, length in enumerate(lengths):
        with h5py.File(folder / f"episode_{number}.h5", "w") as file:
            file["action"] = random.normal(size=(length, 3)).astype(dtype)
            for name, shape in states.items():
                file[f"observations/{name}"] = random.normal(size=(length, *shape)).astype(dtype)
    store = open_here(folder)
    for number, (start, stop) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
        with h5py.File(folder / f"episode_{number}.h5") as file:
            np.testing.assert_array_equal(store.actions[start:stop], np.float32(file["action"]))
            for name in states:
                found = np.asarray(store.observations[name.replace("/", "_")])[start:stop]
                np.testing.assert_array_equal(found, np.float32(file[f"observations/{name}"]).reshape(found.shape))
