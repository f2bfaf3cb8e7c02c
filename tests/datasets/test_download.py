import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from loopback import Answer, Server, file, running, status

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.download import download, sources, transfer
from gtp_vision.datasets.download.ledger import Ledger, digest

NAME, REMOTE = "d4rl/hopper-medium-v2", "/gym_mujoco_v2/hopper_medium-v2.hdf5"
LOCAL = "hopper_medium-v2.hdf5"
CLOSED = "http://127.0.0.1:1"  # nothing listens there


def hdf5(seed: int = 0, size: int = 400_000) -> bytes:
    made = io.BytesIO()
    with h5py.File(made, "w") as out:
        out["observations"] = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return made.getvalue()


def npz(seed: int = 0) -> bytes:
    made = io.BytesIO()
    np.savez(made, observations=np.random.default_rng(seed).normal(size=(500, 20)))
    return made.getvalue()


WHOLE = hdf5()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and no address outside of this machine."""
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(transfer, "READ_SECONDS", 2.0)
    monkeypatch.delenv("GTP_VISION_MIRRORS", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    for suite in list(sources.BASES):
        monkeypatch.setitem(sources.BASES, suite, (CLOSED,))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in the place of all data sets' own."""
    with running(Server()) as made:
        for suite in list(sources.BASES):
            monkeypatch.setitem(sources.BASES, suite, (made.url,))
        yield made


def fetched(folder: Path, server: Server, *answers: Answer) -> bytes:
    server.answers[REMOTE] = list(answers)
    download(NAME, folder)
    assert sorted(os.listdir(folder)) == [".download.lock", "checksums.json", LOCAL]
    return (folder / LOCAL).read_bytes()


def refused(folder: Path, *words: str, name: str = NAME, **options: object) -> str:
    with pytest.raises(GtpVisionError) as told:
        download(name, folder, **options)  # type: ignore[arg-type]
    text = str(told.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    return text


def parts(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {".download.lock", "checksums.json"})


# Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("halfcheetah-medium-expert-v2", "gym_mujoco_v2/halfcheetah_medium_expert-v2.hdf5"),
        ("ant-full-replay-v2", "gym_mujoco_v2/ant_full_replay-v2.hdf5"),
        ("antmaze-umaze-v0", "ant_maze_new/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5"),
        ("antmaze-umaze-v2", "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"),
        (
            "antmaze-umaze-diverse-v2",
            "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        ),
        (
            "antmaze-medium-play-v2",
            "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
        ),
        (
            "antmaze-large-diverse-v0",
            "ant_maze_new/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse.hdf5",
        ),
    ],
)
def test_d4rl_sets_have_d4rls_addresses_and_file_names(name: str, remote: str) -> None:
    found = sources.find(f"d4rl/{name}")
    assert isinstance(found, sources.Files)
    assert found.files == {remote: remote.rpartition("/")[2]}


def test_no_two_d4rl_sets_are_one_file() -> None:
    known = sources.d4rl_files()
    assert len(known) == 4 * 6 + 2 * 6
    assert len({Path(remote).name for remote in known.values()}) == len(known)


def test_the_version_of_antmaze_is_told() -> None:
    notes = {name: sources.find(f"d4rl/antmaze-umaze-{name}").note for name in ("v0", "v2")}  # type: ignore[union-attr]
    assert "AntMaze v0" in notes["v0"]
    assert "AntMaze v2" in notes["v2"]


@pytest.mark.parametrize(
    "name", ["visual-cube-single-play-v0", "visual-cube-single-play-singletask-task1-v0", "visual-cube-single-play"]
)
def test_an_ogbench_set_is_two_files_also_by_the_name_of_a_task(name: str) -> None:
    found = sources.find(f"ogbench/{name}")
    assert isinstance(found, sources.Files)
    assert list(found.files) == ["visual-cube-single-play-v0.npz", "visual-cube-single-play-v0-val.npz"]
    assert found.folder == Path("~/.ogbench/data")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("robomimic/lift/ph/low_dim_v15", ("amandlek/robomimic", "v1.5/lift/ph/low_dim_v15.hdf5")),
        ("robomimic/lift/ph/low_dim", ("amandlek/robomimic", "v1.5/lift/ph/low_dim_v15.hdf5")),
        ("robomimic/can/mg/low_dim_sparse_v15", ("amandlek/robomimic", "v1.5/can/mg/low_dim_sparse_v15.hdf5")),
        ("lerobot/pusht", ("lerobot/pusht",)),
        ("hf://someone/some-thing_2.0", ("someone/some-thing_2.0",)),
        ("hf://datasets/someone/thing", ("someone/thing",)),
    ],
)
def test_names_of_the_hub(name: str, expected: tuple[str, ...]) -> None:
    found = sources.find(name)
    assert isinstance(found, sources.Repository)
    assert (found.name, *found.patterns) == expected


