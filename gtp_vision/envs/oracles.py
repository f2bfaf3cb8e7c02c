"""Scripted demonstrators: OGBench's own oracles, pressing chosen buttons of its puzzle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.errors import GtpVisionError

_CLEAR = 0.16  # height in metres above which the hand may move on to the next button


@dataclass
class Recording:
    """One recorded episode of T frames: frame t, the action taken in it, its reward, and whether the MDP ended."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    success: bool
    expert: bool


def solution(init: np.ndarray, goal: np.ndarray, rows: int, columns: int) -> list[int]:
    """The fewest buttons of Lights Out that turn `init` into `goal`, each flipping itself and its neighbours.

    Args:
        init: {0, 1} of shape (rows * columns,).
        goal: the same.
        rows: of the board.
        columns: of the board.

    Raises:
        GtpVisionError: the goal cannot be reached.
    """
    count = rows * columns
    flips = np.zeros((count, count), dtype=np.int64)
    for button in range(count):
        x, y = divmod(button, columns)
        for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= x + dx < rows and 0 <= y + dy < columns:
                flips[button, (x + dx) * columns + y + dy] = 1
    if count > 16:
        raise GtpVisionError(f"a puzzle of {rows}x{columns} buttons has too many presses to search; use 3x3 or 4x4")
    presses = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    solves = ((presses @ flips) % 2 == (init + goal) % 2).all(1)
    if not solves.any():
        raise GtpVisionError("this puzzle's goal cannot be reached by pressing buttons; choose another task")
    best = presses[solves][presses[solves].sum(1).argmin()]
    return [int(button) for button in np.flatnonzero(best)]


def puzzle_episode(env: gymnasium.Env, seed: int, expert_share: float, noise: float, limit: int) -> Recording:
    """One episode of a single-task puzzle by OGBench's closed-loop (Markov) oracle for buttons.

    An expert episode presses the buttons of the task's solution, in random order. Any other presses one or two
    wrong buttons and then stops: the mixture is what a critic must tell apart. Closed loop, because an oracle
    that follows a timed plan shows no recovery, and its clones get stuck between the buttons.

    Args:
        env: a single-task puzzle environment, pixels or states.
        seed: of the reset, the choice of buttons and the noise.
        expert_share: probability of an expert episode.
        noise: each episode adds Gaussian noise to its actions, of a deviation uniform in [0, noise].
        limit: most frames of an episode.

    Returns:
        The episode; its last row is the goal (terminal) or the frame in which the recording stopped.
    """
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle

    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # the oracle draws from NumPy's global generator
    simulator: Any = env.unwrapped
    observation, info = env.reset(seed=seed)
    task = simulator.cur_task_info
    init, goal = task["init_button_states"], task["goal_button_states"]
    solving = solution(init, goal, simulator._num_rows, simulator._num_cols)
    expert = bool(rng.random() < expert_share)
    wrong = [button for button in range(len(init)) if button not in solving]
    plan = rng.permutation(solving) if expert else rng.choice(wrong, size=rng.integers(1, 3), replace=False)
    deviation = rng.uniform(0, noise)
    oracle = ButtonMarkovOracle(env=env, gripper_always_closed=True, max_step=limit)

    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    terminated = success = False
    for button in map(int, plan):
        oracle.reset(observation, info)
        wanted = 1 - simulator._cur_button_states[button]
        while len(actions) < limit and not terminated:
            pressed = simulator._cur_button_states[button] == wanted
            if pressed and not success and info["proprio/effector_pos"][2] > _CLEAR:
                break
            target = {
                "privileged/target_button": button,
                "privileged/target_button_state": wanted,
                "privileged/target_button_top_pos": simulator._data.site_xpos[
                    simulator._button_site_ids[button]
                ].copy(),
            }
            action = oracle.select_action(observation, info | target)
            action = np.clip(action + deviation * rng.normal(size=len(action)), -1, 1).astype(np.float32)
            observations.append(observation)
            actions.append(action)
            observation, reward, terminated, _, info = env.step(action)
            rewards.append(float(reward))
            success = success or bool(info["success"])
    if not terminated:  # the frame that shows where the last action led; it has no outcome of its own
        observations.append(observation)
        actions.append(np.zeros_like(actions[-1]))
        rewards.append(0.0)
    return Recording(
        observations=np.stack(observations),
        actions=np.stack(actions),
        rewards=np.asarray(rewards, np.float32),
        terminal=terminated,
        success=success,
        expert=expert,
    )
