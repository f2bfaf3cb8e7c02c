"""A scripted policy for robosuite's Lift: above the cube, down, close, up."""

from __future__ import annotations

import numpy as np

from gtp_vision.envs.robosuite import RobosuiteEnv

_METRES = 0.05  # that an action of 1 moves the hand's target
_ABOVE = np.array([0.0, 0.0, 0.08])  # metres over the cube's centre, from where the hand goes straight down
_NEAR = 0.015  # metres
_CLOSING = 8  # steps until the fingers hold
_UP = np.array([0.0, 0.0, 0.15])


def lift_episode(env: RobosuiteEnv, seed: int, *, noise: float, limit: int) -> dict[str, np.ndarray]:
    """One episode of T steps: it ends when the cube is lifted, or after `limit` steps.

    Args:
        env: Lift.
        seed: of the reset and the noise.
        noise: the episode adds Gaussian noise to the arm's actions, of a deviation uniform in [0, noise]; the gripper
            has none.
        limit: most steps.

    Returns:
        `obs/<key>` (T + 1, ...), the last one after the last action; actions float32 (T, 7) in [-1, 1]; rewards
        float32 (T,), 1 where the cube is lifted; states float64 (T, D) before each action; model_file, text ();
        success bool ().
    """
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    model = env.model_file()
    deviation = rng.uniform(0, noise)
    observations, states = [observation], []
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    lowered, closed = False, 0
    while not info["success"] and len(actions) < limit:
        hand, cube = observation["robot0_eef_pos"], observation["object"][:3]
        lowered = lowered or bool(np.linalg.norm((cube + _ABOVE - hand)[:2]) < _NEAR)
        if closed >= _CLOSING:
            goal = cube + _UP
        elif lowered:
            goal = cube
        else:
            goal = cube + _ABOVE
        closed += int(closed > 0 or (lowered and bool(np.linalg.norm(cube - hand) < _NEAR)))
        action = np.zeros(7)
        action[:3] = (goal - hand) / _METRES
        action[:6] = np.clip(action[:6], -1, 1) + deviation * rng.normal(size=6)
        action[6] = 1.0 if closed else -1.0
        action = np.clip(action, -1, 1).astype(np.float32)
        states.append(env.state())
        observation, reward, _, _, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    found = {f"obs/{key}": np.stack([each[key] for each in observations]) for key in observation}
    return found | {
        "actions": np.stack(actions),
        "rewards": np.array(rewards, np.float32),
        "states": np.stack(states),
        "model_file": np.array(model),
        "success": np.array(bool(info["success"])),
    }
