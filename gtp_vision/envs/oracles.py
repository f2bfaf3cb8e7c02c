"""Scripted demonstrators: OGBench's own oracles, pressing chosen buttons of its puzzle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.errors import GtpVisionError

_WANDER_STEPS = 12
_WANDER_BOUNDS = np.array([[0.25, -0.2, 0.03], [0.6, 0.2, 0.25]])  # metres: over, beside and below the buttons
_CLEAR = 0.16  # height in metres above which the hand may move on to the next button


@dataclass
class Recording:
    """One recorded episode of T frames: frame t, the action taken in it, its reward, and whether the MDP ended.

    A last row that is not terminal only shows where the last action led; its own action has no outcome.
    """

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


def puzzle_episodes(
    env: gymnasium.Env, seed: int, expert_share: float, noise: float, wander: float, limit: int
) -> list[Recording]:
    """What one visit to a single-task puzzle records, pressing buttons by OGBench's closed-loop (Markov) oracle.

    An expert visit presses the buttons of the task's solution, in random order. Any other presses one or two
    wrong buttons and then stops: the mixture is what a critic must tell apart. Before a button the hand may
    wander off, unrecorded, to a random place; what it does from there teaches recovery, without which clones
    get stuck beside a button that they missed.

    Args:
        env: a single-task puzzle environment, pixels or states.
        seed: of the reset, the choice of buttons, the wandering and the noise.
        expert_share: probability of an expert visit.
        noise: each visit adds Gaussian noise to its actions, of a deviation uniform in [0, noise].
        wander: probability of wandering off before a button.
        limit: most steps of the visit, wandering included.

    Returns:
        One recording, and one more for each time the hand wandered off in between.
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

    recordings: list[Recording] = []
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    rewards: list[float] = []

    def cut(terminal: bool, success: bool) -> None:
        """End the recording in progress; one without any outcome is dropped."""
        if not terminal and actions:
            observations.append(observation)
            actions.append(np.zeros_like(actions[-1]))
            rewards.append(0.0)
        if actions:
            stacked = np.stack(observations), np.stack(actions), np.asarray(rewards, np.float32)
            recordings.append(Recording(*stacked, terminal=terminal, success=success, expert=expert))
        for column in (observations, actions, rewards):
            column.clear()

    steps, ended, success = 0, False, False
    for button in map(int, plan):
        if rng.random() < wander and not ended:
            cut(terminal=False, success=False)
            goal_position = rng.uniform(*_WANDER_BOUNDS)
            for _ in range(rng.integers(2, _WANDER_STEPS)):
                toward = 20 * (goal_position - info["proprio/effector_pos"])  # an action of 1 is 5 cm
                action = np.clip(np.array([*toward, 0.0, 1.0]), -1, 1).astype(np.float32)
                observation, _, terminated, truncated, info = env.step(action)
                steps, ended = steps + 1, ended or terminated or truncated
        oracle.reset(observation, info)
        wanted = 1 - simulator._cur_button_states[button]
        while steps < limit and not ended:
            pressed = simulator._cur_button_states[button] == wanted
            if pressed and not simulator._success and info["proprio/effector_pos"][2] > _CLEAR:
                break
            top = simulator._data.site_xpos[simulator._button_site_ids[button]].copy()
            target = {
                "privileged/target_button": button,
                "privileged/target_button_state": wanted,
                "privileged/target_button_top_pos": top,
            }
            action = oracle.select_action(observation, info | target)
            action = np.clip(action + deviation * rng.normal(size=len(action)), -1, 1).astype(np.float32)
            observations.append(observation)
            actions.append(action)
            observation, reward, ended, _, info = env.step(action)
            rewards.append(float(reward))
            steps, success = steps + 1, bool(info["success"])
    cut(terminal=ended and success, success=success)
    return recordings
