"""Results of experiments as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write


def make_folder(out: Path) -> None:
    """Create the folder of `--out`, or raise a GtpVisionError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GtpVisionError(
            f"the folder {out} cannot be created ({error.strerror}); choose another with --out"
        ) from error


def write_json(path: Path, results: Any) -> None:
    """Write results atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1))


def write_figure(path: Path, figure: Figure) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
