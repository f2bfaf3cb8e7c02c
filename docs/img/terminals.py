"""Draw terminals.svg: the same two short episodes in each format, in the file and in the store.

    .venv/bin/python -P docs/img/terminals.py

The files are real ones, opened by the package's own readers; `tests/datasets/test_terminals_picture.py` compares
the picture with the stored one.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from gtp_vision.datasets.formats import native, open_store, tfrecords
from gtp_vision.datasets.store import Store

Row = tuple[str, Sequence[object]]
GAP = None  # between episodes, and where a row of the file has nothing

CELL, LINE, LABEL, BETWEEN, MARGIN = 32, 19, 142, 36, 14
RED, AMBER, GREY, PALE = "#d62728", "#f0a020", "#9a9a9a", "#ececec"


@dataclass
class Example:
    """One format: the contents of its file, and the store that the reader returns."""

    title: str
    notes: Sequence[str]
    file: Sequence[Row]
    store: Store


def state(values: Sequence[int]) -> np.ndarray:
    """float32 (N, 1) of observations: o0 to o3 of the first episode are 0 to 3, p0 to p3 of the second 10 to 13."""
    return np.asarray(values, np.float32)[:, None] / 100


def action(values: Sequence[int]) -> np.ndarray:
    """float32 (N, 1) of actions: a0 to a3 are 1 to 4, b0 to b3 of the second episode 11 to 14."""
    return np.asarray(values, np.float32)[:, None] / 100


O, P = [0, 1, 2], [10, 11, 12]  # noqa: E741
A, B = [1, 2, 3], [11, 12, 13]
o, p, a, b = (["o0", "o1", "o2", "o3"], ["p0", "p1", "p2", "p3"], ["a0", "a1", "a2", "a3"], ["b0", "b1", "b2", "b3"])


def native_file(folder: Path) -> Example:
    """Our own file: the store as it is."""
    flags = np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], np.uint8)
    store = Store(
        observations={"state": state(O + P)},
        actions=action(A + B),
        rewards=np.array([0, 0, 1, 0, 0, 0], np.float32),
        terminals=flags[0],
        timeouts=flags[1],
        episode_ends=np.array([3, 6]),
    )
    return Example(
        "native",
        ["The first episode ends by success, the second is cut off."],
        [
            ("observations/*", [*o[:3], GAP, *p[:3]]),
            ("actions", [*a[:3], GAP, *b[:3]]),
            ("rewards", [0, 0, 1, GAP, 0, 0, 0]),
            ("terminals", [0, 0, 1, GAP, 0, 0, 0]),
            ("timeouts", [0, 0, 0, GAP, 0, 0, 1]),
        ],
        open_store(native.write(folder / "native.h5", store)),
    )


def d4rl_file(folder: Path) -> Example:
    """D4RL's robots: a terminal is a fall."""
    with h5py.File(folder / "hopper.hdf5", "w") as file:
        file["observations"], file["next_observations"] = state(O + P), state([1, 2, 3, 11, 12, 13])
        file["actions"] = action(A + B)
        file["rewards"] = np.array([1, 1, 0, 1, 1, 1], np.float32)
        file["terminals"] = np.array([0, 0, 1, 0, 0, 0], bool)
        file["timeouts"] = np.array([0, 0, 0, 0, 0, 1], bool)
    return Example(
        "D4RL, robots",
        ["A terminal is a fall. A row with a timeout is dropped, as D4RL's qlearning_dataset does."],
        [
            ("observations", [*o[:3], GAP, *p[:3]]),
            ("next_observations", [*o[1:], GAP, *p[1:]]),
            ("actions", [*a[:3], GAP, *b[:3]]),
            ("rewards", [1, 1, 0, GAP, 1, 1, 1]),
            ("terminals", [0, 0, 1, GAP, 0, 0, 0]),
            ("timeouts", [0, 0, 0, GAP, 0, 0, 1]),
        ],
        open_store(folder / "hopper.hdf5"),
    )


