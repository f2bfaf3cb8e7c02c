"""SAC's training, evaluated regularly and checkpointed, so that it can resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from gtp_vision.collection.recording import InterruptedCollectionError, seed_of
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.files import atomic_write
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec, PolicyActions, close

_SAVE_EVERY = 5000  # steps; more in long runs, whose replay buffer takes long to write
_EVALUATIONS, _EPISODES = 50, 5
_EVALUATE_EVERY = 200  # steps at least, or short runs would mostly evaluate
_LEARN_AFTER = 10_000  # random steps first; a tenth of a short run
_ROWS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_AGAIN = "give the same command again to resume"


class Training:
    """SAC with checkpoints of tensors and arrays, which do not run code when they are loaded.

    A training of the same settings (env, policy, steps and seed) in `folder` is resumed; `stop` is called after every
    step.

    Raises:
        GtpVisionError: an unknown environment, or one without states or bounded actions; a folder with a training of
            other settings, or a damaged one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, stop: Callable[[], bool], progress: bool) -> None:
        from stable_baselines3 import SAC

        self.folder, self._steps, self._progress = folder, settings["steps"], progress
        self._seed, self._stop = settings["seed"], stop
        spec = EnvSpec(name=f"gymnasium/{settings['env']}", pixels=False)
        self._env, self._evaluation_env = spec.make(), spec.make()
        space = self._env.observation_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise GtpVisionError(f"{settings['env']} has observations {space}; SAC needs states")
        self._model = SAC(
            "MlpPolicy",
            self._env,
            buffer_size=self._steps,
            learning_starts=min(_LEARN_AFTER, self._steps // 10),
            seed=self._seed,
            device="cpu",
        )
        self._returns: dict[str, float] = {}
        self._restore(dict(settings))

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        close(self._env)
        close(self._evaluation_env)

    def run(self) -> None:
        """Take the remaining steps.

        Raises:
            InterruptedCollectionError: `stop` returned True; a checkpoint was written.
        """
        from stable_baselines3.common.callbacks import BaseCallback

        outer, first = self, self._model.num_timesteps
        if first == self._steps:
            return
        if not self._returns:
            self._returns["0"] = self._evaluate(lambda observation: self._env.action_space.sample(), 2 * _EPISODES)

        class Watch(BaseCallback):
            """Evaluates, saves and stops between two steps."""

            def _on_step(self) -> bool:
                bar.update()
                done, stopping = self.num_timesteps - 1, outer._stop()  # the newest step is not in the buffer yet
                if done > first:
                    outer._after_step(done, bar, save=stopping)
                if stopping:
                    raise InterruptedCollectionError(f"stopped at step {done} of {outer._steps}; {_AGAIN}")
                return True

        with Progress(total=self._steps, initial=first, desc="SAC", unit="step", disable=not self._progress) as bar:
            self._model.learn(self._steps - first, callback=Watch(), reset_num_timesteps=False)
            self._after_step(self._steps, bar, save=True)

    def units(self) -> dict[str, Any]:
        """The attributes of a data set that say what -1 and 1 stand for."""
        env: Any = self._env
        held = env if isinstance(env, PolicyActions) else env.action_space
        low, high = np.asarray(held.low), np.asarray(held.high)
        return {"action_low": low.tolist(), "action_high": high.tolist(), "action_bounds": "declared"}

    def returns(self) -> dict[str, Any]:
        """Mean returns: of random actions, of the policy by step, and of the last three evaluations together."""
        returns = {step: value for step, value in self._returns.items() if step != "0"}
        final = float(np.mean(list(returns.values())[-3:]))
        return {"random_return": self._returns["0"], "final_return": final, "returns": returns}

    def replay(self) -> Store:
        """All transitions in order."""
        return _store(self._rows(self._model.num_timesteps))

    def rollout(self, at: int, steps: int, seed: int) -> Store:
        """Record `steps` steps by the stochastic policy of step `at`.

        Raises:
            InterruptedCollectionError: `stop` returned True.
        """
        policy = self._model.policy
        policy.load_state_dict(torch.load(self.folder / f"policy_{at}.pt", weights_only=True))
        torch.manual_seed(seed)
        rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "dones", "timeouts")}
        observation, _ = self._evaluation_env.reset(seed=seed)
        for step in Progress(range(steps), "recording", unit="step", disable=not self._progress):
            action, _ = policy.predict(observation)
            following, reward, terminated, truncated, _ = self._evaluation_env.step(action)
            if self._stop():
                raise InterruptedCollectionError(f"stopped; SAC's checkpoint is kept in {self.folder}: {_AGAIN}")
            cut = truncated or step == steps - 1
            row = (observation, action, reward, terminated or cut, cut and not terminated)
            for name, value in zip(rows, row, strict=True):
                rows[name].append(value)
            observation = self._evaluation_env.reset()[0] if terminated or truncated else following
        return _store({name: np.array(values) for name, values in rows.items()})

    def _after_step(self, step: int, bar: Progress, *, save: bool) -> None:
        if step % max(_EVALUATE_EVERY, self._steps // _EVALUATIONS) == 0 or step == self._steps:
            value = self._evaluate(
                lambda observation: self._model.predict(observation, deterministic=True)[0], _EPISODES
            )
            self._returns[str(step)] = value
            with atomic_write(self.folder / f"policy_{step}.pt") as aside:
                torch.save(self._model.policy.state_dict(), aside)
            bar.set_postfix_str(f"return {value:.0f}")
        if save or step % max(_SAVE_EVERY, self._steps // _EVALUATIONS) == 0:
            self._save(step)

    def _evaluate(self, act: Callable[[np.ndarray], np.ndarray], episodes: int) -> float:
        """Mean return of some episodes, whose seeds are the same each time."""
        total = 0.0
        for episode in range(episodes):
            observation, _ = self._evaluation_env.reset(seed=10_000 + self._seed + episode)
            over = False
            while not over:
                observation, reward, terminated, truncated, _ = self._evaluation_env.step(act(observation))
                total, over = total + float(reward), terminated or truncated
        return total / episodes

    def _rows(self, count: int) -> dict[str, np.ndarray]:
        """The first transitions of the replay buffer; the last one ends its episode."""
        buffer = self._model.replay_buffer
        assert buffer is not None
        return _ended({name: np.array(getattr(buffer, name)[:count, 0]) for name in _ROWS})

    def _entropy(self) -> torch.Tensor:
        """The logarithm of the entropy's weight, which SAC learns."""
        assert self._model.log_ent_coef is not None
        return self._model.log_ent_coef

    def _save(self, step: int) -> None:
        state = {
            "parameters": self._model.get_parameters(),
            "log_ent_coef": self._entropy().detach(),
            "step": step,
            "torch": torch.get_rng_state(),
        }
        with atomic_write(self.folder / "buffer.npz") as aside, aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **self._rows(step))
        with atomic_write(self.folder / "returns.json") as aside:
            aside.write_text(json.dumps(self._returns))
        with atomic_write(self.folder / "state.pt") as aside:  # last: its step says how much of the rest is valid
            torch.save(state, aside)

    def _restore(self, settings: dict[str, Any]) -> None:
        path, settings_path = self.folder / "state.pt", self.folder / "settings.json"
        if not path.exists():
            with atomic_write(settings_path) as aside:
                aside.write_text(json.dumps(settings))
            return
        model, buffer = self._model, self._model.replay_buffer
        assert buffer is not None
        restart = "or remove the folder to start again"
        try:
            stored_settings = json.loads(settings_path.read_text())
            if stored_settings != settings:
                raise GtpVisionError(
                    f"{self.folder} has a training with {stored_settings}; give the same settings, {restart}"
                )
            state = torch.load(path, weights_only=True)
            step = int(state["step"])
            with np.load(self.folder / "buffer.npz", allow_pickle=False) as stored:
                rows = _ended({name: stored[name][:step] for name in _ROWS})
            for name, values in rows.items():
                getattr(buffer, name)[:step, 0] = values
            model.set_parameters(state["parameters"], exact_match=True)
            self._entropy().data.copy_(state["log_ent_coef"])
            model.set_random_seed(seed_of(self._seed, step))  # with the first seed the first episodes would repeat
            torch.set_rng_state(state["torch"])
            returns = json.loads((self.folder / "returns.json").read_text())
            self._returns = {at: value for at, value in returns.items() if int(at) <= step}
        except GtpVisionError:
            raise
        except Exception as error:  # torch and NumPy raise anything for damaged files
            raise GtpVisionError(f"{self.folder} is damaged ({first_line(error)}); restore it, {restart}") from error
        model.num_timesteps, buffer.pos, buffer.full = step, step % self._steps, step == self._steps


def _ended(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """End the episode of the last row, as the simulator's state is not saved."""
    if not rows["dones"][-1]:
        rows["dones"][-1] = rows["timeouts"][-1] = 1
    return rows


def _store(rows: Mapping[str, np.ndarray]) -> Store:
    """A store of transitions in order; episodes end where they are done, at the time limit without a terminal."""
    done, cut = rows["dones"].astype(bool), rows["timeouts"].astype(bool)
    return Store(
        observations={"state": rows["observations"].astype(np.float32)},
        actions=rows["actions"].astype(np.float32),
        rewards=rows["rewards"].astype(np.float32),
        terminals=done & ~cut,
        timeouts=cut,
        episode_ends=np.flatnonzero(done).astype(np.int64) + 1,
    )
