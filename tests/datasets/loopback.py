"""A web server on the loopback address that serves well, or as badly as a test asks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.download import download

Answer = Callable[[BaseHTTPRequestHandler], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.command, self.path, dict(self.headers)))
            answer = self.server.answer(self.command, self.path.partition("?")[0], body)
        with suppress(ConnectionError):  # who asked went away
            answer(self)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # this also makes the base class close it
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Answers by path; of several answers each is given once, in order, and the last one ever after."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """What a request gets, for subclasses that know more than `answers`."""
        answers = self.answers.get(path, [status(404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each request for a path."""
        return [headers.get("Range") for method, asked, headers in self.requests if (method, asked) == ("GET", path)]


@contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def status(code: int, content: bytes = b"", **headers: str) -> Answer:
    """An answer with a status and headers, whose underscores are hyphens."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    return answer


def file(
    content: bytes,
    *,
    etag: str | None = '"1"',
    modified: str | None = None,
    stop: int | None = None,
    claim: int | None = None,
    ranges: bool = True,
    obeys_if_range: bool = True,
    extra: dict[str, str] | None = None,
) -> Answer:
    """A file with an ETag, a date and more headers (`extra`).

    The connection breaks off after `stop` bytes of the body; `claim` is sent as the Content-Length; `ranges=False`
    sends the whole file on every request; `obeys_if_range=False` sends the part of another file, too.
    """

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start, last, asked, known = 0, len(content) - 1, handler.headers.get("Range"), handler.headers.get("If-Range")
        if asked and ranges and (known in (None, etag, modified) or not obeys_if_range):
            first, _, end = asked.removeprefix("bytes=").partition("-")
            start, last = int(first), int(end or last)
        if start and start >= len(content):
            return status(416, Content_Range=f"bytes */{len(content)}")(handler)
        body = content[start : last + 1]
        is_part = len(body) < len(content)
        handler.send_response(206 if is_part else 200)
        if is_part:
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        headers = {"ETag": etag, "Last-Modified": modified, "Content-Length": str(claim or len(body))} | (extra or {})
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body[:stop])

    return answer


def refused(folder: Path, *words: str, name: str, **options: Any) -> str:
    """The message that refuses a download into a folder: one line that contains the words."""
    with pytest.raises(GtpVisionError) as raised:
        download(name, folder, **options)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    return message
