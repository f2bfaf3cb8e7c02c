from pathlib import Path

import numpy as np
import pytest
from engines_of import engine_of
from small_runs import small_run
from stores import make_store

from gtp_vision.agents import AGENTS
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.formats import native
from gtp_vision.training import trainer
from gtp_vision.training.build import Components, build

NAMES = sorted(AGENTS)
SIDE, ROWS, STEPS = 12, 64, 80  # agents with goals, whose steps take longest, need half of them
FASTER = {  # agents whose published settings learn too slowly for so few steps
    "bdm": ["agent.improvement.pretrain_steps=40"],
    "consistency_bc": ["agent.policy.grid=10"],
    "consistency_ac": ["agent.policy.grid=10", "agent.improvement.q_weight=0.02"],
    "diffusion_ql": ["agent.improvement.q_weight=0.1"],
    "rebrac": ["agent.improvement.bc_weight=1"],
    # the rows of this data set are no ways to their goals
    **{name: ["agent.improvement.bc_weight=10"] for name in ("crl", "gciql", "qrl")},
}


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Data in which the half of a frame that is lit shows the best action, and these actions, float32 (ROWS, 2)."""
    random = np.random.default_rng(0)
    right = random.integers(0, 2, ROWS)
    frames = random.integers(0, 30, (ROWS, SIDE, SIDE, 3), np.uint8)
    for row, half in enumerate(right):
        frames[row, :, half * SIDE // 2 : (half + 1) * SIDE // 2, :2] += 200
    best = np.where(right[:, None], (0.6, -0.6), (-0.6, 0.6)).astype(np.float32)
    actions = (best + 0.2 * random.normal(size=(ROWS, 2))).clip(-1, 1).astype(np.float32)
    rewards = 1 - np.linalg.norm(actions - best, axis=1).astype(np.float32)
    lengths, terminals = (4,) * (ROWS // 4), range(3, ROWS, 4)
    store = make_store(lengths, terminals=terminals, observations={"camera": frames}, actions=2, rewards=rewards)
    store.actions[:] = actions
    return native.write(tmp_path_factory.mktemp("data") / "pixels.h5", store), best


def error(parts: Components, best: np.ndarray) -> float:
    """The distance of the agent's mean action for either half from the best one."""
    rows = np.arange(0, ROWS, 4)  # of terminal rows the successors are not sampled
    goals = None if parts.sampler.goals is None else rows + 3
    action = parts.agent.act(parts.sampler.gather(rows, goals).observation, RandomStream(9, 9)).numpy()
    halves = [best[rows, 0] > 0, best[rows, 0] < 0]
    return float(np.mean([np.linalg.norm((action - best[rows])[half].mean(0)) for half in halves]))


@pytest.mark.trains
@pytest.mark.parametrize("name", NAMES)
def test_every_agent_learns_from_pixels(pixels: tuple[Path, np.ndarray], name: str) -> None:
    data, best = pixels
    overrides = [
        *("encoder=impala_tiny", "encoder.features=16", "encoder.augmentation.shift=0", "task.frame_stack=1"),
        *("agent.policy.hidden=[32,32]", "agent.critic.hidden=[32]"),
        *("training.learning_rate=5e-3", "agent.tau=0.1", "agent.policy_tau=0.1", "task.discount=0"),
        *("training.batch_size=32", "task.validation=0", *FASTER.get(name, [])),
    ]
    config = small_run(data, "unused", *overrides, agent=name)
    parts = build(config)
    before = error(parts, best)
    engine = engine_of("eager", config, [parts])
    for step in range(STEPS // 2 if AGENTS[name].goals else STEPS):
        metrics = engine.step(step, engine.source.fetch(step))[0]
    assert all(bool(value.isfinite()) for value in metrics.values())
    after = error(parts, best)
    assert after < 0.5 * before, f"from {before:.2f} to {after:.2f}"
    assert after < 0.6, "the best policy that sees nothing is 0.85 away"


@pytest.mark.parametrize("name", ["gtp", "iql", "fql"])
def test_zero_rewards_are_refused_where_a_critic_needs_them(tmp_path: Path, name: str) -> None:
    data = native.write(tmp_path / "data.h5", make_store((9, 9), rewards=np.zeros(18, np.float32)))
    with pytest.raises(GtpVisionError, match=rf"data\.h5.* agent={name} .*agent=gtp_bc"):
        trainer.train(small_run(data, tmp_path / "run", agent=name), progress=False)
    assert not (tmp_path / "run").exists()
    build(small_run(data, tmp_path / "run", "task.reward_shift=-1", agent=name))  # a reward of -1 a step
    data = native.write(tmp_path / "steps.h5", make_store((9, 9), rewards=np.full(18, -1, np.float32)))
    for setting in ("task.reward_shift=1", "task.reward_scale=0"):
        with pytest.raises(GtpVisionError, match=rf"all are 0 with .*{setting}.*agent={name}"):
            build(small_run(data, tmp_path / "run", setting, agent=name))
    build(small_run(data, tmp_path / "run", agent="gaussian_bc"))
