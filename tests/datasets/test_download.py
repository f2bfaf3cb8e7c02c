import hashlib
import io
import json
import os
import ssl
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import loopback
import numpy as np
import pytest
import trustme
from commands import CLI, ended
from loopback import Answer, Server, file, running, status

from gtp_vision.cli.main import main
from gtp_vision.datasets.download import download, sources, transfer
from gtp_vision.datasets.download.ledger import digest

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


refused = partial(loopback.refused, name=NAME)


def parts(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {".download.lock", "checksums.json"})


ANTMAZE = "ant_maze_v2/Ant_maze_{}_noisy_multistart_True_multigoal_{}_sparse_fixed.hdf5"


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("d4rl/halfcheetah-medium-expert-v2", "gym_mujoco_v2/halfcheetah_medium_expert-v2.hdf5"),
        ("d4rl/antmaze-umaze-v0", "ant_maze_new/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5"),
        ("d4rl/antmaze-medium-play-v2", ANTMAZE.format("big-maze", False)),
        ("ogbench/visual-cube-single-play-singletask-task1-v0", "visual-cube-single-play-v0.npz"),
    ],
)
def test_sets_have_their_publishers_addresses_and_file_names(name: str, remote: str) -> None:
    found = sources.find(name)
    assert isinstance(found, sources.Files)
    assert found.files[remote] == remote.rpartition("/")[2]
    assert len(found.files) == 1 + name.startswith("ogbench")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("robomimic/lift/ph/low_dim", ("amandlek/robomimic", "v1.5/lift/ph/low_dim_v15.hdf5")),
        ("robomimic/can/mg/low_dim_sparse_v15", ("amandlek/robomimic", "v1.5/can/mg/low_dim_sparse_v15.hdf5")),
        ("lerobot/pusht", ("lerobot/pusht",)),
        ("hf://datasets/someone/some-thing_2.0", ("someone/some-thing_2.0",)),
    ],
)
def test_names_of_the_hub(name: str, expected: tuple[str, ...]) -> None:
    found = sources.find(name)
    assert isinstance(found, sources.Repository)
    assert (found.name, *found.patterns) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hopper-medium-v2", "d4rl/..."),
        ("d4rl/hoper-medium-v2", "hopper-medium-v2"),
        ("d4rl/hopper-medium-v0", "robots: v2"),
        ("ogbench/../../etc/passwd", "not an OGBench data set"),
        ("robomimic/lift/ph/image", "dataset_states_to_obs.py"),
        ("robomimic/lifft/ph/low_dim", "lift/ph/low_dim"),
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


def test_a_file_is_downloaded_once_and_its_checksum_recorded(server: Server, tmp_path: Path) -> None:
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE
    entry = json.loads((tmp_path / "checksums.json").read_text())["files"][LOCAL]
    assert entry["sha256"] == digest(tmp_path / LOCAL)
    assert (entry["size"], entry["url"]) == (len(WHOLE), f"{server.url}{REMOTE}")
    assert "there already" in download(NAME, tmp_path).summary()
    assert len(server.requests) == 1
    assert (tmp_path / LOCAL).stat().st_mode & 0o044, "others may read it, as any file"


def test_a_broken_transfer_resumes(server: Server, tmp_path: Path) -> None:
    first, second = file(WHOLE, stop=150_000), file(WHOLE, stop=100_000)
    assert fetched(tmp_path, server, first, file(WHOLE, stop=0), second, file(WHOLE)) == WHOLE
    starts = [int(each.removeprefix("bytes=").removesuffix("-")) for each in server.ranges(REMOTE) if each]
    assert 0 < starts[0] < starts[1] <= 250_000
    assert server.requests[2][2]["If-Range"] == '"1"'


def test_a_transfer_resumes_in_another_run(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE, stop=150_000), file(WHOLE, stop=0)]
    refused(tmp_path, "broke off at byte", str(len(WHOLE)), LOCAL, str(tmp_path), "in 5 tries")
    assert len(parts(tmp_path)) == 1
    server.requests.clear()
    assert fetched(tmp_path, server, file(WHOLE)) == WHOLE
    assert len(server.requests) == 2
    assert server.ranges(REMOTE)[1] is not None


