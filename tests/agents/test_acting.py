"""What is executed of action chunks, for episodes that began at different times."""

import math
from collections.abc import Callable

import pytest
import torch
from small import JUDGED, NAMES, make, observation

from gtp_vision.agents import ActingConfig
from gtp_vision.agents.acting import Executor
from gtp_vision.core.random import EpisodeNoise

CPU = torch.device("cpu")
CHUNK = 4
BEGIN = {7: 0, 3: 1, 5: 3, 9: 6}  # episode to the moment it begins
LENGTH = {7: 4, 3: 9, 5: 7, 9: 5}


def value(episode: int, planned: int, ahead: int) -> float:
    """What the plan of an episode made at step `planned` holds for `ahead` steps later."""
    return math.sin(1000 * episode + 10 * planned + ahead)


class Planner:
    """Plans that tell who made them and when, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[int, int]] = []

    def __call__(self, seen: object, noise: EpisodeNoise) -> torch.Tensor:
        assert isinstance(seen, dict)
        assert seen["state"][:, 0].tolist() == noise.episodes, "each is planned for by its own observation"
        self.asked.append(dict(zip(noise.episodes, noise.steps, strict=True)))
        rows = zip(noise.episodes, noise.steps, strict=True)
        return torch.tensor([[[value(e, s, i), -value(e, s, i)] for i in range(CHUNK)] for e, s in rows])


def run(acting: ActingConfig) -> tuple[dict[tuple[int, int], float], Planner, Executor]:
    """Every episode's action at every step, episodes beginning and ending at different times."""
    planner = Planner()
    executor = Executor(planner, acting, CHUNK)
    taken: dict[tuple[int, int], float] = {}
    for moment in range(12):
        running = {e: moment - start for e, start in BEGIN.items() if 0 <= moment - start < LENGTH[e]}
        if not running:
            continue
        noise = EpisodeNoise(0, list(running), list(running.values()), CPU)
        actions = executor({"state": torch.tensor([[float(e)] for e in running])}, noise)
        assert actions.shape == (len(running), 2)
        assert torch.equal(actions[:, 1], -actions[:, 0])
        for (episode, step), action in zip(running.items(), actions[:, 0].tolist(), strict=True):
            taken[episode, step] = action
    assert len(taken) == sum(LENGTH.values())
    return taken, planner, executor


@pytest.mark.parametrize(("execute", "every"), [(None, CHUNK), (1, 1), (2, 2), (3, 3)])
def test_a_receding_horizon_executes_the_first_actions_of_each_plan(execute: int | None, every: int) -> None:
    taken, planner, _ = run(ActingConfig(execute=execute))
    for (episode, step), action in taken.items():
        planned = step // every * every
        assert action == pytest.approx(value(episode, planned, step - planned), abs=1e-6)
    plans = sorted((episode, step) for asked in planner.asked for episode, step in asked.items())
    assert plans == sorted((e, s) for e, length in LENGTH.items() for s in range(0, length, every))


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.5])
def test_temporal_ensembling_averages_what_plans_hold_for_the_same_moment(decay: float) -> None:
    taken, planner, _ = run(ActingConfig(ensemble=decay))
    for (episode, step), action in taken.items():
        held = [value(episode, planned, step - planned) for planned in range(max(0, step - CHUNK + 1), step + 1)]
        weight = [math.exp(-decay * i) for i in range(len(held))]  # the oldest first
        expected = sum(w * x for w, x in zip(weight, held, strict=True)) / sum(weight)
        assert action == pytest.approx(expected, abs=1e-6)
    assert sum(map(len, planner.asked)) == sum(LENGTH.values()), "every step plans"


def test_episodes_that_end_are_forgotten() -> None:
    planner = Planner()
    executor = Executor(planner, ActingConfig(ensemble=0.1), CHUNK)
    for step in range(3):
        executor({"state": torch.tensor([[1.0], [2.0]])}, EpisodeNoise(0, [1, 2], [step] * 2, CPU))
    executor({"state": torch.tensor([[2.0]])}, EpisodeNoise(0, [2], [3], CPU))
    assert set(executor._plans) == {2}
    assert len(executor._plans[2]) == CHUNK
    again = executor({"state": torch.tensor([[2.0]])}, EpisodeNoise(0, [2], [0], CPU))
    assert float(again[0, 0]) == pytest.approx(value(2, 0, 0), abs=1e-6), "a number that begins again begins anew"


# With an agent --------------------------------------------------------------------------------------------------


def beside(name: str, *overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The actions of episode 4 over four steps, alone and beside an episode that began two steps before."""
    learner = make(name, *overrides)
    chunk = learner.config.action_chunk
    seen = [observation(batch=2, seed=k) for k in range(4)]
    alone, together = (Executor(learner.plan, learner.config.acting, chunk) for _ in range(2))
    for early in range(2):
        together({"state": seen[0]["state"][:1]}, EpisodeNoise(0, [9], [early], CPU))
    found: dict[str, list[torch.Tensor]] = {"alone": [], "together": []}
    for step in range(4):
        found["alone"].append(alone({"state": seen[step]["state"][1:]}, EpisodeNoise(0, [4], [step], CPU))[0])
        found["together"].append(together(seen[step], EpisodeNoise(0, [9, 4], [step + 2, step], CPU))[1])
    return torch.stack(found["alone"]), torch.stack(found["together"])


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_does_not_depend_on_who_runs_beside_it(name: str) -> None:
    torch.testing.assert_close(*beside(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("acting", ["agent.acting.execute=2", "agent.acting.ensemble=0.1"])
@pytest.mark.parametrize("name", ["gtp", "diffusion_ql"])
def test_nor_do_action_chunks_of_one_of_several_candidates(name: str, acting: str) -> None:
    assert name in JUDGED
    choosing = ["agent.acting.candidates=4", "agent.acting.choose=softmax", "agent.action_chunk=3", acting]
    torch.testing.assert_close(*beside(name, *choosing), rtol=1e-4, atol=1e-5)


def test_the_noise_of_a_plan_is_that_of_its_step(make_noise: Callable[..., EpisodeNoise]) -> None:
    learner = make("gtp", "agent.action_chunk=3", "agent.acting.execute=3")
    executor, seen = Executor(learner.plan, learner.config.acting, 3), observation(batch=1)
    plan = learner.plan(seen, make_noise([4], [0]))
    for step in range(3):
        assert torch.equal(executor(seen, make_noise([4], [step]))[0], plan[0, step])


@pytest.fixture
def make_noise() -> Callable[..., EpisodeNoise]:
    """Noise of episodes at their steps."""
    return lambda episodes, steps: EpisodeNoise(0, episodes, steps, CPU)
