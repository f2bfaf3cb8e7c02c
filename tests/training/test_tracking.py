import json
import time
from pathlib import Path

import pytest

from gtp_vision.training.tracking import Meters, Tracker


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_resuming_drops_what_came_after_and_a_line_that_was_cut(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.write(step, {"loss": float(step)})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = Tracker(tmp_path, resume_step=2, seconds=100.0)
    resumed.write(3, {"loss": 30.0})
    resumed.close()
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] == 30.0
    assert lines[-1]["seconds"] >= 100


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.write(1, {"loss": float("nan"), "q": float("inf"), "ok": 1.0})
    tracker.close()
    (line,) = _lines(tmp_path)
    assert (line["loss"], line["q"], line["ok"]) == (None, None, 1.0)


def test_meters_separate_phases_and_start_again() -> None:
    meters = Meters()
    for _ in range(2):
        with meters.measure("data"):
            time.sleep(0.01)
    with meters.measure("update"):
        pass
    told = meters.read(2)
    assert told["time/data_ms"] >= 10
    assert told["time/update_ms"] < told["time/data_ms"]
    assert told["time/data_share"] > 0.5
    assert told["time/data_share"] + told["time/update_share"] == pytest.approx(1)
    assert meters.read(2) == {}
