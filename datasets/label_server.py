"""The local page of `gtp-vision data label`: the page of `data view`, with keys that label its episodes.

    GET  /TOKEN/?from=N   the page of some episodes, from number N on
    POST /TOKEN/label     {"episode": 3, "success": true, "frame": 31, "seen": 7} to {"label": ..., "counts": ...}

It listens on the loopback address. Other users and other pages in the browser are kept out by a random token in the
address, and by comparing Host and Origin, which names of the network that lead to this machine do not pass. A label
that another page has set since is not replaced: the answer has status 409 and that label.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.safe_json import parse_json
from gtp_vision.datasets import labels, viewing
from gtp_vision.datasets.labels import ConflictError, Label, Labels
from gtp_vision.datasets.store import Store

EPISODES = 10
"""Episodes of one page."""
_MAX_BODY = 4096  # bytes of a request
_DISCARDED = 256  # reads of _MAX_BODY bytes of a refused request
_SECONDS = 30.0  # that a client may take for a request
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


class LabelServer(ThreadingHTTPServer):
    """Serves the pages of a data set until it is shut down.

    Args:
        found: the facts of `inspection.inspect`.
        store: the data set, opened without labels.
        path: the file of labels.
        port: 0 takes any free one.
        episodes: of one page.

    Raises:
        GtpVisionError: the labels cannot be read or written; the port is taken.
    """

    daemon_threads = True

    def __init__(
        self, found: Mapping[str, Any], store: Store, path: Path, port: int = 0, episodes: int = EPISODES
    ) -> None:
        with labels.writing(path):  # rather now than at the first label
            labels.read(path)
        self.found, self.store, self.path, self.count = dict(found), store, path, episodes
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise GtpVisionError(f"port {port} cannot be opened ({error.strerror}); choose another --port") from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def hosts(self) -> list[str]:
        """What a browser on this machine calls it."""
        return [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]

    def counts(self, held: Labels) -> dict[str, int]:
        """How many episodes are labelled how."""
        marks = [label.success for label in held.of(self.store).values()]
        return {"success": marks.count(True), "failed": marks.count(False), "episodes": self.store.episodes}

    def page(self, first: int) -> str:
        """The page from an episode on."""
        held = labels.read(self.path)
        shown = range(first, min(first + self.count, self.store.episodes))
        known = held.of(self.store)
        labelling = {
            "numbers": list(shown),
            "labels": {str(number): known[number].record() for number in shown if number in known},
            "counts": self.counts(held),
            "previous": max(0, first - self.count) if first else None,
            "next": shown.stop if shown.stop < self.store.episodes else None,
        }
        return viewing.page(self.found, self.store, list(shown), [], labelling)

    def save(self, request: Mapping[str, Any]) -> tuple[HTTPStatus, dict[str, Any]]:
        """Set a label as a page asks to, and return the status and content of the answer."""
        try:
            number, seen, frame, success = (request[key] for key in ("episode", "seen", "frame", "success"))
            whole = [value for value in (number, seen, frame) if value is not None]
            if number is None or seen is None or any(type(value) is not int for value in whole):
                raise ValueError("not whole numbers")
            if success not in (True, False, None) or type(success) is int:
                raise ValueError("not a label")
            if not 0 <= number < self.store.episodes or seen < 0:
                raise ValueError("not an episode")
            if (
                frame is not None
                and not 0 <= frame < self.store.episode_ends[number] - self.store.episode_starts[number]
            ):
                raise ValueError("not a frame of the episode")
        except (KeyError, TypeError, ValueError) as error:
            return HTTPStatus.BAD_REQUEST, {"error": f"this is not a request of the page ({error})"}
        try:
            label = {number: Label(success, frame if success else None)}
            held = labels.set_labels(self.path, self.store, label, "keys", seen={number: seen})
        except ConflictError as error:
            held = labels.read(self.path)
            return HTTPStatus.CONFLICT, {"label": error.label.record(), "counts": self.counts(held)}
        except GtpVisionError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
        return HTTPStatus.OK, {"label": held.episodes[number].record(), "counts": self.counts(held)}


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    server_version, sys_version = "gtp-vision", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        place = self._place()
        if place is None:
            return
        if place != "":
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing here")
            return
        text = parse_qs(urlsplit(self.path).query).get("from", ["0"])[0]
        first = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        if first >= self.server.store.episodes:
            first = 0
        self._answer(HTTPStatus.OK, self.server.page(first), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        place = self._place()
        if place is None:
            return
        length, origin = self.headers.get("Content-Length", ""), self.headers.get("Origin")
        if place != "label":
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing here")
        elif origin not in [f"http://{host}" for host in self.server.hosts()]:
            self._answer(HTTPStatus.FORBIDDEN, "another page may not set labels")
        elif self.headers.get_content_type() != "application/json":
            self._answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        elif not (length.isascii() and length.isdigit()):
            self._answer(HTTPStatus.LENGTH_REQUIRED, "say how long the request is")
        elif len(length) > 9 or int(length) > _MAX_BODY:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY} bytes are read")
        else:
            self._save(self.rfile.read(int(length)))

    def _save(self, body: bytes) -> None:
        try:
            request = parse_json(body, "the request")
        except GtpVisionError as error:
            status, content = HTTPStatus.BAD_REQUEST, dict[str, Any](error=str(error))
        else:
            status, content = self.server.save(request)
        self._answer(status, json.dumps(content), "application/json")

    def _place(self) -> str | None:
        """The path below the token; None, and an answer, for a request that does not come from the page."""
        if self.headers.get("Host") not in self.server.hosts():
            self._answer(HTTPStatus.FORBIDDEN, "open the page by the address that gtp-vision printed")
            return None
        token, _, place = urlsplit(self.path).path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            self._answer(HTTPStatus.NOT_FOUND, "open the page by the address that gtp-vision printed")
            return None
        return place

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def finish(self) -> None:
        """Discard what is left of a refused request: closing beside unread bytes resets, and loses the answer."""
        with contextlib.suppress(OSError, ValueError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            for _ in range(_DISCARDED):
                if not self.connection.recv(_MAX_BODY):
                    break
        super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is logged: the address holds the token."""
