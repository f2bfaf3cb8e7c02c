from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_policies import observations, untrained, write
from test_artifact import with_file, with_settings

import gtp_vision
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving import artifact
from gtp_vision.serving.limits import CLAMPS, DERIVATIVES, Limiter, Limits, read_words
from gtp_vision.serving.policy import Policy

ALONE = ((0.0,), (1.0,))
NONE = dict.fromkeys(CLAMPS, 0)
PARTS = ("actor_encoder", "policy", "improvement")
SEEDS = st.integers(0, 2**32 - 1)


def limits_of(low: Any = (0.0,), high: Any = (1.0,), rate: float | None = None, **derivatives: Any) -> Limits:
    values = {name: tuple(value) for name, value in derivatives.items()}
    return replace(Limits.position(low, high, rate), **values).checked((low, high))


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def executed(limiter: Limiter, actions: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
    """Each action that is executed, one call after another, and its clamps."""
    for action in actions:
        yield limiter(action[None])[0], limiter.clamps


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_what_is_executed_is_within_all_limits_that_do_not_exclude_each_other(seed: int) -> None:
    random, count, scale = np.random.default_rng(seed), 60, 100.0
    span = scale * np.array([1.0, 2.0, 4.0])[:, None]
    largest = span * 10 ** random.uniform(-3, 0.5, (3, 2)) * np.where(random.random((3, 2)) < 0.7, 1, np.inf)
    low, high = np.array([-20.0, -20.0]), np.array([80.0, 80.0])
    per_second = {
        name: [None if np.isinf(x) else x * 10.0**order for x in row]
        for order, (name, row) in enumerate(zip(DERIVATIVES, largest, strict=True), 1)
    }
    held = random.uniform(-30, 90, (count // 10, 2)).repeat(10, 0)
    wanted = (held + random.normal(size=(count, 2)) * random.choice([0, 1, 30])).astype(np.float32)
    limiter = Limiter(limits_of(low, high, rate=10.0, **per_second))
    past: list[np.ndarray] = []
    for want, (action, clamps) in zip(wanted, executed(limiter, wanted), strict=True):
        assert action.dtype == np.float32
        lowest, highest, counts = low, high, NONE | {"braking": int((action != want).sum())}
        seen, conflict = np.array([*past, action], np.float64), np.zeros(2, bool)
        changed, by_any = action != want, np.zeros(2, bool)
        tolerance = 1e-4  # of 80, in float32
        assert ((low - tolerance <= action) & (action <= high + tolerance)).all()
        raw = np.array([*past, want], np.float64)
        for order in range(min(3, len(past))):
            middle = seen[-1] - np.diff(seen, order + 1, 0)[-1]
            now_low, now_high = (
                np.maximum(lowest, middle - largest[order]),
                np.minimum(highest, middle + largest[order]),
            )
            feasible = now_low <= now_high
            is_within = np.abs(np.diff(seen, order + 1, 0)[-1]) <= largest[order] + tolerance
            assert (is_within | ~feasible).all(), DERIVATIVES[order]
            conflict |= ~is_within
            nearest = np.where(middle > highest, highest, lowest)  # to a limit that others exclude
            lowest, highest = np.where(feasible, now_low, nearest), np.where(feasible, now_high, nearest)
            is_beyond = np.abs(np.diff(raw, order + 1, 0)[-1]) > largest[order] + tolerance
            counts[DERIVATIVES[order]], by_any = int((changed & is_beyond).sum()), by_any | is_beyond
        is_beyond = (want < low - tolerance) | (want > high + tolerance)
        counts |= {"position": int((changed & is_beyond).sum()), "conflict": int(conflict.sum())}
        counts["braking"] = int((changed & ~by_any & ~is_beyond).sum())
        assert clamps == counts
        past.append(action.astype(np.float64))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_sequence_within_the_limits_passes_bit_for_bit(seed: int) -> None:
    random = np.random.default_rng(seed)
    wanted = np.cumsum(random.normal(size=(40, 3)), 0).astype(np.float32)
    found = {name: np.abs(np.diff(wanted, n, axis=0)).max(0) for n, name in enumerate(DERIVATIVES, 1)}
    limits = limits_of(wanted.min(0), wanted.max(0), **found)
    one, chunks = Limiter(limits), Limiter(limits)
    np.testing.assert_array_equal([action for action, _ in executed(one, wanted)], wanted)
    np.testing.assert_array_equal(np.concatenate([chunks(wanted[i : i + 8]) for i in range(0, 40, 8)]), wanted)
    assert one.total == chunks.total == NONE


def test_a_speed_limit_alone_clips_and_counts_every_number_it_changes() -> None:
    limiter = Limiter(limits_of(rate=20.0, speed=[2.0]))  # 0.1 a step
    found = list(executed(limiter, column(0.5, 0.55, 0.9, 0.9, 0.7, 1.2)))
    np.testing.assert_allclose([float(action[0]) for action, _ in found], [0.5, 0.55, 0.65, 0.75, 0.7, 0.8], atol=1e-6)
    assert [clamps["speed"] for _, clamps in found] == [0, 0, 1, 1, 0, 1]
    assert limiter.total == NONE | {"speed": 3, "position": 1}
    limiter.reset()
    assert (limiter(column(0.1)), limiter.clamps) == (np.float32(0.1), NONE), "an episode begins anywhere"
    assert limiter(column(2.0))[0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize("speed", [None, 0.01, 0.2])
@pytest.mark.parametrize("acceleration", [None, 0.001, 0.05])
@pytest.mark.parametrize("jerk", [None, 0.0002, 0.02])
def test_a_far_action_is_approached_without_swinging_and_reached(
    speed: float | None, acceleration: float | None, jerk: float | None
) -> None:
    limiter = Limiter(limits_of(speed=[speed], acceleration=[acceleration], jerk=[jerk]))
    path = np.array([action[0] for action, _ in executed(limiter, column(*[0.2] * 3, *[0.9] * 400))])
    assert path[-1] == np.float32(0.9)
    assert path.max() <= 0.9 + 1e-3
    assert (np.diff(path) >= -1e-3).all()
    assert limiter.total["conflict"] == 0


def test_position_wins_where_limits_exclude_each_other_and_the_conflict_is_counted() -> None:
    limiter = Limiter(limits_of(acceleration=[0.1]))
    found = list(executed(limiter, column(0.1, 0.5, 0.9, 1.0)))  # 0.4 a step, which cannot stop at 1
    assert [float(action[0]) for action, _ in found] == [pytest.approx(x) for x in (0.1, 0.5, 0.9, 1.0)]
    assert [clamps["conflict"] for _, clamps in found] == [0, 0, 0, 1]


def test_limits_of_data_are_twice_what_they_do_and_change_none_of_them() -> None:
    random = np.random.default_rng(0)
    times = np.arange(200)
    arm = [0.2 * np.sin(times / 20 + phase) for phase in (0, 1)]
    switch = np.where(times // 3 % 2, 0.8, 0.0)
    data = [np.stack([x, switch, random.uniform(-1, 1, 200)], 1).astype(np.float32) for x in arm]
    bounds = ((-1.0, 0.0, -1.0), (1.0, 1.0, 1.0))
    limits = Limits.of_data(lambda: iter(data), bounds, 20.0)
    assert (limits.low[1:], limits.high[1:]) == ((0.0, -1.0), (1.0, 1.0)), "within the bounds"
    assert (limits.low[0], limits.high[0]) == (pytest.approx(-0.4, abs=1e-3), pytest.approx(0.4, abs=1e-3))
    assert limits.speed == (pytest.approx(2 * 0.2 / 20 * 20, rel=1e-2), None, None)
    assert limits.acceleration == (pytest.approx(2 * 0.2 / 400 * 400, rel=1e-2), None, None)
    assert limits.jerk == (pytest.approx(2 * 0.2 / 8000 * 8000, rel=2e-2), None, None)
    for episode in data:
        limiter = Limiter(limits)
        np.testing.assert_array_equal(limiter(episode), episode)
    assert limits == Limits.of(asdict(limits), bounds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": [0.9], "high": [0.2]}, "low=0.9 and high=0.2 of action 0 leave nothing"),
        ({"low": [3.0], "high": [4.0]}, "leave nothing of its range 0 to 1"),
        ({"speed": [-1.0]}, "speed=-1 of action 0 must be above 0, or off"),
        ({"jerk": [float("nan")]}, "jerk=nan of action 0"),
        ({"low": [float("-inf")]}, "low=-inf of action 0 must be a finite number"),
        ({"acceleration": [1.0, 2.0]}, "acceleration has 2 numbers; give one, or 1"),
        ({"rate": 0.0}, "control rate 0 must be above 0"),
        ({"speed": "fast"}, "limits are invalid"),
        ({"speed": {}}, "speed has 0 numbers"),
    ],
)
def test_limits_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        Limits.of(asdict(Limits.position(*ALONE)) | changes, ALONE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "give one of auto, data, off"),
        (["off", "data"], "give one of auto, data, off"),
        (["sped=1"], "speed"),
        (["speed=1", "speed=2"], "set twice"),
        (["speed=fast"], "give numbers"),
        (["low=off"], "give numbers"),
    ],
)
def test_words_that_are_no_limits_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        read_words(words, 2)


def test_words_are_read() -> None:
    assert read_words([], 2) == ("auto", {})
    given = read_words(["off", "speed=0.5", "jerk=1,off"], 2)
    assert given == ("off", {"speed": (0.5, 0.5), "jerk": (1.0, None)})


def test_a_session_limits_what_is_executed(tmp_path: Path) -> None:
    policy = untrained("agent=gtp_bc", "agent.action_chunk=4", "agent.acting.execute=3")
    schema = policy.schema
    bounds = (schema.action_low, schema.action_high)
    limits = replace(Limits.position(*bounds), speed=(0.2, None), jerk=(None, 30.0))
    made = Policy(policy.agent, replace(schema, limits=limits), policy.card)
    limited = gtp_vision.load_policy(write(tmp_path / "policy", made, *PARTS))
    assert limited.schema.limits == limits
    free, session, limiter = policy.session(), limited.session(), Limiter(limits)
    for episode in range(2):
        for seen in observations(schema, 8):
            np.testing.assert_array_equal(session.act(seen), limiter(free.act(seen)[None])[0])
            assert session.clamps == limiter.clamps
        assert session.limiter is not None
        assert session.limiter.total == limiter.total
        assert limiter.total["speed"] > 4 * (episode + 1)
        for part in (free, session, limiter):
            part.reset()
    for seen in observations(schema, 2):  # how much of a plan was executed is not known
        limiter.reset()
        np.testing.assert_array_equal(session.plan(seen), limiter(free.plan(seen)))
        assert session.clamps == limiter.clamps
    assert policy.session().clamps == {}


def test_an_artifact_from_before_has_no_limits(tmp_path: Path) -> None:
    policy = untrained()
    out = write(tmp_path / "policy", policy, *PARTS)
    changes = with_settings(out, {"format": 2}).replace(b'"limits": null', b'"other": null')
    old = gtp_vision.load_policy(with_file(out, tmp_path / "old", artifact.MADE_OF, changes))
    assert (old.schema.limits, old.session().limiter) == (None, None)
    for seen in observations(policy.schema, 3):
        np.testing.assert_array_equal(old.act(seen), policy.act(seen))


def test_an_action_that_is_not_finite_is_refused() -> None:
    with pytest.raises(GtpVisionError, match="not finite"):
        Limiter(Limits.position(*ALONE))(column(float("nan")))
