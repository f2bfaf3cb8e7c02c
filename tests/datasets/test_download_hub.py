"""Sets of the Hugging Face hub, from a server that speaks as much of its API as huggingface_hub asks for."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import loopback
import pytest
from commands import CLI, ended
from hub_server import NAME, Hub, endpoint, online
from loopback import file, running, status

from gtp_vision.datasets.download import Downloaded, download

OLD, NEW = "1" * 40, "2" * 40  # commits
FILES = {
    "README.md": b"about it",
    "meta/info.json": b'{"codebase_version": "v3.0"}',
    "data/chunk-000/file-000.parquet": os.urandom(300_000),
    "videos/observation.image/chunk-000/file-000.mp4": os.urandom(2_000),
}
PARQUET = "data/chunk-000/file-000.parquet"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online(monkeypatch, tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(Hub()) as server:
        endpoint(monkeypatch, server.url)
        publish(server)
        yield server


def publish(
    server: Hub, files: Mapping[str, bytes] = FILES, commit: str = OLD, name: str = NAME, **changed: Any
) -> None:
    server.publish(files, commit, name, **changed)


def have(folder: Path, files: Mapping[str, bytes] = FILES) -> bool:
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    there = {path for path in there if not path.startswith((".cache/", ".download", "checksums"))}
    return there == set(files) and all((folder / path).read_bytes() == content for path, content in files.items())


refused = partial(loopback.refused, name=NAME)


def test_a_data_set_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    to = tmp_path / "to"
    result = download(NAME, to)
    assert have(to)
    assert set(result.files) == result.new == set(FILES)
    assert result.files[PARQUET].sha256 == hashlib.sha256(FILES[PARQUET]).hexdigest()
    assert result.files[PARQUET].url == f"hf://datasets/{NAME}@{OLD}/{PARQUET}"
    hub.requests.clear()
    again = download(NAME, to)
    assert again == Downloaded(to, result.files, frozenset())
    assert hub.requests == [], "what was downloaded needs no network"
    assert "there already" in again.summary()
    (to / PARQUET).write_bytes(b"short")
    refused(to, PARQUET, "5 bytes", "300000", "download it again")


def test_a_set_keeps_its_commit_until_another_revision_is_given(hub: Hub, tmp_path: Path) -> None:
    download(NAME, tmp_path / "to")
    newer = FILES | {"README.md": b"more about it"}
    publish(hub, newer, NEW)
    (tmp_path / "to" / PARQUET).unlink()
    assert PARQUET in download(NAME, tmp_path / "to").new
    assert have(tmp_path / "to"), "what was missing came from the commit of the first download"
    download(NAME, tmp_path / "to", revision=NEW)
    assert have(tmp_path / "to", newer)


def test_robomimics_sets_are_single_files_of_a_repository_that_was_renamed(hub: Hub, tmp_path: Path) -> None:
    path, other = "v1.5/lift/ph/low_dim_v15.hdf5", "robomimic/robomimic_datasets"
    publish(hub, {path: os.urandom(5_000), "v1.5/lift/ph/demo_v15.hdf5": b"x"}, name=other)
    for place in list(hub.answers):
        if other in place:
            hub.answers[place.replace(other, "amandlek/robomimic")] = [status(307, Location=place)]
    result = download("robomimic/lift/ph/low_dim", tmp_path / "to")
    assert list(result.files) == [path]
    assert f"{tmp_path / 'to' / path}: 0.0 MB, downloaded" in result.summary()


def test_a_pattern_chooses_files(hub: Hub, tmp_path: Path) -> None:
    download(f"hf://{NAME}", tmp_path / "to", pattern="meta/*")
    assert have(tmp_path / "to", {"meta/info.json": FILES["meta/info.json"]})
    refused(tmp_path / "to", "has no file *.hdf5", pattern="*.hdf5")
    result = download(NAME, tmp_path / "to")
    assert set(result.files) == set(FILES), "a part that is there is not taken for the whole"
    assert have(tmp_path / "to")


def test_a_transfer_that_breaks_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    place = f"/datasets/{NAME}/resolve/{OLD}/{PARQUET}"
    etag = f'"{hashlib.sha256(FILES[PARQUET]).hexdigest()}"'
    whole = hub.answers[place][0]
    breaking = file(FILES[PARQUET], etag=etag, stop=150_000, extra={"X-Repo-Commit": OLD})
    hub.answers[place] = [whole, breaking, whole]  # HEAD, GET, GET
    download(NAME, tmp_path / "to", pattern="data/*")
    assert have(tmp_path / "to", {PARQUET: FILES[PARQUET]})
    assert len(hub.ranges(place)) == 2


@pytest.mark.parametrize("path", [PARQUET, "meta/info.json"], ids=["large", "small"])
def test_wrong_bytes_of_the_right_length_are_noticed(hub: Hub, tmp_path: Path, path: str) -> None:
    publish(hub, sent={path: bytes(len(FILES[path]))})
    refused(tmp_path / "to", path, "publishes", "remove it", "download it again")
    assert not (tmp_path / "to" / "checksums.json").exists()


@pytest.mark.parametrize("path", ["../out.txt", "/tmp/gtp-out.txt", "a/../../out.txt", ".cache/x", "checksums.json"])
def test_names_that_leave_the_folder_are_refused(hub: Hub, tmp_path: Path, path: str) -> None:
    publish(hub, {path: b"evil"})
    refused(tmp_path / "to", "would leave its folder")
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [
        (401, "RepoNotFound", "HF_TOKEN"),
        (404, "RevisionNotFound", "Revision Not Found"),
        (403, "GatedRepo", "accept its terms"),
        (500, "", "500"),
    ],
)
def test_a_refusal_of_the_hub_is_reported(hub: Hub, tmp_path: Path, code: int, name: str, words: str) -> None:
    for place in list(hub.answers):
        hub.answers[place] = [status(code, X_Error_Code=name)]
    refused(tmp_path / "to", words, hub.url, str(tmp_path / "to"))


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b"[" * 100_000])
def test_another_server_is_refused(hub: Hub, tmp_path: Path, content: bytes) -> None:
    for place in list(hub.answers):
        hub.answers[place] = [status(200, content)]
    refused(tmp_path / "to", hub.url, "by hand")


def test_a_mirror_comes_first_and_gets_no_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running(Hub()) as mirror:
        publish(mirror)
        download(NAME, tmp_path / "a", mirrors=[mirror.url])
        assert hub.requests == []
        assert all("hf_secret" not in str(headers) for _, _, headers in mirror.requests)
    download(NAME, tmp_path / "b", mirrors=["http://127.0.0.1:1"])
    assert have(tmp_path / "b")
    assert "Bearer hf_secret" in str(hub.requests[0][2])


@pytest.mark.processes
@pytest.mark.parametrize("offline", [False, True])
def test_the_hubs_own_variables_are_respected(hub: Hub, tmp_path: Path, offline: bool) -> None:
    environment: dict[str, str | None] = {key: None for key in os.environ if key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": str(int(offline))}
    errors = ended(*CLI, "data", "download", NAME, status=2 * offline, environment=environment)[1]
    place = tmp_path / "home" / "lerobot" / NAME
    if offline:
        assert "HF_HUB_OFFLINE" in errors
        assert str(place) in errors
        assert errors.count("\n") == 1
        assert hub.requests == []
    else:
        assert errors == ""
        assert have(place)


def test_a_file_of_the_user_is_not_replaced(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my own")
    refused(tmp_path, str(tmp_path / "README.md"), "another file", "--to")
    assert (tmp_path / "README.md").read_text() == "my own"
    (tmp_path / "README.md").write_bytes(FILES["README.md"])  # the published file itself is kept
    assert set(download(NAME, tmp_path).files) == set(FILES)
    tree = [{"type": "file", "path": "big.bin", "size": 10**16, "oid": "0" * 40}]
    hub.answers[f"/api/datasets/{NAME}/tree/{OLD}"] = [status(200, json.dumps(tree).encode())]
    refused(tmp_path / "to", "needs 10000000.0 GB", "--to")
