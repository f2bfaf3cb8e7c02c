from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import composed
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise, RandomStream
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.goals import ACTOR_GOALS, HindsightGoals, RoleGoals
from gtp_vision.datasets.record import record_of
from gtp_vision.datasets.sources import HostSource
from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.evaluator import Evaluator, random_actor
from gtp_vision.training import eager as updates
from gtp_vision.training import trainer
from gtp_vision.training.build import build, goals_of, shapes

SMALL = [
    *("encoder=state", "training.device=cpu", "training.batch_size=32", "training.log_every=2"),
    *("agent.policy.hidden=[32,32]", "agent.critic.hidden=[32]", "training.learning_rate=3e-3"),
]


def own(folder: Path, *overrides: str) -> list[str]:
    """Settings of a run with goals on a data set without a simulator."""
    data = ("task=own", f"task.dataset={folder / 'data.h5'}", "task.goals=hindsight", "task.frame_stack=1")
    return [*data, f"run_dir={folder / 'run'}", *SMALL, *overrides]


def walks(path: Path) -> None:
    """Write walks on a line from 0, at 0.1 a step: half of them to the right, half to the left."""
    length, count = 11, 40
    way = np.repeat(np.where(np.arange(count) % 2, 1.0, -1.0), length).astype(np.float32)[:, None]
    place = 0.1 * way * np.tile(np.arange(length), count).astype(np.float32)[:, None]
    store = make_store((length,) * count, rewards=np.zeros(length * count, np.float32), observations={"state": place})
    native.write(path, replace(store, actions=way))


def test_every_observation_has_a_goal_of_its_shape_and_scale(tmp_path: Path) -> None:
    store = make_store((9, 9), cameras={"front": (12, 12, 3)})
    assert shapes(record_of(store), 2, goals=True) == {
        **{"front": (2, 3, 12, 12), "state": (2, 3)},
        **{"goal/front": (2, 3, 12, 12), "goal/state": (2, 3)},
    }
    native.write(tmp_path / "data.h5", store)
    parts = build(composed(*own(tmp_path, "agent=gtp_bc", "encoder=impala_tiny")))
    encoder = parts.agent.actor_encoder
    assert encoder.tower("front") is encoder.tower("goal/front")
    assert encoder.states == ["state", "goal/state"]
    torch.testing.assert_close(encoder.get_buffer("mean_state"), encoder.get_buffer("mean_goal/state"))
    mean = torch.from_numpy(np.asarray(store.observations["state"]).mean(0))
    torch.testing.assert_close(encoder.get_buffer("mean_goal/state"), mean, rtol=1e-4, atol=1e-4)


def test_cloning_draws_later_goals_and_a_critic_those_of_values(tmp_path: Path) -> None:
    assert goals_of(composed(*own(tmp_path, "agent=gtp_bc"))) == ACTOR_GOALS
    judged = composed(*own(tmp_path, "agent=iql", "task.discount=0.9"))
    law = HindsightGoals(current=0.2, trajectory=0.5, random=0.3, geometric=True, discount=0.9)
    assert goals_of(judged) == RoleGoals(law, ACTOR_GOALS)
    stitched = goals_of(composed(*own(tmp_path, "agent=hiql", "task.random_goals=0.5", "task.discount=0.9")))
    assert stitched == RoleGoals(law, replace(ACTOR_GOALS, trajectory=0.5, random=0.5), ahead=25)
    contrasted = goals_of(composed(*own(tmp_path, "agent=crl", "task.discount=0.9")))
    assert isinstance(contrasted, RoleGoals)
    assert contrasted.critic == HindsightGoals(current=0, trajectory=1, random=0, geometric=True, discount=0.9)
    assert goals_of(composed(*own(tmp_path, "task.goals=null"))) is None


@pytest.mark.trains
@pytest.mark.parametrize("name", ["gtp_bc", "iql", "gcbc", "gcivl", "gciql", "crl", "qrl", "hiql", "gtp value"])
def test_the_action_leads_to_the_goal_that_is_shown(tmp_path: Path, name: str) -> None:
    walks(tmp_path / "data.h5")
    name, *backup = name.split()
    more = [f"agent.critic.backup={backup[0]}", "agent.improvement.form=exponential"] if backup else []
    more += ["agent.policy_tau=0.1"] if name in ("gtp", "gtp_bc") else []  # it also learns from a slow copy
    more += ["agent.improvement.subgoal_steps=3", "agent.tau=0.05"] if name == "hiql" else []
    more += ["agent.critic.latent=16"] if name in ("crl", "qrl") else []
    config = composed(*own(tmp_path, f"agent={name}", "training.steps=200", "task.discount=0.9", *more))
    config.agent.acting.candidates = 1
    parts = build(config)  # though the file holds no rewards
    engine = updates.Eager(HostSource(parts.sampler), config, parts)
    for step in range(200):
        engine.step(step, parts.sampler.batch(step))
    at, goals = torch.zeros(40, 1, 1), torch.linspace(0.3, 1, 20).repeat(2)
    goals[20:] *= -1
    with torch.no_grad():
        action = parts.agent.act({"state": at, "goal/state": goals[:, None, None]}, RandomStream(1, 1))[:, 0]
    right, left = action[:20].mean(), action[20:].mean()
    assert right > 0.4, "without a goal either way is as good, and the mean is 0"
    assert left < -0.4