def test_robomimics_names_are_those_of_its_own_registry() -> None:
    robomimic = pytest.importorskip("robomimic")
    theirs = {
        kind["url"].partition("rt_benchmark/")[2].removesuffix(".hdf5")
        for task in robomimic.DATASET_REGISTRY.values()
        for kinds in task.values()
        for name, kind in kinds.items()
        if kind["url"] and "image" not in name
    }
    assert len(theirs) > 20
    for name in theirs:
        found = sources.find(f"robomimic/{name}")
        assert isinstance(found, sources.Files), name
        assert list(found.files) == [f"{name}.hdf5"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hopper-medium-v2", "d4rl/..."),
        ("d4rl/hoper-medium-v2", "hopper-medium-v2"),
        ("d4rl/hopper-medium-v0", "robots: v2"),
        ("d4rl/antmaze-umaze-v1", "antmaze-umaze-v2"),
        ("ogbench/../../etc/passwd", "no name of an OGBench data set"),
        ("robomimic/lift/ph/image", "dataset_states_to_obs.py"),
        ("robomimic/lifft/ph/low_dim", "lift/ph/low_dim"),
        ("lerobot/", "OWNER/NAME"),
        ("lerobot/../x", "OWNER/NAME"),
        ("hf://pusht", "OWNER/NAME"),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(name: str, words: str, tmp_path: Path) -> None:
    refused(tmp_path / "to", words, name=name)
    assert not (tmp_path / "to").exists()


def test_sets_lie_where_their_own_libraries_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "robots"))
    assert sources.find(NAME).folder == tmp_path
    assert sources.find("lerobot/pusht").folder == tmp_path / "robots" / "lerobot" / "pusht"
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.delenv("HF_LEROBOT_HOME")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert sources.find(NAME).folder == Path("~/.d4rl/datasets")
    assert sources.find("lerobot/pusht").folder == tmp_path / "hub" / "lerobot" / "lerobot" / "pusht"


# A transfer -----------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_its_checksum_kept(server: Server, tmp_path: Path) -> None:
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE
    entry = json.loads((tmp_path / "checksums.json").read_text())["files"][LOCAL]
    assert entry["sha256"] == digest(tmp_path / LOCAL)
    assert entry["size"] == len(WHOLE)
    assert entry["url"] == f"{server.url}{REMOTE}"
    again = download(NAME, tmp_path)
    assert len(server.requests) == 1
    assert "there already" in again.told()
    assert (tmp_path / LOCAL).stat().st_mode & 0o044, "others may read it, as any file"


def test_a_transfer_that_breaks_off_goes_on(server: Server, tmp_path: Path) -> None:
    assert fetched(tmp_path, server, file(WHOLE, stop=150_000), file(WHOLE, stop=100_000), file(WHOLE)) == WHOLE
    first, second, third = server.ranges(REMOTE)
    assert first is None
    starts = [int(str(each).removeprefix("bytes=").removesuffix("-")) for each in (second, third)]
    assert 0 < starts[0] <= 150_000
    assert starts[0] < starts[1] <= 250_000
    assert server.requests[1][2]["If-Range"] == '"1"'


def test_a_transfer_goes_on_in_another_run(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE, stop=150_000), file(WHOLE, stop=0)]
    text = refused(tmp_path, "broke off at byte", str(len(WHOLE)), LOCAL, str(tmp_path))
    assert "in 5 tries" in text
    assert parts(tmp_path) == [f"{LOCAL}.part", f"{LOCAL}.part.json"]
    server.requests.clear()
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE
    assert len(server.ranges(REMOTE)) == 1
    assert server.ranges(REMOTE) != [None]


def test_a_part_that_is_whole_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE, stop=150_000), file(WHOLE, stop=0)]
    refused(tmp_path)
    (tmp_path / f"{LOCAL}.part").write_bytes(WHOLE)  # killed between the last byte and the renaming
    server.requests.clear()
    assert fetched(tmp_path, server, status(500)) == WHOLE
    assert server.requests == []


