"""One file over HTTP, which goes on where it broke off: a downloader for pooch, whose own begins anew.

What has arrived stands in NAME.part, and in NAME.part.json what it is a part of: a transfer only goes on when the
server says (ETag or date, range and size) that it is still the same file.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import require_space
from gtp_vision.datasets.download.ledger import Entry, digest

if TYPE_CHECKING:
    from requests import Response

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
PAUSE_SECONDS = 1.0  # before the second try; twice as long before each one after it
_TRIES = 5  # without progress
_PROGRESS = 1 << 20  # bytes that make a try count as progress
_CHUNK = 1 << 16
_HOPS = 10
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NEXT_SCHEMES = {"http": ("http", "https"), "https": ("https",)}
_MAGIC = {".hdf5": b"\x89HDF\r\n\x1a\n", ".npz": b"PK\x03\x04"}


class RefusalError(Exception):
    """Why a file does not come from one address; another may have it."""


class _BrokenOffError(Exception):
    """A transfer that may go better when it is tried again."""


def fetch(path: Path, urls: Sequence[str], known: Entry | None, mend: str) -> str:
    """Download a file from the first address that has it.

    Args:
        path: where it belongs; nothing stands there yet.
        urls: addresses, tried in this order.
        known: what the file was when it was downloaded before.
        mend: what to do when no address has it.

    Returns:
        The address that it came from, without user name and password.

    Raises:
        GtpVisionError: no address has it, each with its reason; the folder cannot be written.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    failures = []
    for url in urls:
        try:
            pooch.retrieve(
                url,
                known_hash=known and f"sha256:{known.sha256}",
                fname=path.name,
                path=path.parent,
                downloader=Resuming(path, known),
            )
            return shown(url)
        except RefusalError as refusal:
            failures.append(f"{shown(url)} ({refusal})")
        except OSError as error:
            raise GtpVisionError(
                f"{path} cannot be written ({error.strerror}); make room or name another folder with --to"
            ) from error
    raise GtpVisionError(f"{path.name} could not be downloaded from {', nor from '.join(failures)}; {mend}")


def shown(url: str) -> str:
    """An address as it may stand in messages and files: without password, on one line, not endless."""
    whole = urlsplit(url)
    netloc = whole.netloc.rpartition("@")[2]
    return " ".join(whole._replace(netloc=netloc, query="", fragment="").geturl().split())[:300]