def test_tries_with_progress_do_not_count(server: Server, tmp_path: Path) -> None:
    large = hdf5(size=8 << 20)
    breaks = [file(large, stop=(1 << 20) + (1 << 17)) for _ in range(14)]
    assert fetched(tmp_path, server, *breaks, file(large)) == large


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("size", [400_000, 300_000, 500_000])
def test_a_file_that_changes_is_never_glued_together(server: Server, tmp_path: Path, obeys: bool, size: int) -> None:
    new = hdf5(1, size)
    changed = file(new, etag='"2"', obeys_if_range=obeys)
    assert fetched(tmp_path, server, file(WHOLE, stop=350_000), file(WHOLE, stop=0), changed) == new


@pytest.mark.parametrize("answer", ["bytes 5-{last}/{size}", "bytes {start}-{last}/*", "5", None, "200"])
def test_another_part_than_requested_is_not_glued_on(server: Server, tmp_path: Path, answer: str | None) -> None:
    def elsewhere(handler: Any) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        place = answer and answer.format(start=start, size=len(WHOLE), last=len(WHOLE) - 1)
        headers = {"ETag": '"1"'} | ({"Content-Range": place} if place else {})
        status(200 if answer == "200" else 206, WHOLE[: start - len(WHOLE)][::-1], **headers)(handler)

    broken = file(WHOLE, stop=150_000)
    assert fetched(tmp_path, server, broken, file(WHOLE, stop=0), elsewhere, file(WHOLE)) == WHOLE
    assert server.ranges(REMOTE)[-1] is None


def test_a_part_belongs_to_one_address(server: Server, tmp_path: Path) -> None:
    other = hdf5(1)
    with running(Server()) as mirror:
        mirror.answers[REMOTE] = [file(other, stop=150_000), file(other, stop=0)]
        server.answers[REMOTE] = [file(WHOLE)]
        download(NAME, tmp_path, mirrors=[mirror.url])
    assert (tmp_path / LOCAL).read_bytes() == WHOLE
    assert parts(tmp_path) == [LOCAL]


OLD, NEW = "Mon, 06 Jan 2020 10:00:00 GMT", "Mon, 06 Jan 2025 10:00:00 GMT"


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
@pytest.mark.parametrize(("before", "after"), [(None, None), (OLD, OLD), (OLD, NEW)])
def test_without_a_strong_etag_the_date_is_the_version(
    server: Server, tmp_path: Path, etag: str | None, before: str | None, after: str | None
) -> None:
    is_same = before is not None and before == after
    new = WHOLE if is_same else hdf5(1)
    broken = file(WHOLE, etag=etag, modified=before, stop=150_000)
    assert fetched(tmp_path, server, status(503), broken, file(new, etag=etag, modified=after)) == new
    assert (server.ranges(REMOTE)[-1] is not None) is is_same


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    server.answers["/there"] = [file(WHOLE, stop=150_000), file(WHOLE)]
    moved = status(302, Location="/there")
    assert fetched(tmp_path, server, moved, status(307, Location=f"{server.url}/there")) == WHOLE
    assert server.ranges("/there")[-1] is not None, "it resumes behind the redirect, too"
    assert json.loads((tmp_path / "checksums.json").read_text())["files"][LOCAL]["url"].endswith(REMOTE)


