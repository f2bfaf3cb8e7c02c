import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from PIL import Image
from refusals import refused, replaced

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import detect, minari, open_store
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import validate

Edit = Callable[[h5py.File], Any]
Recorded = list[dict[str, Any]]
LENGTHS = (4, 6, 3)
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
UNIT = spaces.Box(-1, 1, (2,), np.float32)


def picture(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.fixture
def created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, Recorded]]:
    """A function that makes a data set of random episodes with Minari itself; see `_created`."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return _created


def _created(
    observations: spaces.Space = VECTOR,
    actions: spaces.Space = UNIT,
    lengths: Sequence[int] = LENGTHS,
    name: str = "walker/test-v0",
    **options: Any,
) -> tuple[Path, Recorded]:
    """Make a data set; returns its folder and what Minari was given, episode by episode."""
    import minari as library
    from minari.data_collector import EpisodeBuffer

    observations.seed(0)
    actions.seed(1)
    random = np.random.default_rng(2)
    recorded, buffers = [], []
    for number, length in enumerate(lengths):
        flag = np.zeros((2, length), bool)
        flag[number % 2, -1] = True  # the even ones terminate, the odd ones are truncated
        given = {
            "observations": _stacked(observations, [observations.sample() for _ in range(length + 1)]),
            "actions": _stacked(actions, [actions.sample() for _ in range(length)]),
            "rewards": random.normal(size=length),
            "terminations": flag[0],
            "truncations": flag[1],
        }
        recorded.append(given)
        buffers.append(EpisodeBuffer(id=number, seed=number, infos={}, **given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody needs here
        library.create_dataset_from_buffers(
            name, buffers, observation_space=observations, action_space=actions, **options
        )
    return Path(library.load_dataset(name).storage.data_path).parent, recorded


def _stacked(space: spaces.Space, samples: list[Any]) -> Any:
    """What a buffer holds of many samples of a space."""
    if isinstance(space, spaces.Dict):
        return {key: _stacked(inner, [sample[key] for sample in samples]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stacked(inner, [sample[i] for sample in samples]) for i, inner in enumerate(space.spaces))
    return samples if isinstance(space, spaces.Text) else np.asarray(samples)


def edited(folder: Path, change: Edit) -> Path:
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        change(file)
    return folder


def described(folder: Path, **changed: Any) -> Path:
    """The metadata with other entries; `None` removes one."""
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))
    return folder


def episode(store: Store, number: int) -> slice:
    return slice(int(store.episode_starts[number]), int(store.episode_ends[number]))


# Reading ---------------------------------------------------------------------------------------------------------


def test_every_step_and_flag_stands_where_it_belongs(created: Any, cache: Path) -> None:
    folder, recorded = created()
    store = validate(open_store(folder))
    assert np.diff(store.episode_ends, prepend=0).tolist() == [length + 1 for length in LENGTHS]
    for number, given in enumerate(recorded):
        here = episode(store, number)
        np.testing.assert_array_equal(store.observations["state"][here], given["observations"].astype(np.float32))
        np.testing.assert_array_equal(store.actions[here][:-1], given["actions"])
        np.testing.assert_array_equal(store.rewards[here][:-1], given["rewards"].astype(np.float32))
        np.testing.assert_array_equal(store.terminals[here][:-1], given["terminations"])
        last = store.actions[here][-1], store.rewards[here][-1], store.terminals[here][-1]
        assert not any(np.any(value) for value in last)
        assert store.timeouts[here].tolist() == [0] * len(given["actions"]) + [1]
    assert store.transitions.tolist() == np.setdiff1d(np.arange(len(store)), store.episode_ends - 1).tolist()


def test_minari_reads_the_same(created: Any, cache: Path) -> None:
    import minari as library

    folder, _ = created()
    store = open_store(folder)
    for number, theirs in enumerate(library.load_dataset("walker/test-v0").iterate_episodes()):
        here = episode(store, number)
        np.testing.assert_array_equal(store.observations["state"][here], theirs.observations.astype(np.float32))
        np.testing.assert_array_equal(store.actions[here][:-1], theirs.actions)
        np.testing.assert_array_equal(store.terminals[here][:-1], theirs.terminations)


def test_a_data_set_is_known_by_its_folder_its_data_and_its_file(created: Any, cache: Path) -> None:
    folder, _ = created()
    paths = [folder, folder / "data", folder / "data" / "main_data.hdf5"]
    assert [detect(path) for path in paths] == ["minari"] * 3
    stores = [open_store(path) for path in paths]
    for path, store in zip(paths, stores, strict=True):
        assert store.path == path
        assert store.attributes == stores[0].attributes
        np.testing.assert_array_equal(store.observations["state"], stores[0].observations["state"])
    assert len(list(cache.glob("*.h5"))) == 1


def test_the_attributes_tell_where_the_data_are_from(created: Any, cache: Path) -> None:
    spec = EnvSpec("Walker-v9", entry_point="nowhere:Walker", kwargs={"legs": 2})
    folder, _ = created(
        env=None, author="a", algorithm_name="sac", description="long " * 1000, code_permalink="https://example.org"
    )
    described(folder, env_spec=spec.to_json(), ref_max_score=3.5)
    attributes = dict(open_store(folder).attributes)
    assert attributes.pop("env_spec")["kwargs"] == {"legs": 2}
    assert attributes.pop("minari_version").startswith("0.")
    assert attributes == {
        "suite": "minari",
        "source": "test-v0",
        "env": "Walker-v9",
        "rendering": {},
        "dataset_id": "walker/test-v0",
        "algorithm_name": "sac",
        "author": ["a"],
        "ref_max_score": 3.5,
    }


def test_nested_spaces_become_joined_names(created: Any, cache: Path) -> None:
    space = spaces.Dict(
        {
            "arm": spaces.Dict({"q": spaces.Box(-1, 1, (3,)), "mode": spaces.Discrete(4)}),
            "pair": spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.MultiBinary(3))),
            "with/slash": spaces.Box(-1, 1, (2, 2)),
            "front": picture(8, 6, 3),
            "task": spaces.Text(8, min_length=8),
        }
    )
    folder, recorded = created(space)
    store = validate(open_store(folder))
    for number, given in enumerate(recorded):
        here, seen = episode(store, number), given["observations"]
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
            np.testing.assert_array_equal(store.observations[name][here], array, err_msg=name)
    assert store.observations["front"].dtype == np.uint8
    assert store.attributes["left_out"] == ["task"]


def test_a_tuple_without_a_name_is_counted(created: Any, cache: Path) -> None:
    folder, _ = created(spaces.Tuple((spaces.Box(-1, 1, (2,)), picture(4, 4, 3))))
    store = open_store(folder)
    assert {name: array.shape[1:] for name, array in store.observations.items()} == {
        "observation_0": (2,),
        "observation_1": (4, 4, 3),
    }


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((40, 36, 3), (40, 36, 3)), ((3, 40, 36), (40, 36, 3)), ((8, 8, 3), (8, 8, 3)), ((40, 36), (40, 36, 1))],
    ids=["rows first", "channels first", "tiny", "grey"],
)
def test_pictures_become_cameras(created: Any, cache: Path, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    folder, recorded = created(picture(*shape), jpeg_encoding=False)
    camera = validate(open_store(folder)).observations["camera"]
    given = np.concatenate([one["observations"] for one in recorded])
    given = given.transpose(0, 2, 3, 1) if shape[0] == 3 else given.reshape(-1, *wanted)
    np.testing.assert_array_equal(camera, given)


@pytest.mark.parametrize("shape", [(40, 36, 3), (40, 36)], ids=["colour", "grey"])
def test_jpeg_frames_are_decoded_as_minari_does(created: Any, cache: Path, shape: tuple[int, ...]) -> None:
    import minari as library

    folder, recorded = created(spaces.Dict({"front": picture(*shape)}))
    with h5py.File(folder / "data" / "main_data.hdf5", "r") as file:
        assert file["episode_0/observations/front"].dtype.kind == "O"  # the bytes of JPEG files
    store = validate(open_store(folder))
    theirs = [one.observations["front"] for one in library.load_dataset("walker/test-v0").iterate_episodes()]
    np.testing.assert_array_equal(store.observations["front"], np.concatenate(theirs).reshape(-1, *(*shape, 1)[:3]))
    error = np.abs(
        store.observations["front"][:5].reshape(5, *shape) - recorded[0]["observations"]["front"].astype(int)
    )
    assert 0 < error.mean() < 80  # lossy, of noise


def test_jpeg_frames_of_one_length_are_decoded(created: Any, cache: Path) -> None:
    folder, _ = created(picture(40, 36, 3))

    def same(file: h5py.File) -> None:
        for length, name in zip(LENGTHS, file, strict=True):
            replaced(f"{name}/observations", np.stack([jpeg(40, 36)] * (length + 1)))(file)

    store = open_store(edited(folder, same))
    assert store.observations["camera"].shape == (sum(LENGTHS) + 3, 40, 36, 3)
    assert np.all(store.observations["camera"] == 7)


def test_terminations_inside_an_episode_are_kept(created: Any, cache: Path) -> None:
    folder, _ = created()
    flags = np.array([False, True, True, False, False, True])
    store = validate(open_store(edited(folder, replaced("episode_1/terminations", flags))))
    assert store.terminals[episode(store, 1)].tolist() == [*flags.tolist(), False]
    assert store.episodes == 3


def test_episodes_stand_in_the_order_of_their_numbers(created: Any, cache: Path) -> None:
    folder, recorded = created(lengths=(2,) * 12)
    store = open_store(folder)
    for number in (2, 10, 11):
        np.testing.assert_array_equal(store.actions[episode(store, number)][:-1], recorded[number]["actions"])


# Actions ---------------------------------------------------------------------------------------------------------


def test_bounded_actions_are_scaled_and_the_bounds_are_kept(created: Any, cache: Path) -> None:
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)
    folder, recorded = created(actions=spaces.Box(low, high))
    edited(folder, replaced("episode_0/actions", np.array([low, high, (low + high) / 2, low])))
    store = validate(open_store(folder))
    assert store.actions[:4].tolist() == [[-1, -1], [1, 1], [0, 0], [-1, -1]]
    assert (store.attributes["action_low"], store.attributes["action_high"]) == ([-2, 0], [2, 10])
    back = low + (store.actions[episode(store, 1)][:-1] + 1) / 2 * (high - low)
    np.testing.assert_allclose(back, recorded[1]["actions"], atol=1e-5)


def test_an_action_that_cannot_be_chosen_is_zero(created: Any, cache: Path) -> None:
    folder, _ = created(actions=spaces.Box(np.array([-2, 3], np.float32), np.array([2, 3], np.float32)))
    assert not open_store(folder).actions[:, 1].any()


@pytest.mark.parametrize(
    "space",
    [UNIT, spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,))],
    ids=["unit", "unbounded", "largest float"],
)
def test_other_actions_stay_as_they_are(created: Any, cache: Path, space: spaces.Box) -> None:
    folder, recorded = created(actions=space)
    small = np.linspace(-1, 1, 8).reshape(4, 2).astype(np.float32)
    store = open_store(edited(folder, replaced("episode_0/actions", small)))
    np.testing.assert_array_equal(store.actions[:4], small)
    np.testing.assert_array_equal(store.actions[episode(store, 1)][:-1], recorded[1]["actions"])
    assert "action_low" not in store.attributes


@pytest.mark.parametrize(
    ("space", "word"),
    [
        (spaces.Discrete(4), "Discrete"),
        (spaces.MultiDiscrete([2, 3]), "MultiDiscrete"),
        (spaces.Box(0, 3, (2,), np.int64), "int64"),
        (spaces.Box(-1, 1, (2, 2)), "[2, 2]"),
        (spaces.Dict({"a": UNIT}), "Dict"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_other_kinds_of_actions_are_refused(created: Any, cache: Path, space: spaces.Space, word: str) -> None:
    refused(created(actions=space)[0], word, "Box of floats")


# Refusals --------------------------------------------------------------------------------------------------------


def test_arrow_files_are_refused_with_the_way_to_hdf5(created: Any, cache: Path) -> None:
    folder, _ = created(data_format="arrow")
    assert detect(folder) == detect(folder / "data") == "minari"
    refused(folder, "'arrow'", "data_format='hdf5'")


def renamed(old: str, new: str) -> Edit:
    return lambda file: file.move(old, new)


def attribute(group: str, name: str, value: Any) -> Edit:
    def change(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return change


def enormous(file: h5py.File) -> None:
    del file["episode_1/observations"]
    file.create_dataset("episode_1/observations", (7, 1 << 40), np.float32, chunks=(1, 64))


def linked(file: h5py.File) -> None:
    del file["episode_1"]
    file["episode_1"] = h5py.ExternalLink("other.h5", "/episode_1")


def emptied(file: h5py.File) -> None:
    for name in ("actions", "rewards", "terminations", "truncations"):
        shape = file[f"episode_1/{name}"].shape
        replaced(f"episode_1/{name}", np.zeros((0, *shape[1:])))(file)
    file["episode_1"].attrs["total_steps"] = 0
    replaced("episode_1/observations", np.zeros((1, 5)))(file)


DAMAGE: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "an episode missing": (renamed("episode_1", "episode_3"), ("'episode_1'", "'episode_2'")),
    "an episode less": (replaced("episode_2", None), ("2 episodes", "'3'")),
    "two of one number": (renamed("episode_2", "episode_01"), ("episode_01", "episode_1")),
    "no final observation": (replaced("episode_1/observations", np.zeros((6, 5))), ("episode_1/observations", "7")),
    "an observation of another width": (replaced("episode_1/observations", np.zeros((7, 4))), ("episode_1", "(4,)")),
    "observations as a group": (replaced("episode_1/observations", None), ("episode_1/observations",)),
    "rewards of another length": (replaced("episode_1/rewards", np.zeros(5)), ("episode_1/rewards", "wanted 6")),
    "no terminations": (replaced("episode_1/terminations", None), ("episode_1/terminations",)),
    "no truncations": (replaced("episode_1/truncations", None), ("episode_1/truncations",)),
    "no actions": (replaced("episode_1/actions", None), ("episode_1/actions",)),
    "actions of another width": (replaced("episode_1/actions", np.zeros((6, 3))), ("3 dimensions", "'episode_1'")),
    "actions of integers": (replaced("episode_1/actions", np.zeros((6, 2), int)), ("episode_1/actions", "int64")),
    "fewer steps than it says": (attribute("episode_1", "total_steps", 5), ("episode_1", "6 actions", "'5'")),
    "it goes on after its truncation": (
        replaced("episode_1/truncations", np.arange(6) == 2),
        ("episode_1", "goes on after its truncation at frame 2"),
    ),
    "no step": (emptied, ("episode_1", "no step")),
    "an episode as an array": (replaced("episode_1", np.zeros(3)), ("episode_1", "not a group")),
    "a petabyte": (enormous, ("episode_1/observations", "declares")),
    "a link out of the file": (linked, ("episode_1", "link")),
    "a reward not finite": (replaced("episode_1/rewards", np.full(6, np.nan)), ("rewards", "episode 1, frame 0")),
    "an action out of bounds": (replaced("episode_1/actions", np.full((6, 2), 1.5)), ("episode 1, frame 0", "1.5")),
}


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused_in_a_sentence(created: Any, cache: Path, change: Edit, words: tuple[str, ...]) -> None:
    folder, _ = created()
    refused(edited(folder, change), *words)


BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2.0, -2.0], "high": [2.0, 2.0]}
METADATA: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "more steps": ({"total_steps": 14}, ("13 steps", "'14'")),
    "more episodes": ({"total_episodes": 4}, ("3 episodes", "'4'")),
    "no action space": ({"action_space": None}, ("action_space",)),
    "no observation space": ({"observation_space": None}, ("observation_space",)),
    "a space that is no JSON": ({"action_space": "{"}, ("action_space", "JSON")),
    "a space nested without end": ({"observation_space": "[" * 99_999}, ("observation_space", "JSON")),
    "spaces of another depth": (
        {"observation_space": json.dumps({"type": "Dict", "subspaces": {"a": {"type": "Box"}}})},
        ("episode_0/observations", "not a group"),
    ),
    "only texts": ({"observation_space": json.dumps({"type": "Text"})}, ("episode_0", "no observation")),
    "bounds of text": ({"action_space": json.dumps(BOX | {"low": ["a", "b"]})}, ("bounds",)),
    "bounds of another length": ({"action_space": json.dumps(BOX | {"low": [-1.0]})}, ("bounds",)),
    "bounds the wrong way": ({"action_space": json.dumps(BOX | {"low": [3.0, -2.0]})}, ("low bound above",)),
    "more actions than there are": (
        {"action_space": json.dumps(BOX | {"shape": [3], "low": [0.0] * 3, "high": [2.0] * 3})},
        ("episode_0/actions", "2 dimensions", "3"),
    ),
    "a shape that is none": ({"action_space": json.dumps(BOX | {"shape": {"a": 1}})}, ("Box of floats",)),
    "an environment that is no JSON": ({"env_spec": "{"}, ("env_spec",)),
}


@pytest.mark.parametrize(("changed", "words"), METADATA.values(), ids=METADATA)
def test_metadata_that_do_not_fit_are_refused(
    created: Any, cache: Path, changed: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(described(created()[0], **changed), *words)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 99_999, '"' + "\\ud800" + '"'])
def test_metadata_that_are_no_json_object_are_refused(created: Any, cache: Path, content: str) -> None:
    folder, _ = created()
    (folder / "data" / "metadata.json").write_text(content)
    refused(folder, "metadata.json", "JSON")


def test_half_a_data_set_is_refused(created: Any, cache: Path, tmp_path: Path) -> None:
    folder, _ = created()
    shutil.copy(folder / "data" / "main_data.hdf5", tmp_path / "alone.hdf5")
    with pytest.raises(GtpVisionError, match=r"metadata\.json cannot be read"):
        open_store(tmp_path / "alone.hdf5")
    (folder / "data" / "main_data.hdf5").unlink()
    refused(folder, "main_data.hdf5")


def test_names_that_are_one_when_joined_are_refused(created: Any, cache: Path) -> None:
    vector = spaces.Box(-1, 1, (2,))
    folder, _ = created(spaces.Dict({"a_b": vector, "a": spaces.Dict({"b": vector})}))
    refused(folder, "'a_b'")


def test_a_name_that_cannot_be_shown_is_refused(created: Any, cache: Path) -> None:
    refused(created(spaces.Dict({"a\nb": spaces.Box(-1, 1, (2,))}))[0], r"'a\nb'", "name")


def test_spaces_without_end_are_refused(created: Any, cache: Path) -> None:
    space: spaces.Space = spaces.Box(-1, 1, (2,))
    for _ in range(20):
        space = spaces.Dict({"a": space})
    refused(created(space)[0], "nested deeper")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(created: Any, cache: Path, share: float) -> None:
    folder, _ = created()
    with (folder / "data" / "main_data.hdf5").open("r+b") as raw:
        raw.truncate(int(share * (folder / "data" / "main_data.hdf5").stat().st_size))
    refused(folder)


# JPEG frames that lie --------------------------------------------------------------------------------------------


def jpeg(height: int, width: int, mode: str = "RGB", form: str = "JPEG") -> np.ndarray:
    """The bytes of a picture file, all pixels 7."""
    stream = io.BytesIO()
    Image.new(mode, (width, height), 7 if mode == "L" else (7, 7, 7)).save(stream, form)
    return np.frombuffer(stream.getvalue(), np.uint8)


FRAMES = {
    "another size": (jpeg(41, 36), "41x36x3"),
    "another number of channels": (jpeg(40, 36, "L"), "40x36x1"),
    "another format": (jpeg(40, 36, "RGB", "PNG"), "another format"),
    "cut short": (jpeg(40, 36)[:-200], "at frame 2"),
    "no picture": (np.arange(200, dtype=np.uint8), "another format"),
    "nothing": (np.empty(0, np.uint8), "another format"),
    "billions of pixels": (None, "at frame 2"),
}


@pytest.mark.parametrize(("frame", "words"), FRAMES.values(), ids=FRAMES)
def test_jpeg_frames_that_lie_are_refused(created: Any, cache: Path, frame: np.ndarray | None, words: str) -> None:
    folder, _ = created(spaces.Dict({"front": picture(40, 36, 3)}))
    if frame is None:  # a header that says 65500 x 65500
        frame = jpeg(40, 36).copy()
        at = frame.tobytes().index(b"\xff\xc0") + 5
        frame[at : at + 4] = (0xFF, 0xDC, 0xFF, 0xDC)

    def change(file: h5py.File) -> None:
        file["episode_1/observations/front"][2] = frame

    refused(edited(folder, change), "episode_1/observations/front", "at frame 2", words)


def test_frames_that_are_no_bytes_are_refused(created: Any, cache: Path) -> None:
    folder, _ = created(picture(40, 36, 3))
    refused(edited(folder, replaced("episode_1/observations", ["text"] * 7)), "episode_1/observations", "JPEG")
    refused(edited(folder, replaced("episode_1/observations", np.zeros((7, 9)))), "episode_1/observations", "JPEG")


def test_a_space_that_promises_huge_pictures_costs_nothing(created: Any, cache: Path) -> None:
    folder, _ = created(picture(40, 36, 3))
    space = {"type": "Box", "dtype": "uint8", "shape": [30000, 30000, 3], "low": 0, "high": 255}
    refused(described(folder, observation_space=json.dumps(space)))
    assert not list(cache.glob("*")) if cache.exists() else True


def test_the_reader_opens_the_folder_too(created: Any, cache: Path) -> None:
    folder, _ = created()
    assert len(minari.read(folder)) == sum(LENGTHS) + len(LENGTHS)
