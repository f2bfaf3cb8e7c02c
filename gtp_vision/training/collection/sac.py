"""Data sets in D4RL's format from SAC (Haarnoja et al., 2018) in Gymnasium's environments: made here, and not D4RL's.

    replay          all that SAC saw while it learnt, in order
    medium          by the policy that first got a third of the way from random actions to the final policy
    medium-expert   that, and as many steps by the final policy

A collection that was stopped goes on from its last checkpoint in a new episode: it is another run of the same law, not
the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from gtp_vision.datasets.files import written_aside
from gtp_vision.datasets.formats import d4rl
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec, close
from gtp_vision.errors import GtpVisionError, propose
from gtp_vision.training.collection.parts import InterruptedCollectionError, require_at_least
from gtp_vision.training.collection.provenance import versions
from gtp_vision.training.stopping import stop_requested

SETS = ("replay", "medium", "medium-expert")
_SAVE_EVERY = 5000  # steps
_EVALUATIONS, _EPISODES = 50, 5
_LEARN_AFTER = 10_000  # random steps first; a tenth of a short run
_ROWS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def collect(
    env: str,
    out: Path,
    *,
    policy: str = "sac",
    steps: int = 100_000,
    medium_steps: int | None = None,
    sets: str = "replay,medium",
    seed: int = 0,
    processes: int = 1,
    command: str = "",
    progress: bool = True,
    overwrite: bool = False,
) -> str:
    """Train SAC, and write `<robot>-<set>-sac.hdf5` for each set into a folder.

    Args:
        env: Gymnasium's name, e.g. Hopper-v4.
        out: the folder.
        policy: sac.
        steps: of training, and of the replay set.
        medium_steps: of the medium set; None is as many as `steps`.
        sets: with commas between.
        seed: of everything random.
        processes: threads of PyTorch.
        command: the command line, recorded in the files.
        progress: show bars.
        overwrite: replace the files and begin anew.

    Returns:
        What was recorded, a sentence.

    Raises:
        GtpVisionError: an unknown policy, set or environment, a setting out of range, files that stand there already,
            no stable-baselines3, or nothing learnt where a policy in between is asked for.
    """
    names = [name.strip() for name in sets.split(",") if name.strip()]
    for option, given, known in [("policy", policy, ("sac",)), *(("sets", name, SETS) for name in names)]:
        if given not in known:
            raise GtpVisionError(f"--{option} {given} is unknown: {propose(given, known)}")
    if not names:
        raise GtpVisionError(f"--sets names nothing; name some of {', '.join(SETS)}")
    medium_steps = steps if medium_steps is None else medium_steps
    require_at_least(steps=(steps, 100), medium_steps=(medium_steps, 1), seed=(seed, 0), processes=(processes, 1))
    if importlib.util.find_spec("stable_baselines3") is None:
        raise GtpVisionError("stable-baselines3 is not installed; pip install 'gtp-vision[sac]'")
    robot = env.split("-")[0].lower()
    files = {name: out / f"{robot}-{name}-sac.hdf5" for name in names}
    for path in files.values():
        if path.exists() and not overwrite:
            raise GtpVisionError(f"{path} stands there already; give --overwrite to replace it, or another --out")
    torch.set_num_threads(processes)
    settings = {"env": env, "policy": policy, "steps": steps, "seed": seed}
    with _Training(out / f".{robot}-sac", settings, again=overwrite, progress=progress) as training:
        training.run()
        told = training.told()
        made = {
            "source": "SAC of stable-baselines3, made by gtp-vision; this is not D4RL's data set",
            "command": command,
            **settings,
            **{name: told[name] for name in ("random_return", "final_return")},
            "versions": versions("stable_baselines3", "gymnasium", "mujoco", pixels=False),
        }
        stores = {"replay": training.replay()} if "replay" in names else {}
        if {"medium", "medium-expert"} & set(names):
            at = medium(told)
            made["medium_policy"] = {"step": at, "return": told["returns"][str(at)]}
            stores["medium"] = training.rollout(at, medium_steps, seed + 1)
        if "medium-expert" in names:
            expert = training.rollout(max(map(int, told["returns"])), medium_steps, seed + 2)
            stores["medium-expert"] = joined(stores["medium"], expert)
        for name, path in files.items():
            stores[name].attributes = {"env": env, "gtp_vision_set": name, "recipe": made}
            d4rl.write(path, stores[name])
    shutil.rmtree(training.folder)
    rows = ", ".join(f"{path.name} ({len(stores[name])} steps)" for name, path in files.items())
    return f"{out}: {rows}; returns: random {told['random_return']:.0f}, final {told['final_return']:.0f}"


def medium(told: Mapping[str, Any]) -> int:
    """The step of the first policy a third of the way from random actions to the final policy.

    Raises:
        GtpVisionError: the final policy is no better than random actions.
    """
    low, high = told["random_return"], told["final_return"]
    if high <= low:
        raise GtpVisionError(
            f"SAC has learnt nothing: its return is {high:.1f}, that of random actions {low:.1f}; give more --steps, "
            f"or leave medium out of --sets"
        )
    reached = [int(step) for step, value in told["returns"].items() if value >= low + (high - low) / 3]
    return min(reached, default=max(map(int, told["returns"])))


def joined(first: Store, second: Store) -> Store:
    """One data set after the other."""

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(store, name) for store in (first, second)])

    return Store(
        {"state": np.concatenate([np.asarray(store.observations["state"]) for store in (first, second)])},
        actions=both("actions"),
        rewards=both("rewards"),
        terminals=both("terminals"),
        timeouts=both("timeouts"),
        episode_ends=np.concatenate([first.episode_ends, len(first) + second.episode_ends]),
    )


class _Training:
    """SAC with checkpoints of our own: tensors and arrays, nothing that runs code when it is read.

    Args:
        folder: of the checkpoints; a training of the same settings that lies there is gone on with.
        settings: env, policy, steps and seed.
        again: begin anew.
        progress: show bars.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, again: bool, progress: bool) -> None:
        from stable_baselines3 import SAC

        self.folder, self._steps, self._progress = folder, settings["steps"], progress
        self._seed = settings["seed"]
        if again:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "settings.json"
        if kept.exists() and json.loads(kept.read_text()) != dict(settings):
            raise GtpVisionError(
                f"{folder} holds a collection of other settings; give those again, or --overwrite to begin anew"
            )
        kept.write_text(json.dumps(dict(settings)))
        spec = EnvSpec(name=settings["env"], pixels=False)
        self._env, self._judge = spec.make(), spec.make()
        space = self._env.observation_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise GtpVisionError(f"{settings['env']} shows {space}, and SAC's data are states; choose another one")
        self._model = SAC(
            "MlpPolicy",
            self._env,
            buffer_size=self._steps,
            learning_starts=min(_LEARN_AFTER, self._steps // 10),
            seed=self._seed,
            device="cpu",
        )
        self._returns: dict[str, float] = {}
        self._restore()

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, *_: object) -> None:
        close(self._env)
        close(self._judge)

    def run(self) -> None:
        """Take the steps that are left.

        Raises:
            InterruptedCollectionError: asked to stop; a checkpoint was written.
        """
        from stable_baselines3.common.callbacks import BaseCallback

        outer = self

        class Watch(BaseCallback):
            """Evaluates, saves and stops at the end of a step."""

            def _on_step(self) -> bool:
                bar.update()
                return outer._after_step(self.num_timesteps, stop(), bar)

        if not self._returns:
            self._returns["0"] = self._judged(lambda observation: self._env.action_space.sample(), 2 * _EPISODES)
        left = self._steps - self._model.num_timesteps
        with (
            stop_requested() as stop,
            tqdm(
                total=self._steps,
                initial=self._model.num_timesteps,
                desc="SAC",
                unit="step",
                disable=not self._progress,
            ) as bar,
        ):
            if left > 0:
                self._model.learn(left, callback=Watch(), reset_num_timesteps=False)
            if self._model.num_timesteps < self._steps:
                at = self._model.num_timesteps
                raise InterruptedCollectionError(
                    f"stopped at step {at} of {self._steps}; give the same command again to go on"
                )

    def told(self) -> dict[str, Any]:
        """Mean returns: of random actions, of the policy by step, and at the end, where three evaluations are one."""
        returns = {step: value for step, value in self._returns.items() if step != "0"}
        final = float(np.mean(list(returns.values())[-3:]))
        return {"random_return": self._returns["0"], "final_return": final, "returns": returns}

    def replay(self) -> Store:
        """All transitions in order."""
        return _store(self._rows(self._model.num_timesteps))

    def rollout(self, at: int, steps: int, seed: int) -> Store:
        """So many steps by the policy of step `at`, as it acts while it learns: noisily."""
        policy = self._model.policy
        policy.load_state_dict(torch.load(self.folder / f"policy_{at}.pt", weights_only=True))
        torch.manual_seed(seed)
        rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "dones", "timeouts")}
        observation, _ = self._judge.reset(seed=seed)
        for step in tqdm(range(steps), "recording", unit="step", disable=not self._progress):
            action, _ = policy.predict(observation)
            following, reward, terminated, truncated, _ = self._judge.step(action)
            cut = truncated or step == steps - 1
            told = (observation, action, reward, terminated or cut, cut and not terminated)
            for name, value in zip(rows, told, strict=True):
                rows[name].append(value)
            observation = self._judge.reset()[0] if terminated or truncated else following
        return _store({name: np.array(values) for name, values in rows.items()})

    def _after_step(self, step: int, stopping: bool, bar: tqdm) -> bool:
        if step % max(1, self._steps // _EVALUATIONS) == 0 or step == self._steps:
            value = self._judged(lambda observation: self._model.predict(observation, deterministic=True)[0], _EPISODES)
            self._returns[str(step)] = value
            with written_aside(self.folder / f"policy_{step}.pt") as aside:
                torch.save(self._model.policy.state_dict(), aside)
            bar.set_postfix_str(f"return {value:.0f}")
        if stopping or step % _SAVE_EVERY == 0 or step == self._steps:
            self._save(step)
        return not stopping

    def _judged(self, act: Callable[[np.ndarray], np.ndarray], episodes: int) -> float:
        """The mean return of some episodes, the same ones each time."""
        total = 0.0
        for episode in range(episodes):
            observation, _ = self._judge.reset(seed=10_000 + self._seed + episode)
            over = False
            while not over:
                observation, reward, terminated, truncated, _ = self._judge.step(act(observation))
                total, over = total + float(reward), terminated or truncated
        return total / episodes

    def _rows(self, count: int) -> dict[str, np.ndarray]:
        """The first transitions in memory; the last one ends its episode."""
        buffer = self._model.replay_buffer
        assert buffer is not None
        rows = {name: np.array(getattr(buffer, name)[:count, 0]) for name in _ROWS}
        if not rows["dones"][-1]:
            rows["dones"][-1] = rows["timeouts"][-1] = 1
        return rows

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
        with written_aside(self.folder / "buffer.npz") as aside, aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **self._rows(step))
        with written_aside(self.folder / "returns.json") as aside:
            aside.write_text(json.dumps(self._returns))
        with written_aside(self.folder / "state.pt") as aside:  # last: its step says how much of the rest is meant
            torch.save(state, aside)

    def _restore(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
            with np.load(self.folder / "buffer.npz", allow_pickle=False) as stored:
                rows = {name: stored[name][: state["step"]] for name in _ROWS}
            returns = json.loads((self.folder / "returns.json").read_text())
            model, buffer = self._model, self._model.replay_buffer
            assert buffer is not None
            model.set_parameters(state["parameters"], exact_match=True)
            self._entropy().data.copy_(state["log_ent_coef"])
            for name, values in rows.items():
                getattr(buffer, name)[: len(values), 0] = values
            torch.set_rng_state(state["torch"])
        except Exception as error:  # whatever a damaged file makes torch and NumPy raise
            raise GtpVisionError(f"{self.folder} is damaged ({error}); give --overwrite to begin anew") from error
        np.random.seed((self._seed + state["step"]) % 2**32)  # of which memory's samples are drawn
        model.num_timesteps, buffer.pos, buffer.full = (
            state["step"],
            state["step"] % self._steps,
            state["step"] == self._steps,
        )
        self._returns = {step: value for step, value in returns.items() if int(step) <= state["step"]}


def _store(rows: Mapping[str, np.ndarray]) -> Store:
    """Transitions in order; episodes end where they are done, at the time limit without a terminal."""
    done, cut = rows["dones"].astype(bool), rows["timeouts"].astype(bool)
    return Store(
        observations={"state": rows["observations"].astype(np.float32)},
        actions=rows["actions"].astype(np.float32),
        rewards=rows["rewards"].astype(np.float32),
        terminals=done & ~cut,
        timeouts=cut,
        episode_ends=np.flatnonzero(done).astype(np.int64) + 1,
    )
