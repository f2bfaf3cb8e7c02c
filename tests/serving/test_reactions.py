import numpy as np
import pytest
from small_policies import knowing, observations, untrained

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.doubt import Reactor
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reactions import SIGNALS, Doubt, DoubtError, OnDoubt

CALM, DOUBTFUL = {"camera front": 0.5, "state arm": 0.9}, {"camera front": 1.7, "state arm": 0.9}
ALWAYS, NEVER = 1e-6, 1e9  # thresholds


@pytest.fixture(scope="module")
def policy() -> Policy:
    return untrained("agent=gtp", action_low=(-3.0, -2.0))


def reactions(settings: OnDoubt, doubtful: str) -> str:
    """What is done at each answer, `x` for a doubtful one, as the reactions' first letters."""
    reactor = Reactor(settings)
    return "".join(reactor.doubt(DOUBTFUL if each == "x" else CALM).reaction[0] for each in doubtful)


def test_a_reaction_begins_and_ends_after_several_answers() -> None:
    assert reactions(OnDoubt("hold", 3), "xx.xx.xxx.xx...x") == "nnnnnnnnhhhhhhnn"
    assert reactions(OnDoubt("slow", 1), "x.x") == "sns"
    assert reactions(OnDoubt("none", 1), "xxx") == "nnn"


def test_a_stop_lasts_until_the_reset() -> None:
    reactor = Reactor(OnDoubt("stop", 2))
    assert reactor.doubt(DOUBTFUL).reaction == "none"
    for signals in (DOUBTFUL, CALM, CALM, CALM):
        with pytest.raises(DoubtError, match=r"camera front|state arm"):
            reactor.doubt(signals)
    reactor.reset()
    assert reactor.doubt(DOUBTFUL).reaction == "none"


def test_doubt_is_its_largest_signal_and_survives_recording() -> None:
    doubt = Doubt(DOUBTFUL, "hold")
    assert (doubt.value, doubt.because) == (1.7, "camera front")
    assert Doubt.of(doubt.numbers()) == doubt


@pytest.mark.parametrize(
    ("reaction", "kinds", "expected"),
    [
        ("hold", ("delta",), [[0, 0], [0, 0]]),
        ("hold", ("absolute",), [[1, -1], [1, -1]]),
        ("hold", ("absolute", "delta"), [[1, 0], [1, 0]]),
        ("slow", ("delta",), [[0.5, 1], [1, 0]]),
        ("slow", ("absolute",), [[1, 0.5], [1.5, -0.5]]),
        ("steps", (), [[1, 2], [2, 0]]),
    ],
)
def test_actions_in_doubt(reaction: str, kinds: tuple[str, ...], expected: list[list[float]]) -> None:
    reactor, planned = Reactor(OnDoubt(reaction, 1, actions=kinds)), np.array([[1, 2], [2, 0]], np.float32)
    last = np.array([1, -1], np.float32)
    assert reactor.changed(planned, last) is planned, "it has not begun"
    reactor.doubt(DOUBTFUL)
    np.testing.assert_array_equal(reactor.changed(planned, last), np.array(expected, np.float32))


def test_absolute_actions_cannot_be_held_from_an_unknown_one() -> None:
    reactor = Reactor(OnDoubt("hold", 1, actions=("absolute",)))
    reactor.doubt(DOUBTFUL)
    with pytest.raises(GtpVisionError, match="send 'executed'"):
        reactor.changed(np.zeros((4, 2), np.float32), None)


@pytest.mark.parametrize("signals", [("features", "states", "still"), SIGNALS])
def test_doubt_does_not_change_the_bits_of_actions(policy: Policy, signals: tuple[str, ...]) -> None:
    doubting = knowing(policy, OnDoubt(signals=signals), ALWAYS).session(seed=5)
    plain = policy.session(seed=5)
    for seen in observations(policy.schema, 6):
        np.testing.assert_array_equal(doubting.act(seen), plain.act(seen))
        assert doubting.doubt is not None
        assert (doubting.doubt.value > 1, doubting.doubt.reaction) == (True, "none")
    assert plain.doubt is None


def test_held_actions_are_at_rest_and_slower_ones_on_their_way(policy: Policy) -> None:
    seen = observations(policy.schema, 5)
    plain = np.stack([policy.session().act(each) for each in seen[:1]])
    held = knowing(policy, OnDoubt("hold", 2, actions=("delta",)), ALWAYS).session()
    actions = np.stack([held.act(each) for each in seen])
    np.testing.assert_array_equal(actions[:1], plain)
    np.testing.assert_array_equal(actions[1:], 0)
    kept = knowing(policy, OnDoubt("hold", 2, actions=("absolute",)), ALWAYS).session()
    np.testing.assert_array_equal(np.stack([kept.act(each) for each in seen]), np.repeat(plain, 5, 0))
    calm = knowing(policy, OnDoubt("hold", 1, actions=("delta",)), NEVER).session()
    np.testing.assert_array_equal(calm.act(seen[0]), plain[0])


def test_more_jumps_are_twice_as_many(policy: Policy) -> None:
    seen = observations(policy.schema, 2)
    doubting, plain = knowing(policy, OnDoubt("steps", 1), ALWAYS).session(), policy.session()
    for each in seen:
        np.testing.assert_array_equal(doubting.act(each, steps=2), plain.act(each, steps=4))


def test_reactions_without_a_meaning_are_refused(policy: Policy) -> None:
    one_step = untrained("agent=fql", action_low=(-3.0, -2.0))
    for made, settings, message in (
        (policy, OnDoubt("hold"), "--actions absolute"),
        (policy, OnDoubt("slow", actions=("delta",) * 3), "3 are given"),
        (
            untrained("agent=gtp", action_low=(1.0, 0.0), action_high=(2.0, 1.0)),
            OnDoubt("hold", actions=("delta",)),
            "rest at 0",
        ),
        (policy, OnDoubt("hold", 1, actions=("absolute",)), "2 or more"),
        (policy, OnDoubt("sotp"), "stop"),
        (policy, OnDoubt(after=0), "from 1 to"),
        (policy, OnDoubt(share=1.0), "below 1"),
        (one_step, OnDoubt("steps"), "always acts in one step"),
        (untrained("agent=idql"), OnDoubt(signals=("map",)), "vp_diffusion is not one"),
    ):
        with pytest.raises(GtpVisionError, match=message):
            knowing(made).react(settings)
    with pytest.raises(GtpVisionError, match="holds no calibrated doubt"):
        policy.react(OnDoubt("stop"))


@pytest.mark.parametrize("stored", [[], {"reaction": "hold"}, {"actions": 3, "signals": []}, "stop"])
def test_settings_of_an_untrusted_file_are_checked(stored: object) -> None:
    with pytest.raises(GtpVisionError):
        OnDoubt.of(stored or {"actions": [], "signals": [], "more": 1}).check()
