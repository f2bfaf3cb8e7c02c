"""Every hint about a near miss is followed to the letter: the file then opens, and its rows are the right ones.

The environment of these recordings is a counter; see counter.py.
"""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from commands_of_docs import blocks
from counter import (
    ENDS_WELL,
    EPISODES,
    STEPS,
    TERMINAL,
    Arrays,
    assert_right,
    dm_env,
    flat,
    load,
    marked,
    rows_of_d4rl,
    save,
    with_final,
)
from refusals import as_links, assert_same, entry, open_here, refused, table
from samples import DATA, INFO, MAIN, METADATA, Copied, joined
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import formats, inspection
from gtp_vision.datasets.formats import check_writable, detect
from gtp_vision.datasets.layout import to_store
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")
Follow = Callable[[Path, Path], None]


def script() -> dict[str, Any]:
    """The functions of the script in docs/data.md."""
    found: dict[str, Any] = {}
    exec(next(block for block in blocks("docs/data.md", "python") if "def with_is_first" in block), found)
    return found


def follow_script(kind: str, *arguments: Any) -> Follow:
    def follow(source: Path, target: Path) -> None:
        named, arrays = script(), load(source)
        episodes = named["split"](arrays, arrays["is_first"])
        named["write"](target, [named[kind](episode, *arguments) for episode in episodes])

    return follow


def rename(**names: str) -> Follow:
    def follow(source: Path, target: Path) -> None:
        arrays = load(source)
        save(target, {names.get(name, name): array for name, array in arrays.items()})

    return follow


def changed(**new: Callable[[Arrays], Any]) -> Follow:
    """Arrays that are computed from those of the file; None removes one."""

    def follow(source: Path, target: Path) -> None:
        held = load(source)
        arrays = held | {name: compute(held) for name, compute in new.items()}
        save(target, {name: array for name, array in arrays.items() if array is not None})

    return follow


