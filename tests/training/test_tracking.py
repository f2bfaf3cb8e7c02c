import time
from pathlib import Path

import pytest
from small_runs import lines

from gtp_vision.training.tracking import Meters, Tracker


def test_resuming_drops_later_and_incomplete_lines(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.write(step, {"loss": float(step)})
    tracker.write(2, {"eval/success": 0.5})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = Tracker(tmp_path, resume_step=2, seconds=100.0)
    resumed.write(3, {"loss": 30.0})
    resumed.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3], "the evaluation was not recorded elsewhere"
    assert lines(tmp_path)[-1]["loss"] == 30.0
    assert lines(tmp_path)[-1]["seconds"] >= 100


def test_values_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.write(1, {"loss": float("nan"), "q": float("inf"), "ok": 1.0})
    tracker.close()
    (line,) = lines(tmp_path)
    assert (line["loss"], line["q"], line["ok"]) == (None, None, 1.0)


def test_meters_separate_phases_and_are_reset_by_reading() -> None:
    meters = Meters()
    for _ in range(2):
        with meters.measure("data"):
            time.sleep(0.01)
    with meters.measure("update"):
        pass
    times = meters.read(2)
    assert times["time/data_ms"] >= 10
    assert times["time/data_share"] + times["time/update_share"] == pytest.approx(1)
    assert meters.read(2) == {}
