"""Acting at once is acting: the same noise, the same actions."""

from collections.abc import Iterator

import pytest
import torch
from small import NAMES, PIXELS, make, observation

from gtp_vision.agents import Agent
from gtp_vision.agents import fast as fast_module
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.core import compile
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise, RandomStream

TRACED = "aot_eager"  # all of compiling but the compiler
UNTRACED = {"qgpo"}  # the energy's gradient is autograd's
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """No function outlives its test."""
    yield
    torch._dynamo.reset()


def traced(agent: Agent, batch: int = 1) -> FastPolicy:
    return FastPolicy(agent, engine="compile", backend=TRACED, batch=batch)


def assert_same(fast: FastPolicy, seen: dict[str, torch.Tensor], steps: int | None = None, turns: int = 3) -> None:
    """At the first call, which makes the function, and at those that use it."""
    for turn in range(turns):
        expected = fast.agent.plan(seen, RandomStream(1, turn), steps)
        torch.testing.assert_close(fast.plan(seen, RandomStream(1, turn), steps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_plans_as_it_does_eagerly(name: str) -> None:
    fast = traced(make(name))
    assert_same(fast, observation(batch=1))
    assert fast.engine == ("eager" if name in UNTRACED else "compile"), fast.told


def test_k_is_chosen_at_every_call() -> None:
    fast, seen = traced(make("gtp")), observation(batch=1)
    for steps in (1, 3, None, 1, 3):
        assert_same(fast, seen, steps, turns=2)
    assert fast.engine == "compile"
    plans = [fast.plan(seen, RandomStream(0, 0), steps) for steps in (1, 2, 3)]
    assert not torch.allclose(plans[0], plans[1])
    assert not torch.allclose(plans[1], plans[2])


def test_agents_of_one_shape_do_not_answer_for_each_other() -> None:
    seen = observation(batch=1)
    first, second = traced(make("gtp", seed=0)), traced(make("gtp", seed=1))
    for _ in range(2):
        assert_same(first, seen)
        assert_same(second, seen)
    assert not torch.allclose(first.plan(seen, RandomStream(0, 0)), second.plan(seen, RandomStream(0, 0)))


CHOOSING = [
    "agent.acting.candidates=4",
    "agent.acting.choose=softmax",
    "agent.action_chunk=3",
    "agent.acting.noise=0.5",
]


def test_candidates_chunks_and_scaled_noise() -> None:
    fast = traced(make("gtp", *CHOOSING), batch=2)
    assert_same(fast, observation(batch=2))
    assert fast.engine == "compile"


def test_settings_of_acting_may_change() -> None:
    agent = make("gtp", "agent.acting.candidates=4")
    fast, seen = traced(agent), observation(batch=1)
    assert_same(fast, seen)
    agent.config.acting.candidates = 1
    assert_same(fast, seen)
    agent.config.acting.noise = 0.0
    assert_same(fast, seen)
    assert fast.engine == "compile"


@pytest.mark.parametrize("share", [False, True])
def test_cameras_are_encoded_too(share: bool) -> None:
    fast = traced(make("gtp", "agent.acting.candidates=2", shapes=PIXELS, share=share))
    assert_same(fast, observation(PIXELS, batch=1))
    assert fast.engine == "compile"


def test_observations_may_be_parts_of_larger_tensors() -> None:
    fast, whole = traced(make("gtp")), observation(batch=5)["state"]
    assert_same(fast, {"state": whole[:1]})
    assert_same(fast, {"state": whole[3:4]})
    assert_same(fast, {"state": whole[2:3].transpose(1, 2).contiguous().transpose(1, 2)})


def test_episodes_noise_is_drawn_as_it_is_eagerly() -> None:
    agent = make("gtp")
    fast, seen = traced(agent), observation(batch=1)
    for step in range(3):
        expected = agent.act(seen, EpisodeNoise(0, [4], [step], CPU))
        torch.testing.assert_close(fast.act(seen, EpisodeNoise(0, [4], [step], CPU)), expected)
        assert expected.shape == (1, 2)


def test_one_stream_gives_plan_after_plan() -> None:
    agent, seen = make("gtp"), observation(batch=1)
    fast = traced(agent)
    ours, theirs = RandomStream(0, 0), RandomStream(0, 0)
    for _ in range(3):
        torch.testing.assert_close(fast.plan(seen, ours), agent.plan(seen, theirs))


def test_another_number_of_observations_is_acted_on_eagerly() -> None:
    fast = traced(make("gtp"))
    assert_same(fast, observation(batch=3))
    assert not fast._made
    assert fast.engine == "compile"


def test_an_agent_in_training_acts_as_in_evaluation_and_trains_on() -> None:
    agent, seen = make("gtp", shapes=PIXELS).train(), observation(PIXELS, batch=1)
    modes = [module.training for module in agent.modules()]
    fast = traced(agent)
    assert_same(fast, seen)
    assert [module.training for module in agent.modules()] == modes


def test_only_so_many_functions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_module, "_MADE", 2)
    fast, seen = traced(make("gtp_bc")), observation(batch=1)
    for steps in (1, 2, 3, 1):
        assert_same(fast, seen, steps, turns=2)
        assert len(fast._made) <= 2


# Compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not compile.has_compiler(), reason="no C++ compiler")
def test_compiled_code_sees_weights_that_change_in_place() -> None:
    agent, other, seen = make("gtp"), make("gtp", seed=1), observation(batch=1)
    fast = FastPolicy(agent)
    assert_same(fast, seen)
    before = fast.plan(seen, RandomStream(0, 0))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(0.5)
    assert_same(fast, seen)
    assert not torch.allclose(before, fast.plan(seen, RandomStream(0, 0)))
    agent.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast.plan(seen, RandomStream(0, 0)), other.plan(seen, RandomStream(0, 0)))
    assert (fast.engine, fast.told) == ("compile", "acting: compile")