class Resuming:
    """A downloader as pooch wants it.

    Args:
        path: where the file will stand; its parts stand beside it.
        known: what the file was when it was downloaded before.
    """

    def __init__(self, path: Path, known: Entry | None = None) -> None:
        self.path, self.known = path, known
        self.part = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")

    def __call__(self, url: str, output_file: str, pooch: Any = None) -> None:
        """Download and check the file.

        Raises:
            RefusalError: the address does not give the file.
        """
        tries = 0
        while True:
            before = self._arrived()
            try:
                self._attempt(url)
                break
            except _BrokenOffError as error:
                tries = 1 if self._arrived() - before >= _PROGRESS else tries + 1
                if tries >= _TRIES:
                    raise RefusalError(f"{error}, in {tries} tries") from error
                time.sleep(PAUSE_SECONDS * 2 ** (tries - 1))
        self._check()
        os.replace(self.part, output_file)
        self.note.unlink(missing_ok=True)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self, url: str) -> None:
        import requests

        note = self._noted(url)
        have = self._arrived() if note else 0
        if note and have == note["size"]:
            return
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
        with requests.Session() as session, _followed(session, url, headers) as response:
            start = self._start(response, have, note)
            total = start + _length(response)
            if self.known and total != self.known.size:
                raise RefusalError(f"offers {total} bytes, where on {self.known.date} there were {self.known.size}")
            try:
                require_space(self.path.parent, total - start, self.path.name, "name another folder with --to")
            except GtpVisionError as error:
                raise RefusalError(str(error)) from error
            self._receive(response, url, start, total)

    def _start(self, response: Response, have: int, note: dict[str, Any]) -> int:
        """The byte at which the response goes on."""
        status = response.status_code
        if status in _PASSING:
            raise _BrokenOffError(f"answers {_named(status)}")
        if status == 200:
            return 0
        if have and status in (206, 416):
            same = _validator(response) in (None, note["validator"])
            if status == 206 and same and response.headers.get("Content-Range") == _range(have, note["size"]):
                return have
            self._drop()
            raise _BrokenOffError("no longer has the file whose beginning it sent")
        raise RefusalError(f"answers {_named(status)}")

    def _receive(self, response: Response, url: str, start: int, total: int) -> None:
        import requests

        arrived = start
        try:
            chunks = response.iter_content(_CHUNK)
            first = next(chunks, b"")
            if not start:
                self._begin(first, response, url, total)
            with (
                self.part.open("ab") as file,
                tqdm(total=total, initial=start, desc=self.path.name, unit="B", unit_scale=True) as bar,
            ):
                for chunk in itertools.chain([first], chunks):
                    file.write(chunk)
                    arrived += len(chunk)
                    bar.update(len(chunk))
        except requests.RequestException as error:
            raise _BrokenOffError(f"broke off at byte {arrived} of {total}: {_root(error)}") from error
        if arrived != total:  # urllib3 before 2.0 ends quietly
            raise _BrokenOffError(f"broke off at byte {arrived} of {total}")

    def _begin(self, first: bytes, response: Response, url: str, total: int) -> None:
        """Start a part anew, if what arrives is the kind of file that was asked for."""
        if not first.startswith(_MAGIC[self.path.suffix]):
            seen = "a web page" if first.lstrip().startswith(b"<") else "something else"
            raise RefusalError(f"sends {seen} instead of a {self.path.suffix} file")
        self._drop()
        self.part.touch()
        validator = _validator(response)
        if validator:
            self.note.write_text(json.dumps({"url": url, "validator": validator, "size": total}))

    def _noted(self, url: str) -> dict[str, Any]:
        """What the part is a part of, if it is one of this address."""
        try:
            note = json.loads(self.note.read_bytes())
            whole = note["url"] == url and isinstance(note["validator"], str) and isinstance(note["size"], int)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        return note if whole and self.part.exists() and self._arrived() <= note["size"] else {}

    def _check(self) -> None:
        if self.path.suffix == ".npz" and not zipfile.is_zipfile(self.part):
            self._drop()
            raise RefusalError("sends a .npz file that is damaged at its end")
        if self.known and (sha256 := digest(self.part)) != self.known.sha256:
            self._drop()
            raise RefusalError(f"sends sha256 {sha256}, where on {self.known.date} it was {self.known.sha256}")

    def _drop(self) -> None:
        self.note.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)


def _followed(session: Any, url: str, headers: dict[str, str]) -> Response:
    """The response at the end of redirections, none of which leads from https to http or out of the web."""
    import requests

    for _ in range(_HOPS):
        try:
            response = session.get(
                url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS), allow_redirects=False
            )
            target = urljoin(url, response.headers["Location"]) if response.is_redirect else ""
        except requests.RequestException as error:
            root = _root(error)
            met = isinstance(error, requests.ReadTimeout) or isinstance(root, (ConnectionResetError, BrokenPipeError))
            if met or isinstance(root, http.client.HTTPException):
                raise _BrokenOffError(f"does not answer: {root}") from error
            raise RefusalError(f"no connection: {root}") from error
        except ValueError as error:
            raise RefusalError("redirects to an address that is none, which is not followed") from error
        if not target:
            return response
        response.close()
        if urlsplit(target).scheme not in _NEXT_SCHEMES[urlsplit(url).scheme]:
            raise RefusalError(f"redirects to {shown(target)}, which is not followed")
        url = target
    raise RefusalError(f"redirects more than {_HOPS} times")


def _length(response: Response) -> int:
    """Bytes that will come. Without it a file that was cut short could not be told from a whole one."""
    told = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    if not re.fullmatch(r"[0-9]{1,18}", told) or "Transfer-Encoding" in response.headers or not plain:
        raise RefusalError("does not say how many bytes the file has")
    return int(told)


def _range(start: int, size: int) -> str:
    return f"bytes {start}-{size - 1}/{size}"


def _validator(response: Response) -> str | None:
    """What names this very content in If-Range: a strong ETag, else the date."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _named(status: int) -> str:
    return f"{status} {http.client.responses.get(status, '')}".strip()


def _root(error: BaseException) -> BaseException:
    """What happened, below the layers of the libraries in between."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error
