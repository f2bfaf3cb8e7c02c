import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.processes
def test_every_step_runs_on_a_device_that_is_not_the_cpu() -> None:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("steps_on_a_device.py"))], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
