"""Bad input of every format, as a person meets it: `gtp-vision data inspect` tells it in a sentence, with status 2."""

import io
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import FORMATS, LENGTHS

from gtp_vision.cli.main import main
from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store, robomimic, video
from gtp_vision.datasets.validation import problems

Inspect = Callable[..., str]
Copied = Callable[[str], Path]
ROW = LENGTHS[0] + 2  # episode 1, frame 2
SINGLE = [name for name, kind in FORMATS.items() if kind not in ("minari", "lerobot")]
MAIN, METADATA = "data/main_data.hdf5", "data/metadata.json"
TABLE, INFO = "data/chunk-000/file-000.parquet", "meta/info.json"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DEMO = "data/demo_1"

# Of each format: where the actions, a state and a camera of episode 1 lie, and the row of its frame 2.
PLACES = {
    "native": ("actions", "observations/state", "observations/front", ROW),
    "ogbench": ("actions", "observations", "observations", ROW),
    "d4rl": ("actions", "observations", "observations", ROW),
    "robomimic": (f"{DEMO}/actions", f"{DEMO}/obs/robot0_eef_pos", f"{DEMO}/obs/agentview_image", 2),
    "minari": ("episode_1/actions", "episode_1/observations", "episode_1/observations", 2),
    "lerobot": ("action", "observation.state", "observation.state", ROW),
}


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("GTP_VISION_PATIENCE", "10")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """A function: the sentence by which a path is refused, or the problems told; status 2, no traceback."""

    def inspect(path: Path | str, *words: str) -> str:
        capsys.readouterr()
        assert main(["data", "inspect", str(path)]) == 2
        out, err = capsys.readouterr()
        if err:
            assert not out
            assert err.startswith("gtp-vision: ")
            assert err.count("\n") == 1, err
            told = err
        else:
            assert "PROBLEM" in out
            told = " ".join(out.split())
        assert "Traceback" not in told
        assert all(word in told for word in words), told
        return told

    return inspect


def edited(path: Path, change: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path / MAIN if path.is_dir() else path, "r+") as file:
        change(file)
    return path


def replaced(path: Path, name: str, new: Callable[[np.ndarray], Any] | None) -> Path:
    """An array of a sample of any format, changed; None removes it."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            members = dict(archive)
        old = members.pop(name)
        np.savez(path, **members, **({} if new is None else {name: new(old)}))
    elif (path / INFO).exists():
        table = pq.read_table(path / TABLE)
        at = table.schema.get_field_index(name)
        old = np.array(table.column(name).to_pylist())
        table = table.remove_column(at)
        if new is not None:
            table = table.append_column(name, pa.array(list(new(old))))
        pq.write_table(table, path / TABLE)
    else:

        def change(file: h5py.File) -> None:
            old = file[name][:]
            del file[name]
            if new is not None:
                file[name] = new(old)

        edited(path, change)
    return path


def with_value(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[row, 0] = value
        return array

    return change


# Files that are not whole ---------------------------------------------------------------------------------------------


def lengths(size: int) -> Iterator[int]:
    return iter([0, 1, 7, size // 10, size // 2, size - 1])


@pytest.mark.parametrize("name", SINGLE)
def test_a_truncated_file_is_refused(name: str, copied: Copied, refused: Inspect) -> None:
    path = copied(name)
    whole = path.read_bytes()
    for length in lengths(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, path.name)


@pytest.mark.parametrize(
    ("name", "member"),
    [("minari", MAIN), ("minari", METADATA), ("lerobot", INFO), ("lerobot", TABLE), ("lerobot", EPISODES)],
)
def test_a_truncated_file_of_a_folder_is_refused(name: str, member: str, copied: Copied, refused: Inspect) -> None:
    path = copied(name)
    whole = (path / member).read_bytes()
    for length in lengths(len(whole)):
        (path / member).write_bytes(whole[:length])
        refused(path, path.name)


@pytest.mark.parametrize("name", SINGLE)
def test_a_wrong_magic_is_refused(name: str, copied: Copied, refused: Inspect) -> None:
    path = copied(name)
    content = path.read_bytes()
    path.write_bytes(b"\x00" * 4 + content[4:])
    refused(path, path.name, "no known format" if path.suffix != ".npz" else path.name)


def test_bytes_of_another_compression_are_refused(copied: Copied, refused: Inspect) -> None:
    """Python's LZMA raises an error of its own kind."""
    path = copied("ogbench")
    content = bytearray(path.read_bytes())
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 10 : at + 12] = (14).to_bytes(2, "little")
        at += 4
    local = 0
    while (local := content.find(b"PK\x03\x04", local)) >= 0:
        content[local + 8 : local + 10] = (14).to_bytes(2, "little")
        local += 4
    path.write_bytes(content)
    refused(path, path.name)


