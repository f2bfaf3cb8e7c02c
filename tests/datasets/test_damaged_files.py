"""Damaged and hostile files of every format: each row is a change of a sample and the words that refuse it.

Files are opened in this process, which must survive; `test_bad_input` opens them as a person does, by the command.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from refusals import Edit, attribute, entry, hdf5, put, refused, table, text, truncated
from samples import (
    DATA,
    EPISODES,
    FRONT,
    INFO,
    MAIN,
    METADATA,
    TOP,
    VIDEO,
    WRIST,
    encoded,
    gray_frames,
    mp4,
    npz,
    ogbench_contents,
)

pytestmark = pytest.mark.usefixtures("cache")
DEMO, EPISODE = "data/demo_1", "episode_1"
TABLE, TASKS = DATA.format(0), "meta/tasks.parquet"


def row(sample: str, edit: Edit, *words: str) -> Any:
    return pytest.param(sample, edit, words, id=f"{sample}: {' '.join(words)[:60]}")


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def with_value(name: str, index: Any, value: float) -> Edit:
    """An array of an HDF5 or npz file with another value at an index."""

    def edit(path: Path) -> None:
        with np.load(path) if path.suffix == ".npz" else h5py.File(path / MAIN if path.is_dir() else path) as file:
            array = np.array(file[name])
        array[index] = value
        put(name, array)(path)

    return edit


def declared(name: str, shape: tuple[int, ...], dtype: Any = np.float32, **options: Any) -> Edit:
    """An array that is declared and never written, so that it takes no room in the file."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype, **options)

    return hdf5(change)


def move(old: str, new: str) -> Edit:
    return hdf5(lambda file: file.move(old, new))


def several(*edits: Edit) -> Edit:
    return lambda path: [edit(path) for edit in edits]


def emptied(group: str, count: str, *names: str) -> Edit:
    """A group of which arrays have no rows, and say so in an attribute."""

    def without_rows(file: h5py.File) -> None:
        for name in names:
            shape = file[f"{group}/{name}"].shape
            del file[f"{group}/{name}"]
            file[f"{group}/{name}"] = zeros(0, *shape[1:])

    return several(attribute(group, count, 0), hdf5(without_rows))


# HDF5 ---------------------------------------------------------------------------------------------------------------

# Of each format: the actions and the observation of episode 1, and the row of its frame 2.
PLACES = {
    "native": ("actions", "observations/state", 8),
    "d4rl": ("actions", "observations", 8),
    "robomimic": (f"{DEMO}/actions", f"{DEMO}/obs/robot0_eef_pos", 2),
    "minari": (f"{EPISODE}/actions", f"{EPISODE}/observations", 2),
    "ogbench": ("actions", "observations", 8),
}
HDF5 = [name for name in PLACES if name != "ogbench"]


def common_rows() -> list[Any]:
    rows = []
    for name, (actions, state, frame) in PLACES.items():
        where = "not finite at episode 1, frame 2"
        rows.append(row(name, with_value(actions, (frame, 0), np.nan), "actions holds", where))
        rows.append(row(name, with_value(state, (frame, 0), np.inf), "observations/", where))
    for name in HDF5:
        for place in PLACES[name][:2]:
            key = place.split("/")[-1]
            rows.append(row(name, put(place, h5py.SoftLink("/elsewhere")), key, "link"))
            rows.append(row(name, put(place, h5py.ExternalLink("/etc/passwd", "/x")), key, "link"))
            rows.append(row(name, put(place, ["x"] * 9), key))
            rows.append(row(name, declared(place, (9, 10**9, 10**5)[: 2 + (key != "actions")]), key))
            rows.append(row(name, declared(place, (1 << 45, 5), chunks=(1, 5)), key))
    for name in ("native", "native_gzip", "d4rl", "robomimic", "minari", "ogbench", "ogbench_plain"):
        for share in (0, 0.1, 0.5, 0.99):
            rows.append(row(name, truncated(share, MAIN if name == "minari" else ""), ""))
    return rows


