"""Plans that continue the one before: across the session, late answers, limits and the network's messages."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_policies import HIGH, LOW, observations, untrained

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.delays import Delays
from gtp_vision.serving.limits import Limiter, Limits
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.protocol import Reader, packed

CHUNK = 8
LIMITS = replace(Limits.position(LOW, HIGH, 20.0), speed=(3.0, None), acceleration=(None, 4000.0), jerk=(900.0, None))


def policy_of(join: str, **fields: Any) -> Policy:
    """A chunked policy that sees a state alone."""
    chunk = (f"agent.action_chunk={CHUNK}", f"agent.acting.join={join}")
    fields = {"cameras": {}, "states": {"arm": 5}, "frame_stack": 1} | fields
    return untrained("agent=gtp_bc", "encoder=state", *chunk, **fields)


@pytest.mark.parametrize("join", ["cut", "blend", "rtc"])
def test_a_plan_begins_with_the_actions_that_are_executed_until_it_arrives(join: str) -> None:
    session, seen = policy_of(join).session(), observations(policy_of(join).schema, 4)
    plan = session.plan(seen[0], executed=0)
    for observation, executed, delay in zip(seen[1:], (3, 5, 2), (2, 0, 6), strict=True):
        following = session.plan(observation, executed=executed, delay=delay)
        assert np.array_equal(following[:delay], plan[executed : executed + delay])
        assert not np.array_equal(following[delay:], plan[delay:])
        plan = following


def test_a_plan_that_continues_nothing_is_the_plain_one() -> None:
    policy = policy_of("rtc")
    seen = observations(policy.schema, 3)
    plain, ended, cut = policy.session(), policy.session(), policy_of("cut").session()
    for observation, executed, rest in zip(seen, (0, CHUNK, 2), (0, 0, 6), strict=True):
        expected = plain.plan(observation)
        if not rest:
            assert np.array_equal(ended.plan(observation, executed=executed), expected)
        assert np.array_equal(cut.plan(observation, executed=executed), expected), "cut joins nothing"
    assert not np.array_equal(ended.plan(observation, executed=2), expected)


def test_steps_of_a_session_execute_and_join_plans_as_evaluations_do() -> None:
    cut, rtc = policy_of("cut").session(), policy_of("rtc").session()
    for step, observation in enumerate(observations(policy_of("cut").schema, CHUNK + 1)):
        assert np.array_equal(cut.act(observation), rtc.act(observation)) == (step < CHUNK // 2)


@pytest.mark.parametrize("join", ["cut", "rtc"])
def test_limits_hold_across_the_borders_of_plans(join: str) -> None:
    policy, random, executed_actions = policy_of(join, limits=LIMITS), np.random.default_rng(0), []
    session = policy.session()
    plan, at, clamped = session.plan(observations(policy.schema, 1)[0], executed=0), 0, 0
    for observation in observations(policy.schema, 30)[1:]:
        executed = int(random.integers(at, CHUNK))
        executed_actions += list(plan[at:executed])
        delay = int(random.integers(0, CHUNK - executed + 1))
        executed_actions += list(plan[executed : executed + delay])
        plan, at = session.plan(observation, executed=executed, delay=delay), delay
        clamped += sum(session.clamps.values())
    assert clamped > 20
    limiter, actions = Limiter(LIMITS), np.stack(executed_actions)
    assert np.array_equal(limiter(actions), actions)
    assert sum(limiter.clamps.values()) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"executed": 9}, "executed=9 must be between 0 and 8"),
        ({"executed": -1}, "executed=-1 must be"),
        ({"executed": 5, "delay": 4}, r"delay=4 must be between 0 and 3, .* agent\.action_chunk"),
        ({"executed": 5, "delay": -1}, "delay=-1"),
        ({"delay": 1}, "give executed"),
    ],
)
def test_impossible_delays_are_refused_and_have_no_effect(options: dict[str, int], words: str) -> None:
    policy = policy_of("rtc")
    session, twin, seen = policy.session(), policy.session(), observations(policy.schema, 2)
    for each in (session, twin):
        each.plan(seen[0])
    with pytest.raises(GtpVisionError, match=words):
        session.plan(seen[1], **options)
    assert np.array_equal(session.plan(seen[1], executed=3), twin.plan(seen[1], executed=3))
    with pytest.raises(GtpVisionError, match="executed=1 must be between 0 and 0"):
        policy.session().plan(seen[0], executed=1)


def test_delays_are_a_high_quantile_in_steps_rounded_up() -> None:
    delays = Delays()
    assert delays.steps(20.0, 0.1) == 0, "nothing was answered yet"
    for milliseconds in range(1, 101):
        delays.add(milliseconds / 1e3)
    assert delays.steps(None, 0.0) == 0
    assert delays.steps(20.0, 0.0) == 2, "96 ms at 20 Hz"
    assert delays.steps(20.0, 0.06) == 4
    for _ in range(100):
        delays.add(0.01)
    assert delays.steps(20.0, 0.0) == 1, "old answers are forgotten"


def late_robot(session: Session, rate: float, seed: int) -> tuple[list[bool], list[int]]:
    """A robot in virtual time: whether it repeated or skipped nothing when each plan arrived, and assumed delays."""
    random, delays, seen = np.random.default_rng(seed), Delays(), observations(session.policy.schema, 60)
    plan, at, continued, assumed = session.plan(seen[0], executed=0), 0, [], []
    for observation in seen[1:]:
        executed = max(at, CHUNK // 2)
        delay = min(delays.steps(rate, 0.0), session.remaining(executed))
        seconds = 0.03 + 0.08 * random.beta(1, 4)  # latency and jitter
        following = session.plan(observation, executed=executed, delay=delay)
        delays.add(seconds)
        late = math.ceil(seconds * rate)  # meanwhile the robot executes the plan before
        continued.append(np.array_equal(following[: min(delay, late)], plan[executed : executed + min(delay, late)]))
        assumed.append(delay - late)
        plan, at = following, late
    return continued, assumed


def test_a_robot_with_latency_and_jitter_gets_plans_that_begin_where_it_is() -> None:
    continued, spare = late_robot(policy_of("rtc", limits=LIMITS).session(), 20.0, 0)
    assert all(continued)
    assert sum(steps < 0 for steps in spare[10:]) <= 0.1 * len(spare), "answers later than assumed are few"
    assert max(spare) <= 2


def test_messages_say_what_was_executed() -> None:
    reader = Reader({}, {"arm": 2})
    message = {"arm": [0.0, 0.0], "executed": 3, "delay": 1, "round_trip_ms": 12.5}
    request = reader.read(packed(message))
    assert (request.executed, request.delay, request.round_trip) == (3, 1, 0.0125)
    assert reader.read(packed({"arm": [0.0, 0.0]}))[3:] == (None, None, 0.0)
    named = Reader({}, {"executed": 1}).read(packed({"executed": [2.0]}))
    assert named.executed is None, "a policy's own name comes first"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"executed": -1}, "'executed' is -1; send 0 to 1000"),
        ({"executed": 2.5}, "'executed' is of type float"),
        ({"executed": True}, "'executed' is true or false"),
        ({"delay": 10**9}, "'delay' is 1000000000"),
        ({"round_trip_ms": "soon"}, "'round_trip_ms' is text"),
        ({"round_trip_ms": float("nan")}, "'round_trip_ms' is nan"),
    ],
)
def test_hostile_numbers_are_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        Reader({}, {"arm": 2}).read(packed({"arm": [0.0, 0.0], **message}))
