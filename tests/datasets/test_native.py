import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from refusals import ARRAYS, assert_same, put, refused
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.validation import validate

CAMERA = {"front": (8, 8, 3)}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return native.write(tmp_path / "small.h5", make_store((5, 7), cameras=CAMERA, terminals={3}))


def test_a_compressed_file_is_unpacked_into_the_cache_once(tmp_path: Path, cache: Path) -> None:
    path = native.write(tmp_path / "data.h5", make_store(cameras=CAMERA), compression="gzip")
    first = native.read(path)
    (unpacked,) = cache.iterdir()
    inode = unpacked.stat().st_ino
    os.utime(unpacked, (1, 1))
    assert_same(native.read(path), first)
    assert [entry.stat().st_ino for entry in cache.iterdir()] == [inode]
    assert unpacked.stat().st_mtime > 1, "used just now, so others are evicted first"
    changed = make_store(cameras=CAMERA, seed=1)
    assert_same(native.read(native.write(path, changed, compression="gzip")), changed)
    assert not native.read(path).actions.flags.writeable


def test_a_failed_write_leaves_the_old_file(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(ZeroDivisionError), native.create(written, {"actions": ((3, 2), np.float32)}, {}) as file:
        file["actions"][:] = 1 / 0
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]
    store = native.read(written)
    native.write(written, store)  # over the file that it is mapped from
    assert_same(native.read(written), store)


def test_other_tools_find_plain_arrays(written: Path) -> None:
    with h5py.File(written, "r") as file:
        assert file.attrs["format"] == "gtp-vision"
        assert file["observations/front"].shape == (12, 8, 8, 3)
        assert file["observations/front"].chunks is file["observations/front"].compression is None
        dtypes = [file[name].dtype for name in ARRAYS]
    assert dtypes == [np.float32, np.float32, np.uint8, np.uint8, np.int64]


@pytest.mark.parametrize(
    ("is_converted", "changed"),
    [
        (False, {"terminals": bool, "timeouts": bool}),
        (False, {"terminals": (12, 1), "timeouts": (12, 1), "rewards": (12, 1), "episode_ends": (2, 1)}),
        (False, {"terminals": np.int64, "timeouts": np.int8, "episode_ends": np.uint32}),
        (True, {"terminals": np.float32, "timeouts": np.float64}),
        (True, {"rewards": np.int64}),
        (True, {"rewards": np.int8, "terminals": np.float16, "timeouts": (12, 1)}),
    ],
)
def test_unambiguous_types_and_shapes_are_accepted(
    tmp_path: Path, cache: Path, is_converted: bool, changed: dict[str, Any]
) -> None:
    store = make_store((5, 7), cameras=CAMERA, terminals={3}, rewards=np.arange(12, dtype=np.float32))
    path = native.write(tmp_path / "theirs.h5", store)
    for name, how in changed.items():
        array = getattr(store, name)
        put(name, array.reshape(how) if isinstance(how, tuple) else array.astype(how))(path)
    for _ in range(2):
        found = validate(native.read(path))
        assert_same(found, store)
    assert found.terminals.dtype.kind in "uib"
    assert found.rewards.dtype == np.float32
    assert cache.exists() is is_converted
    frames = found.observations["front"]
    assert isinstance(frames, np.memmap)
    assert Path(str(frames.filename)) == path, "frames stay in the file"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rewards", np.zeros(11), "rewards has 11 rows and actions 12"),
        ("rewards", np.array(["a"] * 12), "'rewards' holds text.*write float32"),
        ("actions", np.zeros((12, 1), np.int64), "discrete actions are not supported"),
        ("terminals", np.full(12, np.nan), "'terminals' holds a number that is not finite"),
        ("episode_ends", np.array([5.5, 12]), "'episode_ends' holds floats.*int64"),
        ("observations", {}, "no observation"),
        *(("observations", {name: np.zeros((12, 2), np.float32)}, "'.*'.*name of an array") for name in ("", "a\nb")),
        ("observations", {"a/b": np.zeros((12, 2), np.float32)}, "'a/b'"),
        ("observations", {"x": np.zeros((12, 2), np.int64)}, "write a state as float32"),
        ("observations", {"x": [["a"]] * 12}, "observations/x"),
        ("attributes", {"mean": np.float32(1)}, "attributes cannot be written as JSON"),
        ("attributes", {"filters": {"train": [9]}}, "filter"),
    ],
)
def test_faults_are_not_written(tmp_path: Path, field: str, value: Any, words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        native.write(tmp_path / "data.h5", replace(make_store((5, 7)), **{field: value}))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_the_disk_is_not_unpacked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = native.write(tmp_path / "data.h5", make_store(), compression="gzip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    refused(path, "GB", str(cache))
    assert not list(cache.glob("*"))
    monkeypatch.setenv("GTP_VISION_CACHE", str(path / "cache"))
    assert "copy it again" not in refused(path, "GTP_VISION_CACHE")


def test_batches_of_a_large_mapped_file_take_little_memory(tmp_path: Path) -> None:
    frames, episode, size = 10_000, 100, (64, 64, 3)
    path = tmp_path / "large.h5"
    flat = {name: ((frames,), dtype) for name, dtype in (("rewards", "f4"), ("terminals", "u1"), ("timeouts", "u1"))}
    observed = {"observations/front": ((frames, *size), np.uint8), "actions": ((frames, 2), np.float32)}
    with native.create(path, observed | flat | {"episode_ends": ((frames // episode,), np.int64)}, {}) as file:
        file["observations/front"][-1] = 7  # the others stay holes of the file, read as zeros
        for name in ("actions", *flat):
            file[name][:] = 0
        file["episode_ends"][:] = np.arange(episode, frames + 1, episode)
    tracemalloc.start()  # knows NumPy's memory, but not the pages of mapped files
    sampler = Sampler(validate(native.read(path)), 256, 0, frame_stack=2)
    for step in range(10):
        sampler.batch(step)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6 < np.prod(size) * frames


def test_what_is_not_a_file_of_the_format_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 2))
    for name, words in (("theirs.h5", "no attribute format='gtp-vision'.*native.write"), ("absent.h5", "as HDF5")):
        with pytest.raises(GtpVisionError, match=words):
            native.read(tmp_path / name)
    with pytest.raises(GtpVisionError, match=r"cannot be written.*make room"), native.create(Path("/proc/x"), {}, {}):
        pass