FLAT_FAULTS = [
    ("actions", zeros(15, 2, dtype=np.int32), "holds integers, and discrete actions", "wanted float32"),
    ("rewards", np.array([b"a"] * 15), "holds text", "wanted float32 (frames,)"),
    ("rewards", zeros(15, dtype=np.complex64), "holds complex numbers"),
    ("terminals", np.array([b"a"] * 15), "holds text", "wanted uint8", "1 where the MDP ended"),
    ("episode_ends", np.array([6.0, 15.0]), "holds floats", "wanted int64", "the row after its last"),
    ("observations/front", np.array([b"jpeg"] * 15), "holds text", "for a camera"),
    ("observations/state", zeros(15, 2, dtype=np.int64), "holds integers", "float32 (frames, D) for a state"),
    ("observations/state", np.zeros(15, [("x", "f4")]), "holds other values", "for a state"),
    ("actions", zeros(15), "(15,)"),
    ("actions", np.float32(0), "shape ()"),
    ("rewards", zeros(15, 2), "(15, 2)"),
    ("terminals", zeros(15, 1, 1, dtype=np.uint8), "(15, 1, 1)"),
    ("episode_ends", np.int64(15), "shape ()"),
    ("episode_ends", np.array([[6, 15]]), "(1, 2)"),
    ("timeouts", np.where(np.arange(15) == 7, np.nan, 0).astype(np.float32), "frame 7", "write 0 or 1"),
    *[(name, None, "write the file again") for name in ("actions", "rewards", "terminals", "timeouts", "episode_ends")],
    *[(name, zeros(14), "14") for name in ("rewards", "terminals", "timeouts")],
]


def damaged_chunk(name: str) -> Edit:
    def edit(path: Path) -> None:
        with h5py.File(path, "r") as file:
            chunk = file[name].id.get_chunk_info(0)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
        path.write_bytes(content)

    return edit


def damaged_header(name: str) -> Edit:
    """The header of an HDF5 array or group with an unknown version; without a name, the list of its members."""

    def edit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        with h5py.File(path, "r") as file:
            at = h5py.h5o.get_info(file[name].id).addr if name else content.index(b"SNOD")
        content[at] = 0xEE
        path.write_bytes(content)

    return edit


def external(path: Path) -> None:
    path.with_name("raw.bin").write_bytes(bytes(15 * 2 * 4))
    options: dict[str, Any] = {"external": [("raw.bin", 0, h5py.h5f.UNLIMITED)]}
    declared("actions", (15, 2), **options)(path)


@hdf5
def virtual(file: h5py.File) -> None:
    del file["actions"]
    layout = h5py.VirtualLayout((15, 2), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "actions", (15, 2))
    file.create_virtual_dataset("actions", layout)


@hdf5
def empty_group(file: h5py.File) -> None:
    del file["observations"]
    file.create_group("observations")


NATIVE = [
    *(row("native", put(name, array), f"'{name}'", *words) for name, array, *words in FLAT_FAULTS),
    row("native", put("observations", None), "'observations'", "write the file again"),
    row("native", put("observations/front", zeros(14, 8, 6, 3, dtype=np.uint8)), "14", "15"),
    row("native", several(put("timeouts", None), put("rewards", None), put("actions", zeros(15, dtype=np.int64))),
        "has no 'rewards' (wanted float32", "has no 'timeouts' (wanted uint8", "'actions' holds integers"),
    *(row("native", damaged_header(name), name) for name in ("", "observations", "observations/front", "actions")),
    row("native", empty_group, "'observations'"),
    row("native", external, "'actions'", "inside the file"),
    row("native", virtual, "'actions'", "inside the file"),
    row("native", several(put("actions", None), hdf5(lambda file: file.create_group("actions"))), "not an array"),
    *(row("native", with_value("episode_ends", 1, end), "must increase") for end in (11, 1 << 62, -(1 << 62))),
    row("native", put("episode_ends", np.array([0, 6, 15])), "episode_ends must increase"),
    row("native", put("episode_ends", np.arange(15) + 1), "no transition"),
    row("native", attribute("/", "format", "d4rl"), "format"),
    row("native", attribute("/", "format", np.array([1, 2])), "format"),
    row("native", hdf5(lambda file: file.attrs.__delitem__("version")), "no attribute 'version'", "= 1"),
    *(row("native", attribute("/", "version", value), f"version {value}") for value in (99, "one", np.array([1, 1]))),
    *(row("native", attribute("/", "metadata", json.dumps({"filters": filters})), "filter")
      for filters in ([1], "a", {"train": 1}, {"train": [0, 2]}, {"train": ["0"]}, {"train": [True]})),
]  # fmt: skip

