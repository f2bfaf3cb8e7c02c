"""Data sets of the Hugging Face hub, downloaded by huggingface_hub and compared with the checksums of the hub.

huggingface_hub resumes transfers and compares sizes, but not the checksums, which the hub publishes for every file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import require_space
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.download.ledger import Entry, Ledger, digest
from gtp_vision.datasets.download.sources import Repository
from gtp_vision.datasets.download.transfer import CONNECT_SECONDS, RefusalError, shown


def fetch(
    source: Repository, ledger: Ledger, revision: str | None, patterns: Sequence[str], mirrors: Sequence[str]
) -> tuple[dict[str, Entry], bool]:
    """Download the files of a repository into the ledger's folder, in the version of their first download.

    Returns the files by their path below the folder, and whether anything was downloaded. Without a `revision` it is
    the newest at the first download, and the same one ever after. Without `patterns` all files are wanted; `mirrors` of
    the hub are tried before HF_ENDPOINT.

    Raises:
        GtpVisionError: no address has it (with the reason of each), or a file is not what the hub published.
    """
    from huggingface_hub import constants, errors

    key = "".join([f"hf://datasets/{source.name}@{revision or 'main'}", *(f" {pattern}" for pattern in patterns)])
    commit, names = ledger.sets.get(key, (revision, []))
    if names and all((ledger.folder / name).is_file() for name in names):
        return {name: ledger.verify(name) for name in names}, False
    failures = []
    for endpoint in (*mirrors, None):
        try:
            entries, found = _snapshot(source.name, ledger, commit, patterns, endpoint)
        except GtpVisionError:
            raise
        except Exception as error:  # huggingface_hub lets those of its transport through, other ones in each version
            reason = f"{type(error).__name__}: {error}".removeprefix("RefusalError: ")
            reason = " ".join(reason.split())[:400]
            if isinstance(error, errors.RepositoryNotFoundError):
                reason += " If it is private or gated, accept its terms on its page and set HF_TOKEN."
            failures.append(f"{shown(endpoint or constants.ENDPOINT)} ({reason})")
        else:
            ledger.add(entries, key, found)
            return entries, True
    wanted = ", ".join(patterns) or "the files of the repository"
    raise GtpVisionError(
        f"{source.name} could not be downloaded from {', nor from '.join(failures)}; put {wanted}, with the folders "
        f"they have there, into {ledger.folder} by hand"
    )


def _snapshot(
    name: str, ledger: Ledger, revision: str | None, patterns: Sequence[str], endpoint: str | None
) -> tuple[dict[str, Entry], str]:
    """Download from one address; the files, and the commit that they are of."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi(endpoint=endpoint, token=None if endpoint is None else False)  # a mirror does not get the token
    allowed = list(patterns) or None
    commit = str(api.dataset_info(name, revision=revision, timeout=CONNECT_SECONDS).sha)
    tree = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
    files = {file.path: file for file in tree if isinstance(file, RepoFile)}
    files = {path: files[path] for path in filter_repo_objects(files, allow_patterns=allowed)}
    if not files:
        raise RefusalError(f"has no file {', '.join(patterns)}" if patterns else "has no files")
    for path in files:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or parts[0] in (".cache", "checksums.json"):
            raise RefusalError(f"names a file '{path[:100]}', which would leave its folder")
    url = f"hf://datasets/{name}@{commit}"
    missing = {path for path in files if not (ledger.folder / path).is_file()}
    for path in files.keys() - ledger.files.keys() - missing:  # the user's own, which the library would replace
        _check(ledger, path, files[path], url)
    space = sum(files[path].size for path in missing)
    require_space(ledger.folder, space, name, "choose another folder with --to")
    api.snapshot_download(
        name,
        repo_type="dataset",
        revision=commit,
        local_dir=ledger.folder,
        allow_patterns=allowed,
        tqdm_class=Progress,
    )
    return {path: _check(ledger, path, file, url) for path, file in files.items()}, commit


def _check(ledger: Ledger, name: str, file: Any, url: str) -> Entry:
    """The entry of a downloaded file, if it is what the hub published."""
    path = ledger.folder / name
    entry = Entry.of(path, f"{url}/{name}")
    if file.lfs:
        ours, published = entry.sha256, file.lfs.sha256
    else:  # a small file has git's checksum
        ours, published = digest(path, "sha1", b"blob %d\0" % entry.size), file.blob_id
    if ours != published:
        raise GtpVisionError(
            f"{path} has checksum {ours}, but {url} publishes {published}: it is damaged or another file; remove it, "
            f"or choose another folder with --to, and download it again"
        )
    return entry
