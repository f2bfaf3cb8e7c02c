"""Manifests: sizes and hashes of a folder's files, written last; and checks of files that are not trusted.

A file is checked in the order in which it can do harm: its type, its size, its hash, the header with its tensors. No
memory is allocated for a tensor before its shape is known to be the expected one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.safe_json import read_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the sizes and hashes of a folder's files to `manifest.json`, and flush all of them to the disk."""
    manifest = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            sync(path)
            manifest[path.name] = _digest(path)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    sync(folder / MANIFEST)
    sync(folder)


def problem(folder: Path, names: Iterable[str]) -> str:
    """What is wrong with files of a folder; "" if they are those that its manifest lists."""
    try:
        manifest = read_json(folder / MANIFEST, advice="")
        for name in sorted(names):
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            entry = manifest.get(name)
            if not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes") or _digest(path) != entry:
                return f"{path} differs from the size and hash in {MANIFEST}"
    except GtpVisionError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return ""


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype (as safetensors calls it) of each tensor of a file, from its header alone.

    Raises:
        GtpVisionError: the file is not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (tuple(tensor.get_shape()), str(tensor.get_dtype())) for name, tensor in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise GtpVisionError(f"{path} is not a safetensors file ({str(error)[:80]})") from error


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file.

    Raises:
        GtpVisionError: the file is not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise GtpVisionError(f"{path} is not a safetensors file ({str(error)[:80]})") from error


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