D4RL = [
    *(row("d4rl", put(name, array), f"'{name}'", *words) for name, array, *words in [
        ("actions", zeros(14, 3), "14 rows", "15"), ("actions", zeros(15, 3, dtype=np.int64), "int64"),
        ("actions", zeros(15), "shape"), ("rewards", zeros(15, 2), "shape (15, 2)"), ("rewards", None, "add"),
        ("terminals", None, "add"), ("timeouts", zeros(3, dtype=bool), "3 rows"),
        ("next_observations", zeros(15, 4), "(15, 4)", "(15, 11)"),
        ("observations", zeros(15, 2, 2), "(15, 2, 2)", "(N, D)"), ("observations", zeros(15, 3, dtype=int), "int64"),
        ("observations", zeros(0, 3), "no rows"), ("observations", np.array([b"a"] * 15), "dtype"),
        ("metadata/episode_ends", np.array([15, 9]), "increase up to the 15"),
        ("metadata/episode_ends", np.array([0, 15]), "increase up to the 15"),
        ("metadata/episode_ends", zeros(0, dtype=int), "0 entries")]),
    row("d4rl", damaged_chunk("observations"), "'observations' is damaged", "copy the file again"),
    *(row("d4rl", several(move(name, "x"), put(name, h5py.SoftLink("/x"))), f"'{name}'", "link")
      for name in ("timeouts", "infos", "metadata")),
    *(row("d4rl", declared(name, (1 << 45, 11)), f"'{name}'") for name in ("next_observations", "rewards")),
    row("d4rl", attribute("/", "gtp_vision", json.dumps({"observation": "a\nb"})), "cannot be the name"),
]  # fmt: skip


IMAGE, PHASE = f"{DEMO}/obs/agentview_image", f"{DEMO}/obs/phase"
ROBOMIMIC = [
    row("robomimic", put(IMAGE, zeros(8, 8, 8, 3, dtype=np.uint8)), IMAGE, "8 rows", "wanted 9"),
    row("robomimic", put(f"{DEMO}/next_obs/phase", zeros(10)), "next_obs/phase", "10 rows", "wanted 9"),
    row("robomimic", put(IMAGE, None), "agentview_image", "data/demo_0", DEMO),
    row("robomimic", put(f"{DEMO}/obs/side", zeros(9, 8, 8, 3, dtype=np.uint8)), "'side'", "data/demo_0", DEMO),
    row("robomimic", put(IMAGE, zeros(9, 9, 8, 3, dtype=np.uint8)), "agentview_image", DEMO, "(9, 8, 3)"),
    row("robomimic", put(f"{DEMO}/next_obs/agentview_image", zeros(9, 9, 8, 3, dtype=np.uint8)), DEMO, "(9, 8, 3)"),
    row("robomimic", put(f"{DEMO}/next_obs/agentview_image", zeros(9, 8, 8, 3)), DEMO, "9 usable frames"),
    *(row("robomimic", put(f"{DEMO}/{name}", array), *words) for name, array, *words in [
        ("actions", zeros(9, 6), "6 dimensions", DEMO, "data/demo_0"), ("actions", None, f"{DEMO}/actions"),
        ("actions", zeros(9, 0), f"{DEMO}/actions", "(9, 0)"), ("actions", zeros(9), f"{DEMO}/actions", "(9,)"),
        ("actions", [["a"]] * 9, f"{DEMO}/actions", "dtype object"),
        ("actions", np.full((9, 7), 1e200), "not finite at episode 1"),
        ("rewards", zeros(4), f"{DEMO}/rewards", "wanted 9"), ("rewards", zeros(9, 2), f"{DEMO}/rewards", "(9, 2)"),
        ("rewards", np.full(9, 1e308), "rewards", "episode 1, frame 0"),
        ("dones", np.full(9, np.nan), f"{DEMO}/dones", "frame 0"),
        ("obs", None, DEMO, "dataset_states_to_obs.py"), ("obs", zeros(3), f"{DEMO}/obs", "not a group"),
        ("obs/phase", ["a"] * 9, "'phase' is in 'data/demo_0' and not in"), ("obs/phase", zeros(9, 0), PHASE, "(9, 0)"),
        ("obs/a\nb", zeros(9, 2), "name of an array")]),
    row("robomimic", move(PHASE, f"{DEMO}/obs/deep/phase"), "'deep_phase' is in 'data/demo_1' and not in"),
    row("robomimic", put(DEMO, zeros(3)), DEMO, "not a group"),
    row("robomimic", hdf5(lambda file: file.copy(DEMO, "data/demo_01")), "demo_01", "demo_1", "same number"),
    row("robomimic", move(DEMO, "data/demo_last"), "demo_last", "no number"),
    row("robomimic", move(DEMO, "data/demo_" + "9" * 99), "no number"),
    row("robomimic", move(DEMO, "data/demo_" + "9" * 5000), "name of an array"),
    row("robomimic", emptied(DEMO, "num_samples", "actions", "rewards", "dones", "obs/phase", "next_obs/phase"),
        DEMO, "no step"),
    row("robomimic", attribute(DEMO, "num_samples", 8), DEMO, "9 actions", "'8'"),
    row("robomimic", attribute(DEMO, "num_samples", "a\nb"), DEMO, "num_samples"),
    row("robomimic", put("mask/train", np.array(["demo_0", "demo_7"], dtype="S")), "mask/train", "demo_7"),
    row("robomimic", put("mask/train", np.arange(3)), "mask/train", "dtype"),
    row("robomimic", hdf5(lambda file: file.create_dataset("mask/x", data=[file["data"].ref], dtype=h5py.ref_dtype)),
        "mask/x"),
    row("robomimic", put("mask/deep/train", np.arange(3)), "mask/deep"),
    row("robomimic", put("mask", np.arange(3)), "'mask'", "not a group"),
    row("robomimic", put(DEMO, h5py.ExternalLink("other.h5", DEMO)), "demo_1", "link"),
    row("robomimic", put("data", h5py.ExternalLink("other.h5", "/data")), "data", "link"),
    row("robomimic", damaged_chunk(IMAGE), IMAGE, "rows"),
    row("robomimic", several(*(put(f"data/demo_{n}/obs", None) for n in (0, 1)),
                             *(put(f"data/demo_{n}/obs/mask", zeros(6 + 3 * n, 8, 8, 1)) for n in (0, 1))),
        "data/demo_0", "mask"),
    row("robomimic", several(put("data/demo_0/obs", None), hdf5(lambda file: file.create_group("data/demo_0/obs"))),
        "data/demo_0", "it has none"),
]  # fmt: skip