def maze_file(folder: Path) -> Example:
    """D4RL's mazes: a terminal means "at the goal", and the recording continues."""
    place = np.array([[0, 0], [0.3, 0], [0.6, 0], [0.9, 0], [8, 8], [8.3, 8], [8.6, 8]], np.float32)
    with h5py.File(folder / "antmaze.hdf5", "w") as file:
        file["observations"], file["actions"] = state([0, 1, 2, 3, *P]), action([1, 2, 3, 4, *B])
        file["rewards"] = np.array([0, 0, 1, 0, 0, 0, 0], np.float32)
        file["terminals"] = np.array([0, 0, 1, 0, 0, 0, 0], bool)
        file["timeouts"] = np.array([0, 0, 0, 0, 0, 0, 1], bool)
        file["infos/goal"], file["infos/qpos"] = np.zeros((7, 2), np.float32), place
    return Example(
        "D4RL, mazes",
        [
            "A terminal means: at the goal. The recording continues, here without a timeout at its end, so",
            "ends are rebuilt: where next_observations disagree, or where the position leaps (drawn).",
        ],
        [
            ("observations", [*o, GAP, *p[:3]]),
            ("actions", [*a, GAP, *b[:3]]),
            ("rewards", [0, 0, 1, 0, GAP, 0, 0, 0]),
            ("terminals", [0, 0, 1, 0, GAP, 0, 0, 0]),
            ("timeouts", [0, 0, 0, 0, GAP, 0, 0, 1]),
        ],
        open_store(folder / "antmaze.hdf5"),
    )


def ogbench_file(folder: Path) -> Example:
    """OGBench: terminals are ends of recordings; a task's rewards and terminals are made from the states."""
    env = "pointmaze-medium-navigate-singletask-task1-v0"
    place = np.full((7, 2), -50.0)
    place[2] = [20.0, 20.0]  # the goal of task 1
    flags = np.array([0, 0, 0, 1, 0, 0, 1], np.float32)
    path = folder / "pointmaze-medium-navigate-v0.npz"
    contents = {"observations": state([0, 1, 2, 3, *P]), "actions": action([1, 2, 3, 4, *B]), "qpos": place}
    np.savez_compressed(path, **contents, terminals=flags)
    return Example(
        "OGBench",
        [
            "terminals are ends of recordings: timeouts. Rewards and terminals are those of the task",
            "in --env (…-singletask-…), computed from the state before the action. Without one both are 0.",
        ],
        [
            ("observations", [*o, GAP, *p[:3]]),
            ("actions", [*a, GAP, *b[:3]]),
            ("terminals", [0, 0, 0, 1, GAP, 0, 0, 1]),
            ("qpos: at the goal?", ["", "", "yes", "", GAP, "", "", ""]),
        ],
        open_store(path, env),
    )


def robomimic_file(folder: Path) -> Example:
    """robomimic: observations before and after each action, dones."""
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number, (obs, act, done) in enumerate([([0, 1, 2, 3], A, 1), ([10, 11, 12, 13], B, 0)]):
            demo = file.create_group(f"data/demo_{number}")
            demo["obs/state"], demo["next_obs/state"], demo["actions"] = state(obs[:-1]), state(obs[1:]), action(act)
            demo["rewards"], demo["dones"] = np.array([0, 0, done], np.float32), np.array([0, 0, done])
            demo.attrs["num_samples"] = 3
    return Example(
        "robomimic",
        [
            "The last next_obs becomes a row of its own, so every action has an outcome.",
            "Without next_obs the last row has none, unless it is done.",
        ],
        [
            ("demo_*/obs", [*o[:3], GAP, *p[:3]]),
            ("demo_*/next_obs", [*o[1:], GAP, *p[1:]]),
            ("demo_*/actions", [*a[:3], GAP, *b[:3]]),
            ("demo_*/rewards", [0, 0, 1, GAP, 0, 0, 0]),
            ("demo_*/dones", [0, 0, 1, GAP, 0, 0, 0]),
        ],
        open_store(folder / "demos.hdf5"),
    )


