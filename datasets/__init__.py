"""Files in, batches out: readers per format, the store, the sampler, validation."""

from __future__ import annotations

from pathlib import Path


def demo_path() -> Path:
    """The small data set of real OGBench frames that this package carries."""
    return Path(__file__).parent / "demo" / "visual-puzzle-3x3.h5"
