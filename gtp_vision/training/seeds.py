"""Many seeds at once: which runs they are, where they lie, and what they found together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.store import Store
from gtp_vision.training.feature_cache import cacheable

_SHARED = ("task", "env", "dataset", "agent", "family", "encoder", "steps", "engine", "device", "versions")


def seeds_of(config: Config) -> list[Config]:
    """The configuration of each run: the one itself, or one for each seed, as if it were trained alone."""
    if config.training.seeds == 1:
        return [config]
    alone = replace(config.training, seeds=1)
    return [
        replace(config, seed=seed, run_dir=str(folder), training=alone)
        for seed, folder in zip(range(config.seed, config.seed + config.training.seeds), folders(config), strict=True)
    ]


def folders(config: Config) -> list[Path]:
    """Where each run goes: the run folder itself, or `seed_0`, `seed_1`, ... in it."""
    whole = Path(config.run_dir)
    if config.training.seeds == 1:
        return [whole]
    return [whole / f"seed_{config.seed + index}" for index in range(config.training.seeds)]


def check_seeds(config: Config, store: Store, processes: int) -> None:
    """Whether seeds can be trained side by side.

    Raises:
        GtpVisionError: several processes, frames that are seen live, or backbones that differ from seed to seed.
    """
    seeds, encoder = config.training.seeds, config.encoder
    if seeds == 1:
        return
    if processes > 1:
        raise GtpVisionError(
            f"training.seeds={seeds} trains in one process, and there are {processes}; start one process a GPU with "
            f"seeds of its own, or set training.seeds=1"
        )
    cameras = [name for name, array in store.observations.items() if array.ndim == 4]
    if cameras and not (cacheable(encoder, store) and encoder.weights is not None):
        raise GtpVisionError(
            f"training.seeds={seeds} needs observations that all seeds share, and encoder={encoder.name} makes its own "
            f"of the camera '{cameras[0]}' for each seed; freeze trained weights (encoder.tuning=frozen "
            f"encoder.weights=...), or train the seeds one by one: -m seed=0,1"
        )
    if cameras and encoder.views > 1:
        raise GtpVisionError(
            f"training.seeds={seeds} needs features that all seeds share, and encoder.views={encoder.views} are drawn "
            f"by the seed; set encoder.views=1"
        )


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results.json of several seeds: what is common, each seed's results, and means over the seeds.

    `last`, `mean_last_3` and `best` hold means, `success_by_seed`, and of success the standard error of its mean.
    """
    told: dict[str, Any] = {name: results[0][name] for name in _SHARED}
    told["seeds"] = [found["seed"] for found in results]
    told["train_seconds"] = max(found["train_seconds"] for found in results)
    for when in ("last", "mean_last_3", "best"):
        if all(when in found for found in results):
            keys = [key for key in ("score", "success", "return", "length") if key in results[0][when]]
            numbers = {key: [found[when][key] for found in results] for key in keys}
            told[when] = {key: float(np.mean(values)) for key, values in numbers.items()} | {
                "success_by_seed": numbers["success"],
                "success_error": float(np.std(numbers["success"], ddof=1) / np.sqrt(len(results))),
            }
    told["runs"] = [dict(found) for found in results]
    return told
