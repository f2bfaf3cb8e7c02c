"""A part of scripts/torture: killed trainings resume bit-equal, damaged inputs end in an error message."""

import os
import re
from pathlib import Path

import pytest
from commands import ended

from gtp_vision.core.errors import GtpVisionError
from torture import inputs, messages, watched


@pytest.mark.processes
def test_killed_runs_resume_bit_equal_and_damage_is_refused() -> None:
    options = ["--kills", "5", "--real", "1", "--fault", "the clock jumps", "--inputs", "300", "--changes", "12"]
    output, _ = ended("-m", "torture", *options, environment={"PYTHONPATH": str(Path(__file__).parents[1])})
    expected = (
        r"torture: 5 kills, 5 bit-equal resumptions; 300 mutated inputs, 0 tracebacks, 0 hangs, "
        r"slowest \d\.\d s, peak \d+ MB; "
        r"12 silent changes: \d+ equal, \d+ refused, \d+ recorded, 0 silent; faults: 1 of 1"
    )
    assert re.fullmatch(expected, output.splitlines()[-1]), output


@pytest.mark.processes
def test_killed_runs_that_collect_resume_bit_equal() -> None:
    options = ["--kills", "2", "--real", "0", "--only", "online", "--inputs", "0", "--changes", "0", "--fault", "none"]
    output, _ = ended("-m", "torture", *options, environment={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert output.splitlines()[-1] == "torture: 2 kills, 2 bit-equal resumptions", output


def test_bad_ends_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(path: Path) -> str:
        if path.parent.name == "0":
            raise KeyError("x")
        if path.parent.name == "1":
            raise GtpVisionError("")
        if path.parent.name == "2":
            os._exit(3)
        return "sound"

    kind = inputs.Kind(1, messages.sample, messages.damaged, lambda sample: use)
    monkeypatch.setitem(watched.KINDS, "bad", kind)
    found = watched.damage_inputs(5, tmp_path, 0, lambda sentence: None, kinds=["bad"])
    assert dict(found.ends) == {"traceback": 1, "no sentence": 1, "crash": 1, "sound": 2}
    assert len(found.bad) == 3
