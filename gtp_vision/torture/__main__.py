"""`scripts/torture`: kills and faults, and a line of counts; status 1 if anything was lost."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from gtp_vision.torture import faults, kills, runs


def main(arguments: list[str] | None = None) -> int:
    """Cause what is asked for, in a folder of its own."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--real", type=int, default=5, help="of them, processes of their own and no forks (default 5)")
    parser.add_argument("--faults", default=None, help="with commas between; default all; empty for none")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(arguments)
    names = list(faults.FAULTS) if given.faults is None else [name for name in given.faults.split(",") if name]
    if unknown := [name for name in names if name not in faults.FAULTS]:
        parser.error(f"there is no fault '{unknown[0]}'; known: {', '.join(faults.FAULTS)}")
    # A fork has what is imported before it; torchvision cannot be imported where `__main__` has no file.
    for needed in ("torchvision", "gtp_vision.cli", "gtp_vision.training.trainer", "gtp_vision.training.trials"):
        importlib.import_module(needed)

    def tell(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        folder = Path(scratch)
        runs.data(folder / "data")
        equal = kills.kills(given.kills, folder / "data", folder / "kills", given.seed, tell, real=given.real)
        kept = faults.cause(names, folder / "data", folder / "faults", tell) if names else 0
    tell(f"torture: {given.kills} kills, {equal} bit-equal resumptions; faults: {kept} of {len(names)}")
    return 0 if (equal, kept) == (given.kills, len(names)) else 1


if __name__ == "__main__":
    sys.exit(main())