@pytest.mark.parametrize("more", [["agent=gtp", "agent.critic.backup=value", "task.goals=null"], ["agent=hiql"]])
def test_critics_without_q_train_and_are_validated(tmp_path: Path, more: list[str]) -> None:
    native.write(tmp_path / "data.h5", make_store((9,) * 20))
    trainer.train(composed(*own(tmp_path, *more, "training.steps=2", "training.eval_episodes=0")), progress=False)
    assert "q_correlation" not in (tmp_path / "run" / "validation.json").read_text()


@pytest.mark.simulates
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
        found, done = evaluator.run(actor, 6)
    assert [episode.task for episode in done] == [1, 2, 3, 4, 5, 1]
    assert found["tasks"] == {str(task): 0.0 for task in range(1, 6)}
    env = spec.make()
    for number, goals in shown.items():
        goal = env.reset(seed=5 + number)[1]["goal"].astype(np.float32)
        np.testing.assert_array_equal(np.array(goals), np.tile(goal, (3, 1)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.goals=hindsigt"], "task.goals=hindsigt .*'hindsight'"),
        (["agent=iql", "task.n_step=3"], "task.n_step=3 .*task.goals=hindsight.*task.n_step=1"),
        (["agent=gcbc", "task.random_goals=0.5"], "task.random_goals=0.5 .*agent=gcbc has no critic.*set it to 0"),
        (["agent=hiql", "task.goals=null", "task.random_goals=0.5"], "task.random_goals=0.5 .*task.goals is null"),
        (["agent=hiql", "agent.clone_steps=5"], "agent.clone_steps=5 .*improvement=hierarchy; set agent.clone_steps=0"),
        (
            ["agent=gcivl", "agent.acting.gradient_step=0.1"],
            "backup=value compares observations alone; set acting=single",
        ),
        (
            ["agent=gcivl", "improvement=q_gradient"],
            "q_gradient needs the value of an action.*set agent.critic.backup=",
        ),
        (["agent=gtp", "improvement=hierarchy"], "improvement=hierarchy .*; set agent.critic.backup=subgoals"),
        (["agent=gtp", "agent.critic.backup=valu"], "agent.critic.backup=valu is unknown.*'value'"),
    ],
)
def test_settings_that_do_not_fit_goals_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        composed(*own(tmp_path, *overrides))


def test_a_width_that_intervals_do_not_divide_is_refused(tmp_path: Path) -> None:
    walks(tmp_path / "data.h5")
    with pytest.raises(GtpVisionError, match=r"agent.critic.latent=12 must be a multiple of 8"):
        build(composed(*own(tmp_path, "agent=qrl", "agent.critic.latent=12")))


@pytest.mark.parametrize(
    "overrides", [["agent=gcbc"], ["agent=hiql"], ["agent=gtp", "agent.critic.backup=contrastive"]]
)
def test_agents_that_learn_to_reach_goals_refuse_tasks_without(tmp_path: Path, overrides: list[str]) -> None:
    walks(tmp_path / "data.h5")
    with pytest.raises(GtpVisionError, match=r"agent=\w+ with .* the task shows none; set task\.goals=hindsight"):
        build(composed(*own(tmp_path, *overrides, "task.goals=null", "task.reward_shift=1")))


@pytest.mark.simulates
def test_a_task_whose_simulator_shows_no_goal_is_refused_before_training(tmp_path: Path) -> None:
    overrides = ["task=demo", "task.goals=hindsight", "task.n_step=1", "agent=gtp_bc", "encoder=impala_tiny"]
    config = composed(*overrides, "training.device=cpu", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(GtpVisionError, match=r"singletask-task1-v0 has no observation of a goal.*visual-puzzle-3x3-p"):
        trainer.train(config, progress=False)
    assert not (tmp_path / "run").exists()
