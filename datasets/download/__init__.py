"""Published data sets by name: downloaded once, resumed where a transfer broke off, and checked."""

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
    """The files of a set by their path below the folder, those that are new, and what the user should know of it."""

    folder: Path
    files: dict[str, Entry]
    new: frozenset[str]
    note: str = ""

    def summary(self) -> str:
        """A line per file, or one for many."""
        if len(self.files) > _SHOWN:
            size, how = sum(entry.size for entry in self.files.values()), "downloaded" if self.new else "there already"
            lines = [f"{self.folder}: {len(self.files)} files, {size / 1e6:.1f} MB, {how}"]
        else:
            lines = [self._line(name, entry) for name, entry in self.files.items()]
        return "\n".join([*lines, self.note] if self.note else lines)

    def _line(self, name: str, entry: Entry) -> str:
        since = f"downloaded on {entry.date}" if entry.url else f"found there on {entry.date}"
        how = "downloaded" if name in self.new else f"there already, unchanged since it was {since}"
        return f"{self.folder / name}: {entry.size / 1e6:.1f} MB, {how}"


def download(
    name: str,
    folder: Path | None = None,
    *,
    mirrors: Sequence[str] = (),
    revision: str | None = None,
    pattern: str | None = None,
) -> Downloaded:
    """Download what is missing of a published data set, and compare the rest with the checksums of its first download.

    Names are as in `sources.find`; without a `folder` it is where the data set's own library looks. `mirrors` are
    addresses of the server's folder or of the hub, tried before all others; `revision` is a branch, tag or commit of
    the hub. Only files that match `pattern`, such as `*-val.npz`, are downloaded.

    Raises:
        GtpVisionError: the name is unknown, no address has the set, or a file has changed.
    """
    source = find(name, folder)
    usual = os.environ.get("GTP_VISION_MIRRORS", "").split()
    for mirror in (*mirrors, *usual):
        _check_address(mirror)
    ledger = Ledger(Path(os.path.expanduser(source.folder)))
    if not isinstance(source, Files):
        with ledger:
            patterns = (pattern,) if pattern else source.patterns
            entries, is_new = hub.fetch(source, ledger, revision, patterns, mirrors)
        return Downloaded(ledger.folder, entries, frozenset(entries if is_new else ()))
    if revision:
        raise GtpVisionError(f"--revision is for sets of the Hugging Face hub; {name} has none")
    files = {remote: local for remote, local in source.files.items() if fnmatch.fnmatch(local, pattern or "*")}
    if not files:
        raise GtpVisionError(f"no file of {name} matches '{pattern}': they are {', '.join(source.files.values())}")
    with ledger:
        new = _fetch_missing(ledger, files, [*mirrors, *usual, *source.bases], source.instead)
        entries = {local: ledger.files[local] if local in new else ledger.verify(local) for local in files.values()}
    return Downloaded(ledger.folder, entries, new, source.note)


def _fetch_missing(ledger: Ledger, files: dict[str, str], bases: Sequence[str], instead: str) -> frozenset[str]:
    missing = {remote: local for remote, local in files.items() if not (ledger.folder / local).exists()}
    waiting = list(missing.values())
    for remote, local in missing.items():
        known = ledger.files.get(local)
        advice = f"put {' and '.join(waiting)} into {ledger.folder} by hand{instead}"
        if known:
            advice += f", or remove '{local}' from {ledger.path.name} there if it is meant to be another file now"
        path, urls = ledger.folder / local, [f"{base.rstrip('/')}/{remote}" for base in bases]
        try:
            ledger.add({local: Entry.of(path, transfer.fetch(path, urls, known, advice))})
        except OSError as error:
            raise GtpVisionError(f"{path} cannot be written ({error}); choose another folder with --to") from error
        waiting.remove(local)
    return frozenset(missing.values())


def _check_address(mirror: str) -> None:
    try:
        address = urlsplit(mirror)
        is_valid = address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise GtpVisionError(f"the mirror '{mirror}' is not an address; write http://... or https://...")