def test_tries_are_not_counted_while_there_is_progress(server: Server, tmp_path: Path) -> None:
    large = hdf5(size=8 << 20)
    breaks = [file(large, stop=(1 << 20) + (1 << 17)) for _ in range(7)]
    assert fetched(tmp_path, server, *breaks, file(large)) == large
    assert len(server.requests) == 8


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    assert fetched(tmp_path, server, file(WHOLE, stop=150_000, ranges=False), file(WHOLE, ranges=False)) == WHOLE
    assert server.ranges(REMOTE)[1] is not None


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("size", [400_000, 300_000, 500_000])
def test_a_file_that_changes_between_two_tries_is_never_glued_together(
    server: Server, tmp_path: Path, obeys: bool, size: int
) -> None:
    new = hdf5(1, size)
    changed = file(new, etag='"2"', obeys_if_range=obeys)
    assert fetched(tmp_path, server, file(WHOLE, stop=350_000), changed) == new


@pytest.mark.parametrize("told", ["bytes 5-{last}/{size}", "bytes {start}-{last}/*", "5", None])
def test_another_part_than_was_asked_for_is_not_glued_on(server: Server, tmp_path: Path, told: str | None) -> None:
    start = {}

    def elsewhere(handler: Any) -> None:
        start["start"] = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        size = {"size": len(WHOLE), "last": len(WHOLE) - 1} | start
        headers = {"ETag": '"1"'} | ({"Content-Range": told.format(**size)} if told else {})
        status(206, WHOLE[-(len(WHOLE) - size["start"]) :][::-1], **headers)(handler)

    assert fetched(tmp_path, server, file(WHOLE, stop=150_000), elsewhere, file(WHOLE)) == WHOLE
    assert start["start"] > 0
    assert server.ranges(REMOTE)[-1] is None


def test_a_part_of_one_address_is_none_of_another(server: Server, tmp_path: Path) -> None:
    other = hdf5(1)
    with running(Server()) as mirror:
        mirror.answers[REMOTE] = [file(other, stop=150_000), file(other, stop=0)]
        server.answers[REMOTE] = [file(WHOLE)]
        download(NAME, tmp_path, mirrors=[mirror.url])
    assert (tmp_path / LOCAL).read_bytes() == WHOLE
    assert parts(tmp_path) == [LOCAL]


def test_a_file_whose_server_tells_no_version_begins_anew(server: Server, tmp_path: Path) -> None:
    new = hdf5(1)
    assert fetched(tmp_path, server, file(WHOLE, etag=None, stop=150_000), file(new, etag=None)) == new
    assert server.ranges(REMOTE) == [None, None]


def test_a_weak_etag_proves_nothing_but_a_date_does(server: Server, tmp_path: Path) -> None:
    old, new = "Mon, 06 Jan 2020 10:00:00 GMT", "Mon, 06 Jan 2025 10:00:00 GMT"
    weak = {"etag": 'W/"1"', "stop": 150_000}
    assert fetched(tmp_path / "a", server, file(WHOLE, modified=old, **weak), file(WHOLE, modified=old)) == WHOLE
    assert server.requests[1][2]["If-Range"] == old
    changed = hdf5(1)
    assert fetched(tmp_path / "b", server, file(WHOLE, modified=old, **weak), file(changed, modified=new)) == changed


@pytest.mark.parametrize("note", ["", "[]", "{", '{"url": 1}', "[" * 100_000])
def test_a_part_of_which_nothing_is_known_is_not_used(server: Server, tmp_path: Path, note: str) -> None:
    (tmp_path / f"{LOCAL}.part").write_bytes(b"who knows")
    (tmp_path / f"{LOCAL}.part.json").write_text(note)
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE
    assert server.ranges(REMOTE) == [None]


def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    assert fetched(tmp_path, server, status(503), status(429), file(WHOLE)) == WHOLE


def test_redirections_are_followed(server: Server, tmp_path: Path) -> None:
    server.answers["/there"] = [file(WHOLE, stop=150_000), file(WHOLE)]
    moved = status(302, Location="/there")
    assert fetched(tmp_path, server, moved, status(307, Location=f"{server.url}/there")) == WHOLE
    assert server.ranges("/there")[1] is not None, "it goes on behind the redirection, too"
    assert json.loads((tmp_path / "checksums.json").read_text())["files"][LOCAL]["url"].endswith(REMOTE)