MISSES: dict[str, tuple[Arrays, tuple[str, ...], Follow, bool]] = {
    "rlds": (flat(marked, "rlds"), ("RLDS keeps action and reward",), follow_script("with_is_first", "rlds"), True),
    "dreamer3": (flat(marked, "dreamer3"), ("in reward[t + 1]",), follow_script("with_is_first", "dreamer3"), True),
    "dm_env under D4RL's names": (
        {{"observation": "observations", "action": "actions", "reward": "rewards"}.get(k, k): v
         for k, v in flat(dm_env).items()} | {"terminals": np.zeros(EPISODES * (STEPS + 1), bool)},
        ("rows are those of dm_env", "call them observation, action, reward and discount"),
        rename(observations="observation", actions="action", rewards="reward"), True),
    "rows that are not dm_env's": (
        {{"observations": "observation", "actions": "action", "rewards": "reward"}.get(k, k): v
         for k, v in flat(rows_of_d4rl).items() if k not in ("terminals", "timeouts", "next_observations")}
        | {"discount": 1 - np.concatenate(TERMINAL), "step_type": np.tile([0, 1, 1, 1, 2], EPISODES)},
        ("rename 'observation' to 'observations', 'action' to 'actions' and 'reward' to 'rewards', and add",),
        lambda source, target: changed(
            terminals=lambda held: held["discount"] == 0,
            timeouts=lambda held: (held["step_type"] == 2) & (held["discount"] == 1))(
                save(source.with_stem("renamed"), {{"observation": "observations", "action": "actions",
                     "reward": "rewards"}.get(k, k): v for k, v in load(source).items()}), target), False),
    "other names": (
        {{"observations": "obs", "next_observations": "next_obs", "actions": "action", "rewards": "reward"}.get(k, k): v
         for k, v in flat(rows_of_d4rl).items()},
        ("rename 'action' to 'actions', 'obs' to 'observations', 'next_obs' to 'next_observations' and 'reward' to",),
        rename(obs="observations", next_obs="next_observations", action="actions", reward="rewards"), False),
    "gymnasium's flags": (
        {{"terminals": "terminated", "timeouts": "truncated"}.get(k, k): v for k, v in flat(rows_of_d4rl).items()},
        ("rename 'terminated' to 'terminals' and 'truncated' to 'timeouts'",),
        rename(terminated="terminals", truncated="timeouts"), False),
    "one flag": (
        {k: v for k, v in flat(rows_of_d4rl).items() if k not in ("terminals", "timeouts")}
        | {"done": np.arange(EPISODES * STEPS) % STEPS == STEPS - 1},
        ("rename 'done' to 'terminals', but write 'timeouts' and not 'terminals' where only the recording stopped",),
        changed(terminals=lambda held: held["done"] & ENDS_WELL,
                timeouts=lambda held: held["done"] & ~ENDS_WELL), False),
    "no terminals": (
        {k: v for k, v in flat(rows_of_d4rl).items() if k != "terminals"},
        ("add 'terminals', 1 where the MDP ended",),
        changed(terminals=lambda held: np.concatenate(TERMINAL)), False),
    "masks of OGBench's loader": (
        flat(rows_of_d4rl) | {"masks": ~np.concatenate(TERMINAL), "timeouts": np.zeros(EPISODES * STEPS, bool),
                              "terminals": np.arange(EPISODES * STEPS) % STEPS == STEPS - 1},
        ("'terminals' = (masks == 0) and 'timeouts' = (terminals == 1) & (masks == 1), and leave out 'masks'",),
        changed(terminals=lambda held: held["masks"] == 0, masks=lambda held: None,
                timeouts=lambda held: (held["terminals"] == 1) & (held["masks"] == 1)), False),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
@pytest.mark.parametrize(("arrays", "words", "follow", "has_final"), MISSES.values(), ids=MISSES)
def test_advice_about_flat_arrays(
    tmp_path: Path, arrays: Arrays, words: tuple[str, ...], follow: Follow, has_final: bool, suffix: str
) -> None:
    source = save(tmp_path / f"near{suffix}", arrays)
    refused(source, *words)
    target = tmp_path / f"followed{suffix}"
    follow(source, target)
    assert_right(open_here(target), has_final=has_final)


def pickled(path: Path, arrays: Arrays) -> None:
    path.write_bytes(pickle.dumps(arrays))


def as_npy(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.save(file, arrays, allow_pickle=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("write", "read"),
    [(pickled, lambda path: pickle.loads(path.read_bytes())),
     (as_npy, lambda path: np.load(path, allow_pickle=True).item())],
    ids=["pickle", "npy"],
)  # fmt: skip
def test_advice_about_pickled_arrays(tmp_path: Path, write: Callable, read: Callable) -> None:
    write(tmp_path / "a.pkl", flat(rows_of_d4rl))
    refused(tmp_path / "a.pkl", "write its arrays by np.savez(path, **arrays)")
    np.savez(tmp_path / "a.npz", **read(tmp_path / "a.pkl"))
    assert_right(open_here(tmp_path / "a.npz"), has_final=False)


# Files and folders of groups ----------------------------------------------------------------------------------------


def grouped(path: Path, prefix: str, make: Callable[..., Arrays], *arguments: Any) -> Path:
    with h5py.File(path, "w") as file:
        for e in range(EPISODES):
            for name, array in make(e, *arguments).items():
                file[f"{prefix}{e}/{name}"] = array
    return path


def as_demos(source: h5py.File, target: h5py.File) -> None:
    """Rename the groups, and split the observations: without the last ones, and without the first ones."""
    for number, episode in enumerate(sorted(source)):
        demo = target.create_group(f"data/demo_{number}")
        for name in ("actions", "rewards", "dones"):
            demo[name] = source[episode][name][:]
        demo["obs/state"], demo["next_obs/state"] = source[episode]["obs"][:-1], source[episode]["obs"][1:]


def into_data(source: h5py.File, target: h5py.File) -> None:
    for name in source:
        source.copy(name, target.require_group("data"))


def demo(e: int) -> Arrays:
    held = with_final(e)
    return {name: held[name] for name in ("actions", "rewards", "dones")} | {
        "obs/state": held["obs"][:-1],
        "next_obs/state": held["obs"][1:],
    }


@pytest.mark.parametrize(
    ("prefix", "make", "words", "follow"),
    [
        ("traj_", with_final, ("group per episode ('traj_0')", "the last one out of obs/NAME"), as_demos),
        ("episode_", with_final, ("group per episode ('episode_0')",), as_demos),
        ("demo_", demo, ("without the group 'data'",), into_data),
    ],
    ids=["ManiSkill", "named as Minari's", "no group data"],
)
def test_advice_about_groups(
    tmp_path: Path, prefix: str, make: Any, words: tuple[str, ...], follow: Callable[[h5py.File, h5py.File], None]
) -> None:
    path = grouped(tmp_path / "near.h5", prefix, make)
    refused(path, *words)
    with h5py.File(path) as source, h5py.File(tmp_path / "followed.h5", "w") as target:
        follow(source, target)
    assert detect(tmp_path / "followed.h5") == "robomimic"
    assert_right(open_here(tmp_path / "followed.h5"), has_final=True)


def test_other_rows_are_named_in_groups_and_folders(tmp_path: Path) -> None:
    (folder := tmp_path / "buffer").mkdir()
    for e in range(EPISODES):
        save(folder / f"{e}.npz", marked(e, "rlds"))
    refused(folder, "its rows are those of RLDS", "docs/data.md")
    refused(grouped(tmp_path / "rlds.h5", "episode_", marked, "rlds"), "its rows are those of RLDS", "docs/data.md")
    path = grouped(tmp_path / "near.h5", "episode_", dm_env)
    refused(path, "its rows are those of dm_env", "in flat arrays with step_type")
    with h5py.File(path) as file:
        parts = [{name: array[:] for name, array in file[f"episode_{e}"].items()} for e in range(EPISODES)]
    assert_right(open_here(save(tmp_path / "flat.h5", joined(parts))), has_final=True)


def named(message: str) -> Path:
    """The path that a message says to name instead."""
    found = re.search(r"; name (?:one of them, e\.g\. )?(/.*?)(?: \(it holds .*)?$", message)
    assert found, message
    return Path(found[1])


@pytest.mark.parametrize("sample", ["native", "robomimic", "minari", "lerobot", "zarr", "zarr_zip"])
@pytest.mark.parametrize("count", [1, 2])
def test_advice_about_folders_of_data_sets(copied: Copied, tmp_path: Path, sample: str, count: int) -> None:
    (folder := tmp_path / "folder" / "deep").mkdir(parents=True)
    source = copied(sample)
    for number in range(count):
        (target := folder / f"{number}" / source.name).parent.mkdir()
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    found = named(refused(folder.parent, "it holds one data set" if count == 1 else "it holds several data sets"))
    assert found.parents[1] == folder
    assert_same(open_here(found), open_here(source))


@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("sample", ["zarr", "robomimic"])
def test_advice_about_archives(copied: Copied, tmp_path: Path, sample: str, form: str) -> None:
    """Diffusion Policy's PushT is downloaded as a zip of its folder."""
    source = copied(sample)
    archive = shutil.make_archive(str(tmp_path / "download"), form, source.parent.parent, source.parent.name)
    refused(Path(archive), "it is an archive; unpack it, and name the data set in it")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert_same(open_here(named(refused(tmp_path / "unpacked", "it holds one data set"))), open_here(source))


def test_advice_about_notes_of_macos(copied: Copied) -> None:
    source = copied("native")
    (note := source.with_name(f"._{source.name}")).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert open_here(named(refused(note, "macOS's note on another file"))).episodes == 2


@pytest.mark.parametrize(
    ("sample", "member"),
    [("minari", METADATA), ("minari", MAIN), ("minari_arrow", METADATA), ("lerobot", INFO), ("rlds", "features.json")],
)
def test_advice_to_copy_the_whole_folder(copied: Copied, samples: dict[str, Path], sample: str, member: str) -> None:
    path = copied(sample)
    (path / member).unlink()
    refused(path, "copy the whole folder")
    assert_same(open_here(copied(sample)), open_here(samples[sample]))


def test_advice_about_what_lies_beside_episodes_of_minari(copied: Copied, samples: dict[str, Path]) -> None:
    path = copied("minari")
    with h5py.File(path / MAIN, "r+") as file:
        file["notes"] = np.zeros(3)
    refused(path / MAIN, "Minari's main_data.hdf5 with 'notes' beside its episodes; remove that")
    with h5py.File(path / MAIN, "r+") as file:
        del file["notes"]
    assert open_here(path / MAIN).episode_ends.tolist() == open_here(samples["minari"]).episode_ends.tolist()


def test_advice_about_what_the_loader_of_ogbench_returns(samples: dict[str, Path], tmp_path: Path) -> None:
    with np.load(samples["ogbench"]) as file:
        held = {name: file[name] for name in ("observations", "actions")}
    refused(save(tmp_path / "a.npz", held | {"valids": np.ones(len(held["actions"]))}), "name the file that it loaded")
    np.testing.assert_array_equal(open_here(samples["ogbench"]).actions, held["actions"])


def test_advice_about_zarr_of_another_layout(tmp_path: Path) -> None:
    held = flat(rows_of_d4rl)
    group = zarr.open_group(tmp_path / "mine.zarr", mode="w", zarr_format=2)
    arrays = {"state": held["observations"], "action": held["actions"], "reward": held["rewards"]}
    for name, array in arrays.items():
        group.create_array(name, data=array)
    refused(tmp_path / "mine.zarr", "write data/action and data/NAME", "meta/episode_ends, the row after the last one")
    group = zarr.open_group(tmp_path / "followed.zarr", mode="w", zarr_format=2)
    for name, array in (arrays | {"done": held["terminals"]}).items():
        group.create_array(f"data/{name}", data=array)
    group.create_array("meta/episode_ends", data=STEPS * np.arange(1, EPISODES + 1))
    assert_right(open_here(tmp_path / "followed.zarr"), has_final=False)


def test_advice_about_a_native_file_without_its_attribute(tmp_path: Path) -> None:
    path = tmp_path / "near.h5"
    held = flat(rows_of_d4rl)
    save(path, {"observations/state": held["observations"], "actions": held["actions"], "rewards": held["rewards"]})
    refused(
        path,
        "set file.attrs.update(format='gtp-vision', version=1)",
        "and add 'terminals', 'timeouts', 'episode_ends' (docs/data.md",
    )
    with h5py.File(path, "r+") as file:
        file.attrs.update(format="gtp-vision", version=1)
        file["terminals"], file["timeouts"] = (held[name].astype(np.uint8) for name in ("terminals", "timeouts"))
        file["episode_ends"] = STEPS * np.arange(1, EPISODES + 1)
    assert_right(open_here(path), has_final=False)


def test_advice_about_links(copied: Callable[[str], Path], tmp_path: Path) -> None:
    """Copying what links lead to, as `cp -rL` does, is enough."""
    folder = copied("published")
    as_links(folder, tmp_path / "blobs")
    refused(folder, "leads out of the folder", "cp -rL")
    shutil.copytree(folder, tmp_path / "plain" / folder.name)
    assert open_here(tmp_path / "plain" / folder.name).episodes == 3


def test_advice_about_lerobot_features_of_other_names(copied: Callable[[str], Path]) -> None:
    folder = copied("published")
    before = open_here(folder)
    entry(INFO, "features", "command", value=json.loads((folder / INFO).read_text())["features"]["action"])(folder)
    entry(INFO, "features", "action", value=...)(folder)
    for place in (0, 1):
        names = pq.read_schema(folder / DATA.format(place)).names
        renamed = ["command" if name == "action" else name for name in names]
        table(DATA.format(place), lambda rows, renamed=renamed: rows.rename_columns(renamed))(folder)
    refused(folder, "no feature 'action' of numbers (it has", "command", "--features action=NAME")
    store = to_store(formats._layout(folder, None, {"action": "command"}), folder)
    np.testing.assert_allclose(store.actions, before.actions, atol=1e-6)


def test_actions_in_other_units_are_scaled_with_their_limits(tmp_path: Path) -> None:
    held = flat(rows_of_d4rl)
    path = save(tmp_path / "near.h5", held | {"actions": held["actions"] * 100})
    (said,) = problems(open_here(path))
    assert "set task.action_scaling=minmax" in said
    assert "gtp-vision data convert --scale" in said
    assert main(["data", "convert", str(path), str(tmp_path / "scaled.h5"), "--to", "native", "--scale"]) == 0
    assert problems(open_here(tmp_path / "scaled.h5")) == []
    episodes = []
    for e in range(EPISODES):
        rows = rows_of_d4rl(e)
        kept = {name: rows[name] for name in ("rewards", "terminals")}
        episodes.append(kept | {"observations/state": rows["observations"], "actions": 100 * rows["actions"]})
    script()["write"](tmp_path / "out.h5", episodes)
    store = open_here(tmp_path / "out.h5")
    low, high = (np.asarray(store.attributes[bound]) for bound in ("action_low", "action_high"))
    np.testing.assert_allclose(
        low + (np.asarray(store.actions) + 1) / 2 * (high - low), 100 * held["actions"], rtol=1e-5
    )
    assert store.timeouts.nonzero()[0].tolist() == [STEPS - 1, 2 * STEPS - 1]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"env_info": "{}", "env": "Lift", "repository_version": "1.5.1"},
        {"env_args": json.dumps({"env_name": "Lift"})},
        {"env_args": b"{}", "total": 8},
    ],
    ids=["nothing", "robosuite", "robomimic", "bytes"],
)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("beside", [(), ("action_infos", "rewards"), ("next_obs/arm", "dones")], ids=str)
def test_states_of_the_simulator_are_to_be_rendered(
    tmp_path: Path, more: dict[str, Any], first: int, beside: tuple[str, ...]
) -> None:
    """What robosuite records, and robomimic before it renders; the rendered file is read."""
    path, numbers = tmp_path / "demo.hdf5", (first, first + 1)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs.update(more)
        for number in numbers:
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["model_file"] = "<mujoco/>"
            demo["actions"], demo["states"] = np.full((4, 7), 0.5 + number / 9), np.zeros((4, 9))
            for name in beside:
                demo[name] = np.zeros(4)
    script = "" if "env_args" in more else "conversion/convert_robosuite.py and then "
    refused(path, f"'data/demo_{first}' has no 'obs'", f"run robomimic's {script}dataset_states_to_obs.py on the file")
    with h5py.File(path, "r+") as file:
        for number in numbers:
            file[f"data/demo_{number}/obs/arm"] = np.arange(4.0) + 10 * number
    store = open_here(path)
    assert store.observations["arm"][:4, 0].tolist() == [10 * first + t for t in range(4)]
    np.testing.assert_allclose(store.actions[0], 0.5 + first / 9, rtol=1e-6)