# Arrays that are not what they should be ------------------------------------------------------------------------------


MISSING = {name: actions for name, (actions, *_) in PLACES.items()} | {"d4rl": "rewards", "ogbench": "terminals"}


@pytest.mark.parametrize(("name", "array"), MISSING.items())
def test_a_missing_array_is_named(name: str, array: str, copied: Copied, refused: Inspect) -> None:
    refused(replaced(copied(name), array, None), array.split("/")[-1])


@pytest.mark.parametrize("name", ["d4rl", "ogbench"])
def test_without_actions_nobody_knows_the_format(name: str, copied: Copied, refused: Inspect) -> None:
    refused(replaced(copied(name), "actions", None), "no known format")


@pytest.mark.parametrize("name", PLACES)
def test_an_observation_that_is_a_frame_short_is_refused(name: str, copied: Copied, refused: Inspect) -> None:
    _, _, camera, _ = PLACES[name]
    path = copied(name)
    if name == "lerobot":  # a table has whole rows
        pq.write_table(pq.read_table(path / TABLE)[:-1], path / TABLE)
    else:
        replaced(path, camera, lambda array: array[:-1])
    refused(path, path.name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", PLACES)
def test_a_value_that_is_not_finite_is_told_by_key_episode_and_frame(
    name: str, value: float, copied: Copied, refused: Inspect
) -> None:
    actions, state, _, row = PLACES[name]
    path = replaced(copied(name), state, with_value(row, value))
    refused(path, path.name, "observations/", "not finite at episode 1, frame 2")
    path = replaced(copied(name), actions, with_value(row, value))
    refused(path, path.name, "actions holds", "not finite at episode 1, frame 2")


@pytest.mark.parametrize("name", sorted(set(PLACES) - {"lerobot"}))
def test_an_action_out_of_range_is_told_by_episode_and_frame(name: str, copied: Copied, refused: Inspect) -> None:
    actions, _, _, row = PLACES[name]
    path = replaced(copied(name), actions, with_value(row, -6.0))  # Minari's actions are from -2 to 2
    refused(path, path.name, f"largest magnitude {3 if name == 'minari' else 6}", "episode 1, frame 2")


def test_actions_of_lerobot_are_scaled_whatever_their_unit(copied: Copied, capsys: pytest.CaptureFixture[str]) -> None:
    path = replaced(copied("lerobot"), "action", with_value(ROW, -90.0))
    assert main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["attributes"]["action_low"][0] == -90
    assert min(found["actions"]["min"]) == -1


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_for_float32_are_told_without_warnings(copied: Copied, refused: Inspect) -> None:
    path = replaced(copied("robomimic"), f"{DEMO}/rewards", lambda rewards: rewards * 1e308)
    path = replaced(path, PLACES["robomimic"][1], with_value(2, 1e300))
    assert np.isinf(robomimic.read(path).rewards).sum() == 1
    refused(path, "rewards holds a value that is not finite at episode 1")


def test_pictures_of_another_size_in_one_episode_are_told(copied: Copied, refused: Inspect) -> None:
    smaller = replaced(copied("robomimic"), PLACES["robomimic"][2], lambda frames: frames[:, 1:])
    refused(smaller, "agentview_image", "demo_1", "(7, 8, 3)", "(8, 8, 3)")
    jpegs = copied("minari_jpeg")
    with h5py.File(jpegs / MAIN, "r+") as file:
        file["episode_1/observations/front"][3] = jpeg(40, 49)
    refused(jpegs, "episode_1/observations/front", "frame 3", "40x49x3")
    lerobot = copied("lerobot")
    name = "videos/observation.images.front/chunk-000/file-000.mp4"
    with video.encoding(lerobot / name, (32, 50, 3), 5) as put:
        put(np.zeros((sum(LENGTHS), 32, 50, 3), np.uint8))
    refused(lerobot, name, "50x32", "48x32")


def jpeg(height: int, width: int) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def test_a_video_shorter_than_its_table_is_told_by_episode_and_frame(copied: Copied, refused: Inspect) -> None:
    path = copied("lerobot")
    name = "videos/observation.images.wrist/chunk-000/file-000.mp4"
    with video.encoding(path / name, (16, 16, 1), 5) as put:
        put(np.zeros((ROW, 16, 16, 1), np.uint8))
    refused(path, name, "wrist", "episode 1, frame 2")


def test_episodes_without_steps_are_refused(copied: Copied, refused: Inspect) -> None:
    refused(replaced(copied("native"), "episode_ends", lambda ends: np.array([0, *ends])), "episode_ends must increase")

    def empty(file: h5py.File) -> None:
        for name, array in list(file[DEMO].items()):
            if isinstance(array, h5py.Dataset):
                del file[f"{DEMO}/{name}"]
                file[f"{DEMO}/{name}"] = np.zeros((0, *array.shape[1:]))
        file[DEMO].attrs["num_samples"] = 0

    refused(edited(copied("robomimic"), empty), "demo_1", "no step")
    lerobot = copied("lerobot")
    table = pq.read_table(lerobot / EPISODES)
    lost = table.set_column(table.schema.get_field_index("length"), "length", pa.array([0, sum(LENGTHS)]))
    pq.write_table(lost, lerobot / EPISODES)
    refused(lerobot, "episode 0 has length 0")


def test_episodes_of_one_step_are_read_and_nothing_but_them_is_a_fault(
    copied: Copied, refused: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    path = replaced(copied("native"), "episode_ends", lambda ends: np.array([1, 2, *ends]))
    path = replaced(path, "timeouts", lambda flags: np.isin(np.arange(len(flags)), [0, 1, 5, 14]).astype(np.uint8))
    assert main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["transitions"] == sum(LENGTHS) - 4
    refused(replaced(path, "episode_ends", lambda _: np.arange(15) + 1), "no transition")
    members = copied("ogbench")
    refused(replaced(members, "terminals", np.ones_like), "no transition")


def test_numbers_of_episodes_that_stand_twice_or_not_at_all(copied: Copied, refused: Inspect) -> None:
    refused(edited(copied("robomimic"), lambda file: file.copy(DEMO, "data/demo_01")), "demo_01", "one number")
    refused(edited(copied("minari"), lambda file: file.move("episode_1", "episode_3")), "no 'episode_1'")
    lerobot = copied("lerobot")
    table = pq.read_table(lerobot / EPISODES)
    for numbers in ([0, 0], [0, 2]):
        column = table.schema.get_field_index("episode_index")
        pq.write_table(table.set_column(column, "episode_index", pa.array(numbers)), lerobot / EPISODES)
        refused(lerobot, "episode 1 is missing or stands there twice")


# Files that lead elsewhere, or boast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native", "d4rl", "robomimic", "minari"])
@pytest.mark.parametrize("link", [h5py.SoftLink("/elsewhere"), h5py.ExternalLink("/etc/passwd", "/x")], ids=type)
def test_a_link_is_not_followed(name: str, link: Any, copied: Copied, refused: Inspect) -> None:
    _, _, camera, _ = PLACES[name]

    def change(file: h5py.File) -> None:
        file.move(camera, "elsewhere")
        file[camera] = link

    refused(edited(copied(name), change), camera.split("/")[-1])


@pytest.mark.parametrize("name", ["native", "d4rl", "robomimic", "minari"])
def test_objects_are_refused(name: str, copied: Copied, refused: Inspect) -> None:
    actions, _, camera, _ = PLACES[name]
    for place in (actions, camera):

        def change(file: h5py.File, place: str = place) -> None:
            rows = len(file[place])
            del file[place]
            file.create_dataset(place, data=np.array(["x"] * rows, object), dtype=h5py.string_dtype())

        refused(edited(copied(name), change), place.split("/")[-1])


@pytest.mark.parametrize("name", ["native", "d4rl", "robomimic", "minari"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_declared_petabyte_costs_nothing(name: str, chunked: bool, copied: Copied, refused: Inspect) -> None:
    actions, _, camera, _ = PLACES[name]
    for place in (actions, camera):

        def change(file: h5py.File, place: str = place) -> None:
            shape = (len(file[place]), 10**9, 10**5)[: 2 + (place == camera)]
            dtype = file[place].dtype
            del file[place]
            file.create_dataset(place, shape, dtype, chunks=(1, 10, 10)[: len(shape)] if chunked else None)

        path = edited(copied(name), change)
        assert path.is_dir() or path.stat().st_size < 1_000_000
        refused(path, place.split("/")[-1])


def header(text: str) -> bytes:
    """The beginning of an array in NumPy's own format, with 400 bytes of content."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + bytes(400)


def claiming(shape: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


MEMBERS = {
    "a number for actions": ("actions", npy(np.float32(3))),
    "a number for each action": ("actions", npy(np.zeros(15, np.float32))),
    "a number for observations": ("observations", npy(np.float32(3))),
    "flags in two dimensions": ("terminals", npy(np.ones((15, 1), bool))),
    "text": ("observations", npy(np.full((15, 3), "abc"))),
    "fields": ("actions", npy(np.zeros((15, 3), [("a", "f4")]))),
    "dates": ("actions", npy(np.zeros((15, 3), "M8[s]"))),
    "complex numbers": ("observations", npy(np.zeros((15, 3), complex))),
    "pickles": ("observations", npy(np.full((15, 3), None))),
    "half a header": ("observations", header("{'descr': '<f4', 'fortran_order': False, 'shape': (15, 3")),
    "a deep header": ("observations", header("(" * 3000)),
    "a header with a list as key": ("observations", header("{[]: 1}")),
    "a negative size": ("observations", claiming("(15, -3)")),
    "a size that is a flag": ("observations", claiming("(15, True)")),
    "petabytes": ("observations", claiming(f"(15, {10**14})")),
    "no number of bytes": ("observations", claiming(f"(15, {10**24})")),
    "petabytes of actions": ("actions", claiming(f"(15, {10**14})")),
    "a note that is no JSON": ("gtp_vision", npy(np.array("{"))),
    "a deep note": ("gtp_vision", npy(np.array('{"recipe": ' + "[" * 500 + "]" * 500 + "}"))),
    "a note that is a number": ("gtp_vision", npy(np.zeros(3))),
}  # fmt: skip


@pytest.mark.parametrize(("member", "content"), MEMBERS.values(), ids=MEMBERS)
def test_a_member_of_an_archive_that_lies_is_refused(
    member: str, content: bytes, copied: Copied, refused: Inspect
) -> None:
    path = copied("ogbench")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | {f"{member}.npy": content}
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, held)
    refused(path, path.name)


def test_states_of_another_robot_do_not_reward_a_task(copied: Copied, capsys: pytest.CaptureFixture[str]) -> None:
    path = replaced(copied("ogbench"), "qpos", lambda states: states[:, :3])
    assert main(["data", "inspect", str(path), "--env", "cube-single-play-singletask-v0"]) == 2
    assert "qpos" in capsys.readouterr().err


# Documents ------------------------------------------------------------------------------------------------------------


def attribute(place: str, name: str) -> Callable[[Path, str], Any]:
    return lambda path, text: edited(path, lambda file: file[place].attrs.__setitem__(name, text))


def document(member: str) -> Callable[[Path, str], Any]:
    return lambda path, text: (path / member).write_text(text)


DOCUMENTS = {
    "native": ("native", attribute("/", "metadata")),
    "d4rl": ("d4rl", attribute("/", "gtp_vision")),
    "robomimic's": ("robomimic", attribute("/data", "env_args")),
    "ours in robomimic": ("robomimic", attribute("/data", "gtp_vision")),
    "minari": ("minari", document(METADATA)),
    "lerobot": ("lerobot", document(INFO)),
    "ours in lerobot": ("lerobot", document("meta/gtp_vision.json")),
}


@pytest.mark.parametrize(
    "text", ["{", "[1]", "nonsense", '{"a":' + "[" * 100_000, '{"a":' + "[" * 500 + "]" * 500 + "}"]
)
@pytest.mark.parametrize(("name", "write"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_json_that_is_no_json_or_bottomless_is_refused(
    name: str, write: Callable[[Path, str], Any], text: str, copied: Copied, refused: Inspect
) -> None:
    path = copied(name)
    write(path, text[:60_000] if name not in ("minari", "lerobot") else text)  # an attribute holds 64 KB
    refused(path, path.name)


@pytest.mark.parametrize("filters", [[1], 3, "a", {"train": 1}, {"train": [0, 2]}, {"train": ["0"]}, {"train": [True]}])
def test_filters_that_name_no_episodes_are_refused(filters: Any, copied: Copied, refused: Inspect) -> None:
    path = copied("native")
    attribute("/", "metadata")(path, json.dumps({"filters": filters}))
    refused(path, path.name, "filter")


# Arrays that are mapped where they lie --------------------------------------------------------------------------------


MAPPED = {
    "native": "observations/front",
    "d4rl_mapped": "observations",
    "robomimic_mapped": f"{DEMO}/obs/agentview_image",
}


@pytest.mark.parametrize(("name", "array"), MAPPED.items())
@pytest.mark.parametrize("beyond", ["last byte", "end", "far", "undefined"])
def test_bytes_beyond_the_end_of_a_file_are_never_mapped(
    name: str, array: str, beyond: str, copied: Copied, refused: Inspect
) -> None:
    """Reading them would end the process without a word."""
    path = copied(name)
    size = path.stat().st_size
    with h5py.File(path) as file:
        stored = file[array].id.get_offset(), file[array].id.get_storage_size()
    content = path.read_bytes()
    assert content.count(struct.pack("<QQ", *stored)) == 1
    moved = {"last byte": size - stored[1] + 1, "end": size, "far": 1 << 62, "undefined": (1 << 64) - 1}[beyond]
    path.write_bytes(content.replace(struct.pack("<QQ", *stored), struct.pack("<QQ", moved, stored[1])))
    try:
        store = open_store(path)
    except GtpVisionError as error:
        told = str(error)
    else:  # HDF5 reads what was never written as 0
        assert beyond == "undefined"
        assert all(np.asarray(frames).tobytes() for frames in store.observations.values())
        return
    assert str(path) in told
    refused(path, path.name)


def unusual(kind: str) -> tuple[Any, np.ndarray]:
    """A type of HDF5's that NumPy has not, and values for it."""
    if kind == "bits":
        narrow = h5py.h5t.STD_U8LE.copy()
        narrow.set_precision(4)
        narrow.set_offset(4)
        return narrow, np.full((15, 8, 6, 3), 5, np.uint8)
    wide = h5py.h5t.IEEE_F32LE.copy()
    if kind == "exponent":
        wide.set_ebias(120)
    else:
        wide.set_size(6)
    return wide, np.random.default_rng(0).normal(size=(15, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["bits", "exponent", "bytes"])
def test_numbers_that_numpy_does_not_know_are_read_as_hdf5_reads_them(kind: str, copied: Copied) -> None:
    path, (stored, values) = copied("native"), unusual(kind)
    name = "front" if kind == "bits" else "state"
    with h5py.File(path, "r+") as file:
        del file[f"observations/{name}"]
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file["observations"].id, name.encode(), stored, space)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    with h5py.File(path) as file:
        theirs = file[f"observations/{name}"][:]
    store = open_store(path)
    assert not problems(store)
    np.testing.assert_array_equal(store.observations[name], theirs)
    np.testing.assert_allclose(theirs, values, rtol=1e-6)


# Paths that are no files ----------------------------------------------------------------------------------------------


def test_what_is_neither_file_nor_folder_is_refused_at_once(
    tmp_path: Path, refused: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/null"):
        refused(path, str(path), "a device, a pipe or a socket")


def test_pipes_in_a_folder_are_not_waited_for(copied: Copied, refused: Inspect) -> None:
    path = copied("lerobot")
    for name in (TABLE, "meta/gtp_vision.json"):
        (path / name).unlink()
        os.mkfifo(path / name)
    refused(path, TABLE)
    path = copied("minari")
    (path / METADATA).unlink()
    os.mkfifo(path / METADATA)
    refused(path, "no known format")


def test_links_in_a_circle_and_a_missing_path_are_refused(tmp_path: Path, refused: Inspect) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    refused(tmp_path / "circle", "no data set at")
    refused(folder, "a folder")
    refused(tmp_path / "gone", "no data set at")
    refused("x" * 5000, "cannot be read")
    refused("a\0b", "no data set")


def test_an_empty_file_is_refused(tmp_path: Path, refused: Inspect) -> None:
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "empty.h5", "no known format")


def test_a_disk_that_cannot_be_read_is_told_as_such(refused: Inspect) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("the file that cannot be read is Linux's")
    refused("/proc/self/mem", "/proc/self/mem cannot be read (Input/output error)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["native", "lerobot"])
def test_what_may_not_be_read_is_told_as_such(name: str, copied: Copied, refused: Inspect) -> None:
    path = copied(name)
    path.chmod(0)
    try:
        refused(path, path.name)
    finally:
        path.chmod(0o700)


@pytest.mark.parametrize(
    "name", ["é ü 漢字.h5", "a b'c\"d;$(x)`.h5", "-x.h5", "a\nb\x1b[31m.h5", "\udcff\udcfe.h5", "%s{}.h5"]
)
def test_a_name_of_odd_characters_is_read_and_told_in_a_line(
    name: str, copied: Copied, refused: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied("native_gzip")
    odd = path.rename(path.parent / name)
    assert main(["data", "inspect", str(odd)]) == 0
    assert main(["data", "inspect", str(odd), "--json"]) == 0
    assert main(["data", "convert", str(odd), str(odd.with_suffix(".hdf5")), "--to", "robomimic"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    odd.write_bytes(b"damaged")
    assert "\x1b" not in refused(odd)


# Other processes ------------------------------------------------------------------------------------------------------


WRITER = """
import h5py, sys
with h5py.File(sys.argv[1], "r+") as file:
    file.attrs["more"] = 1
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_a_file_that_is_being_written_is_refused_until_it_is_closed(copied: Copied, refused: Inspect) -> None:
    path = copied("robomimic")
    with subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        refused(path, "open for writing in another program")
        writer.communicate("\n")
    assert not problems(open_store(path))


@pytest.mark.parametrize("name", ["native_gzip", "robomimic", "ogbench", "lerobot"])
def test_a_file_that_is_cut_while_it_is_opened_is_read_or_refused(name: str, copied: Copied) -> None:
    path = copied(name)
    file = path / TABLE if path.is_dir() else path
    whole, stop = file.read_bytes(), threading.Event()

    def rewrite() -> None:
        random = np.random.default_rng(0)
        while not stop.is_set():
            os.truncate(file, int(random.integers(len(whole))))
            file.write_bytes(whole)

    thread = threading.Thread(target=rewrite)
    thread.start()
    ends = set()
    try:
        for _ in range(25):
            try:
                ends.add(len(open_store(path)))
            except GtpVisionError as error:
                ends.add(str(error).count("\n"))
    finally:
        stop.set()
        thread.join()
    assert ends <= {0, sum(LENGTHS), sum(LENGTHS) + len(LENGTHS)}


def test_a_folder_of_very_many_files_is_not_counted_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        (tmp_path / str(number)).write_bytes(b"12345")
    (tmp_path / "again").symlink_to(tmp_path)
    assert sandbox._size(tmp_path) == 45
    monkeypatch.setattr(sandbox, "_COUNTED", 4)
    assert sandbox._size(tmp_path) == 20