def test_two_that_download_at_once_download_once(server: Server, tmp_path: Path) -> None:
    def slow(handler: object) -> None:
        time.sleep(0.3)
        file(WHOLE)(handler)  # type: ignore[arg-type]

    server.answers[REMOTE] = [slow]
    told: list[str] = []
    both = [threading.Thread(target=lambda: told.append(download(NAME, tmp_path).told())) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(10)
    assert len(server.requests) == 1
    assert sorted("there already" in each for each in told) == [False, True]


# What is refused ------------------------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><html><body>Please log in to this network" + b" " * 1000 + b"</body></html>"


def test_a_web_page_is_not_stored_as_a_data_set(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [status(200, PAGE, Content_Type="text/html")]
    refused(tmp_path, "sends a web page", LOCAL)
    assert parts(tmp_path) == []


def test_a_web_page_costs_no_part(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE, stop=150_000), status(200, PAGE)]
    refused(tmp_path, "sends a web page")
    assert parts(tmp_path) == [f"{LOCAL}.part", f"{LOCAL}.part.json"]
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE
    assert server.ranges(REMOTE)[-1] is not None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and more", b"\x00" * 1000])
def test_another_kind_of_file_is_refused(server: Server, tmp_path: Path, content: bytes) -> None:
    server.answers[REMOTE] = [status(200, content)]
    refused(tmp_path, "something else instead of a .hdf5 file")
    assert parts(tmp_path) == []


def test_an_archive_that_ends_early_is_refused(server: Server, tmp_path: Path) -> None:
    whole = npz()
    server.answers |= {"/cube-single-play-v0.npz": [file(whole[:-30])], "/cube-single-play-v0-val.npz": [file(whole)]}
    refused(tmp_path, "damaged at its end", "cube-single-play-v0-val.npz", name="ogbench/cube-single-play-v0")
    assert parts(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"), [(404, "404 Not Found"), (403, "403 Forbidden"), (416, "416 "), (418, "418"), (204, "204")]
)
def test_a_status_is_told_by_name(server: Server, tmp_path: Path, code: int, words: str) -> None:
    server.answers[REMOTE] = [status(code)]
    refused(tmp_path, f"answers {words}", f"{server.url}{REMOTE}", str(tmp_path))
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [500, 503])
def test_a_broken_server_is_asked_a_few_times(server: Server, tmp_path: Path, code: int) -> None:
    server.answers[REMOTE] = [status(code)]
    refused(tmp_path, f"answers {code}", "in 5 tries")
    assert len(server.requests) == 5


def test_a_part_where_all_was_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [status(206, WHOLE[5:], Content_Range="bytes 5-9/10")]
    refused(tmp_path, "206")


def test_a_length_that_boasts_ends(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE, claim=2 * len(WHOLE))]
    refused(tmp_path, LOCAL)
    assert not (tmp_path / LOCAL).exists()
    assert len(server.requests) < 10


def test_a_length_beyond_the_disk_is_refused_before_a_byte_is_stored(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE, claim=10**16)]
    refused(tmp_path, "needs 10000000.0 GB", "--to")
    assert parts(tmp_path) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": None},
        {"Content-Length": "-1"},
        {"Content-Length": "many"},
        {"Content-Length": "9" * 5000},
        {"Content-Length": None, "Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Encoding": "gzip"},
    ],
    ids=["none", "negative", "no number", "astronomic", "endless", "endless and not", "compressed"],
)
def test_a_file_without_an_honest_length_is_refused(
    server: Server, tmp_path: Path, headers: dict[str, str | None]
) -> None:
    server.answers[REMOTE] = [file(WHOLE, extra=headers)]  # type: ignore[arg-type]
    refused(tmp_path, "does not say how many bytes")
    assert parts(tmp_path) == []


def test_redirections_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [status(302, Location=REMOTE)]
    refused(tmp_path, "redirects more than 10 times")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "data:,x"])
def test_redirections_out_of_the_web_are_not_followed(server: Server, tmp_path: Path, target: str) -> None:
    server.answers[REMOTE] = [status(302, Location=target)]
    refused(tmp_path, "redirects to", "not followed")


def test_a_redirection_from_https_to_http_is_not_followed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = Server()
    secure.socket, secure.scheme = context.wrap_socket(secure.socket, server_side=True), "https"
    with running(secure):
        monkeypatch.setitem(sources.BASES, "d4rl", (secure.url,))
        refused(tmp_path / "a", "certificate verify failed")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        server.answers["/plain"] = [file(WHOLE)]
        secure.answers[REMOTE] = [status(302, Location=f"{server.url}/plain")]
        refused(tmp_path / "b", f"redirects to {server.url}/plain, which is not followed")
        assert server.requests == []
        assert fetched(tmp_path / "c", secure, file(WHOLE)) == WHOLE


