import contextlib
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import imageio_ffmpeg
import numpy as np
import pytest
from commands import started
from refusals import Edit, entry, open_here, put, truncated
from samples import DATA, FRONT, INFO, METADATA, ROWS, VIDEO, Copied, mp4

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.validation import problems, validate

Inspect = Callable[..., str]
TABLE = DATA.format(0)


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("GTP_VISION_PATIENCE", "10")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """A function: the sentence by which a path is refused, or its listed problems; status 2, no traceback."""

    def inspect(path: Path | str, *words: str) -> str:
        capsys.readouterr()
        assert main(["data", "inspect", str(path)]) == 2
        out, err = capsys.readouterr()
        if err:
            assert not out
            assert err.startswith("gtp-vision: ")
            assert err.count("\n") == 1, err
        else:
            assert "PROBLEM" in out
        message = err or " ".join(out.split())
        assert "Traceback" not in message
        assert all(word in message for word in words), message
        return message

    return inspect


@pytest.mark.parametrize(
    ("sample", "edit", "words"),
    [
        ("native", truncated(0.5), ("native.h5", "truncated")),
        ("d4rl", put("actions", None), ("format", "is unknown")),
        ("lerobot", entry(INFO, "fps", value=0), ("fps",)),
        ("native", put("rewards", np.full(ROWS, np.nan, np.float32)), ("PROBLEM", "not finite at episode 0, frame 0")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_command_refuses(sample: str, edit: Edit, words: tuple[str, ...], copied: Copied, refused: Inspect) -> None:
    path = copied(sample)
    edit(path)
    refused(path, *words)


LOOP = ["-vf", "loop=6:1:0", "-preset", "ultrafast"]  # one frame as seven


@pytest.mark.processes
def test_images_too_large_for_the_memory_are_refused(copied: Copied, refused: Inspect) -> None:
    path = copied("published")
    mp4(path / VIDEO.format(FRONT, 0), np.zeros((1, 4320, 7680, 3), np.uint8), more=LOOP)
    shutil.copyfile(path / VIDEO.format(FRONT, 0), path / VIDEO.format(FRONT, 1))  # of one size
    entry(INFO, "features", FRONT, "shape", value=[4320, 7680, 3])(path)
    refused(path, "7680x4320 is too large: scale the video down")


def test_a_stalled_ffmpeg_is_killed(copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "ffmpeg"
    sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(sleeper))
    monkeypatch.setenv("GTP_VISION_PATIENCE", "0.4")
    with pytest.raises(GtpVisionError, match=r"ffmpeg returned no frame for 0\.3 s"):
        open_here(copied("published"))
    assert subprocess.run(["pgrep", "-f", "sleep 100", "-P", str(os.getpid())], check=False).returncode == 1

    def missing() -> str:
        raise RuntimeError("no ffmpeg exe")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(GtpVisionError, match="ffmpeg, which decodes videos, is missing"):
        open_here(copied("published"))


MAPPED = {
    "native": "observations/front",
    "d4rl_mapped": "observations",
    "robomimic_mapped": "data/demo_1/obs/agentview_image",
}


@pytest.mark.parametrize("sample", MAPPED)
@pytest.mark.parametrize("beyond", ["last byte", "end", "far"])
def test_bytes_beyond_the_end_of_a_file_are_never_mapped(sample: str, beyond: str, copied: Copied) -> None:
    """Reading them would kill the process by SIGBUS."""
    path = copied(sample)
    size = path.stat().st_size
    with h5py.File(path) as file:
        array = file[MAPPED[sample]].id
        stored = array.get_offset(), array.get_storage_size()
    content = path.read_bytes()
    assert content.count(struct.pack("<QQ", *stored)) == 1
    moved = {"last byte": size - stored[1] + 1, "end": size, "far": 1 << 62}[beyond]
    path.write_bytes(content.replace(struct.pack("<QQ", *stored), struct.pack("<QQ", moved, stored[1])))
    with pytest.raises(GtpVisionError, match=str(path)):
        open_store(path)


@pytest.mark.parametrize("kind", ["exponent", "bytes"])
def test_numbers_that_numpy_does_not_know_are_read_as_hdf5_reads_them(kind: str, copied: Copied) -> None:
    path, values = copied("native"), np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    stored = h5py.h5t.IEEE_F32LE.copy()
    if kind == "exponent":
        stored.set_ebias(120)
    else:
        stored.set_size(6)
    with h5py.File(path, "r+") as file:
        del file["observations/state"]
        array = h5py.h5d.create(file["observations"].id, b"state", stored, h5py.h5s.create_simple(values.shape))
        array.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    np.testing.assert_allclose(validate(open_here(path)).observations["state"], values, rtol=1e-6)


def test_paths_that_are_not_data_sets_are_refused(tmp_path: Path, refused: Inspect) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/null"):
        refused(path, str(path), "a device, a pipe or a socket")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "circle", "no data set at")
    refused(tmp_path / "folder", "a folder")
    refused("x" * 5000, "cannot be read")
    refused("a\0b", "no data set")
    refused(tmp_path / "empty.h5", "empty.h5", "is unknown")
    if Path("/proc/self/mem").exists():
        refused("/proc/self/mem", "/proc/self/mem cannot be read (Input/output error)")


def test_pipes_in_a_folder_are_not_waited_for(copied: Copied, refused: Inspect) -> None:
    for sample, members, words in (
        ("lerobot", (TABLE, "meta/gtp_vision.json"), TABLE),
        ("minari", (METADATA,), "is unknown"),
    ):
        path = copied(sample)
        for name in members:
            (path / name).unlink()
            os.mkfifo(path / name)
        refused(path, words)


@pytest.mark.parametrize("name", ["é ü 漢字.h5", "a b'c\"d;$(x)`.h5", "-x.h5", "a\nb\x1b[31m.h5", "\udcff\udcfe.h5"])
def test_odd_names_are_shown(name: str, copied: Copied, refused: Inspect, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied("native_gzip")
    odd = path.rename(path.parent / name)
    assert main(["data", "inspect", str(odd)]) == 0
    assert main(["data", "convert", str(odd), str(odd.with_suffix(".hdf5")), "--to", "robomimic"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    odd.write_bytes(b"damaged")
    assert "\x1b" not in refused(odd)


WRITER = """
import h5py, sys
with h5py.File(sys.argv[1], "r+") as file:
    file.attrs["more"] = 1
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_a_file_that_is_being_written_is_refused_until_it_is_closed(copied: Copied, refused: Inspect) -> None:
    path = copied("robomimic")
    with started("-c", WRITER, path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        refused(path, "open for writing in another program")
        writer.communicate("\n")
    assert not problems(open_store(path))


@pytest.mark.processes
@pytest.mark.parametrize("name", ["native_gzip", "robomimic", "ogbench", "lerobot"])
def test_a_file_that_is_cut_while_it_is_opened_is_read_or_refused(name: str, copied: Copied) -> None:
    path = copied(name)
    file = path / TABLE if path.is_dir() else path
    whole, stop, random = file.read_bytes(), threading.Event(), np.random.default_rng(0)

    def rewrite() -> None:
        while not stop.is_set():
            os.truncate(file, int(random.integers(len(whole))))
            file.write_bytes(whole)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(15):
            with contextlib.suppress(GtpVisionError):
                assert len(open_store(path)) >= ROWS
    finally:
        stop.set()
        thread.join()
