"""Policies that are told what to reach: from the configuration to an evaluation's tasks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from gtp_vision.config.schema import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise, RandomStream
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.goals import ACTOR_GOALS, HindsightGoals
from gtp_vision.datasets.sources import HostSource
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.evaluator import Episode, Evaluator, random_actor, summary
from gtp_vision.training import eager as updates
from gtp_vision.training import trainer
from gtp_vision.training.build import build, goals_of, shapes

MakeStore = Callable[..., Store]
SMALL = [
    *("encoder=state", "training.device=cpu", "training.batch_size=32", "training.log_every=2"),
    *("agent.policy.hidden=[32,32]", "agent.critic.hidden=[32]", "training.learning_rate=3e-3"),
]


def own(folder: Path, *overrides: str) -> list[str]:
    """A run with goals on a data set without a simulator."""
    data = ("task=own", f"task.dataset={folder / 'data.h5'}", "task.goals=hindsight", "task.frame_stack=1")
    return [*data, f"run_dir={folder / 'run'}", *SMALL, *overrides]


def line(make_store: MakeStore, path: Path) -> None:
    """Walks on a line from 0, at 0.1 a step: half go right and half go left."""
    length, count = 11, 40
    way = np.repeat(np.where(np.arange(count) % 2, 1.0, -1.0), length).astype(np.float32)
    place = 0.1 * way * np.tile(np.arange(length), count)
    store = make_store(
        (length,) * count,
        actions=1,
        rewards=np.zeros(length * count, np.float32),
        observations={"state": place[:, None].astype(np.float32)},
    )
    native.write(path, Store(**{**vars(store), "actions": way[:, None]}))


# Training -------------------------------------------------------------------------------------------------------


def test_every_observation_has_a_goal_of_its_shape_and_scale(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store((9, 9), cameras={"front": (12, 12, 3)})
    assert shapes(store, 2, goals=True) == {
        **{"front": (2, 3, 12, 12), "state": (2, 3)},
        **{"goal/front": (2, 3, 12, 12), "goal/state": (2, 3)},
    }
    native.write(tmp_path / "data.h5", store)
    parts = build(from_command_line(own(tmp_path, "agent=gtp_bc", "encoder=impala_tiny")))
    encoder = parts.agent.actor_encoder
    assert encoder.tower("front") is encoder.tower("goal/front")
    assert encoder.states == ["state", "goal/state"]
    torch.testing.assert_close(encoder.get_buffer("state_mean_0"), encoder.get_buffer("state_mean_1"))
    wanted = torch.from_numpy(np.asarray(store.observations["state"]).mean(0))
    torch.testing.assert_close(encoder.get_buffer("state_mean_1"), wanted, rtol=1e-4, atol=1e-4)


def test_cloning_draws_later_goals_and_a_critic_those_of_values(tmp_path: Path) -> None:
    assert goals_of(from_command_line(own(tmp_path, "agent=gtp_bc"))) == ACTOR_GOALS
    judged = from_command_line(own(tmp_path, "agent=iql", "task.discount=0.9"))
    assert goals_of(judged) == HindsightGoals(current=0.2, trajectory=0.5, random=0.3, geometric=True, discount=0.9)
    assert goals_of(from_command_line(own(tmp_path, "task.goals=null"))) is None


@pytest.mark.parametrize("name", ["gaussian_bc", "gtp_bc", "iql"])
def test_the_action_leads_to_the_goal_that_is_shown(make_store: MakeStore, tmp_path: Path, name: str) -> None:
    line(make_store, tmp_path / "data.h5")
    haste = ("agent.policy_tau=0.1",) if name == "gtp_bc" else ()  # it learns from a slow copy, too
    config = from_command_line(own(tmp_path, f"agent={name}", "training.steps=200", "task.discount=0.9", *haste))
    config.agent.acting.candidates = 1
    parts = build(config)  # though the file holds no rewards
    for step in range(200):
        updates.Eager(HostSource(parts.sampler), config, parts).step(step, parts.sampler.batch(step))[0]
    at, goals = torch.zeros(40, 1, 1), torch.linspace(0.3, 1, 20).repeat(2)
    goals[20:] *= -1
    with torch.no_grad():
        action = parts.agent.act({"state": at, "goal/state": goals[:, None, None]}, RandomStream(1, 1))[:, 0]
    right, left = action[:20].mean(), action[20:].mean()
    assert right > 0.4, "without a goal either way is as good, and the mean is 0"
    assert left < -0.4


def test_a_mixture_of_data_sets_and_chunks_of_actions_take_goals(make_store: MakeStore, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        native.write(tmp_path / name, make_store((9, 9)))
    mixed = [f"task.datasets=[{tmp_path / 'a.h5'},{tmp_path / 'b.h5'}]", "task.shares=[3,1]", "task.dataset=null"]
    overrides = own(tmp_path, "agent=gtp_bc", "agent.action_chunk=3", "task.n_step=2", "training.steps=2", *mixed)
    trainer.train(from_command_line(overrides), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["loss"])


# Evaluating -----------------------------------------------------------------------------------------------------


def test_an_evaluation_shows_each_episode_the_goal_of_its_own_task() -> None:
    spec = EnvSpec("pointmaze-medium-navigate-v0", max_episode_steps=3, goals=True)
    shown: dict[int, list[np.ndarray]] = {}

    def actor(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        assert list(observation) == ["state", "goal/state"]
        for episode, goal in zip(noise.episodes, observation["goal/state"], strict=True):
            assert torch.equal(goal[0], goal[1]), "one frame, which stands still"
            shown.setdefault(episode, []).append(goal[0].numpy())
        return random_actor(2)(observation, noise)

    with Evaluator(spec, frame_stack=2, envs=2, seed=5, progress=False) as evaluator:
        found, done = evaluator.run(actor, 7)
    assert [episode.task for episode in done] == [1, 2, 3, 4, 5, 1, 2]
    assert found["tasks"] == {"1": 0.0, "2": 0.0, "3": 0.0, "4": 0.0, "5": 0.0}
    env = spec.make()
    for number, goals in shown.items():
        wanted = env.reset(seed=5 + number)[1]["goal"].astype(np.float32)
        np.testing.assert_array_equal(np.array(goals), np.tile(wanted, (3, 1)))


def test_the_summary_tells_the_success_of_each_task() -> None:
    episodes = [Episode(k, k in (0, 3, 5), 0.0, 9, [], task=1 + k % 3) for k in range(6)]
    found = summary(episodes, 1.0)
    assert found["success"] == 0.5
    assert found["tasks"] == {"1": 1.0, "2": 0.0, "3": 0.5}
    assert "tasks" not in summary([Episode(0, True, 0.0, 9, [])], 1.0)


def test_200_steps_from_pixels_with_goals_then_two_episodes(tmp_path: Path) -> None:
    overrides = [
        *("task=demo", "task.env=visual-puzzle-3x3-play-v0", "task.goals=hindsight", "task.n_step=1"),
        *("task.max_episode_steps=4", "agent=gtp_bc", "encoder=impala_tiny", "encoder.features=16"),
        *("agent.policy.hidden=[32]", "training.batch_size=4", "training.steps=200", "training.eval_episodes=2"),
        *("training.eval_envs=1", "training.videos=0", "training.device=cpu", f"run_dir={tmp_path}"),
    ]
    results = trainer.train(from_command_line(overrides), progress=False)
    assert results["last"]["tasks"] == {"1": 0.0, "2": 0.0}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["eval/success"])


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.goals=hindsigt"], "task.goals=hindsigt is unknown: did you mean 'hindsight'?"),
        (["agent=iql", "task.n_step=3"], "task.n_step=3 does not fit task.goals=hindsight, .*; set task.n_step=1"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        from_command_line(own(tmp_path, *overrides))


def test_a_task_whose_simulator_shows_no_goal_is_refused_before_training(tmp_path: Path) -> None:
    overrides = ["task=demo", "task.goals=hindsight", "task.n_step=1", "agent=gtp_bc", "encoder=impala_tiny"]
    config = from_command_line([*overrides, "training.device=cpu", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(GtpVisionError, match=r"singletask-task1-v0 has no observation of a goal.*visual-puzzle-3x3-p"):
        trainer.train(config, progress=False)
    assert not (tmp_path / "run").exists()
