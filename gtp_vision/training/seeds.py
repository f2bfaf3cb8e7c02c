"""Several seeds in one process: their configurations, their folders and their common results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.config.compose import from_run
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store
from gtp_vision.evaluation.metrics import averaged
from gtp_vision.training.feature_cache import cacheable

_SHARED = (
    "task",
    "env",
    "dataset",
    "agent",
    "family",
    "encoder",
    "steps",
    "step",
    "data",
    "engine",
    "device",
    "versions",
)


def seeds_of(config: Config) -> list[Config]:
    """The configuration of each seed's run, as if it were trained alone; of a single run its own."""
    if config.training.seeds == 1:
        return [config]
    alone = replace(config.training, seeds=1)
    return [
        replace(config, seed=seed, run_dir=str(folder), training=alone)
        for seed, folder in enumerate(folders(config), config.seed)
    ]


def folders(config: Config) -> list[Path]:
    """The folder of each run: the run folder itself, or `seed_0`, `seed_1`, ... in it."""
    folder, seeds = Path(config.run_dir), config.training.seeds
    return [folder] if seeds == 1 else [folder / f"seed_{seed}" for seed in range(config.seed, config.seed + seeds)]


def check_seeds(config: Config, store: Store, processes: int) -> None:
    """Refuse seeds side by side with several processes, trained backbones, or features that differ between seeds."""
    seeds, encoder = config.training.seeds, config.encoder
    if seeds == 1:
        return
    if processes > 1:
        raise GtpVisionError(
            f"training.seeds={seeds} trains in one process, and there are {processes}; start one process per GPU with "
            f"its own seeds, or set training.seeds=1"
        )
    cameras = [name for name, array in store.observations.items() if array.ndim == 4]
    if cameras and not (cacheable(encoder, store) and encoder.weights is not None):
        raise GtpVisionError(
            f"training.seeds={seeds} needs features that all seeds share, and encoder={encoder.name} sees camera "
            f"'{cameras[0]}' differently for each seed; freeze trained weights (encoder.tuning=frozen "
            f"encoder.weights=...), or train the seeds one by one: -m seed=0,1"
        )
    if cameras and encoder.views > 1:
        raise GtpVisionError(
            f"training.seeds={seeds} needs features that all seeds share, and encoder.views={encoder.views} are "
            f"augmented by the seed; set encoder.views=1"
        )


def check_same_seeds(folder: Path, config: Config) -> None:
    """Refuse to resume a run as one of other seeds, whose folders are others."""
    try:
        old = from_run(folder)
    except GtpVisionError:  # there is nothing to compare; checkpoints are compared later
        return
    pairs = {
        "training.seeds": (old.training.seeds, config.training.seeds),
        **({"seed": (old.seed, config.seed)} if old.training.seeds > 1 else {}),
    }
    for key, (before, now) in pairs.items():
        if before != now:
            raise GtpVisionError(
                f"{folder} was trained with {key}={before}, and cannot be resumed with {key}={now}; choose another "
                f"run_dir=..."
            )


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results.json of several seeds: common entries, means over the seeds, and each seed's results.

    `last`, `mean_last_3` and `best` hold means, `success_by_seed`, and of success the standard error of its mean. A
    mean of numbers of which one is unknown is None.
    """
    common: dict[str, Any] = {name: results[0][name] for name in _SHARED}
    common["seeds"] = [result["seed"] for result in results]
    common["train_seconds"] = max(result["train_seconds"] for result in results)
    for when in ("last", "mean_last_3", "best"):
        if all(when in result for result in results):
            numbers = {key: [result[when][key] for result in results] for key in averaged(results[0][when])}
            means = {key: None if None in values else float(np.mean(values)) for key, values in numbers.items()}
            spread = None if means["success"] is None else float(np.std(numbers["success"], ddof=1))
            common[when] = means | {
                "success_by_seed": numbers["success"],
                "success_error": None if spread is None else spread / float(np.sqrt(len(results))),
            }
    return common | {"runs": [dict(result) for result in results]}
