"""Data sets of the Hugging Face hub: listed, fetched by huggingface_hub, and checked against what the hub published.

huggingface_hub resumes and compares sizes; the checksums, which the hub publishes for every file, are compared here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import require_space
from gtp_vision.datasets.download.ledger import Entry, Ledger, digest
from gtp_vision.datasets.download.sources import Repository
from gtp_vision.datasets.download.transfer import CONNECT_SECONDS, RefusalError, shown


def fetch(
    found: Repository, ledger: Ledger, revision: str | None, patterns: Sequence[str], mirrors: Sequence[str]
) -> tuple[dict[str, Entry], bool]:
    """Make the files of a repository stand in the ledger's folder, as they were when they were first downloaded.

    Args:
        found: the repository.
        ledger: of the folder.
        revision: branch, tag or commit; None is the newest at the first download, and the same one ever after.
        patterns: of the files that are wanted; none is all.
        mirrors: other addresses of the hub, tried before HF_ENDPOINT.

    Returns:
        The files by their path below the folder, and whether anything was downloaded.

    Raises:
        GtpVisionError: no address has it, each with its reason; a file is not what the hub published.
    """
    key = "".join([f"hf://datasets/{found.name}@{revision or 'main'}", *(f" {pattern}" for pattern in patterns)])
    recorded = ledger.commit(key)
    if recorded and all((ledger.folder / name).is_file() for name in recorded[1]):
        return {name: ledger.verify(name) for name in recorded[1]}, False
    wanted = recorded[0] if recorded else revision
    failures = []
    for endpoint in (*mirrors, None):
        try:
            commit, listed = _listed(found.name, wanted, patterns, endpoint)
            for name, file in listed.items():  # huggingface_hub would replace whatever stands there
                if (ledger.folder / name).is_file() and not ledger[name]:
                    _checked(ledger.folder, name, file, found.name, commit)
            _snapshot(found.name, commit, patterns, endpoint, ledger.folder, listed)
        except RefusalError as refusal:
            failures.append(f"{_address(endpoint)} ({refusal})")
            continue
        entries = {name: _checked(ledger.folder, name, file, found.name, commit) for name, file in listed.items()}
        ledger.add(entries, key, commit)
        return entries, True
    what = ", ".join(patterns) or "the files of the repository"
    raise GtpVisionError(
        f"{found.name} could not be downloaded from {', nor from '.join(failures)}; put {what}, with the folders they "
        f"have there, into {ledger.folder} by hand"
    )


def _listed(name: str, revision: str | None, patterns: Sequence[str], endpoint: str | None) -> tuple[str, dict]:
    """The commit of a revision, and its files that are wanted by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi(endpoint=endpoint, token=_token(endpoint))
    try:
        commit = str(api.dataset_info(name, revision=revision, timeout=CONNECT_SECONDS).sha)
        tree = list(api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset"))
    except Exception as error:  # the library passes on whatever its transport raises, another in each version
        raise RefusalError(_reason(error, name, revision)) from error
    files = {file.path: file for file in tree if isinstance(file, RepoFile)}
    listed = {path: files[path] for path in filter_repo_objects(files, allow_patterns=list(patterns) or None)}
    if not listed:
        raise RefusalError(f"has no file {', '.join(patterns)}" if patterns else "has no files")
    for path in listed:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or parts[0] in (".cache", "checksums.json"):
            raise RefusalError(f"names a file '{path[:100]}', which would leave its folder")
    return commit, listed


def _snapshot(
    name: str, commit: str, patterns: Sequence[str], endpoint: str | None, folder: Path, listed: dict[str, Any]
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    missing = sum(file.size for path, file in listed.items() if not (folder / path).is_file())
    try:
        require_space(folder, missing, name, "name another folder with --to")
    except GtpVisionError as error:
        raise RefusalError(str(error)) from error
    if os.environ.get("TQDM_DISABLE") == "1":
        disable_progress_bars()
    try:
        huggingface_hub.snapshot_download(
            name,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=list(patterns) or None,
            endpoint=endpoint,
            token=_token(endpoint),
        )
    except Exception as error:  # as above
        raise RefusalError(_reason(error, name, commit)) from error


def _checked(folder: Path, name: str, file: Any, repository: str, commit: str) -> Entry:
    path = folder / name
    sha256 = digest(path) if path.is_file() else ""
    size = path.stat().st_size if sha256 else 0
    if file.lfs:
        published, ours = file.lfs.sha256, sha256
    else:  # git's name of a small file
        published, ours = file.blob_id, digest(path, "sha1", b"blob %d\0" % size) if sha256 else ""
    if ours != published:
        raise GtpVisionError(
            f"{path} has checksum {ours or 'none, it is not there'}, but {repository} publishes {published} for it: "
            f"it is damaged or another file; remove it, or name another folder with --to, and download it again"
        )
    return Entry(sha256, size, f"hf://datasets/{repository}@{commit}/{name}", time.strftime("%Y-%m-%d"))


def _token(endpoint: str | None) -> bool | None:
    """The hub's token is for the hub, not for a mirror."""
    return None if endpoint is None else False


def _address(endpoint: str | None) -> str:
    from huggingface_hub import constants

    return shown(endpoint or constants.ENDPOINT)


def _reason(error: Exception, name: str, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return "its owner wants to be asked: accept the terms on its page, then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no data set {name}, or it wants HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
