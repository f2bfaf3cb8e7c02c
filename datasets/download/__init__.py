"""Published data sets by name, downloaded once, resumed where a transfer broke off, and checked."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.download import hub, transfer
from gtp_vision.datasets.download.ledger import Entry, Ledger
from gtp_vision.datasets.download.sources import Files, find

_SHOWN = 8


@dataclass(frozen=True)
class Downloaded:
    """What a download ended with.

    Attributes:
        folder: where the files are.
        files: path below the folder to what is recorded of it.
        new: the files that were not there before.
        note: what whoever asked for this set should know; empty if nothing.
    """

    folder: Path
    files: dict[str, Entry]
    new: frozenset[str]
    note: str = ""

    def told(self) -> str:
        """A line for each file, or one for many."""
        if len(self.files) > _SHOWN:
            size = sum(entry.size for entry in self.files.values())
            how = "downloaded" if self.new else "there already, as recorded in checksums.json"
            lines = [f"{self.folder}: {len(self.files)} files, {size / 1e6:.1f} MB, {how}"]
        else:
            lines = [self._line(name, entry) for name, entry in self.files.items()]
        return "\n".join([*lines, self.note] if self.note else lines)

    def _line(self, name: str, entry: Entry) -> str:
        came = f"downloaded on {entry.date}" if entry.url else f"found there on {entry.date}"
        how = "downloaded" if name in self.new else f"there already, unchanged since it was {came}"
        return f"{self.folder / name}: {entry.size / 1e6:.1f} MB, {how}"


def download(
    name: str,
    folder: Path | None = None,
    *,
    mirrors: Sequence[str] = (),
    revision: str | None = None,
    pattern: str | None = None,
) -> Downloaded:
    """Make a published data set stand in a folder.

    A file that is there is compared with the checksum of its first download and not downloaded again.

    Args:
        name: see `sources.find`.
        folder: None is where the data set's own library looks for it.
        mirrors: addresses that are tried before all others: of the server's folder, or of the hub.
        revision: branch, tag or commit, of sets of the hub.
        pattern: only files whose names match, such as `*-val.npz`.

    Raises:
        GtpVisionError: unknown name; no address has it; a file is not what it was.
    """
    found = find(name, folder)
    place = found.folder.expanduser()
    for mirror in mirrors:
        _check_address(mirror)
    if not isinstance(found, Files):
        ledger = Ledger(place)
        with ledger.lock():
            patterns = (pattern,) if pattern else found.patterns
            entries, fresh = hub.fetch(found, ledger, revision, patterns, mirrors)
        return Downloaded(place, entries, frozenset(entries if fresh else ()))
    if revision:
        raise GtpVisionError(f"--revision is for sets of the Hugging Face hub; {name} has none")
    files = {remote: local for remote, local in found.files.items() if fnmatch.fnmatch(local, pattern or "*")}
    if not files:
        raise GtpVisionError(f"no file of {name} matches '{pattern}': they are {', '.join(found.files.values())}")
    bases = [*mirrors, *_mirrors_of_environment(), *found.bases]
    ledger = Ledger(place)
    with ledger.lock():
        new = _fetch_missing(ledger, files, bases)
        entries = {local: new.get(local) or ledger.verify(local) for local in files.values()}
    return Downloaded(place, entries, frozenset(new), found.note)


def _fetch_missing(ledger: Ledger, files: dict[str, str], bases: Sequence[str]) -> dict[str, Entry]:
    new: dict[str, Entry] = {}
    for remote, local in files.items():
        path = ledger.folder / local
        if path.exists():
            continue
        missing = " and ".join(other for other in files.values() if not (ledger.folder / other).exists())
        known = ledger[local]
        mend = f"put {missing} into {ledger.folder} by hand"
        if known:
            mend += f", or remove '{local}' from {ledger.path.name} there if it is meant to be another file now"
        urls = [f"{base.rstrip('/')}/{remote}" for base in bases]
        new[local] = ledger.record(local, transfer.fetch(path, urls, known, mend))
    return new


def _mirrors_of_environment() -> list[str]:
    found = os.environ.get("GTP_VISION_MIRRORS", "").split()
    for mirror in found:
        _check_address(mirror)
    return found


def _check_address(mirror: str) -> None:
    try:
        address = urlsplit(mirror)
        whole = address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:
        whole = False
    if not whole:
        raise GtpVisionError(f"the mirror '{mirror}' is no address; write http://... or https://...")
