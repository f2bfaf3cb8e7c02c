"""Files in, batches out: readers per format, the store, the sampler, validation."""

from __future__ import annotations

from pathlib import Path


def demo_path() -> Path:
    """The small data set of real OGBench frames that this package carries."""
    return Path(__file__).parent / "demo" / "visual-puzzle-3x3.h5"


def located(path: str | Path) -> Path:
    """A data set's path; `demo` is the one that this package carries, unless there is a file or folder of that name."""
    found = Path(path).expanduser()
    return demo_path() if str(path) == "demo" and not found.exists() else found