def test_a_server_that_says_nothing_is_left(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.05)
    server.answers[REMOTE] = [lambda _: time.sleep(0.5)]
    refused(tmp_path, "does not answer", "in 5 tries")


# Checksums ------------------------------------------------------------------------------------------------------


def test_wrong_bytes_are_refused_and_the_next_address_is_asked(server: Server, tmp_path: Path) -> None:
    fetched(tmp_path, server, file(WHOLE))
    (tmp_path / LOCAL).unlink()
    wrong = hdf5(1)
    with running(Server()) as mirror:
        mirror.answers[REMOTE] = [file(wrong)]
        assert download(NAME, tmp_path, mirrors=[mirror.url]).new == {LOCAL}
        assert len(mirror.requests) == 1
    assert (tmp_path / LOCAL).read_bytes() == WHOLE

    (tmp_path / LOCAL).unlink()
    server.answers[REMOTE] = [file(wrong)]
    (tmp_path / "x").write_bytes(wrong)
    sha256 = digest(tmp_path / "x")
    (tmp_path / "x").unlink()
    refused(tmp_path, sha256, str(Ledger(tmp_path)[LOCAL].sha256), "remove 'hopper", "checksums.json")  # type: ignore[union-attr]
    assert parts(tmp_path) == []


def test_another_size_upstream_is_refused_before_it_is_transferred(server: Server, tmp_path: Path) -> None:
    fetched(tmp_path, server, file(WHOLE))
    (tmp_path / LOCAL).unlink()
    new = hdf5(1, 500_000)
    server.answers[REMOTE] = [file(new)]
    refused(tmp_path, f"offers {len(new)} bytes", str(len(WHOLE)))
    assert parts(tmp_path) == []


def test_a_file_that_changed_on_the_disk_is_told_from_one_that_changed_upstream(server: Server, tmp_path: Path) -> None:
    fetched(tmp_path, server, file(WHOLE))
    path = tmp_path / LOCAL
    path.write_bytes(WHOLE[:-1])
    refused(tmp_path, str(path), f"{len(WHOLE) - 1} bytes", f"{len(WHOLE)}", "truncated", "download it again")
    path.write_bytes(hdf5(1))
    refused(tmp_path, digest(path), Ledger(tmp_path)[LOCAL].sha256, "download it again")  # type: ignore[union-attr]
    assert len(server.requests) == 1
    path.unlink()
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE


def test_a_file_put_there_by_hand_is_recorded(tmp_path: Path) -> None:
    (tmp_path / LOCAL).write_bytes(WHOLE)
    told = download(NAME, tmp_path)
    assert told.new == frozenset()
    assert "found there on" in told.told()
    (tmp_path / LOCAL).write_bytes(WHOLE[:-1])
    refused(tmp_path, "as found on")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "\udcff",
        "[" * 100_000,
        "[]",
        "{}",
        '{"files": [], "sets": {}}',
        '{"files": {"a": {}}, "sets": {}}',
        '{"files": {"a": {"sha256": "", "size": "1", "url": "", "date": ""}}, "sets": {}}',
    ],
)
def test_a_damaged_list_of_checksums_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "checksums.json").write_text(content, errors="surrogateescape")
    refused(tmp_path, "checksums.json", "remove it")


# Addresses ------------------------------------------------------------------------------------------------------


def test_mirrors_come_first_and_every_failure_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTP_VISION_MIRRORS", f"{server.url}/env1/ {server.url}/env2")
    server.answers = {f"/env1{REMOTE}": [status(404)], f"/env2{REMOTE}": [status(403)], REMOTE: [status(410)]}
    text = refused(tmp_path, mirrors=[f"{server.url}/first", CLOSED])
    asked = [path.removesuffix(REMOTE) for _, path, _ in server.requests]
    assert asked == ["/first", "/env1", "/env2", ""]
    places = [text.index(word) for word in ("/first", CLOSED, "/env1", "403 Forbidden", "410 Gone")]
    assert places == sorted(places)


def test_a_mirror_may_have_the_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.BASES, "d4rl", (CLOSED,))
    server.answers[f"/data{REMOTE}"] = [file(WHOLE)]
    download(NAME, tmp_path, mirrors=[f"{server.url}/data/"])
    assert (tmp_path / LOCAL).read_bytes() == WHOLE


