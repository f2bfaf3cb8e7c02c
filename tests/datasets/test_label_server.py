"""The server of the labelling page: requests of any kind against a real server, and a real browser."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, chromium
from stores import make_store

from gtp_vision.datasets.inspection import facts
from gtp_vision.datasets.label_server import LabelServer
from gtp_vision.datasets.labels import Label, read, set_labels
from gtp_vision.datasets.store import Store


@pytest.fixture
def store() -> Store:
    store = make_store([8, 4, 5, 6, 3], cameras={"front": (16, 16, 3)})
    store.observations["front"][:] = (np.arange(26) * 9)[:, None, None, None]
    return store


@pytest.fixture
def server(tmp_path: Path, store: Store) -> Iterator[LabelServer]:
    found = {"path": "data.h5", "format": "native", "title": "gtp-vision HDF5"} | facts(store)
    with LabelServer(found, store, tmp_path / "data.h5.labels.json", episodes=3) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(
    server: LabelServer, method: str, place: str = "", body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, f"/{server.token}/{place}" if not place.startswith("/") else place, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def post(server: LabelServer, content: Any, **headers: str) -> tuple[int, Any]:
    own = {"Origin": f"http://127.0.0.1:{server.server_port}", "Content-Type": "application/json"}
    status, text = ask(server, "POST", "label", json.dumps(content).encode(), **(own | headers))
    return status, json.loads(text) if text.startswith("{") else text


def request(episode: int, success: bool | None, frame: int | None = None, seen: int = 0) -> dict[str, Any]:
    return {"episode": episode, "success": success, "frame": frame, "seen": seen}


def test_a_label_is_saved_and_counted(server: LabelServer, store: Store) -> None:
    status, answer = post(server, request(1, True, frame=2))
    assert status == 200
    assert answer["counts"] == {"success": 1, "failed": 0, "episodes": 5}
    assert read(server.path).of(store)[1].frame == 2
    status, answer = post(server, request(1, None, seen=answer["label"]["version"]))
    assert (status, answer["counts"]["success"]) == (200, 0)
    assert read(server.path).of(store)[1].success is None


def test_a_label_that_another_page_set_is_not_replaced_unseen(server: LabelServer, store: Store) -> None:
    assert post(server, request(0, True))[0] == 200
    status, answer = post(server, request(0, False))
    assert (status, answer["label"]["success"]) == (409, True)
    assert read(server.path).of(store)[0].success is True
    assert post(server, request(4, False))[0] == 200, "other episodes are no conflict"
    assert post(server, request(0, False, seen=answer["label"]["version"]))[0] == 200
    assert read(server.path).of(store)[0].success is False


def test_pages_show_a_part_of_the_episodes_and_what_is_known(server: LabelServer, store: Store) -> None:
    set_labels(server.path, store, {3: Label(False)}, "keys")
    for query, numbers, around in (
        ("", [0, 1, 2], (None, 3)),
        ("?from=3", [3, 4], (0, None)),
        ("?from=99", [0, 1, 2], None),
    ):
        status, text = ask(server, "GET", query)
        values = json.loads(text.split('id="labelling-values">')[1].split("</script>")[0])
        assert (status, values["numbers"]) == (200, numbers)
        assert around is None or (values["previous"], values["next"]) == around
        assert ("3" in values["labels"]) == (3 in numbers)


def test_requests_of_others_are_refused(server: LabelServer) -> None:
    right = json.dumps(request(0, True)).encode()
    own = {"Origin": f"http://127.0.0.1:{server.server_port}", "Content-Type": "application/json"}
    for status, method, place, body, headers in (
        (404, "GET", "/", None, {}),
        (404, "GET", f"/{server.token[:-1]}/", None, {}),
        (404, "GET", "../../etc/passwd", None, {}),
        (403, "GET", "", None, {"Host": f"evil.example:{server.server_port}"}),
        (403, "POST", "label", right, own | {"Host": "evil.example"}),
        (403, "POST", "label", right, {"Content-Type": "application/json"}),
        (403, "POST", "label", right, own | {"Origin": "http://evil.example"}),
        (403, "POST", "label", right, own | {"Origin": "null"}),
        (415, "POST", "label", right, own | {"Content-Type": "text/plain"}),
        (404, "POST", "other", right, own),
        (413, "POST", "label", b" " * 5000, own),
        (413, "POST", "label", b"", own | {"Content-Length": "9" * 30}),
        (411, "POST", "label", b"", own | {"Content-Length": "-1"}),
        (501, "PUT", "label", right, own),
    ):
        assert ask(server, method, place, body, **headers)[0] == status, (method, place, headers)
    for content in (
        [],
        {},
        request(5, True),
        request(-1, True),
        request(0, True, frame=8),
        request(0, True, frame=-1),
        request(0, True, seen=-1),
        {**request(0, True), "success": "yes"},
        {**request(0, True), "success": 1},
        {**request(0, True), "episode": True},
        {**request(0, True), "episode": 1e99},
        {**request(0, True), "episode": None},
    ):
        assert post(server, content)[0] == 400, content
    assert not server.path.exists()


def test_a_file_that_cannot_be_written_is_said_in_the_page(server: LabelServer) -> None:
    server.path.write_text("{}")
    status, answer = post(server, request(0, True))
    assert status == 500
    assert "does not hold labels of episodes" in answer["error"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.browser
def test_keys_label_episodes_and_two_pages_lose_nothing(browser: Browser, server: LabelServer, store: Store) -> None:
    press = "(key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    label = "document.getElementById('label').textContent"
    trouble = "document.getElementById('trouble').textContent"
    with browser.page(server.address) as page:
        assert page.run(label) == "Episode 0: unknown"
        for _ in range(3):
            page.run(f"({press})('ArrowRight')")
        page.run(f"({press})('m')")
        page.until(f"{label} === 'Episode 0: success from frame 3 on (by keys)'")
        page.run(f"({press})('ArrowDown')")
        page.run(f"({press})('f')")
        page.until(f"{label} === 'Episode 2: unknown'")  # the next one, once the label is saved
        assert page.run("document.getElementById('progress').textContent") == "2 of 5 labelled"
        set_labels(server.path, store, {2: Label(False)}, "another page")
        page.run(f"({press})('s')")
        page.until(f"{trouble}.includes('labelled failed (by another page) in another page meanwhile')")
        assert read(server.path).of(store)[2].success is False
        page.run("document.querySelector('[data-key=s]').click()")
        page.until("location.search === '?from=3' && document.readyState === 'complete'")
        assert page.run(label) == "Episode 3: unknown"
        assert page.spill() == 0
        assert [text for text in page.complaints() if "409" not in text] == []
        assert all(url.startswith(server.address) for url in page.requests())
        found = {number: (known.success, known.frame) for number, known in read(server.path).of(store).items()}
        assert found == {0: (True, 3), 1: (False, None), 2: (True, None)}
        server.path.write_text("{}")
        page.run(f"({press})('f')")
        page.until(f"{trouble}.startsWith('Episode 3 was not saved: ')")
        server.path.unlink()
        server.shutdown()
        server.server_close()
        page.run(f"({press})('f')")
        page.until(f"{trouble}.includes('the server does not answer')")
