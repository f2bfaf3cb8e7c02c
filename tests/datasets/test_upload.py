"""Data sets are pushed to a server that speaks the hub's protocol, and pulled from it by the commands of users."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import huggingface_hub
import pyarrow.parquet as pq
import pytest
from commands import CLI, ended, started, wait_for
from hub_server import TOKEN, Hub, endpoint, online
from loopback import running, status
from PIL import Image
from refusals import assert_same

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.card import MARK
from gtp_vision.datasets.download import download
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.upload import push

NAME = "me/pick"
EPISODES, TABLE = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(autouse=True)
def _signed_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(Hub()) as server:
        endpoint(monkeypatch, server.url)
        yield server


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def page(hub: Hub, name: str = NAME) -> str:
    return hub.files[name]["README.md"].decode()


def header(hub: Hub, name: str = NAME) -> dict[str, Any]:
    return huggingface_hub.DatasetCard(page(hub, name)).data.to_dict()


def refused(*words: str, path: Path, name: str = NAME, **options: Any) -> None:
    with pytest.raises(GtpVisionError) as raised:
        push(path, name, **options)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_lerobot_folder_is_pushed_as_it_is_and_pulled(hub: Hub, copied: Callable, tmp_path: Path) -> None:
    data = copied("published")
    files = names(data)
    (data / "images").mkdir()
    for clutter in (".hidden", "images/.x.tmp", "checksums.json"):
        (data / clutter).write_text("{}")
    lines = push(data, NAME, licence="cc-by-4.0", is_private=True, message="Ten picks")
    assert lines[-1].startswith(f"{hub.url}/datasets/{NAME}: {len(files)} files, ")
    assert lines[-1].endswith("MB, tag v3.0")
    (name, summary, first, _), (_, card_summary, last, _) = hub.commits
    assert (name, summary, first) == (NAME, "Ten picks", files), "the data come first"
    assert (card_summary, last) == ("Ten picks: card", {"README.md", "contact_sheet.png"})
    assert hub.tags[NAME] == {"v3.0": hub.commit}
    assert hub.private == {NAME}
    pulled = download(f"hf://{NAME}", tmp_path / "pulled", revision="v3.0").folder
    assert all((pulled / file).read_bytes() == (data / file).read_bytes() for file in files)
    with Image.open(pulled / "contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
    store = open_store(pulled)
    assert header(hub) == {
        "license": "cc-by-4.0",
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "gtp-vision"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    rate = json.loads((data / "meta/info.json").read_text())["fps"]
    card = page(hub)
    for words in (
        f"{store.episodes} episodes, {len(store)} frames, {rate} a second",
        "Licence: cc-by-4.0.",
        "![First, middle and last frames of some episodes](contact_sheet.png)",
        "| `observation.images.front` | frames, ",
        f"| `action` | {store.action_dim} numbers |",
        f"gtp-vision data download hf://{NAME}",
        f'LeRobotDataset("{NAME}")',
        f"visualize_dataset?path={NAME}",
    ):
        assert words in card


def test_other_formats_become_lerobot_with_what_its_viewer_reads(
    hub: Hub, samples: dict[str, Path], tmp_path: Path
) -> None:
    """huggingface/lerobot-dataset-visualizer, commit 38e581b, src/app/[org]/[dataset]/[episode]/fetch-data.ts."""
    lines = push(samples["native"], NAME)
    assert "as LeRobot v3.0" in lines[0]
    assert any(line.startswith("  fps is 10") for line in lines)
    assert "states no licence" in lines[-1]
    assert "license" not in header(hub)
    pulled = download(f"hf://{NAME}", tmp_path / "pulled").folder
    before, after = open_store(samples["native"]).without_final_observations(), open_store(pulled)
    assert_same(after, before, cameras=False)
    at = f"/datasets/{NAME}/resolve/main/"
    info = json.loads(hub.files[NAME]["meta/info.json"])
    assert info["codebase_version"] == "v3.0"
    assert {"fps", "total_frames", "total_episodes", "total_tasks", "robot_type", "chunks_size"} <= info.keys()
    assert all({"dtype", "shape", "names"} <= feature.keys() for feature in info["features"].values())
    table = pq.read_table(pulled / TABLE).column_names
    assert {"index", "timestamp", "task_index", "action"} <= set(table)
    rows = pq.read_table(pulled / EPISODES).to_pylist()
    assert [row["episode_index"] for row in rows] == list(range(after.episodes))
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    assert videos
    for row in rows:
        assert row["length"] == row["dataset_to_index"] - row["dataset_from_index"]
        assert at + f"data/chunk-{row['data/chunk_index']:03}/file-{row['data/file_index']:03}.parquet" in hub.answers
        assert all(isinstance(task, str) for task in row["tasks"])
        for key in videos:
            chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
            assert at + f"videos/{key}/chunk-{chunk:03}/file-{file:03}.mp4" in hub.answers
            seconds = row[f"videos/{key}/to_timestamp"] - row[f"videos/{key}/from_timestamp"]
            assert seconds == pytest.approx(row["length"] / info["fps"])


def test_files_stay_as_they_are_if_wanted(hub: Hub, samples: dict[str, Path], tmp_path: Path) -> None:
    push(samples["robomimic"], NAME, as_is=True)
    pulled = download(f"hf://{NAME}", tmp_path / "pulled").folder / samples["robomimic"].name
    assert pulled.read_bytes() == samples["robomimic"].read_bytes()
    assert header(hub) == {"task_categories": ["robotics"], "tags": ["gtp-vision"]}
    assert hub.tags[NAME] == {}
    assert f'data inspect "pick/{pulled.name}"' in page(hub)
    push(samples["maniskill"], "me/skill", as_is=True)
    trajectory = samples["maniskill"].name
    assert {trajectory, trajectory.replace(".h5", ".json")} <= hub.files["me/skill"].keys()


@pytest.mark.parametrize("has_lfs", [True, False])
def test_a_repeated_push_sends_only_what_changed(
    hub: Hub, copied: Callable, monkeypatch: pytest.MonkeyPatch, has_lfs: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", has_lfs)  # else by several commits
    hub.has_lfs = has_lfs
    data = copied("published")
    push(data, NAME, licence="mit")
    before = dict(hub.files[NAME]), list(hub.commits), len(hub.objects)
    push(data, NAME)
    assert (hub.files[NAME], hub.commits, len(hub.objects)) == before, "our card keeps its licence"
    stale = {"data/chunk-000/file-007.parquet": b"old", "LICENSE": b"theirs"}
    hub.publish(hub.files[NAME] | stale, hub.commit, NAME)
    hub.files[NAME]["README.md"] = b"---\nlicense: mit\n---\n" + MARK.encode()
    hub.publish(hub.files[NAME], hub.commit, NAME)
    push(data, NAME)
    assert hub.commits[-2][3] == {"data/chunk-000/file-007.parquet", "README.md"}, "a card of other data is removed"
    assert hub.files[NAME] == before[0] | {"LICENSE": b"theirs"}
    assert hub.tags[NAME] == {"v3.0": hub.commit}


@pytest.mark.processes
def test_a_killed_push_continues(hub: Hub, published: Path) -> None:
    """Killed while it sends a table, of which the hub gets nothing."""
    arrived, free = threading.Event(), threading.Event()
    content = (published / TABLE).read_bytes()
    oid = Hub.oid(content, "lfs")

    def hang(_: Any) -> None:
        arrived.set()
        free.wait(60)
        raise ConnectionError

    hub.answers[f"/objects/{oid}"] = [hang]
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    words = (*CLI, "data", "push", str(published), NAME, "--license", "mit")
    process = started(*words, environment=environment)
    large = [file for file in names(published) if (published / file).stat().st_size >= 1000]
    try:
        wait_for(lambda: arrived.is_set() and len(hub.objects) == len(large) - 1, process)
    finally:
        process.kill()
        process.communicate()
    free.set()
    assert set(hub.files[NAME]) == {".gitattributes"}, "no card without its data"
    del hub.answers[f"/objects/{oid}"]
    hub.requests.clear()
    output, _ = ended(*words, environment=environment)
    sent = [path for method, path, _ in hub.requests if method == "PUT"]
    assert sent[0] == f"/objects/{oid}"
    assert len(sent) <= 3, "and the card with its picture"
    assert output.startswith(f"{hub.url}/datasets/{NAME}: ")
    assert {"README.md", "contact_sheet.png", *names(published)} < set(hub.files[NAME])


def test_a_page_of_the_user_is_kept(hub: Hub, copied: Callable) -> None:
    data = copied("published")
    push(data, NAME)
    theirs = "# My robot"
    hub.publish(hub.files[NAME] | {"README.md": theirs.encode()}, hub.commit, NAME)
    assert "its README.md, not by gtp-vision, is kept; --overwrite" in push(data, NAME)[-1]
    assert page(hub) == theirs
    refused(f"README.md of {NAME}", "license: mit", "--overwrite", path=data, licence="mit")
    (data / "README.md").write_text("# Mine")
    assert f"{data / 'README.md'} is its page" in push(data, NAME)[-1]
    assert page(hub) == "# Mine"
    push(data, NAME, overwrite=True, licence="mit")
    assert MARK in page(hub)
    assert header(hub)["license"] == "mit"


def test_what_cannot_be_pushed_is_refused(
    hub: Hub, copied: Callable, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copied("published")
    refused("'pick' is not a repository", "OWNER/NAME", path=data, name="pick")
    refused("--fps", "change nothing", path=data, fps=5)
    refused("may not be written with this token", "403", "you", path=data, name="you/pick")
    refused("must be one of", "--licence", path=data, licence="free")
    assert hub.files[NAME].keys() == {".gitattributes"}, "before anything is sent"
    refused("is public", "--private", path=data, is_private=True)
    hub.answers[f"/api/datasets/{NAME}/preupload/main"] = [status(403)]
    refused("may not be written", path=data)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("refuses the token", "hf auth login", path=data)
    (data / "meta" / "link").symlink_to("/etc/hostname")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refused("leads out of the folder", path=data)
    broken = copied("native")
    with h5py.File(broken, "r+") as file:
        file["rewards"][3] = float("nan")
    refused("is not uploaded: rewards hold", "not finite", path=broken)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(data / "none"))
    refused("needs a token", "hf auth login", path=samples["native"])


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_nothing_is_converted(
    samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    words = ("HF_HUB_OFFLINE is set",) if offline else ("http://127.0.0.1:1", "refused", "run the same command again")
    refused(*words, path=samples["native"])


def test_names_in_files_cannot_write_markup(hub: Hub, copied: Callable) -> None:
    data = copied("published")
    info = json.loads((data / "meta/info.json").read_text())
    info["robot_type"] = "<script>[x](http://evil) `|"
    (data / "meta/info.json").write_text(json.dumps(info))
    push(data, NAME)
    assert "script" in page(hub)
    assert "<script" not in page(hub)
    assert "[x]" not in page(hub)