def test_passwords_are_not_told(server: Server, tmp_path: Path) -> None:
    mirror = server.url.replace("http://", "http://me:secret@")
    assert "secret" not in refused(tmp_path, "404", mirrors=[mirror])
    server.answers[REMOTE] = [file(WHOLE)]
    download(NAME, tmp_path, mirrors=[mirror])
    assert server.requests[-1][2]["Authorization"].startswith("Basic ")
    assert "secret" not in (tmp_path / "checksums.json").read_text()


@pytest.mark.parametrize("mirror", ["file:///data", "/data", "rail.berkeley.edu", "http://[", "https://"])
def test_a_mirror_that_is_no_address_is_refused(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, mirror, "http", mirrors=[mirror])
    monkeypatch.setenv("GTP_VISION_MIRRORS", mirror)
    refused(tmp_path, mirror, "http")


def test_without_a_network_the_place_by_hand_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.BASES, "d4rl", (CLOSED, "http://no-such-host.invalid"))
    start = time.monotonic()
    refused(tmp_path / "to", f"put {LOCAL} into {tmp_path / 'to'} by hand", "refused", "no-such-host.invalid")
    assert time.monotonic() - start < 30, "no patience with what is not there"
    assert parts(tmp_path / "to") == []


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "to", str(tmp_path / "file" / "to"), "--to")


def test_a_place_that_cannot_be_written_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{LOCAL}.part").mkdir()
    server.answers[REMOTE] = [file(WHOLE)]
    refused(tmp_path, LOCAL, "cannot be written", "--to")


# Several files --------------------------------------------------------------------------------------------------


def test_of_an_ogbench_set_only_what_is_missing_is_fetched(server: Server, tmp_path: Path) -> None:
    first, second = "cube-single-play-v0.npz", "cube-single-play-v0-val.npz"
    server.answers = {f"/{first}": [file(npz(0))], f"/{second}": [status(404)]}
    text = refused(tmp_path, "404", name="ogbench/cube-single-play-singletask-task2-v0")
    assert f"put {second} into" in text, "the first is there"
    server.answers[f"/{second}"] = [file(npz(1))]
    server.requests.clear()
    told = download("ogbench/cube-single-play-v0", tmp_path)
    assert told.new == {second}
    assert set(told.files) == {first, second}
    assert [path for _, path, _ in server.requests] == [f"/{second}"]


def test_a_pattern_chooses_files(server: Server, tmp_path: Path) -> None:
    server.answers["/cube-single-play-v0-val.npz"] = [file(npz(1))]
    download("ogbench/cube-single-play-v0", tmp_path, pattern="*-val.npz")
    assert parts(tmp_path) == ["cube-single-play-v0-val.npz"]
    refused(tmp_path, "no file", "cube-single-play-v0.npz", name="ogbench/cube-single-play-v0", pattern="*.hdf5")


def test_a_revision_is_for_the_hub(tmp_path: Path) -> None:
    refused(tmp_path, "--revision", revision="main")


def test_files_in_folders_are_kept_apart(server: Server, tmp_path: Path) -> None:
    server.answers["/can/mh/low_dim_v141.hdf5"] = [file(WHOLE)]
    download("robomimic/can/mh/low_dim_v141", tmp_path)
    assert (tmp_path / "can" / "mh" / "low_dim_v141.hdf5").read_bytes() == WHOLE


# The command ----------------------------------------------------------------------------------------------------


def test_the_command_tells_what_is_where(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, remote = "antmaze-umaze-v0", sources.d4rl_files()["antmaze-umaze-v0"]
    server.answers[f"/m/{remote}"] = [file(WHOLE)]
    words = ["data", "download", f"d4rl/{name}", "--to", str(tmp_path), "--mirror", f"{server.url}/m"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert f"{tmp_path / Path(remote).name}: 0.4 MB, downloaded" in first
    assert "AntMaze v0" in first
    assert main(words) == 0
    assert "there already" in capsys.readouterr().out
    assert main(["data", "download", NAME, "--to", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("gtp-vision: hopper_medium-v2.hdf5")
    assert told.count("\n") == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_has_rate_and_time_unless_it_is_switched_off(server: Server, tmp_path: Path, quiet: bool) -> None:
    server.answers[REMOTE] = [file(WHOLE)]
    environment = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    environment |= {"TQDM_DISABLE": "1"} if quiet else {}
    words = ["data", "download", NAME, "--to", str(tmp_path), "--mirror", server.url]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gtp_vision", *words], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" if quiet else "B/s" in done.stderr and "00:0" in done.stderr
