import numpy as np
import pytest

from gtp_vision.evaluation.evaluator import Episode
from gtp_vision.evaluation.metrics.jerk import JERK, jerk_text


def episode(actions: np.ndarray, switches: list[int], rest: np.ndarray | None = None) -> Episode:
    nothing = np.zeros((0, actions.shape[1])) if rest is None else rest
    return Episode(0, True, 0.0, len(actions), [], actions=list(actions), switches=dict.fromkeys(switches, nothing))


def test_jerk_is_zero_inside_parabolas_and_that_of_a_jump_between_them() -> None:
    t = np.arange(12.0)
    parabola = 0.01 * t**2
    actions = np.where(t < 6, parabola, parabola + 0.5)[:, None]
    found = JERK.values([episode(actions, [6]), episode(actions[:3], [])], "")
    assert found["jerk_inside"] == pytest.approx(0, abs=1e-12)
    assert found["jerk_border"] == pytest.approx((0.5**2 + 1**2 + 0.5**2) / 3), "the windows from 3 to 5"
    assert found["jerk"] == pytest.approx(3 * found["jerk_border"] / 9)
    assert found["jerk_change"] is None, "the plan before had ended"


def test_a_border_where_the_plan_before_would_have_jerked_alike_changes_nothing() -> None:
    t = np.arange(12.0)
    actions = np.where(t < 6, 0.0, 0.5)[:, None]
    same = JERK.values([episode(actions, [6], actions[6:])], "")
    assert (same["jerk_continued"], same["jerk_change"]) == (pytest.approx(0.5), pytest.approx(1))
    half = JERK.values([episode(actions, [6], 2 * actions[6:])], "")
    assert half["jerk_change"] == pytest.approx(0.25)


def test_noise_has_the_same_jerk_everywhere() -> None:
    random = np.random.default_rng(0)
    episodes = [episode(random.normal(size=(40, 3)), list(range(4, 40, 8))) for _ in range(200)]
    found = JERK.values(episodes, "")
    assert found["jerk"] == pytest.approx(20, rel=0.1), "1 + 9 + 9 + 1"
    assert found["jerk_ratio"] == pytest.approx(1, rel=0.1)
    assert "19.81 inside plans, 20.25 between plans, 1.02 times" in jerk_text(found)


def test_what_is_not_defined_is_left_out() -> None:
    actions = np.random.default_rng(0).normal(size=(9, 2))
    assert JERK.values([episode(actions, [])], "") == {}
    always = JERK.values([episode(actions, list(range(1, 9)))], "")
    assert (always["jerk_inside"], always["jerk_ratio"]) == (None, None)
    assert "inside" not in jerk_text(always)
