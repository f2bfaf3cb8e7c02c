"""Runs that take a second, and the comparison of two of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from stores import make_store

from gtp_vision.datasets.formats import d4rl, native
from gtp_vision.training import checkpoint
from torture.forked import FailedError

_SMALL = (
    *("task=own", "task.name=small", "encoder=state", "training.device=cpu", "training.batch_size=8"),
    *("training.steps=60", "training.log_every=4", "training.checkpoint_every=5", "agent.policy.hidden=[16]"),
    *("agent.critic.hidden=[16]", "training.schedule=cosine", "training.videos=0", "training.probe_rows=0"),
)
KINDS: dict[str, tuple[str, ...]] = {
    "states": ("agent=gtp", "training.eval_episodes=0"),
    "evaluated": (
        *("agent=gtp_bc", "task.env=Pendulum-v1", "task.max_episode_steps=5", "training.eval_every=15"),
        *("training.eval_episodes=2", "training.eval_envs=1"),
    ),
    "seeds": ("agent=gtp_bc", "training.seeds=2", "training.eval_episodes=0"),
    "pixels": ("agent=gtp_bc", "training.eval_episodes=0", "encoder=impala_tiny", "training.steps=12"),
    "online": (
        *("agent=gtp", "task.env=Pendulum-v1", "task.max_episode_steps=5", "training.eval_every=20"),
        *("training.eval_episodes=2", "training.eval_envs=1", "online.steps=60", "online.start=12", "online.round=12"),
    ),
    "compiled": ("agent=gtp", "training.eval_episodes=0", "training.engine=compile"),
    "compiled_seeds": ("agent=gtp_bc", "training.seeds=2", "training.eval_episodes=0", "training.engine=compile"),
}
"""Kinds of runs: name to settings beside the common ones."""


def data(folder: Path) -> None:
    """Write the data sets: `states.h5`, `pixels.h5`, and `foreign.hdf5`, which is to be unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    states = make_store((35, 35), actions=1)  # Pendulum's shapes
    native.write(folder / "states.h5", states)
    native.write(folder / "pixels.h5", make_store((35, 35), cameras={"camera": (8, 8, 3)}, state=None, actions=1))
    d4rl.write(folder / "foreign.hdf5", states)


def words(kind: str, data: Path, run: Path, *more: str) -> list[str]:
    """The command line that trains a run of a kind; `--resume` after it resumes the run."""
    file = data / ("pixels.h5" if kind == "pixels" else "states.h5")
    return ["train", *_SMALL, f"task.dataset={file}", f"run_dir={run}", *KINDS[kind], *more]


def require_equal(one: Path, other: Path) -> None:
    """Require that two runs hold the same tensors, metrics, results and files. Times may differ.

    Raises:
        FailedError: they differ.
    """
    places = sorted(path.parent.relative_to(one) for path in one.rglob("metrics.jsonl"))
    found = [] if places else [f"{one} holds no metrics"]
    for place in places:
        first, second = one / place, other / place
        for name in ("agent.safetensors", "optimizer.safetensors"):
            found += _tensors(first / "checkpoints" / "last" / name, second / "checkpoints" / "last" / name)
        for name in ("metrics.jsonl", "evaluations.json", "results.json", "checkpoints/last/state.json"):
            if _timeless(first / name) != _timeless(second / name):
                found.append(f"{second / name} differs")
        for path in sorted((first / "replay").glob("*.h5")):
            if (
                not (other_path := second / "replay" / path.name).exists()
                or path.read_bytes() != other_path.read_bytes()
            ):
                found.append(f"{other_path} differs")
        for link in ("checkpoints/last", "checkpoints/best"):
            if (first / link).resolve().name != (second / link).resolve().name:
                found.append(f"{second / link} differs")
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*") if "tensorboard" not in path.parts}
        for run in (one, other)
    ]
    found += [f"{name} is in one only" for name in sorted(names[0] ^ names[1])]
    if found:
        raise FailedError(f"{other} differs from the undisturbed run: " + "; ".join(found[:5]))


def whole(run: Path) -> dict[str, int]:
    """The step of the newest undamaged checkpoint of each run in a folder."""
    places = sorted({path.parent for path in run.rglob("checkpoints/step_*")})
    newest = {str(place.relative_to(run)): checkpoint.newest(place) for place in places}
    return {place: int(path.name.removeprefix("step_")) for place, path in newest.items() if path}


def _tensors(one: Path, other: Path) -> list[str]:
    if not other.exists():
        return [f"{other} is missing"]
    first, second = load_file(one), load_file(other)
    equal = {key for key in first.keys() & second.keys() if torch.equal(first[key], second[key])}
    return [f"{other}: {key} differs" for key in sorted((first.keys() | second.keys()) - equal)]


def _timeless(path: Path) -> Any:
    if not path.exists():
        return None
    text = path.read_text()
    return [_without_times(json.loads(line)) for line in ([text] if path.suffix == ".json" else text.splitlines())]


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    timeless = {key for key in value if not key.endswith("seconds") and not key.startswith("time/")}
    return {key: _without_times(value[key]) for key in timeless}
