import json
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.cli.main import main
from gtp_vision.core.random import counter_rng
from gtp_vision.experiments.multigoal import GOALS, METHODS, demonstrate, measure, one_method, rollout


def test_demonstrations_reach_every_goal_equally_often_and_nearly_straight() -> None:
    paths, actions = demonstrate(2000, counter_rng(0))
    found = measure(paths)
    assert found["reach"] == 100
    assert found["share"] == [25] * 4
    assert 1 < found["path_ratio"] < 1.1
    assert all(len(path) == len(done) + 1 for path, done in zip(paths, actions, strict=True))
    assert max(np.abs(done).max() for done in actions) <= 1


def test_a_straight_path_has_no_jitter_and_a_zigzag_has() -> None:
    straight = np.linspace([0, 0], [1, 0], 11)
    found = measure([straight])
    assert found["reach"] == 100
    assert found["share"] == [100, 0, 0, 0]
    assert found["path_ratio"] == pytest.approx(1)
    assert found["jitter"] == pytest.approx(0, abs=1e-12)
    zigzag = straight + np.array([[0, 0.05 * (-1) ** k] for k in range(11)])
    assert measure([zigzag])["jitter"] == pytest.approx(4.0)  # second differences of 0.2, two strides of 0.1
    assert measure([zigzag])["path_ratio"] > 1.2


def test_who_goes_nowhere_reaches_nothing() -> None:
    paths, _ = rollout(np.zeros_like, 5, counter_rng(0))
    found = measure(paths)
    assert found["reach"] == 0
    assert found["share"] == [0] * 4
    assert found["path_ratio"] is None
    assert all(len(path) == 41 for path in paths)


def test_a_trajectory_ends_at_the_first_goal_and_actions_are_clipped() -> None:
    paths, actions = rollout(lambda at: np.full_like(at, [9.0, 0.0]), 3, counter_rng(0))
    assert all(np.linalg.norm(path[-1] - GOALS[0]) < 0.12 for path in paths)
    assert all((done == [1, 0]).all() for done in actions)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_method_is_trained_as_long_as_it_costs_the_same(method: str) -> None:
    found = one_method(method, steps=12, seed=0)
    assert found["measured"]["train_steps"] * METHODS[method].passes == pytest.approx(12 * 9, abs=4)
    assert found["measured"]["act_ms"] > 0
    assert len(found["paths"]) == 60


def test_the_command_writes_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "goals"
    assert main(["experiment", "multigoal", "--train-steps", "5", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(METHODS) | {"data"} <= set(told)
    assert {"reach", "share", "jitter", "path_ratio", "act_ms"} <= set(told["gtp"])
    assert (out / "multigoal.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "multigoal.json").read_text())["gtp"] == told["gtp"]


@pytest.mark.parametrize("what", ["maps", "multigoal"])
def test_training_for_no_step_is_refused(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", what, "--train-steps", "0"]) == 2
    assert "--train-steps 0" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["maps", "multigoal"])
def test_a_negative_seed_is_refused(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", what, "--seed", "-1"]) == 2
    assert "--seed -1 must be at least 0" in capsys.readouterr().err


def test_a_file_in_the_folders_place_is_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["experiment", "multigoal", "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "file") in told
    assert "--out" in told
