"""`scripts/torture`: all faults, all kills, all damaged inputs, and a line of counts at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch looks: forks of a process with threads are half a process

from torture import faults, runs
from torture.inputs import KINDS
from torture.kills import kills
from torture.watched import damage_inputs


def main() -> int:
    """Torture, tell, and return 0 if everything came out as it should."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="trainings that are killed; 0 for none")
    parser.add_argument("--real", type=int, default=5, help="of them started from nothing; the others are forks")
    parser.add_argument("--inputs", type=int, default=2000, help="damaged inputs; 0 for none")
    parser.add_argument(
        "--kind", action="append", choices=sorted(KINDS), help="of inputs; may be repeated; default all"
    )
    parser.add_argument("--fault", action="append", choices=[*faults.FAULTS, "none"], help="default all")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damage")
    parser.add_argument("--out", type=Path, help="folder for the runs; default a temporary one, removed if all is well")
    chosen = parser.parse_args()
    folder = (chosen.out or Path(tempfile.mkdtemp(prefix="gtp-vision-torture-"))).absolute()
    os.environ["GTP_VISION_CACHE"] = str(folder / "cache")
    runs.data(folder / "data")
    began = time.monotonic()

    def tell(sentence: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {sentence}", flush=True)

    told, well = [], True
    if chosen.kills:
        equal = kills(chosen.kills, folder / "data", folder / "kills", chosen.seed, tell, real=chosen.real)
        told.append(f"{chosen.kills} kills, {equal} bit-equal resumptions")
        well &= equal == chosen.kills
    if chosen.inputs:
        found = damage_inputs(chosen.inputs, folder / "inputs", chosen.seed, tell, kinds=chosen.kind)
        tracebacks = sum(found.ends[end] for end in ("traceback", "no sentence", "crash"))
        told.append(
            f"{found.inputs} mutated inputs, {tracebacks} tracebacks, {found.ends['hang']} hangs, "
            f"slowest {found.slowest:.1f} s, peak {found.peak / 1e6:.0f} MB"
        )
        well &= not found.bad
    names = [name for name in chosen.fault or faults.FAULTS if name != "none"]
    if names:
        fine = faults.cause(names, folder / "data", folder / "faults", tell)
        told.append(f"faults: {fine} of {len(names)}")
        well &= fine == len(names)
    if well and chosen.out is None:
        shutil.rmtree(folder)
    elif not well:
        print(f"what went wrong lies in {folder}")
    print("torture: " + "; ".join(told))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
