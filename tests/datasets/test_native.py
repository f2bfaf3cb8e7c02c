import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems, validate

MakeStore = Callable[..., Store]
Edit = Callable[[h5py.File], None]
ARRAYS = ("actions", "rewards", "terminals", "timeouts", "episode_ends")


def arrays(store: Store) -> dict[str, np.ndarray]:
    return {f"observations/{name}": array for name, array in store.observations.items()} | {
        name: getattr(store, name) for name in ARRAYS
    }


def assert_same(one: Store, other: Store) -> None:
    assert arrays(one).keys() == arrays(other).keys()
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(array, arrays(other)[name], err_msg=name)
    assert dict(one.attributes) == dict(other.attributes)


def refused(path: Path, *words: str) -> None:
    """The file is refused by one sentence that names it and holds the words, and by nothing else."""
    with pytest.raises(GtpVisionError) as told:
        validate(native.read(path))
    message = str(told.value)
    assert path.name in message
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.fixture
def written(make_store: MakeStore, tmp_path: Path) -> Path:
    """A small native file of two episodes."""
    store = make_store((5, 7), cameras={"front": (8, 8, 3)}, terminals={3})
    return native.write(tmp_path / "small.h5", store)


@pytest.fixture
def other(make_store: MakeStore, tmp_path: Path) -> Path:
    """Another file, of which nothing may be read when `written` is opened."""
    return native.write(tmp_path / "other.h5", make_store((5, 7), cameras={"front": (8, 8, 3)}, seed=1))


def edit(path: Path, change: Edit) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(name: str, array: Any) -> Edit:
    def change(file: h5py.File) -> None:
        del file[name]
        if array is not None:
            file[name] = array

    return change


# What is written is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize(
    "content",
    [
        {"cameras": {"front": (8, 6, 3), "wrist": (4, 4, 1)}, "terminals": {1, 11}},
        {"lengths": (1, 2, 3)},
        {"cameras": {"front": (5, 5, 3)}, "state": None, "lengths": (70, 80)},
        {"attributes": {"env": "cube", "rendering": {"shadow_size": 256}, "seeds": [1, 2], "none": None, "ö": "é"}},
    ],
    ids=["two cameras", "short episodes", "no states", "attributes"],
)
def test_what_is_written_is_read(
    make_store: MakeStore, tmp_path: Path, cache: Path, content: dict[str, Any], compression: str | None
) -> None:
    store = make_store(**content)
    path = native.write(tmp_path / "data.h5", store, compression=compression)
    found = native.read(path)
    assert_same(found, store)
    assert found.path == path
    assert problems(found) == []


def test_an_uncompressed_file_is_mapped_in_place(written: Path, cache: Path) -> None:
    store = native.read(written)
    for name, array in arrays(store).items():
        if name == "episode_ends":
            continue
        assert isinstance(array, np.memmap), name
        assert Path(str(array.filename)) == written
        assert not array.flags.writeable
    assert not cache.exists()