@pytest.mark.skipif(not compile.has_compiler(), reason="no C++ compiler")
def test_compiled_code_chooses_among_candidates_of_what_cameras_see() -> None:
    fast = FastPolicy(make("gtp", *CHOOSING, shapes=PIXELS))
    assert_same(fast, observation(PIXELS, batch=1))
    assert_same(fast, observation(PIXELS, batch=1, seed=1))
    assert fast.engine == "compile"


# Falling back -----------------------------------------------------------------------------------------------------


def test_without_a_compiler_it_acts_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_module, "has_compiler", lambda: False)
    fast = FastPolicy(make("gtp"))
    assert fast.engine == "eager"
    assert fast.told == "acting: eager, because there is no C++ compiler to compile with (g++ or clang++)"
    assert_same(fast, observation(batch=1))


def test_what_cannot_be_traced_is_acted_eagerly_with_the_noise_that_was_drawn() -> None:
    agent, seen = make("qgpo"), observation(batch=1)
    fast = traced(agent)
    ours, theirs = RandomStream(0, 0), RandomStream(0, 0)
    for _ in range(2):
        assert torch.equal(fast.plan(seen, ours), agent.plan(seen, theirs))
    assert fast.engine == "eager"
    assert fast.told.startswith("acting: eager, because engine=compile does not work here: ")
    assert "\n" not in fast.told


def test_a_graph_needs_a_gpu() -> None:
    fast = FastPolicy(make("gtp"), engine="graph")
    assert fast.told == "acting: eager, because a CUDA graph needs a GPU, and the agent is on cpu"
    assert_same(fast, observation(batch=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_replays_the_plan_with_new_noise_weights_and_observations() -> None:
    agent = make("gtp", *CHOOSING).cuda()
    fast = FastPolicy(agent)
    for turn in range(3):
        seen = {name: x.cuda() for name, x in observation(batch=1, seed=turn).items()}
        for steps in (1, 2):
            ours, theirs = (RandomStream(1, turn, device="cuda") for _ in range(2))
            torch.testing.assert_close(
                fast.plan(seen, ours, steps), agent.plan(seen, theirs, steps), rtol=1e-3, atol=1e-4
            )
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.mul_(0.9)
    assert fast.engine == "graph", fast.told


def test_steps_that_are_refused_eagerly_are_refused() -> None:
    fast, seen = traced(make("gtp")), observation(batch=1)
    with pytest.raises(ValueError, match="at least 1 step"):
        fast.plan(seen, RandomStream(0, 0), 0)
    assert fast.engine == "compile"
    with pytest.raises(GtpVisionError, match="acts in 2"):
        traced(make("diffusion_ql")).plan(seen, RandomStream(0, 0), 5)


def test_an_engine_that_there_is_not_is_refused() -> None:
    with pytest.raises(GtpVisionError, match="no engine 'compiled' to act with: did you mean 'compile'"):
        FastPolicy(make("gtp"), engine="compiled")
