"""Every agent as people run it: from the command line on states, and 200 steps from pixels."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gtp_vision.agents import AGENTS
from gtp_vision.cli.main import main
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import HostSource
from gtp_vision.datasets.store import Store
from gtp_vision.training import eager as updates
from gtp_vision.training import trainer
from gtp_vision.training.build import Components, build

MakeStore = Callable[..., Store]
NAMES = sorted(AGENTS)
JUDGED = [name for name in NAMES if AGENTS[name].backup != "none"]
SIDE, EPISODE, EPISODES = 12, 4, 100
HASTE = {  # of those whose published settings learn too slowly for 200 steps, or are by task
    "gtp": ["agent.policy_tau=0.1"],  # learns from a slow copy, too
    "consistency_bc": ["agent.policy.grid=10", "agent.policy_tau=0.1"],
    "consistency_ac": ["agent.policy.grid=10", "agent.policy_tau=0.1", "agent.improvement.q_weight=0.1"],
    "rebrac": ["agent.improvement.bc_weight=1"],
}


def small(name: str, width: int, steps: int) -> list[str]:
    """Overrides that make a preset small: what it is stays."""
    layers = f"[{width},{width}]"
    found = [f"agent.policy.hidden={layers}", f"agent.critic.hidden={layers}", "agent.improvement.support_actions=4"]
    found += ["agent.improvement.distill_steps=4", f"agent.improvement.support_steps={min(5, steps)}"]
    found += [f"agent.improvement.pretrain_steps={steps // 2}"] if name == "bdm" else []
    found += ["agent.acting.candidates=4"] if AGENTS[name].chooses else []
    found += ["agent.critic.next_actions=4", "agent.critic.next_steps=5"] if name == "qgpo" else []
    return found


def own(folder: Path, *overrides: str) -> list[str]:
    """A run on a data set without a simulator."""
    return [
        *("task=own", f"task.dataset={folder / 'data.h5'}", f"run_dir={folder / 'run'}", "task.frame_stack=1"),
        *("training.batch_size=16", "training.log_every=2", "training.device=cpu", *overrides),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_trains_from_the_command_line_on_states(
    make_store: MakeStore, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    native.write(tmp_path / "data.h5", make_store((20, 20), terminals={19}))
    overrides = own(tmp_path, f"agent={name}", "encoder=state", "training.steps=4", *small(name, 16, 4))
    assert main(["train", *overrides]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["agent"] == name
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert 0 < lines[-1]["weight/effective_share"] <= 1.001
    assert ("critic/loss" in lines[-1]) == (name in JUDGED)


# From pixels ----------------------------------------------------------------------------------------------------


def rewarded(folder: Path) -> np.ndarray:
    """A data set whose frames show, by the half that is lit, which action is best; noisy ones around it are taken.

    Returns:
        float32 (N, 2), the best action of each row.
    """
    random = np.random.default_rng(0)
    rows = EPISODE * EPISODES
    right = random.integers(0, 2, rows)
    frames = random.integers(0, 30, (rows, SIDE, SIDE, 3), np.uint8)
    for row, half in enumerate(right):
        frames[row, :, half * SIDE // 2 : (half + 1) * SIDE // 2, :2] += 200
    best = np.stack([np.where(right, 0.6, -0.6), np.where(right, -0.6, 0.6)], 1).astype(np.float32)
    actions = (best + 0.3 * random.normal(size=(rows, 2))).clip(-1, 1).astype(np.float32)
    ends = np.arange(EPISODE, rows + 1, EPISODE)
    terminals = np.zeros(rows, np.uint8)
    terminals[ends - 1] = 1
    store = Store(
        observations={"camera": frames},
        actions=actions,
        rewards=1 - np.linalg.norm(actions - best, axis=1).astype(np.float32),
        terminals=terminals,
        timeouts=np.zeros(rows, np.uint8),
        episode_ends=ends,
        attributes={"made_by": "the tests"},
    )
    native.write(folder / "data.h5", store)
    return best


def error(parts: Components, best: np.ndarray) -> float:
    """How far the agent's mean action for either half lies from the best one."""
    rows = np.arange(0, len(best), 4)
    action = parts.agent.act(parts.sampler.gather(rows).observation, RandomStream(9, 9)).numpy()
    halves = [best[rows, 0] > 0, best[rows, 0] < 0]
    return float(np.mean([np.linalg.norm((action - best[rows])[half].mean(0)) for half in halves]))


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_learns_from_pixels_in_200_steps(tmp_path: Path, name: str) -> None:
    best = rewarded(tmp_path)
    overrides = own(
        tmp_path, f"agent={name}", "encoder=impala_tiny", "encoder.features=32", "encoder.augmentation.shift=1"
    )
    overrides += [*small(name, 64, 200), "training.learning_rate=1e-3", "training.steps=200", "agent.tau=0.02"]
    config = from_command_line([*overrides, "agent.policy_tau=0.02", "task.discount=0", *HASTE.get(name, [])])
    parts = build(config)
    before = error(parts, best)
    metrics = [
        updates.Eager(HostSource(parts.sampler), config, parts).step(step, parts.sampler.batch(step))[0]
        for step in range(200)
    ]
    assert all(bool(value.isfinite()) for found in metrics for value in found.values())
    after = error(parts, best)
    assert after < 0.5 * before, f"from {before:.2f} to {after:.2f}"
    assert after < 0.4, "the best policy that sees nothing is 0.85 away"


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gtp", "iql", "fql"])
def test_rewards_that_are_all_0_are_refused_where_a_critic_needs_them(
    make_store: MakeStore, tmp_path: Path, name: str
) -> None:
    native.write(tmp_path / "data.h5", make_store((9, 9), rewards=np.zeros(18, np.float32)))
    train = own(tmp_path, f"agent={name}", "encoder=state", "training.steps=1", *small(name, 8, 1))
    with pytest.raises(GtpVisionError, match=rf"data\.h5 holds no rewards .* agent={name} learns .*agent=gtp_bc"):
        trainer.train(from_command_line(train), progress=False)
    assert not (tmp_path / "run").exists()
    build(from_command_line([*train, "task.reward_shift=-1"]))  # a reward of -1 a step
    cloned = own(tmp_path, "agent=gaussian_bc", "encoder=state", "agent.policy.hidden=[8]")
    build(from_command_line(cloned))


def test_discrete_actions_of_a_data_set_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    native.write(tmp_path / "data.h5", make_store((9, 9)))
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        del file["actions"]
        file["actions"] = np.ones((18, 2), np.int64)
    config = from_command_line(own(tmp_path, "agent=gtp", "encoder=state"))
    with pytest.raises(GtpVisionError, match=r"data\.h5.*'actions' holds whole numbers.*discrete actions are not"):
        trainer.train(config, progress=False)
