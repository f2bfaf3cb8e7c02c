import json
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.cli.main import main
from gtp_vision.core.random import counter_rng
from gtp_vision.experiments.multigoal import GOALS, METHODS, demonstrate, measure, rollout, train_method


def test_demonstrations_reach_every_goal_equally_often_and_nearly_straight() -> None:
    paths, actions = demonstrate(2000, counter_rng(0))
    measures = measure(paths)
    assert (measures["reach"], measures["share"]) == (100, [25] * 4)
    assert 1 < measures["path_ratio"] < 1.1
    assert all(len(path) == len(taken) + 1 for path, taken in zip(paths, actions, strict=True))


def test_a_straight_path_has_no_jitter_and_a_zigzag_has() -> None:
    straight = np.linspace([0, 0], [1, 0], 11)
    zigzag = straight + np.array([[0, 0.05 * (-1) ** k] for k in range(11)])
    found = measure([straight])
    assert (found["reach"], found["share"]) == (100, [100, 0, 0, 0])
    assert (found["path_ratio"], found["jitter"]) == pytest.approx((1, 0))
    assert measure([zigzag])["jitter"] == pytest.approx(4.0)  # second differences of 0.2, two strides of 0.1
    assert measure([zigzag])["path_ratio"] > 1.2


def test_a_trajectory_ends_at_the_first_goal_or_the_horizon_and_actions_are_clipped() -> None:
    paths, _ = rollout(np.zeros_like, 5, counter_rng(0))
    measures = measure(paths)
    assert (measures["reach"], measures["share"], measures["path_ratio"]) == (0, [0] * 4, None)
    assert all(len(path) == 41 for path in paths)
    paths, actions = rollout(lambda position: np.full_like(position, [9.0, 0.0]), 3, counter_rng(0))
    assert all(np.linalg.norm(path[-1] - GOALS[0]) < 0.12 for path in paths)
    assert all((taken == [1, 0]).all() for taken in actions)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_method_is_trained_at_the_same_cost(method: str) -> None:
    result = train_method(method, steps=12, seed=0, samples=70)
    assert result["measured"]["train_steps"] * METHODS[method].passes == pytest.approx(12 * 9, abs=4)
    assert len(result["paths"]) == 60


@pytest.mark.processes
def test_the_command_writes_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "multigoal", "--train-steps", "5", "--out", str(tmp_path / "goals"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(METHODS) | {"data"} <= set(results)
    assert {"reach", "share", "jitter", "path_ratio", "act_ms"} <= set(results["gtp"])
    assert (tmp_path / "goals" / "multigoal.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "goals" / "multigoal.json").read_text())["gtp"] == results["gtp"]
