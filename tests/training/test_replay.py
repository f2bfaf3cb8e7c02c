"""Recorded actions reach the simulator and leave an artifact as they were recorded, whatever the format and bounds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box
from small_runs import STATES, composed

from gtp_vision import agents
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.units import to_policy
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.record import record_of
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec
from gtp_vision.serving.export import schema_of
from gtp_vision.training.build import shapes
from gtp_vision.training.data import open_data
from gtp_vision.training.evaluate import check_simulator, env_spec

ROWS, STATE = 12, 3
STATES_OF_ROWS = np.random.default_rng(1).normal(size=(ROWS, STATE)).astype(np.float32)
LAST = np.arange(ROWS) % 6 == 5


class Robot(gymnasium.Env):
    """Keeps the actions that it gets."""

    observation_space = Box(-np.inf, np.inf, (STATE,), np.float32)

    def __init__(self, low: Any, high: Any, dtype: Any = np.float32) -> None:
        low, high = (np.broadcast_to(np.asarray(bound, dtype), (2,)).copy() for bound in (low, high))
        self.action_space, self.got = Box(low, high, dtype=dtype), list[np.ndarray]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(STATE, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.got.append(action)
        return np.zeros(STATE, np.float32), 0.0, False, False, {}


BOUNDS: dict[str, dict[str, Any]] = {
    "One": {"low": -1, "high": 1},
    "Two": {"low": -2, "high": 2},
    "Half": {"low": 0, "high": 1},
    "Narrow": {"low": -0.4, "high": 0.4},
    "Asymmetric": {"low": -0.5, "high": 3},
    "Mixed": {"low": [-2, 0], "high": [1, 0.2]},
    "Degrees": {"low": -180, "high": 180, "dtype": np.float64},
    "Constant": {"low": [-1, 0.5], "high": [1, 0.5]},
}


@pytest.fixture(scope="module", autouse=True)
def robots() -> Iterator[None]:
    for name, bounds in BOUNDS.items():
        gymnasium.register(f"Replay{name}-v0", Robot, kwargs=bounds, max_episode_steps=100)
    yield
    for name in BOUNDS:
        del gymnasium.registry[f"Replay{name}-v0"]


def write_native(path: Path, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> Path:
    bounds = {"action_low": low.tolist(), "action_high": high.tolist()}
    actions = to_policy(actions, low, high).astype(np.float32)
    arrays = (actions, np.zeros(ROWS, np.float32), np.zeros(ROWS), LAST, np.flatnonzero(LAST) + 1)
    return native.write(path, Store({"state": STATES_OF_ROWS}, *arrays, attributes=bounds))


def write_d4rl(path: Path, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = STATES_OF_ROWS, actions, np.ones(ROWS)
        file["terminals"], file["timeouts"] = np.zeros(ROWS, bool), LAST
    return path


def write_robomimic(path: Path, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Mine", "type": 2, "env_kwargs": {}})
        for number in range(2):
            rows = slice(6 * number, 6 * number + 6)
            file[f"data/demo_{number}/actions"] = actions[rows]
            file[f"data/demo_{number}/obs/state"] = STATES_OF_ROWS[rows]
    return path


def write_minari(path: Path, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> Path:
    (path / "data").mkdir(parents=True)
    box = {"type": "Box", "dtype": "float32"}
    spaces = {
        "observation_space": box | {"shape": [STATE], "low": [-1e38] * STATE, "high": [1e38] * STATE},
        "action_space": box | {"shape": [2], "low": low.tolist(), "high": high.tolist()},
    }
    (path / "data/metadata.json").write_text(json.dumps({name: json.dumps(space) for name, space in spaces.items()}))
    with h5py.File(path / "data/main_data.hdf5", "w") as file:
        for number in range(2):
            rows = slice(6 * number, 6 * number + 6)
            episode = file.create_group(f"episode_{number}")
            episode["observations"] = np.concatenate([STATES_OF_ROWS[rows], STATES_OF_ROWS[:1]])
            episode["actions"], episode["rewards"] = actions[rows], np.zeros(6)
            episode["terminations"], episode["truncations"] = np.zeros(6, bool), LAST[rows]
    return path


def write_lerobot(path: Path, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> Path:
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    row = np.arange(ROWS)
    columns = {
        "observation.state": list(STATES_OF_ROWS),
        "action": list(actions),
        "timestamp": (row % 6 / 5).astype(np.float32),
        "frame_index": row % 6,
        "episode_index": row // 6,
    }
    pq.write_table(pa.table(columns), path / "data/chunk-000/file-000.parquet")
    episodes: dict[str, list[int]] = {"episode_index": [0, 1], "length": [6, 6]}
    episodes |= {"dataset_from_index": [0, 6], "dataset_to_index": [6, 12]}
    episodes |= {"data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    pq.write_table(pa.table(episodes), path / "meta/episodes/chunk-000/file-000.parquet")
    sizes = {"observation.state": STATE, "action": 2, "timestamp": 1, "frame_index": 1, "episode_index": 1}
    info = {
        "codebase_version": "v3.0",
        "fps": 5,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": {key: {"dtype": "float32", "shape": [size], "names": None} for key, size in sizes.items()},
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


WRITERS = [write_native, write_d4rl, write_robomimic, write_minari, write_lerobot]


def _config(data: Path, env: str, *more: str) -> Config:
    return composed(*STATES, "agent=gtp_bc", f"task.dataset={data}", f"task.env={env}", "run_dir=unused", *more)


def assert_replayed(config: Config, recorded: np.ndarray) -> None:
    """What reaches the simulator, and what an artifact answers, of the demonstrated actions in [-1, 1]."""
    store = open_data(config)
    sentence, _ = check_simulator(config, store)
    assert float(sentence.rpartition("actions kept ")[2]) == pytest.approx(1, abs=1e-5)
    demonstrated = np.asarray(store.actions[store.transitions])
    env: Any = env_spec(config, record_of(store)).make()
    env.reset(seed=0)
    for action in demonstrated:
        env.step(action)
    span = np.maximum(1e-6, env.unwrapped.action_space.high - env.unwrapped.action_space.low)
    np.testing.assert_allclose((np.array(env.unwrapped.got) - recorded) / span, 0, atol=1e-5)
    agent = agents.create(shapes(store, 1), 2, config.agent, config.encoder, pretrained=False)
    schema = schema_of(config, agent, record_of(store))
    np.testing.assert_allclose((schema.in_units(demonstrated) - recorded) / span, 0, atol=1e-5)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
@pytest.mark.usefixtures("cache")
def test_recorded_actions_come_back_as_they_were(write: Callable[..., Path], name: str, tmp_path: Path) -> None:
    space = Robot(**BOUNDS[name]).action_space
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    actions = np.random.default_rng(0).uniform(low, high, (ROWS, 2)).astype(np.float32)
    actions[:2] = low, high
    data = write(tmp_path / "data", actions, low, high)
    config = _config(data, f"gymnasium/Replay{name}-v0", "task.action_scaling=minmax")
    has_outcome = open_data(config).has_outcome
    # Minari records a final observation, whose row is added; the others' last actions have no outcome.
    assert_replayed(config, actions if write is write_minari else actions[has_outcome])


@pytest.mark.parametrize("name", ["Two", "Degrees"])
@pytest.mark.parametrize("write", [write_d4rl, write_robomimic], ids=["d4rl", "robomimic"])
@pytest.mark.usefixtures("cache")
def test_actions_within_one_are_not_scaled_and_the_user_says_what_they_are(
    write: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    ones, actions = np.ones(2), np.random.default_rng(0).uniform(-1, 1, (ROWS, 2)).astype(np.float32)
    data = write(tmp_path / "data", actions, -ones, ones)
    config = _config(data, f"gymnasium/Replay{name}-v0", "task.env_actions=recorded")
    assert_replayed(config, actions[open_data(config).has_outcome])
    config = _config(data, f"gymnasium/Replay{name}-v0")
    with pytest.raises(GtpVisionError, match="does not say in which units"):
        check_simulator(config, open_data(config))


@pytest.mark.simulates
@pytest.mark.parametrize("name", ["hopper-medium-v2", "pen-human-v1", "antmaze-umaze-v2", "maze2d-umaze-v1",
                                  "kitchen-mixed-v0", "pointmaze-medium-v0", "cube-single-v0"])  # fmt: skip
def test_named_simulators_take_a_policys_actions_unchanged(name: str) -> None:
    if name.startswith(("pen", "maze2d", "kitchen")):
        pytest.importorskip("gymnasium_robotics")
    env: Any = EnvSpec(name).make()
    assert np.all(env.action_space.low == -1)
    assert np.all(env.action_space.high == 1)
    assert type(env).__name__ != "PolicyActions", "bits are not changed"
