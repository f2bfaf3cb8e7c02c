"""One file over HTTP, resumed where an earlier transfer broke off.

The bytes so far are in NAME.KEY.part, whose KEY is a hash of address, version (ETag or date) and size. So a transfer
continues only what is the beginning of the same file.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from gtp_vision.core.errors import GtpVisionError, causes
from gtp_vision.core.files import require_space
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.download.ledger import Entry, digest

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
PAUSE_SECONDS = 1.0  # before the second try; doubled before each further one
_TRIES = 5  # without progress
_PROGRESS = 1 << 20  # bytes that count as progress
_CHUNK = 1 << 16
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # statuses after which to try again
_PERMANENT = (socket.gaierror, ConnectionRefusedError, ssl.SSLError)
_MAGIC = {".hdf5": b"\x89HDF\r\n\x1a\n", ".npz": b"PK\x03\x04"}


class RefusalError(Exception):
    """Why a file cannot be downloaded from one address; another may have it."""


class _BrokenOffError(Exception):
    """A transfer that may succeed if it is tried again."""


def fetch(path: Path, urls: Sequence[str], known: Entry | None, advice: str) -> str:
    """Download a file from the first address that has it, and return that without user name and password.

    `known` is what was recorded of the file when it was downloaded before, `advice` what to do if no address has it.

    Raises:
        GtpVisionError: no address has it (with the reason of each), or the disk is full.
        OSError: the folder cannot be written.
    """
    failures, tries = [], 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Session() as session:
        for url in urls:
            while True:
                before = _part_bytes(path)
                try:
                    part = _transfer(session, url, path, known)
                    _check(part, path, known)
                    os.replace(part, path)
                    _discard_parts(path)
                    return shown(url)
                except _BrokenOffError as error:
                    tries = 1 if _part_bytes(path) - before >= _PROGRESS else tries + 1
                    if tries >= _TRIES:
                        failures.append(f"{shown(url)} ({error}, in {tries} tries)")
                        break
                    time.sleep(PAUSE_SECONDS * 2 ** (tries - 1))
                except RefusalError as error:
                    failures.append(f"{shown(url)} ({error})")
                    break
            tries = 0
    raise GtpVisionError(f"{path.name} could not be downloaded from {', nor from '.join(failures)}; {advice}")


def shown(url: str) -> str:
    """An address for messages and files: without password, on one line, of limited length."""
    address = urlsplit(url)
    netloc = address.netloc.rpartition("@")[2]
    return " ".join(address._replace(netloc=netloc, query="", fragment="").geturl().split())[:300]


class _Session(requests.Session):
    """Follows redirects, but never from https to http, and names errors by what can be done about them."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target and resp.url.startswith("https:") and not urljoin(resp.url, target).startswith("https:"):
            raise RefusalError(f"redirects to {shown(target)}, which is not followed")
        return target

    def open(self, url: str, **headers: str) -> requests.Response:
        """A response whose content is still to be read."""
        wanted = {name.replace("_", "-"): value for name, value in headers.items()} | {"Accept-Encoding": "identity"}
        try:
            return self.get(url, headers=wanted, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
        except requests.ConnectTimeout as error:
            raise RefusalError("no connection: it timed out") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            if isinstance(cause := causes(error)[-1], _PERMANENT):
                raise RefusalError(f"no connection: {cause}") from error
            raise _BrokenOffError(f"does not answer: {cause}") from error
        except (requests.RequestException, ValueError) as error:  # e.g. a redirect to file:///
            raise RefusalError(f"cannot be followed: {error}") from error


def _transfer(session: _Session, url: str, path: Path, known: Entry | None) -> Path:
    """Try once to complete a part, and return it."""
    with session.open(url) as answer:
        if answer.status_code != 200:
            failure = _BrokenOffError if answer.status_code in _TEMPORARY else RefusalError
            raise failure(f"answers {answer.status_code} {answer.reason}".strip())
        size, version = _length(answer), _version(answer)
        if known and size != known.size:
            raise RefusalError(f"offers {size} bytes, but on {known.date} it was {known.size}")
        key = hashlib.sha256(f"{url} {version} {size}".encode()).hexdigest()[:16]
        part = path.with_name(f"{path.name}.{key}.part")
        have = part.stat().st_size if version and part.exists() else 0
        require_space(path.parent, size - have, path.name, "choose another folder with --to")
        if not have:
            _receive(answer, path, part, 0, size)
    if 0 < have < size:
        with session.open(url, Range=f"bytes={have}-", If_Range=str(version)) as rest:
            place = rest.headers.get("Content-Range")
            is_rest = rest.status_code == 206 and place == f"bytes {have}-{size - 1}/{size}"
            if not is_rest or _version(rest) not in (None, version):
                part.unlink()
                raise _BrokenOffError("no longer has the file whose beginning it sent")
            _receive(rest, path, part, have, size)
    return part


def _receive(answer: requests.Response, path: Path, part: Path, have: int, size: int) -> None:
    chunks = answer.iter_content(_CHUNK)
    try:
        chunk = next(chunks, b"")
        if not have and not chunk.startswith(_MAGIC[path.suffix]):
            content = "a web page" if chunk.lstrip().startswith(b"<") else "something else"
            raise RefusalError(f"sends {content} instead of a {path.suffix} file")
        progress = Progress(total=size, initial=have, desc=path.name, unit="B", unit_scale=True)
        with part.open("ab" if have else "wb") as file, progress:
            while chunk:
                file.write(chunk)
                progress.update(len(chunk))
                chunk = next(chunks, b"")
    except requests.RequestException as error:
        raise _BrokenOffError(f"broke off at byte {_part_bytes(path)} of {size}: {causes(error)[-1]}") from error
    if part.stat().st_size != size:  # urllib3 before 2.0 does not raise
        raise _BrokenOffError(f"broke off at byte {part.stat().st_size} of {size}")


def _check(part: Path, path: Path, known: Entry | None) -> None:
    problem = ""
    if path.suffix == ".npz" and not zipfile.is_zipfile(part):
        problem = "sends a .npz file that is damaged at its end"
    elif known and (sha256 := digest(part)) != known.sha256:
        problem = f"sends sha256 {sha256}, but on {known.date} it was {known.sha256}"
    if problem:
        part.unlink()
        raise RefusalError(problem)


def _part_bytes(path: Path) -> int:
    return max((part.stat().st_size for part in path.parent.glob(f"{path.name}.*.part")), default=0)


def _discard_parts(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}.*.part"):
        part.unlink()


def _version(answer: requests.Response) -> str | None:
    etag = answer.headers.get("ETag", "W/")  # a weak one does not promise equal bytes
    return answer.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _length(answer: requests.Response) -> int:
    """Bytes of the content. Without them a truncated file would look complete."""
    length = answer.headers.get("Content-Length", "")
    is_valid = length.isascii() and length.isdigit() and len(length) < 19
    if not is_valid or {"Transfer-Encoding", "Content-Encoding"} & {name.title() for name in answer.headers}:
        raise RefusalError("does not say how many bytes the file has")
    return int(length)