# Minari -------------------------------------------------------------------------------------------------------------


def frame(content: bytes) -> Edit:
    array = np.frombuffer(content, np.uint8)
    return hdf5(lambda file: file[f"{EPISODE}/observations/front"].__setitem__(2, array))


def space(name: str, **changed: Any) -> Edit:
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2.0, -2.0], "high": [2.0, 2.0]}
    return entry(METADATA, name, value=json.dumps(box | changed))


JPEG = encoded(np.full((40, 48, 3), 7, np.uint8), "JPEG")
HUGE_JPEG = bytearray(JPEG)  # a header that declares 65500 x 65500
HUGE_AT = JPEG.index(b"\xff\xc0") + 5
HUGE_JPEG[HUGE_AT : HUGE_AT + 4] = b"\xff\xdc\xff\xdc"
MINARI = [
    row("minari", move(EPISODE, "episode_3"), "no 'episode_1'", "'episode_3'"),
    row("minari", put(EPISODE, None), "1 episodes", "'2'"),
    row("minari", move(EPISODE, "episode_00"), "episode_00", "episode_0", "same number"),
    *(row("minari", put(f"{EPISODE}/{name}", array), *words) for name, array, *words in [
        ("observations", zeros(9, 5), f"{EPISODE}/observations", "10"),
        ("observations", zeros(10, 4), EPISODE, "(4,)"), ("observations", None, f"{EPISODE}/observations"),
        ("rewards", zeros(5), f"{EPISODE}/rewards", "wanted 9"), ("terminations", None, f"{EPISODE}/terminations"),
        ("rewards", np.full(9, np.nan), "rewards", "episode 1, frame 0"),
        ("truncations", None, f"{EPISODE}/truncations"), ("actions", None, f"{EPISODE}/actions"),
        ("truncations", np.arange(9) == 2, EPISODE, "continues after its truncation at frame 2"),
        ("actions", zeros(9, 3), f"{EPISODE}/actions", "3 dimensions", "2"),
        ("actions", zeros(9, 2, dtype=int), f"{EPISODE}/actions", "int64")]),
    row("minari", attribute(EPISODE, "total_steps", 5), EPISODE, "9 actions", "'5'"),
    row("minari", several(put(f"{EPISODE}/observations", zeros(1, 5)),
        emptied(EPISODE, "total_steps", "actions", "rewards", "terminations", "truncations")), EPISODE, "no step"),
    row("minari", put(EPISODE, zeros(3)), EPISODE, "not a group"),
    row("minari", put(EPISODE, h5py.ExternalLink("other.h5", EPISODE)), EPISODE, "link"),
    row("minari", several(put("episode_0", None), put("episode_1", None)), "has no episode"),
    row("minari", lambda path: (path / MAIN).unlink(), "main_data.hdf5"),
    *(row("minari", entry(METADATA, key, value=value), *words) for key, value, *words in [
        ("total_steps", 14, "15 steps", "'14'"), ("total_episodes", 4, "2 episodes", "'4'"),
        ("action_space", ..., "action_space", "JSON"), ("observation_space", ..., "observation_space", "JSON"),
        ("action_space", "{", "action_space", "JSON"), ("observation_space", "[" * 99_999, "observation_space", "JSON"),
        ("env_spec", "{", "env_spec"), ("data_format", "csv", "'csv'", "not hdf5, arrow"),
        ("observation_space", json.dumps({"type": "Text"}), "episode_0", "no observation"),
        ("observation_space", json.dumps({"type": "Dict", "subspaces": {"a": {"type": "Box"}}}), "not a group")]),
    *(row("minari", space("action_space", **changed), word) for changed, word in [
        ({"low": ["a", "b"]}, "bounds"), ({"low": [-1.0]}, "bounds"), ({"low": [3.0, -2.0]}, "low bound above"),
        ({"shape": [3], "low": [0.0] * 3, "high": [2.0] * 3}, "2 dimensions"), ({"shape": {"a": 1}}, "Box of floats"),
        ({"type": "Discrete"}, "Discrete"), ({"dtype": "int64"}, "int64"), ({"shape": [2, 2]}, "[2, 2]")]),
    *(row("minari_jpeg", frame(content), f"{EPISODE}/observations/front", "at frame 2", word) for content, word in [
        (encoded(np.zeros((41, 48, 3), np.uint8), "JPEG"), "41x48x3"),
        (encoded(np.zeros((40, 48), np.uint8), "JPEG"), "40x48x1"),
        (encoded(np.zeros((40, 48, 3), np.uint8), "PNG"), "another format"), (JPEG[:-200], ""),
        (bytes(range(200)), "another format"), (b"", "another format"), (bytes(HUGE_JPEG), "")]),
    row("minari_jpeg", put(f"{EPISODE}/observations/front", ["text"] * 10), f"{EPISODE}/observations/front", "JPEG"),
    row("minari_jpeg", put(f"{EPISODE}/observations/front", zeros(10, 9)), f"{EPISODE}/observations/front", "JPEG"),
    row("minari_jpeg", space("observation_space", type="Dict", subspaces={
        "front": {"type": "Box", "dtype": "uint8", "shape": [30000, 30000, 3], "low": 0, "high": 255}}), "front"),
]  # fmt: skip