# Warnings about valid data ------------------------------------------------------------------------------------------


def change(name: str, compute: Callable[[Store], Any]) -> Callable[[Store], Store]:
    """Another array of a store; `name` is a field or an observation."""

    def follow(store: Store) -> Store:
        if name in store.observations:
            return replace(store, observations=store.observations | {name: compute(store)})
        return replace(store, **{name: compute(store)})

    return follow


def without(*episodes: int) -> Callable[[Store], Store]:
    return lambda store: store.subset(np.setdiff1d(np.arange(store.episodes), episodes))


def at(store: Store, rows: Any) -> np.ndarray:
    return np.isin(np.arange(len(store)), rows)


def last(store: Store) -> np.ndarray:
    return at(store, store.episode_ends - 1)


FRONT = {"front": (8, 6, 3)}
WARNED: dict[str, tuple[dict[str, Any], Callable[[Store], Store], str, Callable[[Store], Store]]] = {
    "rewards of the last rows are of terminals": (
        {"lengths": (20, 30)}, change("rewards", lambda store: np.float32(last(store))), "mark them as terminals",
        lambda store: replace(store, terminals=last(store), timeouts=~last(store) & last(store))),
    "rewards belong to the actions before": (
        {"lengths": (20, 30)}, change("rewards", lambda store: np.float32(last(store))), "move all rewards up",
        change("rewards", lambda store: np.roll(store.rewards, -1))),
    "masks": (
        {"lengths": (20, 30), "timeouts": {49}}, change("terminals", lambda store: ~at(store, 19)),
        "check that it is not the mask", change("terminals", lambda store: np.asarray(store.terminals) == 0)),
    "a time limit": (
        {"lengths": (10, 10), "terminals": {9, 19}}, lambda store: store, "mark the ends as timeouts",
        lambda store: replace(store, terminals=0 * store.terminals, timeouts=last(store))),
    "a recording that stopped": (
        {"lengths": (10, 12), "terminals": {9, 21}}, lambda store: store, "mark the end as a timeout",
        lambda store: replace(store, terminals=at(store, 9), timeouts=at(store, 21))),
    "an episode of one frame": ({"lengths": (40, 1, 40)}, lambda store: store, "leave them out", without(1)),
    "a short episode": ({"lengths": (40, 2, 40)}, lambda store: store, "leave them out if", without(1)),
    "a state that is an image": (
        {"state": 32 * 32 * 3}, lambda store: store, "store it as uint8 (H, W, C)",
        change("state", lambda store: np.add.outer(np.arange(12), np.indices((32, 32, 3)).sum(0)).astype(np.uint8))),
    "a blank camera": (
        {"lengths": (20, 20, 20), "cameras": FRONT},
        change("front", lambda store: store.observations["front"] * ~at(store, np.arange(20, 40))[:, None, None, None]),
        "leave those episodes out", without(1)),
    "tiny actions": (
        {"lengths": (20, 20)}, change("actions", lambda store: np.float32(0.01) * store.actions),
        "set task.action_scaling=minmax", lambda store: scaled([store], "minmax")[0]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "mistake", "words", "follow"), WARNED.values(), ids=WARNED)
