import math

import numpy as np
import pytest
from rliable import metrics
from scipy import stats

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites import statistics
from gtp_vision.suites.records import SELECTIONS, Record


def record(task: str, agent: str, seed: int, *scores: float, unfinished: bool = False) -> Record:
    return Record(task, agent, seed, tuple(range(1, len(scores) + 1)), scores, unfinished)


SCORES = {  # tasks of 4 seeds each
    "a": {"one": (10.0, 20.0, 30.0, 40.0), "two": (50.0, 60.0, 70.0, 80.0)},
    "b": {"one": (0.0, 0.0, 0.0, 100.0), "two": (100.0, 100.0, 100.0, 100.0)},
}
RECORDS = [
    record(task, agent, seed, score)
    for task, agents in SCORES.items()
    for agent, scores in agents.items()
    for seed, score in enumerate(scores)
]


def test_selections_take_the_last_three_or_the_best() -> None:
    scores = (9.0, 1.0, 2.0, 6.0)
    assert {name: select(scores) for name, select in SELECTIONS.items()} == {"last": 6, "mean_last_3": 3, "best": 9}


def test_means_and_their_intervals_are_those_of_the_runs() -> None:
    found = statistics.by_task(RECORDS, "last")
    one = found["a"]["one"]
    assert (one.value, one.seeds) == (25, 4)
    assert 10 <= one.low < 25 < one.high <= 40
    theirs = stats.bootstrap(([10.0, 20.0, 30.0, 40.0],), np.mean, method="percentile", rng=np.random.default_rng(7))
    assert one.low == pytest.approx(theirs.confidence_interval.low, abs=2.5)
    same = found["b"]["two"]
    assert (same.low, same.value, same.high) == (100, 100, 100)


def test_one_seed_has_no_interval_and_unfinished_runs_are_marked() -> None:
    alone = [record("a", "one", 0, 5.0), record("a", "two", 0, 6.0, unfinished=True)]
    found = statistics.by_task(alone, "last")["a"]
    assert math.isnan(found["one"].low)
    assert (found["one"].unfinished, found["two"].unfinished) == (False, True)
    assert statistics.compared(alone) == ([], 0)
    assert statistics.over_tasks(alone, "last") == {}


def test_the_iqm_is_the_mean_of_the_middle_half_of_all_runs() -> None:
    found = statistics.over_tasks(RECORDS, "last")
    assert found["one"]["mean"].value == 25
    assert found["one"]["IQM"].value == pytest.approx(stats.trim_mean([10, 20, 30, 40, 0, 0, 0, 100], 0.25))
    assert found["two"]["IQM"].value == pytest.approx(stats.trim_mean([50, 60, 70, 80, 100, 100, 100, 100], 0.25))
    assert found["one"]["mean"].low < 25 < found["one"]["mean"].high
    assert statistics.over_tasks(RECORDS, "last") == found, "the same records give the same numbers"


def test_an_agent_that_always_scores_more_improves_with_probability_one() -> None:
    clear = [r for r in RECORDS if r.task == "a"]
    found = statistics.improvement(clear, "last", "two")["one"]
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert statistics.improvement(clear, "last", "one")["two"].value == 0
    both = statistics.improvement(RECORDS, "last", "two")["one"]
    assert both.value == pytest.approx((1 + (3 + 0.5) / 4) / 2)  # a tie counts half
    matrices = [np.array([SCORES[task][agent] for task in "ab"]).T for agent in ("two", "one")]
    assert both.value == pytest.approx(metrics.probability_of_improvement(*matrices))


def test_means_are_over_tasks_and_seeds_that_all_agents_have() -> None:
    some = [r for r in RECORDS if (r.task, r.agent) != ("b", "two")]
    assert statistics.compared(some) == (["a"], 4)
    fewer = [r for r in RECORDS if not (r.agent == "two" and r.seed > 1)]
    assert statistics.compared(fewer) == (["a", "b"], 2)
    found = statistics.over_tasks(fewer, "last")
    assert found["one"]["mean"].value == pytest.approx(np.mean([10, 20, 0, 0]))


def test_profiles_fall_from_all_to_none_and_leave_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    at, found = statistics.profiles(RECORDS, "last")
    assert np.array_equal(np.random.get_state()[1], before)
    value = found["one"][0]
    assert (at[0], at[-1], value[0], value[-1]) == pytest.approx((0, 100, 5 / 8, 0))  # above, not at, 0
    assert np.all(np.diff(value) <= 0)


def test_curves_are_means_over_the_seeds_evaluated_so_far() -> None:
    runs = [record("a", "one", 0, 1.0, 3.0), record("a", "one", 1, 2.0, unfinished=True)]
    steps, mean, low, high = statistics.curves(runs)["a"]["one"]
    assert steps.tolist() == [1, 2]
    assert mean.tolist() == [1.5, 3.0]
    assert (low[0], high[0]) == (1, 2)
    assert math.isnan(low[1])


def test_a_missing_rliable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rliable.metrics", None)
    with pytest.raises(GtpVisionError, match=r"pip install 'gtp-vision\[benchmark\]'"):
        statistics.over_tasks(RECORDS, "last")
