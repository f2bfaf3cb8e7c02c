"""Data sets in D4RL's format by SAC (Haarnoja et al., 2018) in Gymnasium's environments; not D4RL's own data.

    replay          all transitions of SAC's training, in order
    medium          by the first policy with a third of the return between random actions and the final policy
    medium-expert   that, and as many steps by the final policy

A stopped collection resumes from its last checkpoint in a new episode: the distribution is the same, the bytes are not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.collection.recording import Execution, collection_lock, require_at_least, versions
from gtp_vision.collection.sac_training import Training
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import require
from gtp_vision.core.files import make_folder
from gtp_vision.core.signals import stop_requested
from gtp_vision.datasets.formats import d4rl
from gtp_vision.datasets.store import Store

SETS = ("replay", "medium", "medium-expert")


def collect(
    env: str,
    out: Path,
    *,
    policy: str = "sac",
    steps: int = 100_000,
    medium_steps: int | None = None,
    sets: str = "replay,medium",
    seed: int = 0,
    execution: Execution,
) -> str:
    """Train SAC, write `<robot>-<set>-sac.hdf5` for each set into a folder, and return a summary of one sentence.

    `sets` are names separated by commas; the medium set has `medium_steps` steps, or as many as `steps` if None.

    Raises:
        GtpVisionError: an unknown policy, set or environment, a setting out of range, existing files, no
            stable-baselines3, or a medium set of a policy that learned nothing.
        InterruptedCollectionError: SIGINT or SIGTERM; a checkpoint was written.
    """
    names = [name.strip() for name in sets.split(",") if name.strip()]
    for option, given, known in [("policy", policy, ("sac",)), *(("sets", name, SETS) for name in names)]:
        if given not in known:
            raise GtpVisionError(f"--{option} {given} is unknown: {propose(given, known)}")
    if not names:
        raise GtpVisionError(f"--sets is empty; name some of {', '.join(SETS)}")
    medium_steps = steps if medium_steps is None else medium_steps
    require_at_least(steps=(steps, 100), medium_steps=(medium_steps, 1), seed=(seed, 0))
    require("sac", "SAC", "stable_baselines3")
    robot = re.sub(r"-v\d+$", "", env).replace("/", "-").lower()
    files = {name: out / f"{robot}-{name}-sac.hdf5" for name in names}
    for path in files.values():
        if path.exists() and not execution.overwrite:
            raise GtpVisionError(f"{path} exists; give --overwrite to replace it, or another --out")
    torch.set_num_threads(execution.processes)
    settings = {"env": env, "policy": policy, "steps": steps, "seed": seed}
    folder = out / f".{robot}-sac"
    with stop_requested() as stop, _begun(folder, settings, stop, execution.progress) as training:
        training.run()
        returns = training.returns()
        attributes = {
            "source": "SAC of stable-baselines3, made by gtp-vision; this is not D4RL's data set",
            "command": execution.command,
            **settings,
            **{name: returns[name] for name in ("random_return", "final_return")},
            **training.units(),
            "versions": versions("stable_baselines3", "gymnasium", "mujoco", pixels=False),
        }
        stores = {"replay": training.replay()} if "replay" in names else {}
        if {"medium", "medium-expert"} & set(names):
            at = medium(returns)
            attributes["medium_policy"] = {"step": at, "return": returns["returns"][str(at)]}
            stores["medium"] = training.rollout(at, medium_steps, seed + 1)
        if "medium-expert" in names:
            expert = training.rollout(max(map(int, returns["returns"])), medium_steps, seed + 2)
            stores["medium-expert"] = joined(stores["medium"], expert)
        for name, path in files.items():
            stores[name].attributes = attributes | {"set": name}
            d4rl.write(path, stores[name])
    shutil.rmtree(folder)
    rows = ", ".join(f"{path.name} ({len(stores[name])} steps)" for name, path in files.items())
    return f"{out}: {rows}; returns: random {returns['random_return']:.0f}, final {returns['final_return']:.0f}"


def medium(returns: Mapping[str, Any]) -> int:
    """The step of the first policy a third of the way from random actions to the final one, which must be better."""
    low, high = returns["random_return"], returns["final_return"]
    if high <= low:
        raise GtpVisionError(
            f"SAC has learned nothing: its return is {high:.1f}, that of random actions {low:.1f}; give more --steps, "
            f"or leave medium out of --sets"
        )
    reached = [int(step) for step, value in returns["returns"].items() if value >= low + (high - low) / 3]
    return min(reached, default=max(map(int, returns["returns"])))


def joined(first: Store, second: Store) -> Store:
    """Concatenate two data sets."""

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


@contextmanager
def _begun(folder: Path, settings: Mapping[str, Any], stop: Callable[[], bool], progress: bool) -> Iterator[Training]:
    """Lock a folder and yield its training; the folder is removed if it has no checkpoint afterwards."""
    make_folder(folder)
    with collection_lock(folder):
        try:
            with Training(folder, settings, stop=stop, progress=progress) as training:
                yield training
        finally:
            if not any(folder.glob("*.pt")):
                shutil.rmtree(folder)
