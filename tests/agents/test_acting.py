import math

import numpy as np
import pytest
import torch
from small import NAMES, make, observation
from stores import make_store

from gtp_vision.agents import ActingConfig
from gtp_vision.agents.acting import Executor, FrameStack
from gtp_vision.agents.joining import Known
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.sampler import Sampler

CPU = torch.device("cpu")
CHUNK = 4
BEGIN = {7: 0, 3: 1, 5: 3, 9: 6}  # episode to the moment it begins
LENGTH = {7: 4, 3: 9, 5: 7, 9: 5}


def noise(steps: dict[int, int]) -> EpisodeNoise:
    return EpisodeNoise(0, list(steps), list(steps.values()), CPU)


def test_stacks_are_the_samplers_windows() -> None:
    store = make_store((5, 4), cameras={"front": (4, 6, 3)})
    sampler, frames = Sampler(store, 2, seed=0, frame_stack=3), FrameStack(3)
    arrays, taken = {name: np.asarray(array) for name, array in store.observations.items()}, []
    for moment in range(5):  # row 1 shows another episode's end, and begins its own at moment 2
        rows = np.array([moment, 8 if moment < 2 else 3 + moment])
        newest = {name: array[rows] for name, array in arrays.items()}
        frames.push(newest | {f"goal/{name}": array[[8, 6]] for name, array in arrays.items()})
        if moment == 2:
            frames.begin(newest, [1])
        compared = [0] if moment < 2 else [1, 0]
        expected = sampler.gather(rows[compared], np.array([8, 6])[compared]).observation
        stacks = frames.tensors(CPU, compared)
        assert set(stacks) == set(expected)
        for name, stack in stacks.items():
            assert stack.dtype == expected[name].dtype
            assert torch.equal(stack, expected[name]), (name, moment)
        taken.append((stacks["state"], stacks["state"].clone()))
        assert np.array_equal(frames.newest(0)["front"], arrays["front"][moment])
    assert all(torch.equal(*pair) for pair in taken), "stacks do not change after they are taken"


def value(episode: int, planned: int, ahead: int) -> float:
    """What the plan of an episode made at step `planned` holds for `ahead` steps later."""
    return math.sin(1000 * episode + 10 * planned + ahead)


def run(acting: ActingConfig) -> tuple[dict[tuple[int, int], float], list[tuple[int, int]]]:
    """Action of each (episode, step), and the (episode, step) of each plan."""
    plans: list[tuple[int, int]] = []

    def plan(observation: object, noise: EpisodeNoise) -> torch.Tensor:
        assert isinstance(observation, dict)
        assert observation["state"][:, 0].tolist() == noise.episodes, "each plan is made for its own observation"
        rows = list(zip(noise.episodes, noise.steps, strict=True))
        plans.extend(rows)
        return torch.tensor([[[value(e, s, i), -value(e, s, i)] for i in range(CHUNK)] for e, s in rows])

    executor = Executor(plan, acting, CHUNK)
    taken: dict[tuple[int, int], float] = {}
    for moment in range(11):
        running = {e: moment - start for e, start in BEGIN.items() if 0 <= moment - start < LENGTH[e]}
        actions = executor({"state": torch.tensor([[float(e)] for e in running])}, noise(running))
        assert torch.equal(actions[:, 1], -actions[:, 0])
        taken |= dict(zip(running.items(), actions[:, 0].tolist(), strict=True))
    assert len(taken) == sum(LENGTH.values())
    return taken, sorted(plans)


@pytest.mark.parametrize(("execute", "every"), [(None, CHUNK), (1, 1), (3, 3)])
def test_a_receding_horizon_executes_the_first_actions_of_each_plan(execute: int | None, every: int) -> None:
    taken, plans = run(ActingConfig(execute=execute))
    for (episode, step), action in taken.items():
        planned = step // every * every
        assert action == pytest.approx(value(episode, planned, step - planned), abs=1e-6)
    assert plans == sorted((e, s) for e, length in LENGTH.items() for s in range(0, length, every))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_temporal_ensembling_averages_what_plans_hold_for_the_same_moment(decay: float) -> None:
    taken, plans = run(ActingConfig(ensemble=decay))
    for (episode, step), action in taken.items():
        actions = [value(episode, planned, step - planned) for planned in range(max(0, step - CHUNK + 1), step + 1)]
        weights = [math.exp(-decay * i) for i in range(len(actions))]  # the oldest first
        assert action == pytest.approx(np.average(actions, weights=weights), abs=1e-6)
    assert plans == sorted(taken), "every step plans"


def latest(step: int, every: int, delay: int) -> int:
    """When the plan was made that is executed at a step."""
    return max(planned for planned in range(0, step + 1, every) if planned == 0 or planned + delay <= step)


