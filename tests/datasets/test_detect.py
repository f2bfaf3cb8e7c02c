import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from refusals import refused
from samples import FORMATS, Copied

from gtp_vision.datasets.formats import detect, near_misses
from gtp_vision.datasets.formats.minari import MEMBERS

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", ["native_gzip", "ogbench", "d4rl", "robomimic"])
def test_formats_are_recognized_by_content_not_by_name(name: str, copied: Copied) -> None:
    path = copied(name)
    assert detect(path.rename(path.with_name("a.data"))) == FORMATS[name]


def hdf5_with(path: Path, *names: str) -> Path:
    """A file with small arrays at these places; a name that ends in / is an empty group."""
    with h5py.File(path, "w") as file:
        for name in names:
            if name.endswith("/"):
                file.create_group(name)
            else:
                file[name] = np.zeros((3, 2), np.float32)
    return path


def hint(path: Path) -> str:
    message = refused(path, "the format of ", " is unknown")
    assert len(message) < 500
    return message.replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("actions", "observations/front"), ("gtp-vision", "attribute 'format'", "format='gtp-vision', version=1")),
        (("action", "obs", "done"), ("'action' to 'actions'", "'obs' to 'observations'", "'done' to 'terminals'")),
        (("action", "obs", "reward"), ("'reward' to 'rewards'", "add 'terminals'")),
        (("action", "observation", "state", "reward", "done"), ("'observation' to 'observations'",)),
        (("demo_0/actions", "demo_1/actions"), ("robomimic", "without the group 'data'", "'demo_0'")),
        ((*(f"episode_0/{name}" for name in sorted(MEMBERS)), "extra"), ("Minari", "'extra' beside its episodes")),
        (("episode_0/actions", "episode_1/actions"), ("group per episode ('episode_0')",)),
        (("actions", "observations", "rewards"), ("D4RL", "add 'terminals', 1 where the MDP ended")),
        (("actions", "observations", "valids"), ("OGBench's loader",)),
        (("traj_0/actions", "traj_1/actions"), ("group per episode ('traj_0')", "data/demo_0", "rewards and dones")),
        (("data/episode_0/actions",), ("group per episode ('data/episode_0')", "data/demo_0")),
        (("data/", "observations/"), ("gtp-vision HDF5",)),
    ],
    ids=lambda value: ",".join(value)[:40],
)
def test_a_near_miss_is_refused_with_a_hint(tmp_path: Path, names: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = hint(hdf5_with(tmp_path / "near.h5", *names))
    assert all(word in message for word in words), message


def test_a_link_in_a_near_miss_is_not_followed(tmp_path: Path) -> None:
    path = hdf5_with(tmp_path / "near.h5", "actions")
    with h5py.File(path, "r+") as file:
        file["observations"] = h5py.ExternalLink("/elsewhere.h5", "/x")
    refused(path, "link")


def test_folders_without_their_metadata_are_named(samples: dict[str, Path], copied: Copied) -> None:
    root = samples["minari"].parents[1]
    assert samples["minari"].relative_to(root) == Path("walker/state-v0")
    assert "walker/camera-v0, walker/state-v0" in hint(root)
    assert "state-v0" in hint(root / "walker")
    for name, member, words in (
        ("lerobot", "meta/info.json", "a LeRobot data set without meta/info.json"),
        ("minari", "data/metadata.json", "a Minari data set without metadata.json"),
    ):
        folder = copied(name)
        (folder / member).unlink()
        assert words in hint(folder)


def test_data_sets_in_a_folder_are_named(copied: Copied, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "readme.txt").write_text("nothing")
    assert "gtp-vision HDF5" in hint(folder)
    copied("native").rename(folder / "deep" / "b.data")
    for name in ("._b.data", "b.data~", ".b.data.swp", ".ipynb_checkpoints/b.data", "b.data.part"):
        (folder / "deep" / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "deep" / "b.data", folder / "deep" / name)
    assert "it holds one data set; name folder/deep/b.data" in hint(folder)
    (folder / "deep" / "._b.data").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert "macOS's note on another file; name b.data" in hint(folder / "deep" / "._b.data")
    copied("ogbench").rename(folder / "a.data")
    assert "name one of them, e.g. folder/a.data (it holds a.data, deep/b.data)" in hint(folder)
    for number in range(9):
        (folder / f"c{number}.h5").write_bytes((folder / "deep" / "b.data").read_bytes())
    assert "c4.h5, ...)" in hint(folder)


def test_a_huge_folder_is_searched_briefly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
    hdf5_with(tmp_path / "19" / "late.h5", "actions")
    for limit, is_found in ((10, False), (20, False), (100, True)):
        monkeypatch.setattr(near_misses, "_MAX_MEMBERS", limit)
        assert ("late.h5" in str(near_misses.in_folder(tmp_path, Path.is_file, lambda path: None))) is is_found


def test_a_damaged_file_in_a_folder_is_only_named(copied: Copied, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    copied("native").rename(tmp_path / "folder" / "b.h5")
    (tmp_path / "folder" / "a.h5").write_bytes((tmp_path / "folder" / "b.h5").read_bytes()[:700])
    assert "it holds several data sets; name one of them" in hint(tmp_path / "folder")
