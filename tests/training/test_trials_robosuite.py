import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import composed

from gtp_vision.collection import collect
from gtp_vision.collection.recording import seed_of
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.formats import convert
from gtp_vision.datasets.record import record_of
from gtp_vision.datasets.store import Store
from gtp_vision.evaluation.evaluator import Evaluator
from gtp_vision.training.data import open_data
from gtp_vision.training.evaluate import check_simulator, env_spec

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is an extra"),
    pytest.mark.simulates,
]

SMALL = ["task.env=robosuite", "agent=gtp_bc", "agent.policy.hidden=[16]", "training.steps=1", "training.batch_size=8"]
SMALL += ["training.eval_episodes=2", "training.probe_rows=0", "training.device=cpu"]


def _config(data: Path, *settings: str) -> Config:
    return composed("task=own", "task.name=lift", f"task.dataset={data}", "encoder=state", *SMALL, *settings)


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of Lift, states only."""
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    collect("robosuite/Lift", path, {"states_only": True, "episodes": 2}, processes=1, command="", progress=False)
    return path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first steps of a demonstration of Lift, seen by two cameras."""
    path = tmp_path_factory.mktemp("seen") / "seen.hdf5"
    options = {"episodes": 1, "limit": 4, "cameras": "agentview,robot0_eye_in_hand", "size": 24}
    collect("robosuite/Lift", path, options, processes=1, command="", progress=False)
    return path


def _replay(config: Config, store: Store, *, film: int = 0) -> tuple[Any, list[int]]:
    """Replay the first demonstration in the evaluator; the episode, and the rows that were shown as recorded."""
    same: list[int] = []

    def actor(shown: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        (step,) = noise.steps
        assert list(shown) == list(store.observations)
        for name, frames in shown.items():
            recorded = torch.tensor(np.asarray(store.observations[name][step]))
            newest = frames[0, -1].permute(1, 2, 0) if frames.ndim == 5 else frames[0, -1]
            torch.testing.assert_close(newest, recorded, rtol=0, atol=1e-6)
        same.append(step)
        return torch.tensor(np.asarray(store.actions[step]))[None]

    spec = env_spec(config, record_of(store))
    with Evaluator(spec, frame_stack=2, envs=1, seed=seed_of(0, 0), progress=False) as evaluator:
        _, (episode,) = evaluator.run(actor, 1, film=film)
    return episode, same


def test_recorded_actions_show_what_was_recorded_and_succeed(lift: Path, cache: Path) -> None:
    """Observations, their order, the units of actions, and the end at success."""
    store = open_data(config := _config(lift))
    check_simulator(config, store)
    episode, same = _replay(config, store)
    assert episode.success
    assert episode.length == store.episode_ends[0] - 1, "the last row is the observation after success"
    assert same == list(range(episode.length))
    assert episode.total_reward == 1
    assert not episode.frames


def test_only_the_cameras_that_the_task_sees_are_rendered_and_in_the_datas_size(seen: Path, cache: Path) -> None:
    asked = "task.observations=[robot0_eef_pos,robot0_eye_in_hand_image]"
    store = open_data(config := _config(seen, asked, "task.max_episode_steps=3"))
    check_simulator(config, store)
    env = env_spec(config, record_of(store)).make()
    assert env.unwrapped.simulator.camera_names == ["robot0_eye_in_hand"]  # type: ignore[attr-defined]
    env.close()
    episode, same = _replay(config, store, film=1)
    assert same == [0, 1, 2], "the time limit is the task's"
    assert not episode.success
    np.testing.assert_array_equal(np.stack(episode.frames), store.observations["robot0_eye_in_hand_image"][:4])


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ("robot0_eef_pose", "'robot0_eef_pose'.*'robot0_eef_pos'"),
        ("object", r"robosuite shows \{'object': \(10,\)\}.*holds \{'object': \(3,\)\}"),
    ],
)
def test_observations_that_cannot_be_shown_are_refused_before_training(
    lift: Path, cache: Path, observed: str, message: str
) -> None:
    store = open_data(config := _config(lift))
    store = replace(store, observations={observed: store.observations["robot0_eef_pos"]})
    with pytest.raises(GtpVisionError, match=message):
        check_simulator(config, store)


@pytest.mark.parametrize(("name", "to"), [("copy.hdf5", "robomimic"), ("copy.h5", "native"), ("copy", "lerobot")])
def test_a_file_in_another_format_is_still_robosuites(
    lift: Path, cache: Path, tmp_path: Path, name: str, to: str
) -> None:
    convert(lift, tmp_path / name, to)
    config = _config(tmp_path / name, "task.observations=[object]", "task.env=robosuite/Lift")
    store = open_data(config)
    check_simulator(config, store)
    assert "action_low" not in store.attributes, "actions are the controller's"
