"""Results of experiments as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gtp_vision.core.files import atomic_write


def write_json(path: Path, results: Any) -> None:
    """Write results atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1))


def write_figure(path: Path, figure: Figure) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