PAGE = b"<!DOCTYPE html><html><body>Please log in to this network" + b" " * 1000 + b"</body></html>"
BAD_LENGTH = "does not say how many bytes"
REFUSED: dict[str, tuple[Answer, int, str]] = {
    "web page": (status(200, PAGE, Content_Type="text/html"), 1, "sends a web page"),
    "empty": (status(200), 1, "something else instead of a .hdf5 file"),
    "archive": (status(200, b"PK\x03\x04 and more"), 1, "something else instead of a .hdf5 file"),
    "missing": (status(404), 1, "answers 404 Not Found"),
    "no content": (status(204), 1, "answers 204"),
    "unasked part": (status(206, WHOLE[5:], Content_Range="bytes 5-9/10"), 1, "206"),
    "broken server": (status(503), 5, "answers 503"),
    "longer than sent": (file(WHOLE, claim=2 * len(WHOLE)), 7, "broke off"),
    "beyond the disk": (file(WHOLE, claim=10**16), 1, "needs 10000000.0 GB"),
    "no length": (file(WHOLE, extra={"Content-Length": None}), 1, BAD_LENGTH),  # type: ignore[dict-item]
    "negative length": (file(WHOLE, extra={"Content-Length": "-1"}), 1, BAD_LENGTH),
    "astronomic length": (file(WHOLE, extra={"Content-Length": "9" * 5000}), 1, BAD_LENGTH),
    "endless": (file(WHOLE, extra={"Transfer-Encoding": "chunked"}), 1, BAD_LENGTH),
    "compressed": (file(WHOLE, extra={"Content-Encoding": "gzip"}), 1, BAD_LENGTH),
    "circle": (status(302, Location=REMOTE), 31, "redirects"),
    "local file": (status(302, Location="file:///etc/passwd"), 1, "file:///etc/passwd"),
    "no address": (status(302, Location="http://["), 1, "cannot be followed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_answer_is_refused(server: Server, tmp_path: Path, case: str) -> None:
    answer, requests, words = REFUSED[case]
    server.answers[REMOTE] = [answer]
    refused(tmp_path, words, LOCAL)
    assert not (tmp_path / LOCAL).exists()
    assert len(server.requests) == requests
    assert len(parts(tmp_path)) <= (case == "longer than sent")


def test_an_archive_that_ends_early_is_refused(server: Server, tmp_path: Path) -> None:
    whole = npz()
    server.answers |= {"/cube-single-play-v0.npz": [file(whole[:-30])], "/cube-single-play-v0-val.npz": [file(whole)]}
    refused(tmp_path, "damaged at its end", "cube-single-play-v0-val.npz", name="ogbench/cube-single-play-v0")
    assert parts(tmp_path) == []


def test_https_is_not_redirected_to_http(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, certificate = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    secure = Server()
    secure.socket, secure.scheme = context.wrap_socket(secure.socket, server_side=True), "https"
    with running(secure):
        monkeypatch.setitem(sources.BASES, "d4rl", (secure.url,))
        refused(tmp_path / "a", "certificate verify failed")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        secure.answers[REMOTE] = [status(302, Location=f"{server.url}/plain")]
        refused(tmp_path / "b", f"redirects to {server.url}/plain, which is not followed")
        assert server.requests == []
        assert fetched(tmp_path / "c", secure, file(WHOLE)) == WHOLE


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.05)
    server.answers[REMOTE] = [lambda _: time.sleep(0.2)]
    refused(tmp_path, "does not answer", "in 5 tries")


def test_a_file_that_differs_from_its_first_download_is_refused(server: Server, tmp_path: Path) -> None:
    fetched(tmp_path, server, file(WHOLE))
    (tmp_path / LOCAL).unlink()
    recorded, wrong = hashlib.sha256(WHOLE).hexdigest(), hdf5(1)
    with running(Server()) as mirror:
        mirror.answers[REMOTE] = [file(wrong)]
        assert download(NAME, tmp_path, mirrors=[mirror.url]).new == {LOCAL}, "the next address has it"
    (tmp_path / LOCAL).unlink()
    server.answers[REMOTE] = [file(wrong)]
    refused(tmp_path, hashlib.sha256(wrong).hexdigest(), recorded, "remove 'hopper", "checksums.json")
    server.answers[REMOTE] = [file(hdf5(1, 500_000))]
    refused(tmp_path, "offers 50", str(len(WHOLE)))
    assert parts(tmp_path) == []


def test_a_file_that_changed_on_the_disk_is_noticed(server: Server, tmp_path: Path) -> None:
    fetched(tmp_path, server, file(WHOLE))
    path = tmp_path / LOCAL
    path.write_bytes(WHOLE[:-1])
    refused(tmp_path, str(path), f"{len(WHOLE) - 1} bytes", f"{len(WHOLE)}", "truncated", "download it again")
    path.write_bytes(hdf5(1))
    refused(tmp_path, digest(path), hashlib.sha256(WHOLE).hexdigest(), "download it again")
    assert len(server.requests) == 1


def test_a_file_put_there_by_hand_is_recorded(tmp_path: Path) -> None:
    (tmp_path / LOCAL).write_bytes(WHOLE)
    result = download(NAME, tmp_path)
    assert result.new == frozenset()
    assert "found there on" in result.summary()
    (tmp_path / LOCAL).write_bytes(WHOLE[:-1])
    refused(tmp_path, "as found on")


@pytest.mark.parametrize(
    "content",
    [
        *("", "\udcff", "[" * 100_000, "[]", "{}", '{"files": [], "sets": {}}', '{"files": {"a": {}}, "sets": {}}'),
        '{"files": {"a": {"sha256": "", "size": "1", "url": "", "date": ""}}, "sets": {}}',
    ],
)
def test_a_damaged_list_of_checksums_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "checksums.json").write_text(content, errors="surrogateescape")
    refused(tmp_path, "checksums.json", "remove it")


def test_all_addresses_are_tried_in_order(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_MIRRORS", f"{server.url}/env1/ {server.url}/env2")
    server.answers = {f"/env1{REMOTE}": [status(404)], f"/env2{REMOTE}": [status(403)], REMOTE: [status(410)]}
    text = refused(tmp_path, mirrors=[f"{server.url}/first", CLOSED])
    assert [path.removesuffix(REMOTE) for _, path, _ in server.requests] == ["/first", "/env1", "/env2", ""]
    places = [text.index(word) for word in ("/first", CLOSED, "/env1", "403 Forbidden", "410 Gone")]
    assert places == sorted(places)


def test_passwords_are_not_shown(server: Server, tmp_path: Path) -> None:
    mirror = server.url.replace("http://", "http://me:secret@") + "/data/"
    assert "secret" not in refused(tmp_path, "404", mirrors=[mirror])
    server.answers[f"/data{REMOTE}"] = [file(WHOLE)]
    download(NAME, tmp_path, mirrors=[mirror])
    assert server.requests[-1][2]["Authorization"].startswith("Basic ")
    assert "secret" not in (tmp_path / "checksums.json").read_text()


@pytest.mark.parametrize("mirror", ["file:///data", "/data", "rail.berkeley.edu", "http://[", "https://"])
def test_a_mirror_without_an_address_is_refused(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, mirror, "http", mirrors=[mirror])
    monkeypatch.setenv("GTP_VISION_MIRRORS", mirror)
    refused(tmp_path, mirror, "http")


def test_without_a_network_the_folder_for_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.BASES, "d4rl", (CLOSED, "http://no-such-host.invalid"))
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 30.0)  # not waited for
    refused(tmp_path / "to", f"put {LOCAL} into {tmp_path / 'to'} by hand", "refused", "no-such-host.invalid")
    assert parts(tmp_path / "to") == []


