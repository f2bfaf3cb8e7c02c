import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from hypothesis import settings
from hypothesis import strategies as st
from refusals import Edit, entry, open_here, put, refused, truncated
from samples import MAIN, METADATA, encoded, minari_folder

from gtp_vision.datasets.formats import detect
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate

pytestmark = pytest.mark.usefixtures("cache")
LENGTHS = (4, 6, 3)
_SPACES = ("observation_space", "action_space")
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
UNIT = spaces.Box(-1, 1, (2,), np.float32)
Created = tuple[Path, list[dict[str, Any]]]


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.fixture
def created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Created]:
    """A function that makes a data set of random episodes with Minari itself, and returns what Minari was given."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def create(
        observations: spaces.Space = VECTOR,
        actions: spaces.Space = UNIT,
        lengths: tuple[int, ...] = LENGTHS,
        **options: Any,
    ) -> Created:
        return minari_folder(tmp_path / "minari", observations, actions, lengths, **options)

    return create


def episode(store: Store, number: int) -> slice:
    return slice(int(store.episode_starts[number]), int(store.episode_ends[number]))


def as_old(folder: Path, version: str) -> None:
    """Change a data set to the layout of an older Minari: metadata in the HDF5 file, before 0.4 without the spaces."""
    metadata = json.loads((folder / METADATA).read_text())
    (folder / METADATA).unlink()
    kept = ("dataset_id", "total_episodes", "total_steps") + (() if version == "0.3" else _SPACES)
    with h5py.File(folder / MAIN, "r+") as file:
        file.attrs.update({name: metadata[name] for name in kept})
        if version == "0.3":  # as Minari 0.3.1 counts them
            file.attrs.update(total_steps=metadata["total_steps"] + 1, flatten_observation=False, flatten_action=False)


@pytest.mark.parametrize("storage", ["hdf5", "arrow", "parquet", "0.4", "0.3"])
def test_every_step_and_flag_is_in_its_place(created: Any, storage: str) -> None:
    import minari as library

    form = storage if storage in ("arrow", "parquet") else "hdf5"
    folder, recorded = created(data_format=form)
    theirs = list(library.load_dataset("walker/test-v0").iterate_episodes())
    if storage[0] == "0":
        as_old(folder, storage)
    assert detect(folder) == "minari"
    store = validate(open_here(folder))
    assert np.diff(store.episode_ends, prepend=0).tolist() == [length + 1 for length in LENGTHS]
    for number, given in enumerate(recorded):
        here = episode(store, number)
        for observations in (given["observations"], theirs[number].observations):
            np.testing.assert_array_equal(store.observations["state"][here], observations.astype(np.float32))
        np.testing.assert_array_equal(store.actions[here][:-1], given["actions"])
        np.testing.assert_array_equal(store.rewards[here][:-1], given["rewards"].astype(np.float32))
        np.testing.assert_array_equal(store.terminals[here][:-1], given["terminations"])
        last = store.actions[here][-1], store.rewards[here][-1], store.terminals[here][-1]
        assert not any(np.any(value) for value in last)
        assert store.timeouts[here].tolist() == [0] * len(given["actions"]) + [1]


def test_a_data_set_is_recognized_by_its_folder_its_data_and_its_file(created: Any, cache: Path) -> None:
    folder, _ = created()
    paths = [folder, folder / "data", folder / MAIN]
    assert [detect(path) for path in paths] == ["minari"] * 3
    stores = [open_here(path) for path in paths]
    for path, store in zip(paths, stores, strict=True):
        assert store.path == path
        assert store.attributes == stores[0].attributes
        np.testing.assert_array_equal(store.observations["state"], stores[0].observations["state"])
    assert len(list(cache.glob("*.h5"))) == 1


def test_a_main_file_alone_is_refused(created: Any, tmp_path: Path) -> None:
    shutil.copy(created()[0] / MAIN, tmp_path / "alone.hdf5")
    with pytest.raises(Exception, match=r"metadata\.json, which holds the spaces.*copy the whole folder"):
        open_here(tmp_path / "alone.hdf5")


def test_attributes_hold_the_origin_of_the_data(created: Any) -> None:
    spec = EnvSpec("Walker-v9", entry_point="nowhere:Walker", kwargs={"legs": 2})
    folder, _ = created(env=None, author="a", algorithm_name="sac", description="long " * 1000)
    entry(METADATA, "env_spec", value=spec.to_json())(folder)
    entry(METADATA, "ref_max_score", value=3.5)(folder)
    attributes = dict(open_here(folder).attributes)
    assert attributes.pop("env_spec")["kwargs"] == {"legs": 2}
    assert attributes.pop("minari_version").startswith("0.")
    known = {"suite": "minari", "source": "test-v0", "env": "Walker-v9", "rendering": {}, "ref_max_score": 3.5}
    known |= {"action_space": [[-1, -1], [1, 1]]}
    assert attributes == known | {"dataset_id": "walker/test-v0", "algorithm_name": "sac", "author": ["a"]}


@pytest.mark.parametrize("storage", ["hdf5", "arrow", "parquet", "0.4", "0.3"])
def test_nested_spaces_become_joined_names(created: Any, storage: str) -> None:
    space = spaces.Dict(
        {
            "arm": spaces.Dict({"q": spaces.Box(-1, 1, (3,)), "mode": spaces.Discrete(4)}),
            "pair": spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.MultiBinary(3))),
            "with/slash": spaces.Box(-1, 1, (2, 2)),
            "front": image(8, 6, 3),
            "task": spaces.Text(8, min_length=8),
        }
    )
    folder, recorded = created(space, data_format=storage if storage[0] in "ap" else "hdf5", jpeg_encoding=False)
    if storage[0] == "0":
        as_old(folder, storage)
    store = validate(open_here(folder))
    for number, given in enumerate(recorded):
        seen = given["observations"]
        expected = {
            "arm_q": seen["arm"]["q"],
            "arm_mode": seen["arm"]["mode"][:, None],
            "pair_0": seen["pair"][0],
            "pair_1": seen["pair"][1],
            "with_slash": seen["with/slash"].reshape(-1, 4),
            "front": seen["front"],
        }
        assert store.observations.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(store.observations[name][episode(store, number)], array, err_msg=name)
    assert store.observations["front"].dtype == np.uint8
    assert store.attributes["left_out"] == ["task"]


def test_spaces_that_cannot_be_named_are_refused(created: Any) -> None:
    vector = spaces.Box(-1, 1, (2,))
    refused(created(spaces.Dict({"a_b": vector, "a": spaces.Dict({"b": vector})}), name="walker/one-v0")[0], "'a_b'")
    refused(created(spaces.Dict({"a\nb": vector}), name="walker/two-v0")[0], r"'a\nb'", "name")
    deep: spaces.Space = vector
    for _ in range(20):
        deep = spaces.Dict({"a": deep})
    refused(created(deep, name="walker/deep-v0")[0], "nested deeper")


def test_bounded_actions_are_scaled_and_the_bounds_are_kept(created: Any) -> None:
    low, high = np.array([-2.0, 0.0, 3.0], np.float32), np.array([2.0, 10.0, 3.0], np.float32)
    folder, recorded = created(actions=spaces.Box(low, high))
    put("episode_0/actions", np.array([low, high, (low + high) / 2, low]))(folder)
    store = validate(*scaled([open_here(folder)]))
    assert store.actions[:5].tolist() == [[-1, -1, 0], [1, 1, 0], [0, 0, 0], [-1, -1, 0], [0, 0, 0]]
    assert (store.attributes["action_low"], store.attributes["action_high"]) == (low.tolist(), high.tolist())
    back = low + (store.actions[episode(store, 1)][:-1] + 1) / 2 * (high - low)
    np.testing.assert_allclose(back, recorded[1]["actions"], atol=1e-5)


@pytest.mark.parametrize("bound", [1, np.inf, np.finfo(np.float32).max])
def test_other_actions_are_not_changed(created: Any, bound: float) -> None:
    folder, recorded = created(actions=spaces.Box(-bound, bound, (2,), np.float32))
    store = open_here(folder)
    np.testing.assert_array_equal(store.actions[episode(store, 1)][:-1], recorded[1]["actions"])
    assert store.attributes.get("action_space") == ([[-1, -1], [1, 1]] if bound == 1 else None)
    if bound == 1:
        (seen,) = scaled([store])
        np.testing.assert_array_equal(seen.actions, store.actions)
        assert [seen.attributes[name] for name in ("action_low", "action_bounds")] == [[-1, -1], "declared"]


@pytest.mark.parametrize("shape", [(40, 36, 3), (3, 40, 36), (40, 36)], ids=["rows first", "channels first", "gray"])
def test_images_become_cameras(created: Any, shape: tuple[int, ...]) -> None:
    folder, recorded = created(spaces.Tuple((image(*shape), VECTOR)), jpeg_encoding=False)
    given = np.concatenate([episode["observations"][0] for episode in recorded])
    given = given.transpose(0, 2, 3, 1) if shape[0] == 3 else given.reshape(len(given), 40, 36, -1)
    store = validate(open_here(folder))
    assert list(store.observations) == ["observation_0", "observation_1"]
    np.testing.assert_array_equal(store.observations["observation_0"], given)


@pytest.mark.parametrize("storage", ["arrow", "parquet"])
@pytest.mark.parametrize("shape", [(40, 36, 3), (40, 36)], ids=["color", "gray"])
def test_jpeg_frames_of_arrow_are_decoded_as_minari_does(created: Any, shape: tuple[int, ...], storage: str) -> None:
    import minari as library

    store = validate(open_here(created(spaces.Tuple((image(*shape), VECTOR)), data_format=storage)[0]))
    theirs = [one.observations[0] for one in library.load_dataset("walker/test-v0").iterate_episodes()]
    camera = store.observations["observation_0"]
    np.testing.assert_array_equal(camera, np.concatenate(theirs).reshape(-1, *(*shape, 1)[:3]))


@pytest.mark.parametrize("storage", ["hdf5", "arrow", "parquet"])
def test_marks_of_success_are_read(created: Any, storage: str) -> None:
    marks = [{"success": np.arange(length + 1) == (length if number else -1)} for number, length in enumerate(LENGTHS)]
    store = open_here(created(data_format=storage, infos=marks)[0])
    assert store.attributes["episode_success"] == [False, True, True]


@settings(max_examples=6, deadline=None)
@hypothesis.given(st.data())
def test_random_data_sets_of_every_storage_are_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    draw = data.draw
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    kind, shape = draw(st.sampled_from([np.float32, np.float64, np.int16])), draw(st.sampled_from([(3,), (2, 2), ()]))
    space = spaces.Dict({"a": spaces.Box(-9, 9, shape, kind), "b": spaces.Tuple((spaces.Discrete(5), image(5, 4, 3)))})
    storage = draw(st.sampled_from(["hdf5", "arrow", "parquet"]))
    root = tmp_path_factory.mktemp("x")
    folder, recorded = minari_folder(root, space, UNIT, lengths, data_format=storage, jpeg_encoding=False)
    store = open_here(folder)
    assert np.diff(store.episode_ends, prepend=0).tolist() == [length + 1 for length in lengths]
    for number, given in enumerate(recorded):
        here, seen = episode(store, number), given["observations"]
        for name, array in (("a", seen["a"]), ("b_0", seen["b"][0]), ("b_1", seen["b"][1])):
            found = np.asarray(store.observations[name][here])
            np.testing.assert_array_equal(found, array.astype(found.dtype).reshape(found.shape), err_msg=name)
        np.testing.assert_array_equal(store.actions[here][:-1], given["actions"])
        np.testing.assert_array_equal(store.terminals[here][:-1], given["terminations"])


PART = "data/1/part-0.arrow"


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Edit:
    def edit(folder: Path) -> None:
        with pa.OSFile(str(folder / PART)) as source:
            table = change(pa.ipc.open_file(source).read_all())
        with pa.OSFile(str(folder / PART), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    return edit


def column(name: str, values: Any) -> Edit:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return rewritten(change)


def linked(folder: Path) -> None:
    (folder / PART).rename(folder.parent / "elsewhere")
    (folder / PART).symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (truncated(0.5, PART), ("part-0.arrow cannot be read as Arrow",)),
        (truncated(0, PART), ("part-0.arrow cannot be read as Arrow",)),
        (lambda folder: (folder / PART).unlink(), ("has 0 files '1/*.arrow'",)),
        (lambda folder: shutil.copy(folder / PART, folder / "data/1/part-1.arrow"), ("has 2 files '1/*.arrow'",)),
        (linked, ("leads out of the folder", "cp -rL")),
        (entry(METADATA, "total_episodes", value=4), ("has 0 files '3/*.arrow'",)),
        (entry(METADATA, "total_episodes", value=None), ("no number of episodes",)),
        (entry(METADATA, "total_steps", value=99), ("13 steps", "'99'")),
        (entry(METADATA, "data_format", value="csv"), ("stored as 'csv'", "not hdf5, arrow or parquet")),
        (rewritten(lambda table: table.slice(0, 1)), ("has 1 rows",)),
        (rewritten(lambda table: table.drop_columns(["rewards"])), ("has not one column 'rewards'",)),
        (column("rewards", [None] * 7), ("'rewards'",)),
        (column("actions", [[0.0, None]] * 7), ("a value in 'actions' is missing",)),
        (column("observations", ["a"] * 7), ("'1' has no observation",)),
        (column("observations", [b"a"] * 7), ("'observations' holds neither numbers nor JPEG frames",)),
        (column("truncations", [False, True] + [False] * 5), ("'1' continues after its truncation at frame 1",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_damage_of_arrow_files_is_refused(created: Any, edit: Edit, words: tuple[str, ...]) -> None:
    folder, _ = created(data_format="arrow")
    edit(folder)
    refused(folder, *words)


@pytest.mark.parametrize("shape", [(40, 36, 3), (40, 36)], ids=["color", "gray"])
def test_jpeg_frames_are_decoded_as_minari_does(created: Any, shape: tuple[int, ...]) -> None:
    import minari as library

    folder, _ = created(image(*shape))
    with h5py.File(folder / MAIN, "r") as file:
        assert file["episode_0/observations"].dtype.kind == "O"  # the bytes of JPEG files
    camera = validate(open_here(folder)).observations["camera"]
    theirs = [one.observations for one in library.load_dataset("walker/test-v0").iterate_episodes()]
    np.testing.assert_array_equal(camera, np.concatenate(theirs).reshape(-1, *(*shape, 1)[:3]))
    jpeg = np.frombuffer(encoded(np.full(shape, 7, np.uint8), "JPEG"), np.uint8)
    for number, length in enumerate(LENGTHS):  # all of one size
        put(f"episode_{number}/observations", np.stack([jpeg] * (length + 1)))(folder)
    assert np.all(open_here(folder).observations["camera"] == 7)
