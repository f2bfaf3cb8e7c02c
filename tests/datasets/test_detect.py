from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import detect, native, near_misses, open_store
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


@pytest.fixture
def files(make_store: MakeStore, tmp_path: Path) -> dict[str, Path]:
    """A file of each format, under names that say nothing."""
    ends = np.arange(12) % 6 == 5
    np.savez_compressed(
        tmp_path / "a.npz", observations=np.zeros((12, 3)), actions=np.zeros((12, 2), np.float32), terminals=ends
    )
    (tmp_path / "a.npz").rename(tmp_path / "a.data")
    return {"native": native.write(tmp_path / "b.data", make_store()), "ogbench": tmp_path / "a.data"}


def test_formats_are_known_by_content_not_by_name(files: dict[str, Path]) -> None:
    assert {name: detect(path) for name, path in files.items()} == {"native": "native", "ogbench": "ogbench"}


def test_any_known_format_opens_as_a_store(files: dict[str, Path], cache: Path) -> None:
    for path in files.values():
        store = open_store(path, "cube-single-play-v0")
        assert len(store) == 12
        assert store.path == path


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"%PDF-1.7", b"PK\x05\x06"])
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "what.bin"
    path.write_bytes(content)
    with pytest.raises(GtpVisionError, match=r"known: .*gtp-vision HDF5, .*OGBench npz") as told:
        open_store(path)
    assert str(path) in str(told.value)


def test_what_holds_nothing_known_is_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "gone.h5", "no data set at"), (tmp_path, "a folder")):
        with pytest.raises(GtpVisionError, match=words) as told:
            open_store(path)
        assert str(path) in str(told.value)


def test_hdf5_of_others_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["pictures"] = np.zeros((3, 2))
    with pytest.raises(GtpVisionError, match="HDF5 with pictures in it"):
        open_store(path)


# What is nearly a format ----------------------------------------------------------------------------------------------


def hdf5_with(path: Path, *names: str) -> Path:
    """A file with small arrays at these places; a name that ends in / is an empty group."""
    with h5py.File(path, "w") as file:
        for name in names:
            if name.endswith("/"):
                file.create_group(name)
            else:
                file[name] = np.zeros((3, 2), np.float32)
    return path


def told(path: Path) -> str:
    with pytest.raises(GtpVisionError, match="is of no known format") as error:
        open_store(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("actions", "observations/front"), ("gtp-vision", "attribute 'format'", "format='gtp-vision', version=1")),
        (("actions", "episode_ends", "frames"), ("gtp-vision", "format='gtp-vision'")),
        (("action", "observations/images/top", "observations/qpos"), ("ALOHA", "'observations/images/NAME'")),
        (("action", "obs", "done"), ("'action' to 'actions'", "'obs' to 'observations'", "'done' to 'terminals'")),
        (("action", "obs", "reward"), ("'reward' to 'rewards'", "add 'terminals'")),
        (("actions", "obs", "dones", "rewards"), ("rename 'obs' to 'observations' and 'dones' to 'terminals'",)),
        (("action", "observation", "state", "reward", "done"), ("'observation' to 'observations'",)),
        (("demo_0/actions", "demo_1/actions"), ("robomimic", "without the group 'data'", "'demo_0'")),
        (("episode_0/actions", "episode_1/actions", "extra"), ("Minari", "'extra' beside its episodes")),
        (("traj_0/actions", "traj_1/actions"), ("group an episode ('traj_0')", "data/demo_0", "rewards and dones")),
        (("data/episode_0/actions",), ("group an episode ('data/episode_0')", "data/demo_0")),
        (("actions",), ("gtp-vision HDF5",)),
        (("data/", "observations/"), ("gtp-vision HDF5",)),
    ],
    ids=lambda value: ",".join(value)[:40],
)
def test_a_near_miss_is_told_what_to_rename(tmp_path: Path, names: tuple[str, ...], words: tuple[str, ...]) -> None:
    sentence = told(hdf5_with(tmp_path / "near.h5", *names))
    assert all(word in sentence for word in words), sentence


def test_what_the_sentence_proposes_works(tmp_path: Path, make_store: MakeStore, cache: Path) -> None:
    path = native.write(tmp_path / "mine.h5", make_store())
    with h5py.File(path, "r+") as file:
        del file.attrs["format"], file.attrs["version"]
    assert "file.attrs.update(format='gtp-vision', version=1)" in told(path)
    with h5py.File(path, "r+") as file:
        file.attrs.update(format="gtp-vision", version=1)
    assert detect(path) == "native"
    path = hdf5_with(tmp_path / "flat.h5", "action", "obs")
    assert "rename 'action' to 'actions' and 'obs' to 'observations', and add 'rewards' and 'terminals'" in told(path)
    with h5py.File(path, "r+") as file:
        file.move("action", "actions")
        file.move("obs", "observations")
        file["rewards"] = file["terminals"] = np.zeros(3, np.float32)
    assert detect(path) == "d4rl"


def test_a_link_in_a_near_miss_is_not_followed(tmp_path: Path) -> None:
    path = hdf5_with(tmp_path / "near.h5", "actions")
    with h5py.File(path, "r+") as file:
        file["observations"] = h5py.ExternalLink("/elsewhere.h5", "/x")
    with pytest.raises(GtpVisionError, match="link"):
        open_store(path)


def test_minaris_root_names_the_data_sets_in_it(samples: dict[str, Path]) -> None:
    root = samples["minari"].parents[1]
    assert samples["minari"].relative_to(root) == Path("walker/state-v0")
    assert "walker/camera-v0, walker/state-v0" in told(root)
    assert "state-v0" in told(root / "walker")


def test_lerobot_without_its_description_is_told_so(copied: Callable[[str], Path]) -> None:
    folder = copied("lerobot")
    (folder / "meta" / "info.json").unlink()
    assert "LeRobot's without meta/info.json" in told(folder)


def test_minari_without_its_description_is_told_so(copied: Callable[[str], Path]) -> None:
    folder = copied("minari")
    (folder / "data" / "metadata.json").unlink()
    assert "Minari's without metadata.json" in told(folder)


def test_a_folder_with_data_sets_in_it_names_them(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "readme.txt").write_text("nothing")
    assert "gtp-vision HDF5" in told(folder)
    files["native"].rename(folder / "deep" / "b.data")
    assert "it holds one data set; name folder/deep/b.data" in told(folder)
    files["ogbench"].rename(folder / "a.data")
    assert "name one of them, e.g. folder/a.data (it holds a.data, deep/b.data)" in told(folder)
    for number in range(9):
        (folder / f"c{number}.h5").write_bytes((folder / "deep" / "b.data").read_bytes())
    assert "c4.h5, ...)" in told(folder)


def test_a_huge_folder_is_looked_into_briefly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_misses, "_LOOKED_AT", 10)
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
    hdf5_with(tmp_path / "19" / "late.h5", "actions")
    assert near_misses.in_folder(tmp_path, Path.is_file) is None
    monkeypatch.setattr(near_misses, "_LOOKED_AT", 100)
    assert "late.h5" in str(near_misses.in_folder(tmp_path, Path.is_file))