def test_a_compressed_file_is_unpacked_into_the_cache_once(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    path = native.write(tmp_path / "data.h5", make_store(cameras={"front": (8, 8, 3)}), compression="gzip")
    first = native.read(path)
    (unpacked,) = cache.iterdir()
    made = unpacked.stat()
    os.utime(unpacked, (1, 1))
    again = native.read(path)
    assert [entry.name for entry in cache.iterdir()] == [unpacked.name]
    assert unpacked.stat().st_ino == made.st_ino
    assert unpacked.stat().st_mtime > 1, "used just now, so others are evicted first"
    assert isinstance(again.observations["front"], np.memmap)
    assert again.path == path
    assert_same(again, first)


def test_unpacking_makes_room_in_a_full_cache(
    make_store: MakeStore, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        native.read(native.write(tmp_path / f"{name}.h5", make_store(cameras={"front": (8, 8, 3)}), compression="gzip"))
        monkeypatch.setenv("GTP_VISION_CACHE_SIZE", "4e-6")  # of entries of 2.6 kB and more
    assert [entry.name.split("-")[0] for entry in cache.iterdir()] == ["second"]


def test_a_changed_compressed_file_is_unpacked_again(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "data.h5"
    for seed in (0, 1):
        store = make_store(cameras={"front": (8, 8, 3)}, seed=seed)
        native.write(path, store, compression="gzip")
        os.utime(path, (seed, seed))
        assert_same(native.read(path), store)


def test_a_writing_that_fails_leaves_the_file_that_stood_there(written: Path, make_store: MakeStore) -> None:
    before = written.read_bytes()
    with pytest.raises(ZeroDivisionError), native.create(written, {"actions": ((3, 2), np.float32)}, {}) as made:
        made["actions"][:] = 1 / 0
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_a_store_can_be_written_over_the_file_it_is_mapped_from(written: Path) -> None:
    store = native.read(written)
    native.write(written, store)
    assert_same(native.read(written), store)


def test_any_tool_finds_plain_arrays(written: Path) -> None:
    with h5py.File(written, "r") as file:
        assert file.attrs["format"] == "gtp-vision"
        assert file["observations/front"].shape == (12, 8, 8, 3)
        assert file["observations/front"].chunks is None
        assert file["observations/front"].compression is None
        dtypes = {name: file[name].dtype for name in ARRAYS}
    assert dtypes == {
        "actions": np.float32,
        "rewards": np.float32,
        "terminals": np.uint8,
        "timeouts": np.uint8,
        "episode_ends": np.int64,
    }


def test_batches_of_a_large_mapped_file_take_little_private_memory(tmp_path: Path) -> None:
    frames, episode, size = 17_000, 100, (64, 64, 3)
    path = tmp_path / "large.h5"
    shapes = {
        "observations/front": ((frames, *size), np.uint8),
        "actions": ((frames, 2), np.float32),
        "rewards": ((frames,), np.float32),
        "terminals": ((frames,), np.uint8),
        "timeouts": ((frames,), np.uint8),
        "episode_ends": ((frames // episode,), np.int64),
    }
    with native.create(path, shapes, {}) as made:
        made["observations/front"][-1] = 7  # the others stay holes of the file, read as zeros
        for name in ("actions", "rewards", "terminals", "timeouts"):
            made[name][:] = 0
        made["episode_ends"][:] = np.arange(episode, frames + 1, episode)
    process = psutil.Process()

    def private() -> int:
        memory = process.memory_info()
        return memory.rss - memory.shared  # without the pages of mapped files

    before = private()
    store = validate(native.read(path))
    sampler = Sampler(store, 256, 0, frame_stack=2)
    distinct = set()
    for step in range(60):
        batch = sampler.batch(step)
        distinct.update(batch.rows.tolist())
    assert store.nbytes() > 200e6
    assert len(distinct) * np.prod(size) > 100e6, "half of the file was to be touched"
    assert private() - before < 50e6


# What others write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "changed"),
    [
        ("in place", {"terminals": bool, "timeouts": bool}),
        ("in place", {"terminals": (12, 1), "timeouts": (12, 1), "rewards": (12, 1), "episode_ends": (2, 1)}),
        ("in place", {"terminals": np.int64, "timeouts": np.int8, "episode_ends": np.uint32}),
        ("converted", {"terminals": np.float32, "timeouts": np.float64}),
        ("converted", {"rewards": np.int64}),
        ("converted", {"rewards": np.int8, "terminals": np.float16, "timeouts": (12, 1)}),
    ],
)
def test_what_is_unambiguous_is_read_as_it_was_meant(
    make_store: MakeStore, tmp_path: Path, cache: Path, kept: str, changed: dict[str, Any]
) -> None:
    store = make_store((5, 7), cameras={"front": (8, 8, 3)}, terminals={3}, rewards=np.arange(12, dtype=np.float32))
    path = native.write(tmp_path / "theirs.h5", store)
    for name, how in changed.items():
        array = getattr(store, name)
        edit(path, replaced(name, array.reshape(how) if isinstance(how, tuple) else array.astype(how)))
    found = validate(native.read(path))
    assert_same(found, store)
    assert found.terminals.dtype.kind in "uib"
    assert found.rewards.dtype == np.float32
    assert cache.exists() == (kept == "converted")
    frames = found.observations["front"]
    assert isinstance(frames, np.memmap)
    assert Path(str(frames.filename)) == path, "frames stay where they are"
    assert_same(native.read(path), store)


def test_a_flag_that_is_no_number_is_refused(written: Path, cache: Path) -> None:
    flags = np.zeros(12, np.float32)
    flags[7] = np.nan
    refused(edit(written, replaced("timeouts", flags)), "timeouts", "frame 7", "write 0 or 1")


def test_a_file_without_its_version_is_told_so(written: Path) -> None:
    refused(edit(written, lambda file: file.attrs.__delitem__("version")), "no attribute 'version'", "= 1")


def test_the_code_in_the_documentation_writes_a_file_that_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (code,) = [block.split("```")[0] for block in page.split("```python\n")[1:] if "h5py.File" in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/data.md", "exec"), {})
    (path,) = tmp_path.glob("*.h5")
    store = validate(open_store(path))
    assert (store.episodes, len(store)) == (2, 25)
    assert {name: array.shape[1:] for name, array in store.observations.items()} == {"front": (64, 64, 3), "arm": (7,)}
    assert len(store.transitions) == 24, "all but the last row of the episode that merely stopped"
    assert not cache.exists()


# What cannot be written ----------------------------------------------------------------------------------------


def test_a_path_may_be_text_and_arrays_lists(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store((2, 2))
    listed = replace(store, **{name: getattr(store, name).tolist() for name in ARRAYS})
    path = native.write(str(tmp_path / "text.h5"), listed)
    assert path == tmp_path / "text.h5"
    assert_same(native.read(path), store)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rewards", np.zeros(11), ("rewards has 11 rows and actions 12",)),
        ("rewards", np.zeros((12, 1)), ("rewards has shape (12, 1)", "(frames,)")),
        ("rewards", np.array(["a"] * 12), ("'rewards' holds no numbers", "write float32")),
        ("actions", np.zeros((12, 1), np.int64), ("discrete actions are not supported",)),
        ("actions", np.zeros(12), ("actions have shape (12,)",)),
        ("terminals", np.full(12, np.nan), ("'terminals' holds a number that is not finite",)),
        ("episode_ends", np.array([5, 11]), ("episode_ends must increase up to the 12 frames",)),
        ("episode_ends", np.array([5.5, 12]), ("'episode_ends' holds floats", "int64")),
        ("timeouts", np.ones(12, bool), ("timeouts stand inside an episode",)),
        ("observations", {}, ("no observation",)),
        ("observations", {"a/b": np.zeros((12, 2), np.float32)}, ("'a/b'", "'/'")),
        ("observations", {"": np.zeros((12, 2), np.float32)}, ("cannot be the name of an array",)),
        ("observations", {"a\nb": np.zeros((12, 2), np.float32)}, ("cannot be the name of an array",)),
        ("observations", {"x": np.zeros((12, 8, 8, 3), np.float32)}, ("multiply by 255 and write uint8",)),
        ("observations", {"x": np.zeros((12, 3, 8, 8), np.uint8)}, ("channels first", "transpose(0, 2, 3, 1)")),
        ("observations", {"x": np.zeros((12, 2), np.int64)}, ("write a state as float32",)),
        ("observations", {"x": np.zeros((11, 2), np.float32)}, ("observations/x has 11 rows",)),
        ("observations", {"x": np.array([["a"]] * 12)}, ("observations/x",)),
        ("attributes", {"mean": np.float32(1)}, ("attributes are no JSON",)),
        ("attributes", {"filters": {"train": [9]}}, ("filter",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_be_read_back_is_not_written(
    make_store: MakeStore, tmp_path: Path, field: str, value: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(GtpVisionError) as told:
        native.write(tmp_path / "data.h5", replace(make_store((5, 7)), **{field: value}))
    assert all(word in str(told.value) for word in words), told.value
    assert list(tmp_path.iterdir()) == []


# What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_truncated_file_is_refused(
    make_store: MakeStore, tmp_path: Path, cache: Path, share: float, compression: str | None
) -> None:
    path = native.write(tmp_path / "cut.h5", make_store(cameras={"front": (8, 8, 3)}), compression=compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "truncated", "copy it again")


@pytest.mark.parametrize("signature", [b"SNOD", b"HEAP", b"TREE"])
def test_a_damaged_directory_is_refused(written: Path, signature: bytes) -> None:
    content = written.read_bytes()
    assert content.count(signature) >= 2, "one for the file and one for its observations"
    at = -1
    while (at := content.find(signature, at + 1)) >= 0:
        written.write_bytes(content[:at] + b"XXXX" + content[at + 4 :])
        refused(written)


@pytest.mark.parametrize("name", ["observations", "observations/front", "actions", "rewards", "episode_ends"])
def test_a_damaged_array_header_is_refused_by_name(written: Path, name: str) -> None:
    with h5py.File(written, "r") as file:
        at = h5py.h5o.get_info(file[name].id).addr
    content = bytearray(written.read_bytes())
    content[at] = 0xEE  # the header's version
    written.write_bytes(content)
    refused(written, name)


def test_a_damaged_type_is_refused(written: Path) -> None:
    content = written.read_bytes()
    float32 = b"\x00\x00\x20\x00\x17\x08\x00\x17\x7f\x00\x00\x00"  # places and sizes of its parts, and its bias
    assert float32 in content
    written.write_bytes(content.replace(float32, float32[:-1] + b"\x7f"))
    refused(written)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"plain text\n" * 100, b"\x89HDF\r\n\x1a\n"])
def test_what_is_not_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.h5"
    path.write_bytes(content)
    refused(path, "HDF5")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.h5", "cannot be read")
    (tmp_path / "folder.h5").mkdir()
    refused(tmp_path / "folder.h5", "cannot be read")


@pytest.mark.parametrize("name", ["observations", *ARRAYS])
def test_a_missing_array_is_named(written: Path, name: str) -> None:
    refused(edit(written, replaced(name, None)), f"'{name}'", "write the file again")


def test_observations_without_an_array_are_refused(written: Path) -> None:
    def empty(file: h5py.File) -> None:
        del file["observations"]
        file.create_group("observations")

    refused(edit(written, empty), "'observations'")


@pytest.mark.parametrize("name", ["actions", "episode_ends", "observations/front", "observations"])
@pytest.mark.parametrize("kind", ["soft", "external"])
def test_a_link_is_not_followed(written: Path, other: Path, name: str, kind: str) -> None:
    def link(file: h5py.File) -> None:
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink("/elsewhere") if kind == "soft" else h5py.ExternalLink(other.name, f"/{name}")

    refused(edit(written, link), f"'{name}'", "link")


def test_a_link_to_a_file_that_is_not_there_is_refused(written: Path) -> None:
    def link(file: h5py.File) -> None:
        del file["actions"]
        file["actions"] = h5py.ExternalLink("gone.h5", "/actions")

    refused(edit(written, link), "'actions'", "link")


def test_an_array_kept_in_another_file_is_refused(written: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(bytes(12 * 2 * 4))

    def move_out(file: h5py.File) -> None:
        del file["actions"]
        file.create_dataset("actions", (12, 2), np.float32, external=[("raw.bin", 0, h5py.h5f.UNLIMITED)])

    refused(edit(written, move_out), "'actions'", "inside the file")


def test_a_virtual_array_which_reads_other_files_is_refused(written: Path, other: Path, cache: Path) -> None:
    def virtual(file: h5py.File) -> None:
        del file["actions"]
        layout = h5py.VirtualLayout((12, 2), np.float32)
        layout[:] = h5py.VirtualSource(other.name, "actions", (12, 2))
        file.create_virtual_dataset("actions", layout)

    refused(edit(written, virtual), "'actions'", "inside the file")


@pytest.mark.parametrize("name", ["actions", "rewards", "terminals", "timeouts", "observations/front"])
def test_an_array_of_another_length_is_named(written: Path, name: str) -> None:
    with h5py.File(written, "r") as file:
        shorter = file[name][:-1]
    refused(edit(written, replaced(name, shorter)), f"'{name}'" if name != "observations/front" else "12", "11")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("actions", np.zeros((12, 2), np.int32), ("holds whole numbers, and discrete actions", "wanted float32")),
        ("rewards", np.array([b"a"] * 12), ("holds text", "wanted float32 (frames,)")),
        ("rewards", np.zeros(12, np.complex64), ("holds complex numbers", "wanted float32 (frames,)")),
        ("terminals", np.array([b"a"] * 12), ("holds text", "wanted uint8", "1 where the MDP ended")),
        ("episode_ends", np.array([5.0, 12.0]), ("holds floats", "wanted int64", "the row after its last")),
        ("observations/front", np.array([b"jpeg"] * 12), ("holds text", "for a camera")),
        ("observations/state", np.zeros((12, 2), np.int64), ("holds whole numbers", "float32 (frames, D) for a state")),
        ("observations/state", np.zeros((12, 2), np.complex64), ("holds complex numbers", "for a state")),
        ("observations/state", np.zeros(12, [("x", "f4")]), ("holds no numbers", "for a state")),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else str(value)[:24],
)
def test_an_array_of_another_type_is_named(written: Path, name: str, array: np.ndarray, words: tuple[str, ...]) -> None:
    refused(edit(written, replaced(name, array)), f"'{name}'", "write the file again", *words)


def test_all_that_is_missing_or_mistyped_is_told_at_once(written: Path) -> None:
    edit(written, replaced("timeouts", None))
    edit(written, replaced("rewards", None))
    edit(written, replaced("actions", np.zeros(12, np.int64)))
    told = ("has no 'rewards' (wanted float32", "has no 'timeouts' (wanted uint8", "1 in the last row of each episode")
    refused(written, *told, "'actions' holds whole numbers")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("actions", np.zeros(12, np.float32)),
        ("actions", np.float32(0)),
        ("rewards", np.zeros((12, 2), np.float32)),
        ("rewards", np.zeros((1, 12), np.float32)),
        ("terminals", np.zeros((12, 1, 1), np.uint8)),
        ("episode_ends", np.int64(12)),
        ("episode_ends", np.array([[5, 12]])),
    ],
    ids=lambda value: value if isinstance(value, str) else str(np.shape(value)),
)
def test_an_array_of_another_shape_is_named(written: Path, name: str, array: np.ndarray) -> None:
    refused(edit(written, replaced(name, array)), name)


def test_a_group_in_place_of_an_array_is_refused(written: Path) -> None:
    def nest(file: h5py.File) -> None:
        del file["actions"]
        file.create_group("actions")

    refused(edit(written, nest), "'actions'", "not an array")


@pytest.mark.parametrize(
    ("name", "row", "value", "words"),
    [
        ("rewards", 8, np.nan, ("rewards", "not finite", "episode 1", "frame 3")),
        ("actions", 4, np.inf, ("actions", "not finite", "episode 0", "frame 4")),
        ("observations/state", 5, np.nan, ("observations/state", "not finite", "episode 1", "frame 0")),
        ("actions", 6, -1.25, ("actions", "[-1, 1]", "1.25", "episode 1", "frame 1")),
    ],
)
def test_a_bad_value_is_named_by_file_array_episode_and_frame(
    written: Path, name: str, row: int, value: float, words: tuple[str, ...]
) -> None:
    def spoil(file: h5py.File) -> None:
        file[name][row] = value

    refused(edit(written, spoil), *words)


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("format", "d4rl", ("format", "native.write")),
        ("format", np.array([1, 2]), ("format",)),
        ("version", 99, ("version 99", "reads 1")),
        ("version", "one", ("version one",)),
        ("version", np.array([1, 1]), ("version",)),
        ("metadata", "{", ("metadata", "JSON")),
        ("metadata", "[1, 2]", ("metadata",)),
        ("metadata", '"text"', ("metadata",)),
    ],
)
def test_a_bad_attribute_is_named(written: Path, attribute: str, value: Any, words: tuple[str, ...]) -> None:
    def change(file: h5py.File) -> None:
        file.attrs[attribute] = value

    refused(edit(written, change), *words)


def test_hdf5_of_others_is_refused_with_the_writer_to_use(tmp_path: Path) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 2))
    refused(path, "format", "gtp_vision.datasets.formats.native.write")
    assert detect_native(path) is False


