"""Data sets as the hub's cache and a clone of Git hold them."""

import shutil
from pathlib import Path

import pytest
from refusals import as_links, assert_same, open_here, refused
from samples import DATA, FRONT, INFO, MAIN, VIDEO, Copied

pytestmark = pytest.mark.usefixtures("cache")


def test_a_snapshot_in_the_cache_of_the_hub_is_read_by_its_links(copied: Copied, tmp_path: Path) -> None:
    before = open_here(copied("published"))
    repository = tmp_path / "hub" / "datasets--me--toy"
    folder = repository / "snapshots" / "pick"
    shutil.copytree(copied("published"), folder)
    as_links(folder, repository / "blobs")
    assert_same(open_here(folder), before)
    (tmp_path / "here").symlink_to(folder)
    assert open_here(tmp_path / "here").episodes == 3
    for outer in (repository, tmp_path / "hub"):
        refused(outer, f"it holds one data set; name {folder}")
    for target in (tmp_path / "secret", repository / "refs" / "main"):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(repository / "blobs" / "0", target)
        (folder / INFO).unlink()
        (folder / INFO).symlink_to(target)
        refused(folder, "leads out of the folder")


@pytest.mark.parametrize("below", ["", "deep"])
@pytest.mark.parametrize(
    "sample", ["robomimic", "d4rl_npz", "lerobot", "minari", "aloha", "dm_env_npz", "zarr", "rlds"]
)
def test_every_format_is_read_from_the_cache_of_the_hub(
    samples: dict[str, Path], tmp_path: Path, sample: str, below: str
) -> None:
    """Also one of several data sets of a repository; a folder above it leads to it, and not to its blobs."""
    repository, source = tmp_path / "hub" / "datasets--me--toy", samples[sample]
    path = repository / "snapshots" / "4d7a" / below / source.name
    path.parent.mkdir(parents=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    as_links(repository / "snapshots" / "4d7a", repository / "blobs")
    assert_same(open_here(path), open_here(source))
    refused(tmp_path / "hub", f"it holds one data set; name {path}")


@pytest.mark.parametrize(
    ("sample", "pattern"),
    [
        ("aloha", "episode_1.hdf5"),
        ("dm_env_npz", "*_1_*.npz"),
        ("zarr", "data/img/1.0.0.0"),
        ("minari_arrow", "data/1/*.arrow"),
        ("rlds", "*tfrecord*"),
    ],
)
def test_a_pointer_among_the_files_of_a_folder_is_named(copied: Copied, sample: str, pattern: str) -> None:
    path = copied(sample)
    (pointer,) = path.glob(pattern)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    refused(path, f"run 'git lfs install && git lfs pull' in {pointer.parent}")


@pytest.mark.parametrize("member", ["", MAIN, INFO, DATA.format(1), VIDEO.format(FRONT, 0)])
def test_pointers_of_git_lfs_are_named(copied: Copied, member: str) -> None:
    """What a clone without Git LFS holds; the sentence names the command and where to run it."""
    path = copied({"": "robomimic", MAIN: "minari"}.get(member, "published"))
    (path / member).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    place = (path / member).parent
    assert f"run 'git lfs install && git lfs pull' in {place}" in refused(path)
    if not member:
        assert f"in it lies {path.name}: it is a pointer" in refused(place)