def minari_file(folder: Path) -> Example:
    """Minari: one observation more than actions."""
    data = folder / "tiny-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, (obs, act, ended) in enumerate([([0, 1, 2, 3], A, 1), ([10, 11, 12, 13], B, 0)]):
            episode = file.create_group(f"episode_{number}")
            episode["observations"], episode["actions"] = state(obs), action(act)
            episode["rewards"] = np.array([0, 0, ended], np.float64)
            episode["terminations"] = np.array([0, 0, ended], bool)
            episode["truncations"] = np.array([0, 0, not ended], bool)
            episode.attrs.update(id=number, total_steps=3)
    box = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-1.0], "high": [1.0]}
    metadata = {"observation_space": box, "action_space": box, "total_episodes": 2, "total_steps": 6}
    (data / "metadata.json").write_text(json.dumps(metadata | {"data_format": "hdf5"}))
    return Example(
        "Minari",
        ["The last observation becomes a row of its own. truncations stop the recording only."],
        [
            ("observations", [*o, GAP, *p]),
            ("actions", [*a[:3], "", GAP, *b[:3], ""]),
            ("rewards", [0, 0, 1, "", GAP, 0, 0, 0, ""]),
            ("terminations", [0, 0, 1, "", GAP, 0, 0, 0, ""]),
            ("truncations", [0, 0, 0, "", GAP, 0, 0, 1, ""]),
        ],
        open_store(folder / "tiny-v0"),
    )


def lerobot_folder(folder: Path) -> Example:
    """LeRobot: a table with a row a frame."""
    root = folder / "lerobot"
    columns = {
        "observation.state": pa.array(state(O + P).tolist(), pa.list_(pa.float32(), 1)),
        "action": pa.array(action(A + B).tolist(), pa.list_(pa.float32(), 1)),
        "timestamp": pa.array([0.0, 0.1, 0.2] * 2, pa.float32()),
        "frame_index": [0, 1, 2] * 2,
        "episode_index": [0] * 3 + [1] * 3,
        "index": list(range(6)),
        "task_index": [0] * 6,
        "next.reward": pa.array([0, 0, 1, 0, 0, 0], pa.float32()),
        "next.done": [False, False, True] * 2,
        "next.success": [False, False, True, False, False, False],
    }
    spans = {"dataset_from_index": [0, 3], "dataset_to_index": [3, 6], "length": [3, 3]}
    places = {"data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    for name, table in (
        ("data/chunk-000/file-000.parquet", columns),
        ("meta/episodes/chunk-000/file-000.parquet", {"episode_index": [0, 1], "tasks": [["go"]] * 2} | spans | places),
        ("meta/tasks.parquet", {"task": ["go"], "task_index": [0]}),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / name)
    kinds = {"next.done": "bool", "next.success": "bool", "observation.state": "float32", "action": "float32"}
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "total_episodes": 2,
        "total_frames": 6,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": {name: {"dtype": kinds.get(name, "float32"), "shape": [1], "names": None} for name in columns},
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return Example(
        "LeRobot",
        [
            "terminals are next.success where there is one, else next.done (which often says only that",
            "the recording stopped). An episode's last row is a timeout unless it is a terminal.",
        ],
        [
            ("observation.*", [*o[:3], GAP, *p[:3]]),
            ("action", [*a[:3], GAP, *b[:3]]),
            ("next.reward", [0, 0, 1, GAP, 0, 0, 0]),
            ("next.done", [0, 0, 1, GAP, 0, 0, 1]),
            ("next.success", [0, 0, 1, GAP, 0, 0, 0]),
        ],
        open_store(root),
    )


def zarr_folder(folder: Path) -> Example:
    """Diffusion Policy's replay buffer: flat arrays and ends of episodes."""
    group = zarr.open_group(folder / "buffer.zarr", mode="w", zarr_format=2)
    arrays = {"data/state": state(O + P), "data/action": action(A + B), "meta/episode_ends": np.array([3, 6])}
    for name, array in arrays.items():
        group.create_array(name, data=array)
    return Example(
        "Replay buffer (zarr)",
        ["Demonstrations without rewards and terminals: the last row of each episode is a timeout."],
        [
            ("data/state", [*o[:3], GAP, *p[:3]]),
            ("data/action", [*a[:3], GAP, *b[:3]]),
            ("meta/episode_ends", ["", "", 3, GAP, "", "", 6]),
        ],
        open_store(folder / "buffer.zarr"),
    )


