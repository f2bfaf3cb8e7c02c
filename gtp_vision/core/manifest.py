"""Seals: sizes and hashes of a folder's files, written last; and what is wrong with files that anybody may have made.

A file is looked at in the order in which it can do harm: whether it is one, its size, its hash, the header that says
which tensors it holds. Nothing is allocated for a tensor before its shape is known to be the one that is waited for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gtp_vision.core.errors import GtpVisionError

MANIFEST = "manifest.json"
_DOCUMENT = 64 << 20  # bytes of a JSON file, of which a million numbers take a third


def seal(folder: Path) -> None:
    """Synchronise all files of a folder, and write their sizes and hashes beside them, last."""
    manifest: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        manifest[path.name] = _digest(path)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    sync(folder / MANIFEST)
    sync(folder)


def problem(folder: Path, files: Collection[str]) -> str:
    """What is wrong with a sealed folder, or "" if its files are `files` and those that its manifest describes."""
    try:
        manifest = document(folder / MANIFEST)
        if set(manifest) != set(files):
            return f"{folder / MANIFEST} names other files than {sorted(files)}"
        for name, sealed in manifest.items():
            path = folder / name
            if not isinstance(sealed, dict) or not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != sealed.get("bytes") or _digest(path) != sealed:
                return f"{path} is not what was written"
    except GtpVisionError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return ""


def document(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        GtpVisionError: there is none, of a size and depth that any of ours has.
    """
    try:
        if not path.is_file():  # a pipe would wait for its writer
            raise GtpVisionError(f"{path} is missing")
        if path.stat().st_size > _DOCUMENT:
            raise GtpVisionError(f"{path} is too large ({path.stat().st_size} bytes)")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise GtpVisionError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise GtpVisionError(f"{path} cannot be read ({str(error)[:80]})") from error
    if not isinstance(found, dict):
        raise GtpVisionError(f"{path} holds no JSON object")
    return found


def shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype (as safetensors calls it) of each tensor of a file, from its header alone.

    Raises:
        GtpVisionError: it is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise GtpVisionError(f"{path} is no safetensors file ({str(error)[:80]})") from error


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
