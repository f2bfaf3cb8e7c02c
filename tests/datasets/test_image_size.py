"""Frames that are cropped and resized when data are imported, of every format."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from refusals import ARRAYS
from samples import Copied
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core import files
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import ALL, FRAMES, Framing
from gtp_vision.datasets import formats, unpacking
from gtp_vision.datasets.formats import convert, open_store, video
from gtp_vision.datasets.layout import to_store
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate

pytestmark = pytest.mark.usefixtures("cache")
FRAMING = Framing({ALL: (5, 3)}, (4, 4))
WITH_CAMERAS = (
    *("native", "native_gzip", "d4rl_mapped", "robomimic", "robomimic_mapped", "minari_jpeg", "lerobot"),
    *("zarr", "zarr_zip"),
)


def framed(path: Path, framing: Framing | None) -> Store:
    """`open_store` without the child process."""
    return to_store(formats._layout(path, None, None, framing and framing.record()), path)


@pytest.mark.parametrize("sample", WITH_CAMERAS)
def test_frames_of_every_format_are_cropped_and_resized(sample: str, copied: Copied, cache: Path) -> None:
    path = copied(sample)
    before, after = framed(path, None), framed(path, FRAMING)
    validate(*scaled([after]))
    recorded = {}
    for name, array in before.observations.items():
        frames = np.asarray(array)
        if frames.ndim == 4:
            recorded[name], frames = frames.shape[1:], FRAMING(name, frames)
        rounding = 2 if sample == "lerobot" else 0  # ffmpeg resizes before it converts colors
        np.testing.assert_allclose(after.observations[name], frames, rtol=0, atol=rounding, err_msg=name)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    held = Framing.of(after.attributes[FRAMES])
    assert (held and held.recorded, {**after.attributes, FRAMES: 0}) == (recorded, {**before.attributes, FRAMES: 0})
    entries = sorted(cache.iterdir())
    framed(path, FRAMING)
    assert sorted(cache.iterdir()) == entries


@pytest.mark.parametrize(
    "framing",
    [
        Framing({ALL: (24, 32)}),
        Framing({ALL: (30, 44)}, (50, 66)),
        Framing({ALL: (32, 32)}, (61, 97)),
        Framing({ALL: (80, 160)}),
        Framing(crop=(31, 40)),
    ],
    ids=["half", "even crop", "odd crop", "larger", "crop only"],
)
def test_ffmpeg_resizes_as_a_framing_does(framing: Framing, tmp_path: Path) -> None:
    shape, rows, columns = (64, 98, 3), np.arange(64)[:, None], np.arange(98)
    waves = [np.sin(rows / 7 + phase) + np.cos(columns / (5 + phase)) for phase in range(6)]
    frames = np.stack([np.stack(waves[i : i + 3], -1) * 60 + 127 for i in range(4)]).astype(np.uint8)
    with video.encoding(tmp_path / "a.mp4", shape, 10) as write:
        write(frames)
    with (
        video.decoding(tmp_path / "a.mp4", shape) as whole,
        video.decoding(tmp_path / "a.mp4", shape, framing) as small,
    ):
        wanted, found = (np.stack(list(each)).astype(int) for each in (framing("", np.stack(list(whole))), small))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < 0.6
    assert np.abs(found - wanted).max() <= 4


def test_states_alone_have_no_frames(copied: Copied) -> None:
    assert FRAMES not in framed(copied("minari"), FRAMING).attributes


def test_frames_are_not_resized_twice(copied: Copied, tmp_path: Path) -> None:
    small = tmp_path / "small.h5"
    store = convert(copied("zarr"), small, "native", framing=FRAMING)
    assert store.observations["img"].shape[1:] == (5, 3, 3)
    np.testing.assert_array_equal(framed(small, FRAMING).observations["img"], store.observations["img"])
    with pytest.raises(GtpVisionError, match=r"small\.h5: its frames were cropped or resized before"):
        framed(small, Framing({ALL: (4, 4)}))


def test_a_crop_that_does_not_fit_is_refused(copied: Copied) -> None:
    with pytest.raises(GtpVisionError, match="crop 9x4 is larger than the frames of camera 'front', 8x6"):
        open_store(copied("native"), framing=Framing(crop=(9, 4)))


def test_the_size_of_the_cache_is_printed_before_it_is_made(
    copied: Copied, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    monkeypatch.setattr(unpacking, "PROGRESS_BYTES", 1000)
    path = copied("zarr")
    framed(path, None)
    assert f"gtp-vision: unpacking pusht.zarr takes 6.62e-05 GB in {cache}" in capsys.readouterr().err
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(GtpVisionError, match=r"unpacking pusht\.zarr needs .* set task\.image_size to smaller frames"):
        framed(path, FRAMING)


def test_batches_that_do_not_fit_the_memory_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras: Any = {"front": (48, 64, 3)}
    needed = 4 * 2 * 256 * 3 * 48 * 64 * 3
    store = make_store((20, 30), cameras=cameras)
    for memory, is_reported in ((2 * needed, False), (2 * needed - 2, True)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: SimpleNamespace(total=memory))
        found = [said for said in pitfalls(store, {"actions": _statistics(store)}) if "set task.image_size" in said]
        assert len(found) == is_reported


def _statistics(store: Store) -> Any:
    from gtp_vision.datasets.statistics import array_statistics

    return array_statistics(store.actions)


def test_the_command_converts_to_small_frames(copied: Copied, tmp_path: Path) -> None:
    path, small = copied("native"), tmp_path / "small.hdf5"
    options = ["--to", "robomimic", "--image-size", "5x3", "--image-crop", "4"]
    assert main(["data", "convert", str(path), str(small), *options]) == 0
    wanted = FRAMING("front", np.asarray(framed(path, None).observations["front"]))
    np.testing.assert_array_equal(framed(small, None).observations["front"], wanted)
    assert (
        main(["data", "convert", str(path), str(tmp_path / "no.hdf5"), "--to", "robomimic", "--image-size", "big"]) == 2
    )


@pytest.mark.parametrize("sizes", [{ALL: (5, 3)}, {"seen": (5, 3)}])
def test_cameras_with_chosen_names_are_resized(copied: Copied, sizes: dict[str, tuple[int, int]]) -> None:
    store = open_store(copied("zarr"), features={"seen": "img", "action": "action"}, framing=Framing(sizes))
    assert store.observations["seen"].shape[1:] == (5, 3, 3)
    held = Framing.of(store.attributes[FRAMES])
    assert held is not None
    assert (dict(held.recorded), dict(held.sizes)) == ({"seen": (36, 40, 3)}, sizes)
