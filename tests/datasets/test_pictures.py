from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import pictures
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_first_middle_and_last_frames_of_every_camera_stand_abreast(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([5, 8], cameras={"left": (64, 64, 3), "right": (64, 96, 3)})
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    sheet = drawn(tmp_path / "sheet.png")
    rows = [(0, 2, 4), (5, 8, 12)]
    lefts = [4, 200, 396, 592, 788, 984]  # six frames of 192 pixels and gaps of 4
    for line, chosen in enumerate(rows):
        top = 20 + line * (192 + 20)  # a head above, a caption below
        for column, (name, row) in enumerate([(name, row) for name in ("left", "right") for row in chosen]):
            frame = store.observations[name][row]
            scale = 192 // max(frame.shape[:2])
            shown = sheet[top:, lefts[column] :][: 64 * scale : scale, : frame.shape[1] * scale : scale]
            np.testing.assert_array_equal(shown, frame, err_msg=f"{name} {row}")
    assert sheet.shape[1] == lefts[-1] + 192 + 4
    assert (sheet[:16] == 0).any(), "the cameras' names are written over them"


def test_of_many_episodes_a_few_are_drawn(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([2] * 40, cameras={"front": (192, 8, 3)})
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    sheet = drawn(tmp_path / "sheet.png")
    assert sheet.shape[0] == 20 + 6 * (192 + 20)
    np.testing.assert_array_equal(sheet[20 : 20 + 192, 4:12], store.observations["front"][0])
    np.testing.assert_array_equal(sheet[-20 - 192 : -20, 28:36], store.observations["front"][-1])


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 2), (8, 8, 4), (8, 8, 9), (1, 3000, 3), (400, 3, 3), (1, 1, 3)])
def test_frames_of_any_shape_are_drawn_in_bounded_size(
    make_store: MakeStore, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    store = make_store([3, 3], cameras={"front": shape})
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    assert max(drawn(tmp_path / "sheet.png").shape) < 700


def test_grey_frames_are_grey(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([3], cameras={"depth": (192, 192, 1)})
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    shown = drawn(tmp_path / "sheet.png")[20 : 20 + 192, 4 : 4 + 192]
    np.testing.assert_array_equal(shown, store.observations["depth"][0].repeat(3, -1))


def test_of_too_many_cameras_the_rest_is_counted_not_drawn(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([3], cameras={f"camera{number}": (4, 4, 3) for number in range(40)})
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    assert drawn(tmp_path / "sheet.png").shape[1] == 4 + 16 * 3 * (192 + 4)


def test_values_at_fault_forbid_no_sheet_and_shapes_do(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(cameras={"front": (4, 4, 3)})
    store.rewards[0], store.actions[1] = np.nan, 7
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    alone = drawn(tmp_path / "sheet.png")
    store.observations["float"] = np.zeros((12, 4, 4, 3), np.float32)
    pictures.write_contact_sheet(tmp_path / "sheet.png", store)
    np.testing.assert_array_equal(drawn(tmp_path / "sheet.png"), alone)
    for spoiled in (np.zeros((12, 4, 4, 3), np.float32), np.zeros((12, 3, 4, 8), np.uint8), np.zeros((12, 0, 4, 3))):
        store.observations = {"odd": spoiled}
        with pytest.raises(GtpVisionError, match=r"observations/odd is .*; no camera can be drawn before"):
            pictures.write_contact_sheet(tmp_path / "other.png", store)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("draw", [pictures.write_contact_sheet, pictures.write_action_histograms])
def test_only_a_png_is_ever_replaced(
    make_store: MakeStore, tmp_path: Path, draw: Callable[[Path, Store], None]
) -> None:
    store = make_store(cameras={"front": (4, 4, 3)})
    (tmp_path / "data.png").write_bytes(b"\x89HDF\r\n\x1a\n and all the data")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("data.h5", "ends in .png"),
        ("data", "ends in .png"),
        ("data.png", "is no PNG, so it is not replaced"),
        ("folder.png", "is no PNG, so it is not replaced"),
        ("data.png/in.png", "lies below a file"),
    ):
        with pytest.raises(GtpVisionError, match=words):
            draw(tmp_path / name, store)
    assert (tmp_path / "data.png").read_bytes().endswith(b"all the data")
    for _ in range(2):  # a PNG is
        draw(tmp_path / "picture.PNG", store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.png", "folder.png", "picture.PNG"]


def test_titles_tell_the_finite_actions_and_count_the_others(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    set_title = Axes.set_title

    def noted(panel: Axes, text: str, **options: Any) -> Any:
        titles.append(text)
        return set_title(panel, text, **options)

    monkeypatch.setattr(Axes, "set_title", noted)
    store = make_store((5, 7), actions=3)
    store.actions[:, 0] = np.linspace(-0.5, 3, 12)
    store.actions[[2, 6], 0] = np.nan, np.inf
    store.actions[:, 1] = np.nan
    pictures.write_action_histograms(tmp_path / "actions.png", store)
    assert titles[0] == "0: -0.5 to 2.68 (2 not finite)"  # the last row, 3, is never sampled
    assert titles[1].startswith("1: nothing finite")
    assert "nan" not in " ".join(titles)
    assert "not finite" not in titles[2]


def test_without_a_camera_there_is_nothing_to_draw(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="holds no camera"):
        pictures.write_contact_sheet(tmp_path / "sheet.png", make_store())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draw", [pictures.write_contact_sheet, pictures.write_action_histograms])
def test_nothing_is_drawn_while_lengths_disagree(
    make_store: MakeStore, tmp_path: Path, draw: Callable[[Path, Store], None]
) -> None:
    store = make_store(cameras={"front": (4, 4, 3)})
    store.rewards = store.rewards[1:]
    with pytest.raises(GtpVisionError, match="rewards has 11 rows"):
        draw(tmp_path / "picture.png", store)


@pytest.mark.parametrize(("dimensions", "lines"), [(1, 1), (6, 1), (7, 2), (40, 2)])
def test_there_is_a_panel_for_each_dimension_within_reason(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimensions: int, lines: int
) -> None:
    monkeypatch.setattr(pictures, "_PANELS", 8)
    pictures.write_action_histograms(tmp_path / "actions.png", make_store(actions=dimensions))
    height = drawn(tmp_path / "actions.png").shape[0]
    assert height == pytest.approx(120 * (1.5 * lines + 0.7), abs=2)


def test_a_near_constant_dimension_is_red(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    red = np.array([0xD6, 0x27, 0x28])
    pictures.write_action_histograms(tmp_path / "good.png", store)
    assert not (drawn(tmp_path / "good.png") == red).all(-1).any()
    store.actions[:, 1] = 0.5
    pictures.write_action_histograms(tmp_path / "constant.png", store)
    assert (drawn(tmp_path / "constant.png") == red).all(-1).any()


@pytest.mark.filterwarnings("error")
def test_bad_actions_are_drawn_all_the_same(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    for value in (40, np.nan, np.inf, -3e38):
        store.actions[3, 0] = value
        pictures.write_action_histograms(tmp_path / "actions.png", store)
        assert drawn(tmp_path / "actions.png").size