def test_a_warning_that_is_followed_goes(
    content: dict[str, Any],
    mistake: Callable[[Store], Store],
    words: str,
    follow: Callable[[Store], Store],
) -> None:
    store = mistake(make_store(**content))
    (said,) = pitfalls(store, inspection.statistics(store))
    assert words in said
    after = follow(store)
    assert problems(after) == []
    assert pitfalls(after, inspection.statistics(after)) == []


@pytest.mark.parametrize(
    ("frames", "words", "follow"),
    [
        (np.zeros((15, 3, 8, 6), np.uint8), "transpose(0, 2, 3, 1)", lambda frames: frames.transpose(0, 2, 3, 1)),
        (np.zeros((15, 8, 6, 3), np.float32), "multiply by 255", lambda frames: (255 * frames).astype(np.uint8)),
        (np.zeros((15, 3), np.int64), "write a state as float32", lambda frames: frames.astype(np.float32)),
    ],
    ids=["channels first", "floats", "integers"],
)
def test_advice_about_observations(frames: np.ndarray, words: str, follow: Any) -> None:
    store = make_store((6, 9), observations={"front": frames})
    (said,) = problems(store)
    assert words in said
    assert problems(make_store((6, 9), observations={"front": follow(frames)})) == []


@pytest.mark.parametrize(
    ("content", "to", "words"),
    [
        ({"cameras": {"depth": (8, 8, 4)}}, "lerobot", "convert it to native or robomimic"),
        ({"lengths": (4, 1, 3)}, "robomimic", "convert it to native"),
        ({"cameras": FRONT}, "d4rl", "convert it to robomimic"),
    ],
)
def test_advice_about_formats_that_cannot_hold_a_data_set(
    tmp_path: Path, content: dict[str, Any], to: str, words: str
) -> None:
    store = make_store(**content)
    with pytest.raises(GtpVisionError, match=words):
        check_writable(to)(tmp_path / "a", store)
    check_writable(words.split()[3])(tmp_path / "b", store)
    assert open_here(tmp_path / "b").episode_ends.tolist() == store.episode_ends.tolist()


def test_advice_about_breaks_that_are_not_marked(tmp_path: Path) -> None:
    held = flat(rows_of_d4rl)
    arrays = {name: array for name, array in held.items() if name not in ("timeouts", "next_observations")}
    store = open_here(save(tmp_path / "a.hdf5", arrays))
    assert store.episodes == 1
    assert any("add 'timeouts'" in said for said in pitfalls(store, inspection.statistics(store)))
    assert_right(open_here(save(tmp_path / "b.hdf5", arrays | {"timeouts": held["timeouts"]})), has_final=False)