@pytest.mark.parametrize(("execute", "delay"), [(None, 1), (2, 1), (2, 2), (1, 1)])
def test_a_plan_is_executed_from_when_it_arrives_and_the_one_before_until_then(execute: int | None, delay: int) -> None:
    taken, plans = run(ActingConfig(execute=execute, delay=delay))
    every = execute or CHUNK - delay
    for (episode, step), action in taken.items():
        planned = latest(step, every, delay)
        assert action == pytest.approx(value(episode, planned, step - planned), abs=1e-6)
    assert plans == sorted((e, s) for e, length in LENGTH.items() for s in range(0, length, every))


def test_ensembles_average_the_plans_that_have_arrived() -> None:
    taken, _ = run(ActingConfig(ensemble=0.5, delay=2))
    for (episode, step), action in taken.items():
        made = [s for s in range(max(0, step - CHUNK + 1), step + 1) if s == 0 or s + 2 <= step]
        weights = [math.exp(-0.5 * i) for i in range(len(made))]
        expected = np.average([value(episode, planned, step - planned) for planned in made], weights=weights)
        assert action == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("delay", "join"), [(0, "blend"), (1, "rtc"), (2, "blend")])
def test_plans_are_made_knowing_what_remains_of_the_one_before(delay: int, join: str) -> None:
    def plan(_: object, noise: EpisodeNoise, known: Known | None = None) -> torch.Tensor:
        rows = list(zip(noise.episodes, noise.steps, strict=True))
        made = torch.tensor([[[value(e, s, i)] for i in range(CHUNK)] for e, s in rows])
        assert (known is None) == all(step == 0 for step in noise.steps)
        if known is not None:
            rest = [[value(e, s - 2, i)] for e, s in rows for i in range(2, CHUNK)]
            expected = Known.of(torch.tensor(rest).view(len(made), -1, 1), delay, CHUNK)
            torch.testing.assert_close(known, expected)
        return made

    executor = Executor(plan, ActingConfig(execute=2, delay=delay, join=join), CHUNK)
    switched = []
    for moment in range(8):  # episode 3 begins two steps after episode 7
        executor({}, noise({7: moment} | ({3: moment - 2} if moment > 1 else {})))
        switched.append(list(executor.switched))
        for episode, rest in executor.switched.items():
            begun, left = moment - (2 if episode == 3 else 0) - 2 - delay, range(2 + delay, CHUNK)
            assert rest[:, 0].tolist() == pytest.approx([value(episode, begun, i) for i in left])
    assert switched == [[]] * (2 + delay) + ([[7], [], [7, 3], [], [7, 3], []])[: 6 - delay]


def test_plans_of_episodes_that_end_or_begin_again_are_dropped() -> None:
    plans = iter(torch.arange(10.0))
    executor = Executor(
        lambda _, noise: next(plans).expand(len(noise.steps), CHUNK, 1), ActingConfig(ensemble=0.1), CHUNK
    )
    for step in range(3):
        executor({}, noise({1: step, 2: step}))
    executor({}, noise({2: 3}))
    assert set(executor._plans) == {2}
    assert executor({}, noise({2: 0})).tolist() == [[4.0]], "a new episode of the same number begins anew"


def beside(name: str, *overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The actions of episode 4 over four steps, alone and beside an episode that began two steps before."""
    agent = make(name, *overrides)
    alone, together = (Executor(agent.plan, agent.config.acting, agent.config.action_chunk) for _ in range(2))
    seen = [observation(batch=2, seed=k) for k in range(4)]
    for early in range(2):
        together({key: x[:1] for key, x in seen[0].items()}, noise({9: early}))
    pairs = [
        (alone({key: x[1:] for key, x in both.items()}, noise({4: k}))[0], together(both, noise({9: k + 2, 4: k}))[1])
        for k, both in enumerate(seen)
    ]
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


CHOOSING = ["agent.acting.candidates=4", "agent.acting.choose=softmax", "agent.action_chunk=3"]
BEAM = ["agent.acting.beam=2", "agent.acting.rounds=2", "agent.acting.branch=3", "agent.acting.gradient_step=0.1"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, []) for name in NAMES),
        ("gtp", [*CHOOSING, "agent.acting.execute=2"]),
        ("diffusion_ql", [*CHOOSING, "agent.acting.ensemble=0.1"]),
        ("gtp", [*CHOOSING, *BEAM]),
    ],
)
def test_an_episode_does_not_depend_on_those_beside_it(name: str, overrides: list[str]) -> None:
    torch.testing.assert_close(*beside(name, *overrides), rtol=1e-4, atol=1e-5)
