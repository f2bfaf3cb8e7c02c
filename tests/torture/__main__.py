"""Kill trainings, cause faults, damage inputs, change runs behind their backs, and print a line of counts."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it: a fork loses the threads of its parent

from torture import faults, runs
from torture.inputs import KINDS
from torture.kills import kills
from torture.silent import silent
from torture.watched import damage_inputs


def main() -> int:
    """Return 0 if everything ended as it should."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="trainings that are killed; 0 for none")
    parser.add_argument("--real", type=int, default=5, help="of them started from nothing; the others are forks")
    parser.add_argument(
        "--only", choices=sorted(runs.KINDS), help="kind of the trainings that are killed; default a mix"
    )
    parser.add_argument("--inputs", type=int, default=2000, help="damaged inputs; 0 for none")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="of inputs; repeatable; default all")
    parser.add_argument("--changes", type=int, default=200, help="of data, settings and files of a run; 0 for none")
    several = {"action": "extend", "nargs": "*", "choices": [*faults.FAULTS, "none"]}
    parser.add_argument("--fault", "--faults", **several, help="repeatable; default all")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damage")
    parser.add_argument("--out", type=Path, help="folder for the runs; default a temporary one, removed on success")
    options = parser.parse_args()
    folder = (options.out or Path(tempfile.mkdtemp(prefix="gtp-vision-torture-"))).absolute()
    os.environ["GTP_VISION_CACHE"] = str(folder / "cache")
    runs.data(folder / "data")
    began = time.monotonic()

    def tell(sentence: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {sentence}", flush=True)

    summary, is_clean = [], True
    if options.kills:
        where, choice = (folder / "data", folder / "kills"), {"real": options.real, "only": options.only}
        equal = kills(options.kills, *where, options.seed, tell, **choice)
        summary.append(f"{options.kills} kills, {equal} bit-equal resumptions")
        is_clean &= equal == options.kills
    if options.inputs:
        findings = damage_inputs(options.inputs, folder / "inputs", options.seed, tell, kinds=options.kind)
        tracebacks = sum(findings.ends[end] for end in ("traceback", "no sentence", "crash"))
        summary.append(
            f"{findings.ends.total()} mutated inputs, {tracebacks} tracebacks, {findings.ends['hang']} hangs, "
            f"slowest {findings.slowest:.1f} s, peak {findings.peak / 1e6:.0f} MB"
        )
        is_clean &= not findings.bad
    if options.changes:
        ends = silent(options.changes, folder / "changes", options.seed, tell)
        summary.append(
            f"{options.changes} silent changes: {ends['equal']} equal, {ends['refused']} refused, "
            f"{ends['recorded']} recorded, {ends['silent']} silent"
        )
        is_clean &= not ends["silent"]
    if names := [name for name in options.fault or faults.FAULTS if name != "none"]:
        passed = faults.cause(names, folder / "data", folder / "faults", tell)
        summary.append(f"faults: {passed} of {len(names)}")
        is_clean &= passed == len(names)
    if not is_clean:
        print(f"the runs and inputs that failed are in {folder}")
    elif options.out is None:
        shutil.rmtree(folder)
    print("torture: " + "; ".join(summary))
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