# OGBench ------------------------------------------------------------------------------------------------------------


def header(content: str) -> bytes:
    """The beginning of an array in NumPy's own format, with 400 bytes of content."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content) + 1) + content.encode() + b"\n" + bytes(400)


def declaring(shape: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_member(name: str, content: bytes) -> Edit:
    def edit(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()} | {f"{name}.npy": content}
        with zipfile.ZipFile(path, "w") as archive:
            for member, held in members.items():
                archive.writestr(member, held)

    return edit


def zip_field(local: int, central: int, value: int) -> Edit:
    """Another value in a field of all members' local and central headers."""

    def edit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        for signature, field in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            at = content.find(signature)
            while at >= 0:
                content[at + field] = value
                at = content.find(signature, at + 4)
        path.write_bytes(content)

    return edit


LAST = ogbench_contents()["terminals"]
OGBENCH = [
    *(row("ogbench", with_member(name, content), "") for name, content in [
        ("actions", npy(np.float32(3))), ("actions", npy(zeros(15))), ("observations", npy(np.float32(3))),
        ("terminals", npy(np.ones((15, 1), bool))), ("observations", npy(np.full((15, 3), "abc"))),
        ("actions", npy(np.zeros((15, 3), [("a", "f4")]))), ("actions", npy(np.zeros((15, 3), "M8[s]"))),
        ("observations", npy(np.zeros((15, 3), complex))), ("observations", npy(np.full((15, 3), None))),
        ("actions", npy(np.array([{"a": 1}] * 15, object))),
        ("observations", header("{'descr': '<f4', 'fortran_order': False, 'shape': (15, 3")),
        ("observations", header("(" * 3000)), ("observations", header("{[]: 1}")),
        ("observations", declaring("(15, -3)")), ("observations", declaring("(15, True)")),
        ("observations", declaring(f"(15, {10**14})")), ("observations", declaring(f"(15, {10**24})")),
        ("actions", declaring(f"({1 << 45}, 5)")), ("gtp_vision", npy(np.array("{"))),
        ("gtp_vision", npy(np.array('{"recipe": ' + "[" * 500 + "]" * 500 + "}"))), ("gtp_vision", npy(zeros(3))),
        ("gtp_vision", npy(np.array('{"rendering": {"shadow_size": "large"}}'))),
        ("gtp_vision", npy(np.array("x" * 100_000)))]),
    row("ogbench", zip_field(8, 10, 99), ""),  # an unknown compression
    row("ogbench", zip_field(8, 10, 14), ""),  # LZMA, which raises an error of its own
    row("ogbench", zip_field(6, 8, 1), ""),  # encrypted
    row("ogbench", zip_field(4, 6, 0xFF), ""),  # of a later version of zip
    row("ogbench", put("terminals", None), "terminals"),
    *(row("ogbench", put("actions", zeros(15, *shape, dtype=np.int64)), "discrete actions are not supported")
      for shape in ((), (2,))),
    *(row("ogbench", put(name, array), "trajectories") for name, array in [
        ("terminals", zeros(15, dtype=bool)), ("terminals", np.roll(LAST, 1)), ("terminals", LAST[:-1]),
        ("actions", zeros(14, 5)), ("observations", zeros(16, 28))]),
    row("ogbench", put("terminals", np.ones(15, bool)), "no transition"),
    *(row("d4rl_npz", put(name, array), f"'{name}'", *words) for name, array, *words in [
        ("rewards", np.full(15, None), "objects", "unpickled"), ("rewards", zeros(14), "14 rows"),
        ("observations", np.full(15, "a"), "text"), ("actions", zeros(15), "shape"), ("rewards", None, "add"),
        ("rewards", np.float32(3), "shape ()"), ("next_observations", zeros(15, 3), "shape"),
        ("masks", np.ones(15), "'terminals'", "contradict each other in 1 of 15 rows, first in row 5"),
        ("timeouts", np.full(15, np.nan), "not finite")]),
    *(row("d4rl_npz", with_member("rewards", content), "") for content in [
        declaring(f"({10**14},)"), declaring("(-3,)"), header("(" * 3000)]),
]  # fmt: skip


