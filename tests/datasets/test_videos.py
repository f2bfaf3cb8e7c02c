"""Frames that stay in their videos: equal to unpacked ones, and every failure of a file a sentence."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core import files, sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import ALL, Framing
from gtp_vision.datasets import formats
from gtp_vision.datasets.arrays import Segmented, gather, videos_of
from gtp_vision.datasets.formats import convert, lerobot_writer, native, open_store, seeking, video
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.split import _hashes
from gtp_vision.datasets.statistics import mean_images
from gtp_vision.datasets.store import Store, mix
from gtp_vision.datasets.videos import Videos

pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("cache")

Copy = Callable[..., Path]
SHAPES = {"front": (48, 64, 3), "wrist": (33, 41, 3)}  # even, and odd: colors of each pixel
LENGTHS = (40, 3, 25, 1, 12)


def waves(frames: int, shape: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])
    phases = np.arange(frames)[:, None, None, None] / 3 + np.arange(shape[2])
    moving = np.sin(rows / 5 + columns / 9 + phases.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    return (moving * 100 + 127).astype(np.uint8)


def scenes() -> Store:
    store = make_store(LENGTHS)
    cameras = {name: waves(len(store), shape) for name, shape in SHAPES.items()}
    return replace(store, observations={**store.observations, **cameras}, attributes={"fps": 10})


def encoded_again(path: Path, *options: str) -> None:
    """Other distances of keyframes, with frames that refer to later ones."""
    new = path.with_suffix(".new.mp4")
    command = [video._ffmpeg(), "-loglevel", "error", "-i", str(path), "-c:v", "libx264", *options, str(new)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    new.replace(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, store = tmp_path_factory.mktemp("videos"), scenes()
    found = {
        "v3": lerobot_writer.write(folder / "v3", store),
        "v3 far": lerobot_writer.write(folder / "v3far", store),
        "v2": formats.FORMATS["lerobot-v2.1"].write(folder / "v2", store) or folder / "v2",  # type: ignore[misc]
    }
    for path in found["v3 far"].rglob("*.mp4"):
        encoded_again(path, "-g", "30", "-bf", "3")
    return found


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Copy:
    def copy(name: str = "v3") -> Path:
        subprocess.run(["cp", "-r", str(made[name]), str(tmp_path / "set")], check=True)
        return tmp_path / "set"

    return copy


def both(path: Path, framing: Framing | None = None) -> tuple[Store, Store]:
    return open_store(path, framing=framing), open_store(path, framing=framing, video="seek")


@pytest.mark.parametrize("name", ["v3", "v3 far", "v2"])
@pytest.mark.parametrize(
    "framing", [None, Framing({ALL: (24, 32)}), Framing({ALL: (20, 20)}, (30, 36)), Framing({ALL: (9, 8)}, (31, 41))]
)
def test_frames_equal_unpacked_ones(made: dict[str, Path], name: str, framing: Framing | None) -> None:
    unpacked, sought = both(made[name], framing)
    assert unpacked.attributes == sought.attributes
    rows = np.random.default_rng(0).integers(0, len(sought), 50)
    for camera in SHAPES:
        before, after = unpacked.observations[camera], sought.observations[camera]
        assert isinstance(after, Videos)
        assert (after.shape, after.dtype, after.ndim, after.nbytes) == (before.shape, before.dtype, 4, before.nbytes)
        np.testing.assert_array_equal(after, before)
        np.testing.assert_array_equal(after[rows], before[rows])
    np.testing.assert_array_equal(sought.observations["state"], unpacked.observations["state"])


def test_rows_with_frames_that_are_left_out(published: Path) -> None:
    unpacked, sought = both(published)
    for camera, array in unpacked.observations.items():
        np.testing.assert_array_equal(sought.observations[camera], array)
    assert {camera for camera, array in sought.observations.items() if videos_of(array)} == {"front", "top"}


def test_rows_are_chosen_as_of_other_arrays(made: dict[str, Path]) -> None:
    unpacked, sought = (store.observations["front"] for store in both(made["v3"]))
    some: list[Any] = [
        3,
        -1,
        slice(5, 60, 7),
        np.array([[4, 4], [70, 0]]),
        np.arange(len(unpacked)) % 9 == 0,
        np.empty(0, int),
    ]
    for rows in some:
        np.testing.assert_array_equal(sought[rows], np.asarray(unpacked)[rows])
    with pytest.raises(IndexError):
        sought[len(sought)]
    out = np.empty((3, *SHAPES["front"]), np.uint8)
    sought.take(np.array([9, 9, 2]), out)  # type: ignore[union-attr]
    np.testing.assert_array_equal(out, np.asarray(unpacked)[[9, 9, 2]])


def test_stores_made_of_them(made: dict[str, Path]) -> None:
    unpacked, sought = both(made["v3"])
    other = open_store(made["v2"], video="seek")
    for change in (
        lambda store: store.subset([4, 0, 2]),
        lambda store: mix([store.subset([1, 3]), other], [1, 2]).subset([6, 0]),
        lambda store: mix([store, unpacked], [1, 1]),
    ):
        before, after = change(unpacked), change(sought)
        for camera in SHAPES:
            np.testing.assert_array_equal(after.observations[camera], np.asarray(before.observations[camera]))
    part = sought.subset([4, 0, 2]).observations["front"]
    assert isinstance(part, Segmented)
    assert len(part.segments) == 1, "decoded together"
    assert _hashes(unpacked) == _hashes(sought), "the same episodes are held out"
    for camera, mean in mean_images(unpacked).items():
        np.testing.assert_array_equal(mean_images(sought)[camera], mean)


def test_batches_and_threads(made: dict[str, Path]) -> None:
    unpacked, sought = both(made["v3 far"], Framing({ALL: (24, 32)}))
    samplers = [Sampler(store, 16, seed=1, frame_stack=3, n_step=2) for store in (unpacked, sought)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(samplers[1].batch, range(8)))
    for step, batch in enumerate(found):
        wanted = samplers[0].batch(step)
        for camera in SHAPES:
            assert (batch.observation[camera] == wanted.observation[camera]).all()
            assert (batch.next_observation[camera] == wanted.next_observation[camera]).all()
    rows = np.repeat(np.arange(0, len(sought), 2), 8)  # enough bytes for threads
    np.testing.assert_array_equal(
        gather(sought.observations["front"], rows), np.asarray(unpacked.observations["front"])[rows]
    )


def test_the_cache_holds_places_only(copied: Copy, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied()
    found = formats._layout(path, None, seeks=True)
    held = sum(file.stat().st_size for file in cache.iterdir())
    assert held < sum(LENGTHS) * 200 + 20_000
    monkeypatch.setattr(video, "packets", lambda *_: pytest.fail("listed again"))
    assert formats._layout(path, None, seeks=True) == found
    path.rename(path.with_name("moved"))
    moved = open_store(path.with_name("moved"), video="seek")
    np.testing.assert_array_equal(moved.observations["front"][:2], open_store(moved.path).observations["front"][:2])  # type: ignore[arg-type]


def test_depth_is_unpacked_all_the_same(tmp_path: Path) -> None:
    store = make_store((5, 7), cameras={"depth": (16, 16, 2), "front": (16, 16, 3)})
    store.observations["depth"][..., 0] &= 7  # type: ignore[index]
    store.attributes = {"depth": ["depth"]}
    path = lerobot_writer.write(tmp_path / "set", store)
    unpacked, sought = both(path)
    assert [bool(videos_of(sought.observations[name])) for name in ("depth", "front")] == [False, True]
    np.testing.assert_array_equal(sought.observations["depth"], unpacked.observations["depth"])


def mp4(path: Path, camera: str = "front") -> Path:
    return next((path / "videos").rglob(f"*{camera}*/**/*.mp4"))


def patched(file: Path, change: Callable[[bytearray, int], None]) -> None:
    """Change the table of keyframes (`stss`) of a video."""
    content = bytearray(file.read_bytes())
    change(content, content.index(b"stss"))
    file.write_bytes(content)


def lists_one_keyframe(number: int) -> Callable[[bytearray, int], None]:
    def change(content: bytearray, at: int) -> None:
        content[at + 8 : at + 16] = (1).to_bytes(4, "big") + number.to_bytes(4, "big")

    return change


def without_table(content: bytearray, at: int) -> None:  # every frame then counts as a keyframe
    content[at : at + 4] = b"free"


@pytest.mark.parametrize(
    ("change", "refused", "read"),
    [(lists_one_keyframe(9999), [0, 1, 70], []), (lists_one_keyframe(9), [0, 1], [8, 9, 70]), (without_table, [], [7])],
)
def test_tables_of_keyframes_that_are_wrong(
    copied: Copy, made: dict[str, Path], change: Any, refused: list[int], read: list[int]
) -> None:
    path, whole = copied(), open_store(made["v3"]).observations["front"]
    patched(mp4(path), change)
    sought = open_store(path, video="seek").observations["front"]
    for row in refused:
        with pytest.raises(GtpVisionError) as refusal:
            sought[row]
        assert f"row {row} of camera 'front' (its index of keyframes is wrong)" in str(refusal.value)
        assert str(mp4(path)) in str(refusal.value)
        assert str(refusal.value).endswith("set task.video=unpacked, or encode the video again")
    for row in read:
        np.testing.assert_array_equal(sought[row], whole[row])


@pytest.mark.parametrize(
    ("pts", "keys", "words"),
    [
        ([0, 1, 2, 3], [], "x.mp4 has no keyframe from which its frames could be decoded; set task.video=unpacked"),
        ([0, 1, 2, 3], [2], "x.mp4: frame 1, of row 20, comes before its first keyframe, frame 2; set task.video="),
        ([0, 1, 1, 3], [0], "x.mp4: several of its frames have the same time, so none can be sought; set task.video="),
    ],
)
def test_keyframes_that_are_missing(pts: list[int], keys: list[int], words: str) -> None:
    times = np.array(pts)
    packets = video.Packets(times / 10, times, times, np.isin(np.arange(4), keys))
    with pytest.raises(GtpVisionError, match=f"^{words}"):
        seeking.places(Path("x.mp4"), packets, np.array([1, 2, 3]), 20)


def replaced_by(shape: tuple[int, int, int], frames: int) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with video.encoding(file, shape, 10) as write:
            write(waves(frames, shape))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: os.truncate(file, file.stat().st_size // 2), "cannot be read as a video"),
        (lambda file: file.write_bytes(b"no video" * 100), "cannot be read as a video"),
        (lambda file: file.unlink(), "cannot be read (No such file or directory)"),
        (replaced_by((48, 64, 3), 60), "row 70 of camera 'front' (it has no frame there)"),
        (replaced_by((32, 64, 3), 81), "holds frames of 64x32, wanted frames of 64x48"),
    ],
    ids=["truncated", "no video", "removed", "shorter", "smaller"],
)
def test_videos_that_changed_since_they_were_opened(copied: Copy, change: Any, words: str) -> None:
    path = copied()
    sought = open_store(path, video="seek").observations
    file = mp4(path)
    change(file)
    with pytest.raises(GtpVisionError) as refusal:
        sought["front"][70]
    assert words in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert str(refusal.value).endswith("copy the data set again")
    assert len(sought["wrist"][70]), "the other videos are read on"


def test_damaged_bytes_end_in_frames_or_in_a_sentence(copied: Copy) -> None:
    path, refused = copied(), list[str]()
    file, random = mp4(path), np.random.default_rng(0)
    whole = file.read_bytes()
    sought = open_store(path, video="seek").observations["front"]
    for _ in range(12):
        content = bytearray(whole)
        for at in random.integers(0, len(whole), 40):
            content[at] = random.integers(256)
        file.write_bytes(content)
        try:
            assert sought[::9].shape == (9, 48, 64, 3)
        except GtpVisionError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in words for words in refused)


def test_a_decoder_that_is_killed(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sought = open_store(made["v3"], video="seek").observations["front"]
    frames = sought[:3]
    child = sandbox._child
    assert child is not None
    child.kill()
    child.wait()
    np.testing.assert_array_equal(sought[:3], frames)  # between two requests another one is started
    assert sandbox._child is not None
    os.kill(sandbox._child.pid, signal.SIGSTOP)
    threading.Timer(0.5, sandbox._child.kill).start()
    with pytest.raises(GtpVisionError, match=r"is damaged: the library that reads it crashed \(status -9\)"):
        sought[3:6]
    np.testing.assert_array_equal(sought[:3], frames)
    os.kill(sandbox._child.pid, signal.SIGSTOP)
    monkeypatch.setenv("GTP_VISION_PATIENCE", "0.5")
    with pytest.raises(GtpVisionError, match=r"made no progress for 0\.5 s"):
        sought[3:6]
    monkeypatch.delenv("GTP_VISION_PATIENCE")
    np.testing.assert_array_equal(sought[:3], frames)
    assert len([each for each in psutil.Process().children() if "sandbox" in " ".join(each.cmdline())]) == 1


def test_open_decoders_are_few(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeking, "DECODERS", 2)
    monkeypatch.setattr(seeking, "_idle", [])

    def here(function: str, _: Path, out: memoryview, *arguments: Any, size: int) -> None:
        out[:] = seeking.decode(Path(), *arguments)

    monkeypatch.setattr(sandbox, "fill", here)
    np.testing.assert_array_equal(*(store.observations["front"][:] for store in both(made["v2"])))
    assert len(seeking._idle) == 2


def test_the_setting_is_named_where_the_cache_is_too_small(
    made: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(GtpVisionError, match=r"make room or set task\.video=seek to read frames from"):
            formats._layout(made["v3"], None)
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "1e-6")
    with pytest.raises(GtpVisionError, match=r"set task\.video=seek to read frames .*, or GTP_VISION_CACHE_S"):
        formats._layout(made["v3"], None)


def test_commands(made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, cache: Path) -> None:
    assert main(["data", "inspect", str(made["v3 far"]), "--video", "seek", "--sheet", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "front: 0.000746 GB if it were unpacked as it is, a keyframe every 27 rows" in printed
    assert main(["data", "view", str(made["v3"]), "--video", "seek", "--out", str(tmp_path / "a.html")]) == 0
    assert main(["data", "convert", str(made["v3"]), str(tmp_path / "b.h5"), "--to", "native", "--video", "seek"]) == 0
    assert "every frame, action, reward and flag is as it was" in capsys.readouterr().out
    assert sum(file.stat().st_size for file in cache.iterdir()) < 200_000, "no frame was unpacked"
    native.write(tmp_path / "c.h5", make_store(cameras={"front": (8, 8, 3)}))
    assert main(["data", "inspect", str(tmp_path / "c.h5"), "--video", "seek"]) == 2
    assert "--video seek is for videos" in capsys.readouterr().err
    convert(made["v3"], tmp_path / "d", "lerobot", video="seek")
