import os
import time
from pathlib import Path

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write, cache_dir, cached, data_files, evict, fingerprint, require_space, touch


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "data.bin"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is only atomic within one folder"

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half of the ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["data.bin"]


def test_a_fingerprint_depends_on_content_time_name_and_purpose(tmp_path: Path) -> None:
    path = tmp_path / "set" / "deep" / "data.bin"
    path.parent.mkdir(parents=True)

    def fingerprints(content: bytes, time: int = 1, *extra: str) -> set[str]:
        path.write_bytes(content)
        os.utime(path, (time, time))
        return {fingerprint(path, *extra), fingerprint(tmp_path / "set", *extra)}

    cases = [(b"aaaa",), (b"aaab",), (b"baaa",), (b"aaaaa",), (b"aaaa", 2), (b"aaaa", 1, "cube")]
    found = [fingerprints(*case) for case in cases]  # type: ignore[arg-type]
    assert len(set().union(*found)) == 2 * len(cases)
    assert fingerprints(b"aaaa") == found[0]
    path.rename(path.with_name("other"))
    assert fingerprint(tmp_path / "set") not in found[0]


CLUTTER = (
    *(".DS_Store", "._data.bin", ".data.bin.swp", ".#data.bin", ".~lock.data.bin#", "#data.bin#", "~$data.bin"),
    *("data.bin~", "data.bin.bak", "data.bin.lock", "data.bin.part", "data.bin.crdownload", "data.bin.incomplete"),
)


@pytest.mark.parametrize("name", [*CLUTTER, ".ipynb_checkpoints/data.bin", ".nfs0001", ".cache/huggingface/data.bin"])
def test_clutter_is_not_a_part_of_a_data_set(name: str, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"aaaa")
    before = fingerprint(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"b")
    assert list(data_files(tmp_path, "**/*.*")) == [tmp_path / "data.bin"]
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/gtp-vision")),
        ({"XDG_CACHE_HOME": "/xdg", "GTP_VISION_CACHE": "/mine"}, Path("/mine")),
        ({}, Path.home() / ".cache" / "gtp-vision"),
    ],
)
def test_variables_name_the_cache(variables: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "GTP_VISION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == folder


def test_too_little_space_is_refused_with_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made" / "yet"
    require_space(folder, 1, "a byte")
    with pytest.raises(GtpVisionError, match=rf"unpacking x.*{folder}.*GTP_VISION_CACHE"):
        require_space(folder, 1 << 60, "unpacking x")


def test_the_least_recently_used_entries_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "1e-6")  # 1000 bytes
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / f"{name}.h5").write_bytes(b"x" * 300)
        (tmp_path / f"{name}.json").write_text("{}")
        os.utime(tmp_path / f"{name}.h5", (1000 - age, 1000 - age))
    evict(tmp_path, 100)
    assert len(list(tmp_path.iterdir())) == 6, "everything fits"
    touch(tmp_path / "old.h5")
    evict(tmp_path, 400)
    assert {path.name for path in tmp_path.iterdir()} == {"new.h5", "new.json", "old.h5", "old.json"}
    with pytest.raises(GtpVisionError, match=r"1e-05 GB .*1e-06 GB.*GTP_VISION_CACHE_SIZE"):
        evict(tmp_path, 10_000)
    evict(tmp_path, 1000)
    assert not list(tmp_path.glob("*.h5"))
    evict(tmp_path / "missing", 1)
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "much")
    with pytest.raises(GtpVisionError, match="GTP_VISION_CACHE_SIZE=much"):
        evict(tmp_path, 1)


def test_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for age, name in ((7200, ".a.h5.999999998.part"), (60, ".b.h5.999999999.part"), (7200, "c.h5")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    evict(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {".b.h5.999999999.part", "c.h5"}, "the other is being written"


def test_the_longest_name_has_an_entry_in_the_cache(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / ("\N{GREEK SMALL LETTER OMEGA}" * 125 + ".h5")
    path.touch()
    with atomic_write(cached(path, "key")) as temporary:
        temporary.touch()
    assert cached(path, "key").exists()
    assert cached(path, "key") != cached(path, "another")
