from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import pictures
from gtp_vision.datasets.store import Store

Draw = Callable[[Path, Store], None]
DRAWINGS = [pictures.write_contact_sheet, pictures.write_action_histograms]


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def sheet(folder: Path, store: Store) -> np.ndarray:
    pictures.write_contact_sheet(folder / "sheet.png", store)
    return drawn(folder / "sheet.png")


def test_first_middle_and_last_frames_of_every_camera_are_side_by_side(tmp_path: Path) -> None:
    store = make_store([5, 8], cameras={"left": (64, 64, 1), "right": (64, 96, 3)})
    image = sheet(tmp_path, store)
    lefts = [4, 200, 396, 592, 788, 984]  # six frames of 192 pixels and gaps of 4
    for line, chosen in enumerate([(0, 2, 4), (5, 8, 12)]):
        top = 20 + line * (192 + 20)  # a title above, a caption below
        for column, (name, row) in enumerate([(name, row) for name in ("left", "right") for row in chosen]):
            frame = store.observations[name][row]
            scale = 192 // max(frame.shape[:2])
            shown = image[top:, lefts[column] :][: 64 * scale : scale, : frame.shape[1] * scale : scale]
            np.testing.assert_array_equal(shown, np.broadcast_to(frame, shown.shape), err_msg=f"{name} {row}")
    assert image.shape[1] == lefts[-1] + 192 + 4
    assert (image[:16] == 0).any(), "the cameras' names are above them"


def test_of_many_episodes_and_cameras_a_few_are_drawn(tmp_path: Path) -> None:
    store = make_store([2] * 40, cameras={"front": (192, 8, 3)})
    image = sheet(tmp_path, store)
    assert image.shape[0] == 20 + 6 * (192 + 20)
    np.testing.assert_array_equal(image[20 : 20 + 192, 4:12], store.observations["front"][0])
    np.testing.assert_array_equal(image[-20 - 192 : -20, 28:36], store.observations["front"][-1])
    many = make_store([3], cameras={f"camera{number}": (4, 4, 3) for number in range(40)})
    assert sheet(tmp_path, many).shape[1] == 4 + 16 * 3 * (192 + 4)


@pytest.mark.parametrize("shape", [(8, 8, 2), (8, 8, 9), (1, 3000, 3), (400, 3, 3), (1, 1, 3)])
def test_sheets_of_any_shape_are_bounded(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    assert max(sheet(tmp_path, make_store([3, 3], cameras={"front": shape})).shape) < 700


def test_faults_of_values_allow_a_sheet_and_faults_of_shapes_do_not(tmp_path: Path) -> None:
    store = make_store(cameras={"front": (4, 4, 3)})
    store.rewards[0], store.actions[1] = np.nan, 7
    alone = sheet(tmp_path, store)
    store.observations["float"] = np.zeros((12, 4, 4, 3), np.float32)
    np.testing.assert_array_equal(sheet(tmp_path, store), alone)
    for odd in (np.zeros((12, 4, 4, 3), np.float32), np.zeros((12, 3, 4, 8), np.uint8), np.zeros((12, 0, 4, 3))):
        store.observations = {"odd": odd}
        with pytest.raises(GtpVisionError, match=r"observations/odd is .*; fix that to draw a camera"):
            pictures.write_contact_sheet(tmp_path / "other.png", store)
    with pytest.raises(GtpVisionError, match="has no camera"):
        pictures.write_contact_sheet(tmp_path / "other.png", make_store())
    with pytest.raises(GtpVisionError, match="no action with an outcome"):
        pictures.write_action_histograms(tmp_path / "other.png", make_store([1]))
    for draw in DRAWINGS:
        store = make_store(cameras={"front": (4, 4, 3)})
        store.rewards = store.rewards[1:]
        with pytest.raises(GtpVisionError, match="rewards has 11 rows"):
            draw(tmp_path / "other.png", store)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_only_a_png_is_ever_replaced(tmp_path: Path, draw: Draw) -> None:
    store = make_store(cameras={"front": (4, 4, 3)})
    (tmp_path / "data.png").write_bytes(b"\x89HDF\r\n\x1a\n and all the data")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("data.h5", "ends in .png"),
        ("data", "ends in .png"),
        ("data.png", "is not a PNG file, so it is not replaced"),
        ("folder.png", "is not a PNG file, so it is not replaced"),
        ("data.png/in.png", "lies below a file"),
    ):
        with pytest.raises(GtpVisionError, match=words):
            draw(tmp_path / name, store)
    assert (tmp_path / "data.png").read_bytes().endswith(b"all the data")
    for _ in range(2):
        draw(tmp_path / "picture.PNG", store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.png", "folder.png", "picture.PNG"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dimensions", "lines"), [(7, 2), (40, 2)])
def test_there_is_a_panel_for_each_dimension_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimensions: int, lines: int
) -> None:
    monkeypatch.setattr(pictures, "_MAX_PANELS", 8)
    store = make_store(actions=dimensions)
    store.actions[[2, 6, 7], 0] = np.nan, np.inf, -3e38
    store.actions[:, 1] = np.nan
    store.actions[:, -1] = 0.5
    pictures.write_action_histograms(tmp_path / "actions.png", store)
    image = drawn(tmp_path / "actions.png")
    assert image.shape[0] == pytest.approx(120 * (1.5 * lines + 0.7), abs=2)
    is_red = (image == np.array([0xD6, 0x27, 0x28])).all(-1).any()
    assert is_red == (dimensions <= 8), "a near-constant dimension is red"
