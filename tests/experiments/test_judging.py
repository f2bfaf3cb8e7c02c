"""Comparison of judgements with the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.experiments.judging import TASKS, compared, judging, table


def test_correlations_and_cover_are_those_of_the_pieces() -> None:
    pieces = [
        {"true_score": score, "true_value": score, "value": value, "interval": [0.0, 0.5], "energy": energy}
        for score, value, energy in [(0.1, 0.2, 0.1), (0.4, 0.3, 0.2), (0.9, 0.8, 0.3)]
    ]
    found = compared(pieces)
    assert found["correlation"] == pytest.approx(1)
    assert found["baseline"] == pytest.approx(-1)
    assert found["cover"] == pytest.approx(2 / 3)
    text = table({"tasks": {"lift": found}, "folder": "runs"})
    assert "1.00" in text
    assert "67%" in text


def test_equal_scores_have_no_correlation() -> None:
    piece = {"true_score": 0.5, "true_value": 0.5, "value": 0.2, "interval": [0, 1], "energy": 0.1}
    found = compared([piece, {**piece, "value": 0.3}])
    assert found["correlation"] is None
    assert "cover" in table({"tasks": {"lift": found}, "folder": "runs"})


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="choose from"):
        judging(out=tmp_path, tasks=["lfit"])


def test_at_least_thirty_checkpoints_are_planned() -> None:
    assert sum(len(task.agents) * len(task.checkpoints) for task in TASKS.values()) >= 30