def test_a_place_that_cannot_be_written_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "to", str(tmp_path / "file" / "to"), "--to")
    server.answers["/can/mh/low_dim_v141.hdf5"] = [file(WHOLE)]
    (tmp_path / "can").write_text("")
    refused(tmp_path, "low_dim_v141.hdf5", "cannot be written", "--to", name="robomimic/can/mh/low_dim_v141")


def test_only_missing_and_chosen_files_are_fetched(server: Server, tmp_path: Path) -> None:
    name, first, second = "ogbench/cube-single-play-v0", "cube-single-play-v0.npz", "cube-single-play-v0-val.npz"
    server.answers = {f"/{first}": [status(404)], f"/{second}": [file(npz(1))]}
    download(name, tmp_path, pattern="*-val.npz")
    assert parts(tmp_path) == [second]
    refused(tmp_path, "no file", first, name=name, pattern="*.hdf5")
    advice = (f"put {first} into", f"gtp-vision data collect ogbench/cube-single-play --out {tmp_path}")
    refused(tmp_path, "404", *advice, name="ogbench/cube-single-play-singletask-task2-v0")
    server.answers[f"/{first}"] = [file(npz(0))]
    server.requests.clear()
    result = download(name, tmp_path)
    assert (result.new, set(result.files)) == ({first}, {first, second})
    assert [path for _, path, _ in server.requests] == [f"/{first}"]
    refused(tmp_path, "--revision", revision="main")


def test_the_command_prints_what_is_where(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = sources.d4rl_files()["antmaze-umaze-v0"]
    server.answers[f"/m/{remote}"] = [file(WHOLE)]
    words = ["data", "download", "d4rl/antmaze-umaze-v0", "--to", str(tmp_path), "--mirror", f"{server.url}/m"]
    for state in ("downloaded", "there already"):
        assert main(words) == 0
        output = capsys.readouterr().out
        assert str(tmp_path / Path(remote).name) in output
        assert state in output
    assert "AntMaze v0" in output
    assert main(["data", "download", NAME, "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gtp-vision: hopper_medium-v2.hdf5")
    assert error.count("\n") == 1


@pytest.mark.processes
def test_progress_has_rate_and_time(server: Server, tmp_path: Path) -> None:
    server.answers[REMOTE] = [file(WHOLE)]
    command = [*CLI, "data", "download", NAME, "--to", tmp_path, "--mirror", server.url]
    errors = ended(*command, environment={"TQDM_DISABLE": None})[1]
    assert "B/s" in errors
    assert "00:0" in errors
