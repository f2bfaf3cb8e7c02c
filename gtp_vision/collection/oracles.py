"""Single-task demonstrations by OGBench's own oracles: pressing buttons of the puzzle, carrying the cube."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError

_WANDER_STEPS = 12
_WANDER_BOUNDS = np.array([[0.25, -0.2, 0.03], [0.6, 0.2, 0.25]])  # meters: above, beside and below the buttons
_CUBE_BOUNDS = np.array([[0.3, -0.2, 0.02], [0.55, 0.2, 0.02]])  # meters: positions of a cube on the table
_CLEAR = 0.16  # height in meters above which the hand may move to the next button


@dataclass
class Recording:
    """One recorded episode of T frames: frame t, its action and reward, and whether the last one is terminal.

    A last row that is not terminal only holds the observation after the last action.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    success: bool
    expert: bool


class _Recorder:
    """Collects the recordings of a visit, the last of them in progress."""

    def __init__(self, expert: bool) -> None:
        self.expert = expert
        self.recordings: list[Recording] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, float]] = []

    def add(self, observation: np.ndarray, action: np.ndarray, reward: float) -> None:
        self._rows.append((observation, action, reward))

    def cut(self, observation: np.ndarray, terminal: bool, success: bool) -> None:
        """End the recording in progress; an empty one is dropped."""
        if self._rows and not terminal:
            self.add(observation, np.zeros_like(self._rows[-1][1]), 0.0)
        if self._rows:
            observations, actions, rewards = (np.stack(column) for column in zip(*self._rows, strict=True))
            rewards = rewards.astype(np.float32)
            self.recordings.append(Recording(observations, actions, rewards, terminal, success, self.expert))
        self._rows.clear()


def solution(init: np.ndarray, goal: np.ndarray, rows: int, columns: int) -> list[int]:
    """The smallest set of Lights Out buttons that turns `init` into `goal`, both {0, 1} of shape (rows * columns,).

    Each button flips itself and its neighbors. Raises GtpVisionError: the goal cannot be reached.
    """
    count = rows * columns
    flips = np.zeros((count, count), dtype=np.int64)
    for button in range(count):
        x, y = divmod(button, columns)
        for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= x + dx < rows and 0 <= y + dy < columns:
                flips[button, (x + dx) * columns + y + dy] = 1
    if count > 16:
        raise GtpVisionError(f"a puzzle of {rows}x{columns} buttons is too large to search; use 3x3 or 4x4")
    presses = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    solves = ((presses @ flips) % 2 == (init + goal) % 2).all(1)
    if not solves.any():
        raise GtpVisionError("this puzzle's goal cannot be reached by pressing buttons; choose another task")
    best = presses[solves][presses[solves].sum(1).argmin()]
    return [int(button) for button in np.flatnonzero(best)]


def puzzle_episodes(
    env: gymnasium.Env, seed: int, expert_share: float, noise: float, wander: float, limit: int
) -> list[Recording]:
    """Record one visit to a single-task puzzle, pressing buttons by OGBench's closed-loop (Markov) oracle.

    An expert visit (probability `expert_share`) presses the buttons of the task's solution, in random order. Any other
    presses one or two wrong buttons and stops: a critic must distinguish the two. Before a button the hand may
    (probability `wander`) move away, unrecorded, to a random position, so that the data show recovery; without it
    clones get stuck beside a button that they missed. Each time makes one more recording. A visit's Gaussian action
    noise has a deviation uniform in [0, `noise`]; `limit` is its maximum of steps, including wandering.
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

    recorder = _Recorder(expert)
    steps, ended, success = 0, False, False
    for button in map(int, plan):
        if rng.random() < wander and not ended:
            recorder.cut(observation, terminal=False, success=False)
            observation, info, walked, ended = _wander(env, info, rng, gripper=1.0)
            steps += walked
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
            action = _noisy(oracle.select_action(observation, info | target), deviation, rng)
            before = observation
            observation, reward, ended, _, info = env.step(action)
            recorder.add(before, action, float(reward))
            steps, success = steps + 1, bool(info["success"])
    recorder.cut(observation, terminal=ended and success, success=success)
    return recorder.recordings


def cube_episodes(
    env: gymnasium.Env, seed: int, expert_share: float, noise: float, wander: float, limit: int
) -> list[Recording]:
    """Record one visit to the single-task cube, carrying it by OGBench's closed-loop (Markov) oracle.

    An expert visit brings the cube to the task's goal, any other to a random position on the table. Before it starts,
    and with the cube in the air, the hand may wander off, unrecorded. Arguments are those of `puzzle_episodes`.
    """
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # the oracle draws from NumPy's global generator
    simulator: Any = env.unwrapped
    observation, info = env.reset(seed=seed)
    expert = bool(rng.random() < expert_share)
    goal = simulator._data.mocap_pos[simulator._cube_target_mocap_ids[0]].copy()
    target = goal if expert else rng.uniform(*_CUBE_BOUNDS)
    deviation = rng.uniform(0, noise)
    oracle = CubeMarkovOracle(env=env)
    recorder = _Recorder(expert)
    steps, ended, success = 0, False, False
    wanderings = [rng.random() < wander, rng.random() < wander]  # at the start, and on the way with the cube
    oracle.reset(observation, info)
    oracle._max_step = limit  # its reset sets 200
    while steps < limit and not (ended or oracle.done):
        carrying = bool(info["proprio/gripper_contact"][0] > 0.5 and info["proprio/effector_pos"][2] > _CLEAR)
        if wanderings[carrying] and (carrying or steps == 0):
            wanderings[carrying] = False
            recorder.cut(observation, terminal=False, success=False)
            observation, info, walked, ended = _wander(env, info, rng, gripper=1.0 if carrying else -1.0)
            steps += walked
            continue
        aim = {
            "privileged/target_block": 0,
            "privileged/target_block_pos": target,
            "privileged/target_block_yaw": np.zeros(1),
        }
        action = _noisy(oracle.select_action(observation, info | aim), deviation, rng)
        before = observation
        observation, reward, ended, _, info = env.step(action)
        recorder.add(before, action, float(reward))
        steps, success = steps + 1, bool(info["success"])
    recorder.cut(observation, terminal=ended and success, success=success)
    return recorder.recordings


def _noisy(action: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(action + deviation * rng.normal(size=len(action)), -1, 1).astype(np.float32)


def _wander(
    env: gymnasium.Env, info: dict[str, Any], rng: np.random.Generator, gripper: float
) -> tuple[np.ndarray, dict[str, Any], int, bool]:
    """Move the hand towards a random position: observation, info, number of steps, whether the episode ended."""
    goal, ended, steps = rng.uniform(*_WANDER_BOUNDS), False, 0
    for steps in range(1, 1 + int(rng.integers(2, _WANDER_STEPS))):  # noqa: B007
        toward = 20 * (goal - info["proprio/effector_pos"])  # an action of 1 is 5 cm
        action = np.clip(np.array([*toward, 0.0, gripper]), -1, 1).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(action)
        ended = bool(terminated or truncated)
        if ended:
            break
    return observation, info, steps, ended


DEMONSTRATORS = {"puzzle": puzzle_episodes, "cube-single": cube_episodes}
"""Recorders of a visit, by a part of the environment's name."""
