from collections.abc import Iterator

import pytest
import torch
from small import NAMES, PIXELS, make, observation

from gtp_vision.agents import ActingConfig, Agent
from gtp_vision.agents import fast as fast_module
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.agents.joining import Known
from gtp_vision.core import compile
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise, NoiseSource, RandomStream

pytestmark = pytest.mark.compiles

TRACED = "aot_eager"  # all of compiling except the compiler
UNTRACED = {"qgpo"}  # autograd computes its energy's gradient
CHOOSING = ["agent.acting.candidates=4", "agent.acting.choose=softmax", "agent.action_chunk=3", "agent.acting.noise=.5"]
BEAM = ["agent.acting.beam=2", "agent.acting.rounds=2", "agent.acting.branch=3", "agent.acting.gradient_step=0.1"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_compiled_code_outlives_a_test() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def traced(agent: Agent, batch: int = 1) -> FastPolicy:
    return FastPolicy(agent, engine="compile", backend=TRACED, batch=batch)


def assert_same(
    fast: FastPolicy,
    seen: dict[str, torch.Tensor],
    steps: int | None = None,
    acting: ActingConfig | None = None,
    engine: str = "compile",
) -> None:
    """Plans are those of the agent, at the first call, which compiles, and at later ones."""
    for turn in range(2):
        device = next(iter(seen.values())).device
        expected = fast.agent.plan(seen, RandomStream(1, turn, device=device), steps, acting)
        plan = fast.plan(seen, RandomStream(1, turn, device=device), steps, acting)
        torch.testing.assert_close(plan, expected, rtol=1e-4, atol=1e-5)
    assert fast.engine == engine, fast.status


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_plans_as_it_does_eagerly(name: str) -> None:
    assert_same(traced(make(name)), observation(batch=1), engine="eager" if name in UNTRACED else "compile")


def test_plans_that_continue_others_are_compiled_beside_those_that_do_not() -> None:
    fast = traced(make("gtp_bc", "agent.action_chunk=4", "agent.acting.join=rtc"))
    seen = observation(batch=1)
    for turn in range(3):
        known = None if turn == 1 else Known.of(torch.full((1, 2 + turn // 2, 2), 0.1 * turn), turn // 2, 4)
        expected = fast.agent.plan(seen, RandomStream(1, turn), known=known)
        torch.testing.assert_close(fast.plan(seen, RandomStream(1, turn), known=known), expected, rtol=1e-4, atol=1e-5)
    assert (fast.engine, len(fast._plans)) == ("compile", 2), fast.status


def test_steps_and_acting_settings_are_chosen_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_module, "_MAX_COMPILED", 2)
    fast, seen = traced(make("gtp", "agent.acting.candidates=4")), observation(batch=1)
    for steps, acting in ((1, None), (3, None), (None, ActingConfig(steps=2, noise=0)), (1, None)):
        assert_same(fast, seen, steps, acting)
        assert len(fast._plans) <= 2
    assert not torch.allclose(fast.plan(seen, RandomStream(0, 0), 1), fast.agent.plan(seen, RandomStream(0, 0), 3))


@pytest.mark.parametrize("more", [[], BEAM], ids=["best of N", "beam"])
def test_cameras_candidates_chunks_and_scaled_noise_are_compiled_for_a_batch(more: list[str]) -> None:
    agent = make("gtp", *CHOOSING, *more, shapes=PIXELS, share=True)
    assert_same(traced(agent, batch=2), observation(PIXELS, batch=2))


@pytest.mark.parametrize("make_noise", [lambda: RandomStream(0, 0), lambda: EpisodeNoise(0, [4], [7], CPU)])
def test_noise_is_drawn_in_the_order_of_the_eager_plan(make_noise: type[NoiseSource]) -> None:
    agent, seen = make("gtp"), observation(batch=1)
    fast, ours, theirs = traced(agent), make_noise(), make_noise()
    for _ in range(3):
        torch.testing.assert_close(fast.act(seen, ours), agent.act(seen, theirs))


def test_another_batch_size_is_planned_eagerly() -> None:
    fast = traced(make("gtp"))
    assert_same(fast, observation(batch=3))
    assert not fast._plans


@pytest.mark.skipif(not compile.has_compiler(), reason="no C++ compiler")
def test_compiled_code_sees_weights_that_change_in_place() -> None:
    agent, other = (make("gtp", *CHOOSING, shapes=PIXELS, seed=seed) for seed in (0, 1))
    fast, seen = FastPolicy(agent), observation(PIXELS, batch=1)
    assert_same(fast, seen)
    before = fast.plan(seen, RandomStream(0, 0))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(0.5)
    assert_same(fast, seen)
    assert not torch.allclose(before, fast.plan(seen, RandomStream(0, 0)))
    agent.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast.plan(seen, RandomStream(0, 0)), other.plan(seen, RandomStream(0, 0)))
    assert fast.status == "acting: compile"


@pytest.mark.parametrize(
    ("engine", "reason"), [("compile", "no C++ compiler"), ("graph", "needs a GPU, and the agent is on cpu")]
)
def test_an_unavailable_engine_falls_back_to_eager(monkeypatch: pytest.MonkeyPatch, engine: str, reason: str) -> None:
    monkeypatch.setattr(fast_module, "has_compiler", lambda: False)
    fast = FastPolicy(make("gtp"), engine=engine)
    assert fast.status.startswith("acting: eager, because ")
    assert reason in fast.status
    assert_same(fast, observation(batch=1), engine="eager")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_replays_the_plan_with_new_noise_weights_and_observations() -> None:
    agent = make("gtp", *CHOOSING).cuda()
    fast = FastPolicy(agent)
    for turn in range(3):
        seen = {name: x.cuda() for name, x in observation(batch=1, seed=turn).items()}
        for steps in (1, 2):
            assert_same(fast, seen, steps, engine="graph")
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.mul_(0.9)


def test_invalid_steps_and_engines_are_refused() -> None:
    fast, seen = traced(make("gtp")), observation(batch=1)
    with pytest.raises(ValueError, match="at least 1 step"):
        fast.plan(seen, RandomStream(0, 0), 0)
    assert fast.engine == "compile"
    with pytest.raises(GtpVisionError, match="acts in 2"):
        traced(make("diffusion_ql")).plan(seen, RandomStream(0, 0), 5)
    with pytest.raises(GtpVisionError, match=r"engine=compiled .*'compile'"):
        FastPolicy(make("gtp"), engine="compiled")
