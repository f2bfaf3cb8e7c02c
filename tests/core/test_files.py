import os
import time
from pathlib import Path

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write, cache_dir, cached, evict, fingerprint, require_space, touch


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "data.bin"
    with atomic_write(path) as aside:
        aside.write_bytes(b"first")
        assert not path.exists()
        assert aside.parent == path.parent, "a rename is only atomic within one folder"
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["data.bin"]


def test_a_failure_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as aside:
            aside.write_bytes(b"half of the ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["data.bin"]


def test_a_fingerprint_changes_with_content_time_and_purpose(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"

    def made(content: bytes, time: int = 1, *extra: str) -> str:
        path.write_bytes(content)
        os.utime(path, (time, time))
        return fingerprint(path, *extra)

    seen = [made(b"aaaa"), made(b"aaab"), made(b"baaa"), made(b"aaaaa"), made(b"aaaa", 2), made(b"aaaa", 1, "cube")]
    assert len(set(seen)) == len(seen)
    assert made(b"aaaa") == seen[0]


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GTP_VISION_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "gtp-vision"
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("GTP_VISION_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "gtp-vision"


def test_too_little_room_is_told_with_the_folder_and_the_mend(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made" / "yet"
    require_space(folder, 1, "a byte")
    with pytest.raises(GtpVisionError, match=r"unpacking x.*GTP_VISION_CACHE") as told:
        require_space(folder, 1 << 60, "unpacking x")
    assert str(folder) in str(told.value)


def test_a_folders_fingerprint_is_that_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    seen = [fingerprint(folder)]
    for name, content in (("deep/a", b"1"), ("b", b""), ("deep/a", b"2")):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1, 1))
        seen.append(fingerprint(folder))
    (folder / "b").rename(folder / "c")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == len(seen)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "1e-6")  # 1000 bytes
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / f"{name}.h5").write_bytes(b"x" * 300)
        (tmp_path / f"{name}.json").write_text("{}")
        os.utime(tmp_path / f"{name}.h5", (1000 - age, 1000 - age))
    evict(tmp_path, 100)
    assert len(list(tmp_path.iterdir())) == 6, "all of it fits"
    touch(tmp_path / "old.h5")
    evict(tmp_path, 400)
    assert {path.name for path in tmp_path.iterdir()} == {"new.h5", "new.json", "old.h5", "old.json"}
    with pytest.raises(GtpVisionError, match=r"1e-05 GB .*may hold 1e-06 GB.*GTP_VISION_CACHE_SIZE"):
        evict(tmp_path, 10_000)
    evict(tmp_path, 1000)
    assert not list(tmp_path.glob("*.h5"))
    evict(tmp_path / "nothing there", 1)


def test_a_cache_size_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "much")
    with pytest.raises(GtpVisionError, match="GTP_VISION_CACHE_SIZE=much"):
        evict(tmp_path, 1)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    for age, name in ((7200, ".a.h5.999999998.part"), (60, ".b.h5.999999999.part"), (7200, "c.h5")):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    evict(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {".b.h5.999999999.part", "c.h5"}, "the other is being written"


def test_the_longest_name_has_an_entry_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "cache"))
    path = tmp_path / ("\N{GREEK SMALL LETTER OMEGA}" * 125 + ".h5")
    path.write_bytes(b"x")
    with atomic_write(cached(path, "key")) as aside:
        aside.write_bytes(b"unpacked")
    assert cached(path, "key").exists()
    assert cached(path, "key") != cached(path, "another")