def rlds_folder(folder: Path) -> Example:
    """RLDS: the last step holds the final observation."""
    root = folder / "tiny" / "1.0.0"
    root.mkdir(parents=True)
    tensor = {"tensor": {"dtype": "float32", "encoding": "none", "shape": {"dimensions": ["1"]}}}
    flag = {"tensor": {"dtype": "bool", "encoding": "none", "shape": {}}}
    steps = {"observation": {"featuresDict": {"features": {"state": tensor}}}, "action": tensor, "reward": tensor}
    steps |= {"is_terminal": flag}
    sequence = {"sequence": {"feature": {"featuresDict": {"features": steps}}}}
    (root / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": sequence}}}))
    (root / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
    content = b""
    for seen, taken, ended in (([*O, 3], A, 1), ([*P, 13], B, 0)):
        example = tfrecords.message_class()()
        floats = {"observation/state": state(seen), "action": action([*taken, 0]), "reward": np.array([0, 0, 0, ended])}
        for key, values in floats.items():
            entry = example.features.feature.add(key=f"steps/{key}")
            entry.value.float_list.value.extend(values.ravel().tolist())
        example.features.feature.add(key="steps/is_terminal").value.int64_list.value.extend([0, 0, 0, ended])
        record = example.SerializeToString()
        for part in (struct.pack("<Q", len(record)), record):
            content += part + struct.pack("<I", tfrecords.masked(part))
    (root / "tiny-train.tfrecord-00000-of-00001").write_bytes(content)
    return Example(
        "RLDS",
        ["The last step holds the final observation; its reward, undefined by RLDS, counts for the action before."],
        [
            ("steps/observation", [*o, GAP, *p]),
            ("steps/action", [*a[:3], "", GAP, *b[:3], ""]),
            ("steps/reward", [0, 0, 0, 1, GAP, 0, 0, 0, 0]),
            ("steps/is_terminal", [0, 0, 0, 1, GAP, 0, 0, 0, 0]),
        ],
        open_store(root),
    )


def aloha_folder(folder: Path) -> Example:
    """ALOHA's recordings: a file for each episode, without rewards and flags."""
    root = folder / "aloha"
    root.mkdir()
    for number, (observed, acted) in enumerate(((O, A), (P, B))):
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            file["observations/state"], file["action"] = state(observed), action(acted)
    return Example(
        "ALOHA",
        ["Demonstrations without rewards and terminals: the last row of each file is a timeout."],
        [("observations/*", [*o[:3], GAP, *p[:3]]), ("action", [*a[:3], GAP, *b[:3]])],
        open_store(root),
    )


def dm_env_file(folder: Path) -> Example:
    """V-D4RL's rows: action, reward and discount led to the observation."""
    with h5py.File(folder / "walker.hdf5", "w") as file:
        file["observation"], file["action"] = state([0, 1, 2, 3, 10, 11, 12, 13]), action([0, *A, 0, *B])
        file["reward"] = np.array([0, 0, 0, 1, 0, 0, 0, 0], np.float32)
        file["discount"] = np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32)
        file["step_type"] = np.array([0, 1, 1, 2, 0, 1, 1, 2])
    return Example(
        "dm_env",
        ["V-D4RL, DrQ-v2: action, reward and discount of a row led to its observation, and move to the row before."],
        [
            ("observation", [*o, GAP, *p]),
            ("action", ["", *a[:3], GAP, "", *b[:3]]),
            ("reward", ["", 0, 0, 1, GAP, "", 0, 0, 0]),
            ("discount", ["", 1, 1, 0, GAP, "", 1, 1, 1]),
            ("step_type", [0, 1, 1, 2, GAP, 0, 1, 1, 2]),
        ],
        open_store(folder / "walker.hdf5"),
    )


def maniskill_file(folder: Path) -> Example:
    """ManiSkill's trajectories: one observation more than actions."""
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for number, (observed, acted) in enumerate((([0, 1, 2, 3], A), ([10, 11, 12, 13], B))):
            trajectory, is_solved = file.create_group(f"traj_{number}"), np.arange(3) == 2
            trajectory["obs"], trajectory["actions"] = state(observed), action(acted)
            trajectory["rewards"] = (is_solved & (number == 0)).astype(np.float32)
            trajectory["terminated"], trajectory["truncated"] = is_solved & (number == 0), is_solved & (number == 1)
    return Example(
        "ManiSkill",
        ["The observation after the last action becomes a row of its own, a timeout."],
        [
            ("obs", [*o, GAP, *p]),
            ("actions", [*a[:3], "", GAP, *b[:3], ""]),
            ("rewards", [0, 0, 1, "", GAP, 0, 0, 0, ""]),
            ("terminated", [0, 0, 1, "", GAP, 0, 0, 0, ""]),
            ("truncated", [0, 0, 0, "", GAP, 0, 0, 1, ""]),
        ],
        open_store(folder / "trajectory.h5"),
    )


def in_store(store: Store) -> list[Row]:
    """The rows of the store's table."""
    observations = np.rint(100 * np.asarray(store.observations["state"])[:, 0]).astype(int)
    actions = np.rint(100 * np.asarray(store.actions)[:, 0]).astype(int)
    known, mask = store.has_outcome, 1 - np.asarray(store.terminals, int)
    rows: list[tuple[str, list[object]]] = [
        ("observation", [f"{'op'[value // 10]}{value % 10}" for value in observations]),
        ("action", [f"{'ab'[value // 10]}{value % 10 - 1}" if value else "0" for value in actions]),
        ("reward", [f"{value:g}" for value in store.rewards]),
        ("terminal", [int(value) for value in store.terminals]),
        ("timeout", [int(value) for value in store.timeouts]),
        ("mask = 1 - terminal", [int(value) if sampled else "" for value, sampled in zip(mask, known, strict=True)]),
        ("sampled", ["yes" if sampled else "never" for sampled in known]),
    ]
    for _, cells in rows:
        for end in reversed(store.episode_ends[:-1].tolist()):
            cells.insert(end, GAP)
    return [(label, cells) for label, cells in rows]


def table(left: float, top: float, head: str, rows: Sequence[Row]) -> Iterator[str]:
    """The SVG elements of a table."""
    yield f'<text x="{left}" y="{top - 5}" class="head">{head}</text>'
    lefts = [left + LABEL]
    for cell in rows[0][1]:
        lefts.append(lefts[-1] + (10 if cell is GAP else CELL))
    never = [cell == "never" for cell in rows[-1][1]]
    for number, (label, cells) in enumerate(rows):
        y = top + number * LINE
        yield f'<text x="{left}" y="{y + 14}">{escape(label)}</text>'
        for x, cell, padded in zip(lefts, cells, never, strict=False):
            if cell is GAP:
                continue
            fill, ink = "white", "black"
            if padded:
                fill, ink = PALE, GREY
            if cell == 1 and label.startswith("terminal") and head == "in the store":
                fill, ink = RED, "white"
            elif cell == 1 and label == "timeout":
                fill, ink = AMBER, "black"
            elif cell == 0 and label.startswith("mask"):
                fill = "#f6c9c9"
            yield f'<rect x="{x}" y="{y}" width="{CELL}" height="{LINE}" fill="{fill}" stroke="#bbb"/>'
            yield f'<text x="{x + CELL / 2}" y="{y + 14}" class="cell" fill="{ink}">{escape(str(cell))}</text>'


def picture(examples: Sequence[Example]) -> str:
    """The whole picture as SVG."""
    second = MARGIN + LABEL + 8 * CELL + 10 + BETWEEN
    width = second + LABEL + 8 * CELL + 10 + MARGIN
    body, top = [], MARGIN + 14
    for example in examples:
        body.append(f'<text x="{MARGIN}" y="{top}" class="title">{escape(example.title)}</text>')
        for number, note in enumerate(example.notes):
            body.append(f'<text x="{MARGIN + 120}" y="{top + 15 * number}" class="note">{escape(note)}</text>')
        start = top + 15 * len(example.notes) + 14
        rows = in_store(example.store)
        body += table(MARGIN, start, "in the file", example.file)
        body += table(second, start, "in the store", rows)
        top = start + LINE * max(len(rows), len(example.file)) + 34
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top - 20}" '
            f'viewBox="0 0 {width} {top - 20}">',
            "<style>text{font:12px sans-serif;fill:black}.title{font-weight:bold;font-size:15px}.note{fill:#444}"
            ".head{fill:#777;font-size:11px}.cell{font-size:11px;text-anchor:middle}"
            '.cell[fill="white"]{fill:white}'
            f'.cell[fill="{GREY}"]{{fill:{GREY}}}</style>',
            '<rect width="100%" height="100%" fill="white"/>',
            *body,
            "</svg>\n",
        ]
    )


STORIES = (
    *(native_file, d4rl_file, maze_file, ogbench_file, robomimic_file, minari_file, lerobot_folder),
    *(aloha_folder, dm_env_file, maniskill_file),
    *(zarr_folder, rlds_folder),
)


def draw(folder: Path) -> str:
    """Write the files into a folder, open them, and draw the stores."""
    return picture([write(folder) for write in STORIES])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
        target.write_text(draw(Path(scratch)), encoding="utf-8")
        print(target)
