"""Trainings that are killed and go on are the undisturbed one; scripts/torture does it fifty times."""

import os
import subprocess
import sys


def test_killed_runs_go_on_bit_for_bit() -> None:
    asked = ["--kills", "5", "--real", "1", "--faults", "the clock jumps"]
    told = subprocess.run(
        [sys.executable, "-P", "-m", "gtp_vision.torture", *asked],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert told.stdout.splitlines()[-1] == "torture: 5 kills, 5 bit-equal resumptions; faults: 1 of 1", told.stdout
    assert told.returncode == 0