# LeRobot ------------------------------------------------------------------------------------------------------------


def column(member: str, name: str, values: Any) -> Edit:
    return table(member, lambda data: data.set_column(data.schema.get_field_index(name), name, pa.array(values)))


def replaced_video(place: int, frames: np.ndarray) -> Edit:
    return lambda path: mp4(path / VIDEO.format(FRONT, place), frames)


def playlist(path: Path) -> None:
    other = path / VIDEO.format(FRONT, 1)
    (path / VIDEO.format(FRONT, 0)).write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n")


def linked_out(member: str) -> Edit:
    def edit(path: Path) -> None:
        (path / member).rename(path.parent / "elsewhere")
        (path / member).symlink_to(path.parent / "elsewhere")

    return edit


STATE = {"dtype": "float32", "shape": [2]}
SECONDS = f"videos/{FRONT}/from_timestamp"
LEROBOT = [
    row("published", replaced_video(0, gray_frames(range(5), (32, 48))),
        VIDEO.format(FRONT, 0), f"'{FRONT}'", "episode 1, frame 1", "5 frames for 7 rows", "again"),
    row("published", replaced_video(1, gray_frames(range(5), (24, 48))),
        "file-001.mp4", "48x24 pixels and not 48x32"),
    row("published", playlist, "file-000.mp4", "ffmpeg"),
    *(row("published", truncated(share, member), member, "again") for share in (0, 0.1, 0.9)
      for member in (VIDEO.format(FRONT, 0), VIDEO.format(TOP, 0), DATA.format(1), EPISODES)),
    *(row("published", lambda path, member=member: (path / member).unlink(), "")
      for member in (TABLE, VIDEO.format(FRONT, 1), EPISODES, TASKS)),
    *(row("published", linked_out(member), "leads out") for member in (TABLE, VIDEO.format(FRONT, 1), EPISODES, TASKS)),
    *(row("published", entry(INFO, *keys, value=value), *words) for keys, value, *words in [
        (("codebase_version",), "v2.1", "no file 'meta/episodes.jsonl'"), (("codebase_version",), None, "codebase_v"),
        (("codebase_version",), "v4.0", "v4.0", "update"),
        (("fps",), "30", "fps"), (("fps",), 0, "fps"), (("features",), [], "features"),
        (("features", "action"), None, "'action'", "dtype"), (("features", "action"), ..., "no feature 'action'"),
        (("features", "action", "shape"), [5], "'action'", "6 numbers a row", "5"),
        (("features", "action", "shape"), [1 << 14, 1 << 14], "'action'"),
        (("features", "action", "dtype"), "image", "'action'"),
        (("features",), {"action": {"dtype": "float32", "shape": [6]}}, "no feature 'observation.*'"),
        (("features", "observation.missing"), STATE, "not one column"),
        (("features", "observation.images.state"), {"dtype": "image", "shape": [1, 2, 3]}, "both get the name 'state'"),
        (("features", "observation.a/b"), STATE, "a/b"), (("features", "observation.a\nb"), STATE, "rename"),
        (("features", FRONT, "shape"), [1 << 50, 1 << 50, 3], FRONT, "sizes"),
        (("features", FRONT, "shape"), [30000, 30000, 3], "48x32 pixels and not 30000x30000"),
        (("features", FRONT, "shape"), [32, 48, 5], FRONT, "channels"),
        (("features", FRONT, "shape"), "big", FRONT, "shape"),
        (("features", WRIST, "shape"), [30000, 30000, 3], WRIST, "8x10"),
        (("total_frames",), 1 << 50, "total_frames", "12", "incomplete"),
        (("total_episodes",), 4, "total_episodes 4", "3"),
        (("data_path",), "../elsewhere/file-{file_index:03d}.parquet", "leads out"),
        (("data_path",), "/etc/passwd", "leads out"), (("data_path",), "data/{file_index:999999999d}", "no file"),
        (("data_path",), "data/{file_index.__class__}", "no file"), (("data_path",), "a\0b", "not the name of a file"),
        (("data_path",), "a" * 5000, "not the name of a file"), (("data_path",), TABLE, "not consecutive"),
        (("video_path",), None, "no file 'None'")]),
    *(row("published", text(INFO, content), INFO, "JSON")
      for content in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"fps": ' + b"9" * 10_000)),
    *(row("published", column(EPISODES, name, values), *words) for name, values, *words in [
        ("length", [4, 4, 5], "episode 1", "length 4"), ("length", [4, 0, 5], "episode 1", "length 0"),
        ("length", [4, 1 << 62, 1 << 62], "episode 1"), ("length", [4.0, 3.0, np.nan], "'length'", "integers"),
        ("length", [4, None, 5], "'length'", "missing"),
        ("episode_index", [0, 1, 1], "episode 2 is missing or listed twice"),
        ("episode_index", [0, 0, 2], "episode 1 is missing or listed twice"),
        ("dataset_from_index", [0, 5, 7], "episode 1", "from row 5"),
        ("data/file_index", [0, 0, 7], "file-007.parquet", "no file"), ("data/file_index", [0, 0, -1], "no file"),
        (SECONDS, [0.0, 0.8, np.nan], "episode 2", "second nan")]),
    row("published", table(EPISODES, lambda data: data.drop_columns(["length"])), "'length'"),
    row("published", table(EPISODES, lambda data: data.slice(0, 0)), "no episode"),
    row("published", table(TABLE, lambda data: data.slice(0, 6)), "6 rows", "7", "episodes 0 to 1"),
    row("published", table(TABLE, lambda data: pa.concat_tables([data, data])), "more than 7", "episodes 0 to 1"),
    *(row("published", column(TABLE, name, values), *words) for name, values, *words in [
        ("episode_index", [0, 0, 0, 0, 1, 2, 1], "episode 2", "episode 1, frame 1"),
        ("frame_index", [0, 1, 1, 3, 0, 1, 2], "episode 0, frame 1", "frame 2"),
        ("action", [[0.0] * 5] * 7, "'action'", "5 numbers a row"),
        ("action", [[0.0] * 5, [0.0] * 7, *[[0.0] * 6] * 5], "'action'", "differ"),
        ("action", [None, *[[0.0] * 6] * 6], "'action'", "missing"),
        ("action", [[1.0, None, *[1.0] * 4]] * 7, "'action'", "missing"), ("action", ["a"] * 7, "'action'", "string"),
        ("action", [[np.nan] * 6] * 7, "actions holds", "episode 0, frame 0"), ("task_index", [7] * 7, "task 7"),
        ("observation.state", [[np.inf] * 6] * 7, "observations/state holds", "episode 0, frame 0")]),
    row("published", table(TABLE, lambda data: data.append_column("action", data["action"])), "one column 'action'"),
    *(row("published", column(DATA.format(1), WRIST, values), WRIST, *words) for values, *words in [
        ([{"bytes": b"GIF89a", "path": None}] * 5, "row 0", "decoded"),
        ([{"bytes": None}, *[{"bytes": b""}] * 4], "not inside the file"),
        ([{"bytes": encoded(np.zeros((9, 8), np.uint8))}] * 5, "L 8x9"), ([1, 2, 3, 4, 5], "instead of images")]),
    row("published", table(TASKS, lambda data: data.drop_columns(["__index_level_0__"])), "tasks.parquet", "text"),
    row("published", table(TASKS, lambda data: data.drop_columns(["task_index"])), "'task_index'"),
    row("lerobot", text("meta/gtp_vision.json", '{"attributes": [1]}'), "'attributes' is not an object"),
]  # fmt: skip


# JSON ---------------------------------------------------------------------------------------------------------------

DOCUMENTS: list[tuple[str, Callable[[str], Edit]]] = [
    ("native", lambda content: attribute("/", "metadata", content)),
    ("d4rl", lambda content: attribute("/", "gtp_vision", content)),
    ("robomimic", lambda content: attribute("/data", "env_args", content)),
    ("robomimic", lambda content: attribute("/data", "gtp_vision", content)),
    ("minari", lambda content: text(METADATA, content)),
    ("lerobot", lambda content: text("meta/gtp_vision.json", content)),
]
JSON = [
    row(sample, document(content), "JSON")
    for sample, document in DOCUMENTS
    for content in ("{", "[1]", "null", '{"a":' + "[" * 60_000, '{"a":' + "[" * 500 + "]" * 500 + "}")
]


@pytest.mark.parametrize(
    ("sample", "edit", "words"), [*common_rows(), *NATIVE, *D4RL, *ROBOMIMIC, *MINARI, *OGBENCH, *LEROBOT, *JSON]
)
def test_a_damaged_file_is_refused_in_a_sentence(
    sample: str, edit: Edit, words: tuple[str, ...], copied: Callable[[str], Path], cache: Path
) -> None:
    path = copied(sample)
    edit(path)
    refused(path, *words)
    assert not list(cache.glob(".*")), "no unfinished file is left in the cache"


SINGLE_TASK = "cube-single-play-singletask-task2-v0"


@pytest.mark.simulates
@pytest.mark.parametrize(
    ("env", "changed", "words"),
    [
        (SINGLE_TASK, {"qpos": None}, ("qpos",)),
        (SINGLE_TASK, {"qpos": zeros(13, 21)}, ("qpos",)),
        (SINGLE_TASK, {"qpos": zeros(15, 3)}, ("'qpos' has 3 numbers per frame",)),
        ("pointmaze-medium-navigate-singletask-v0", {}, ("'qpos' has 21 numbers per frame", "pointmaze")),
    ],
)
def test_foreign_states_are_refused(tmp_path: Path, env: str, changed: dict[str, Any], words: tuple[str, ...]) -> None:
    contents = {name: array for name, array in (ogbench_contents() | changed).items() if array is not None}
    refused(npz(tmp_path / "a.npz", contents), *words, env=env)


def test_a_file_of_another_program_is_refused_with_its_contents(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["images"] = zeros(3, 2)
    refused(tmp_path / "theirs.h5", "HDF5 with images in it", "known: ", "gtp-vision HDF5")
    for content in (b"", b"\x00" * 64, b"%PDF-1.7", b"PK\x05\x06", b"PK\x03\x04 a zip", b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "what.bin").write_bytes(content)
        refused(tmp_path / "what.bin", "")