def test_the_format_of_a_file_can_be_asked(written: Path) -> None:
    assert detect_native(written) is True


def detect_native(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        return native.is_native(file, path)


def test_sizes_are_checked_before_anything_is_unpacked(tmp_path: Path, cache: Path) -> None:
    path, frames = tmp_path / "boast.h5", 1 << 45
    with h5py.File(path, "w") as file:
        file.attrs.update(format="gtp-vision", version=1, metadata="{}")
        for name, shape, dtype in (
            ("observations/front", (frames, 8, 8, 3), np.uint8),
            ("actions", (frames, 2), np.float32),
            ("rewards", (frames,), np.float32),
            ("terminals", (frames,), np.uint8),
            ("timeouts", (frames,), np.uint8),
            ("episode_ends", (1,), np.int64),
        ):
            file.create_dataset(name, shape, dtype)  # never written, so it takes no room in the file
    refused(path, "'observations/front' declares 6755399.4 GB", "holds 0 bytes")
    assert not cache.exists()


def test_what_does_not_fit_the_disk_is_not_unpacked(
    make_store: MakeStore, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = native.write(tmp_path / "data.h5", make_store(), compression="gzip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    refused(path, "GB", str(cache))
    assert not list(cache.glob("*"))


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_file(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "file" / "cache"))
    path = native.write(tmp_path / "data.h5", make_store(), compression="gzip")
    with pytest.raises(GtpVisionError, match="GTP_VISION_CACHE") as told:
        native.read(path)
    assert "copy it again" not in str(told.value)
