"""A tenth of scripts/torture: killed trainings resume bit-equal, damaged inputs end in an error message."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from torture import messages


@pytest.mark.processes
def test_killed_runs_resume_bit_equal_and_damage_is_refused() -> None:
    options = ["--kills", "5", "--real", "1", "--fault", "the clock jumps", "--inputs", "120"]
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "torture", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    expected = (
        r"torture: 5 kills, 5 bit-equal resumptions; 120 mutated inputs, 0 tracebacks, 0 hangs, "
        r"slowest \d\.\d s, peak \d+ MB; faults: 1 of 1"
    )
    assert re.fullmatch(expected, ran.stdout.splitlines()[-1]), ran.stdout + ran.stderr
    assert ran.returncode == 0


def ending(use: Callable[[Path], str], path: Path) -> str:
    try:
        return use(path)
    except GtpVisionError as error:
        return "refused" if "\n" not in str(error) else "no sentence"


def test_messages_are_damaged(tmp_path: Path) -> None:
    sample = messages.sample(tmp_path)
    use, good, ends = messages.opened(sample), sample.read_bytes(), set()
    assert use(sample) == "sound"
    for seed in range(60):
        sample.write_bytes(good)
        what = messages.damaged(sample, np.random.default_rng(seed))
        assert what
        ends.add(ending(use, sample))
    assert ends == {"sound", "refused"}
    sample.write_bytes(msgpack.packb({"front": b"\x00" * (3 << 20)}))
    assert use(sample) == "too large"


def test_bad_ends_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torture import inputs, watched

    def used(path: Path) -> str:
        number = int(path.parent.name) if path.parent.name.isdigit() else -1
        if number == 0:
            raise KeyError("x")
        if number == 1:
            raise GtpVisionError("")
        if number == 2:
            os._exit(3)
        return "sound"

    kind = inputs.Kind(1, messages.sample, messages.damaged, lambda sample: used)
    monkeypatch.setitem(watched.KINDS, "bad", kind)
    found = watched.damage_inputs(5, tmp_path, 0, lambda sentence: None, kinds=["bad"])
    assert dict(found.ends) == {"traceback": 1, "no sentence": 1, "crash": 1, "sound": 2}
    assert len(found.bad) == 3
