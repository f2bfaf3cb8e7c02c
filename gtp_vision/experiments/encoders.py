"""The value of a pretrained backbone with few demonstrations: robosuite's Lift, cloned from cameras alone.

Every row is trained on the same few demonstrations, and judged by the error of its actions on the held-out rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.config.overrides import quoted
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.files import fingerprint, make_folder
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.evaluation.held_out import draws_of
from gtp_vision.experiments.output import write_json
from gtp_vision.training.evaluate import restore
from gtp_vision.training.jobs import train_all

_BACKBONE = (
    *("encoder=timm", "encoder.name=timm/tf_efficientnet_lite0"),
    # The cube's position matters, so no average over places, and not the coarsest map.
    *("encoder.level=3", "encoder.pooling=flatten"),
)
_PRETRAINED = (*_BACKBONE, "encoder.weights={weights}")
ROWS: dict[str, tuple[str, ...]] = {
    "pretrained, partial": (*_PRETRAINED, "encoder.tuning=partial", "encoder.blocks=3"),
    "pretrained, frozen": (*_PRETRAINED, "encoder.tuning=frozen", "encoder.views=8"),
    "random, frozen": (*_BACKBONE, "encoder.tuning=frozen", "encoder.views=8"),
    "from scratch": _BACKBONE,
    "impala_small from scratch": ("encoder=impala_small",),
}
_COMMON = (
    *("task=own", "task.name=lift", "task.frame_stack=1", "agent=gtp_bc", "task.validation=0"),
    *("agent.policy.hidden=[256,256]", "agent.tau=0.02", "encoder.features=256"),
    *("encoder.augmentation.shift=4", "encoder.augmentation.shift_probability=1"),
    *("training.batch_size=32", "training.learning_rate=1e-3", "training.schedule=cosine", "training.warmup_steps=20"),
    *("training.log_every=50", "training.device=cpu"),
)
_DRAWS = 8  # the mean of a policy's actions is compared with the demonstrator's


def encoders(
    data: Path,
    weights: Path,
    out: Path,
    *,
    rows: Sequence[str] = (),
    demonstrations: int = 20,
    seeds: int = 3,
    steps: int = 400,
    cameras: Sequence[str] = ("agentview_image",),
    progress: bool = True,
) -> dict[str, Any]:
    """Train every row with every seed, and measure its actions on held-out demonstrations.

    `weights` are of timm's tf_efficientnet_lite0, or under the names of `efficientnet_lite0`. Runs that are in `out`
    already are resumed. Training takes the first `demonstrations` episodes of `data`, the rest is held out.

    Returns:
        JSON-able: for each row, by seed, the mean absolute error of an action's dimensions, and the seconds of
        training; `constant` is the error of the mean action.

    Raises:
        GtpVisionError: the weights are missing, too few demonstrations, an unknown row, or a failed run.
    """
    if not weights.is_file():
        raise GtpVisionError(f"{weights} is not a file; give the weights of an ImageNet EfficientNet-Lite0")
    if unknown := [name for name in rows if name not in ROWS]:
        raise GtpVisionError(f"unknown row '{unknown[0]}': {propose(unknown[0], ROWS)}")
    store = open_store(data).select(cameras)
    if not 0 < demonstrations < store.episodes:
        raise GtpVisionError(
            f"--demonstrations {demonstrations} must leave some of the {store.episodes} in {data} to be held out"
        )
    few, held_out = store.subset(range(demonstrations)), store.subset(range(demonstrations, store.episodes))
    # Demonstrations from another file in the same folder are other runs.
    source = hashlib.blake2b(f"{fingerprint(data)} {list(cameras)}".encode(), digest_size=6).hexdigest()
    training_data = out / f"{demonstrations}-{source}.h5"
    make_folder(out)
    if not training_data.exists():
        native.write(training_data, few)
    common = (
        *_COMMON,
        quoted("task.dataset", training_data),
        f"training.steps={steps}",
        f"training.checkpoint_every={steps}",
    )
    folders = {
        name: [out / name.replace(", ", "-").replace(" ", "-") / f"seed{seed}" for seed in range(seeds)]
        for name in rows or ROWS
    }
    runs = {}
    for seed in range(seeds):
        for name in folders:
            preset, *others = (
                quoted("encoder.weights", weights) if "{weights}" in override else override for override in ROWS[name]
            )
            runs[folders[name][seed]] = (preset, *common, *others, f"seed={seed}")
    train_all(runs, progress=progress)
    results = {
        "rows": {
            name: {
                "error": [held_out_error(run, held_out) for run in row_runs],
                "train_seconds": [json.loads((run / "results.json").read_text())["train_seconds"] for run in row_runs],
            }
            for name, row_runs in folders.items()
        },
        "constant": _constant_error(few, held_out),
        "demonstrations": demonstrations,
        "held_out": held_out.episodes,
        "seeds": seeds,
        "steps": steps,
    }
    write_json(out / "encoders.json", results)
    return results


def held_out_error(folder: Path, store: Store) -> float:
    """The mean absolute error of a run's actions on a data set, in units of [-1, 1], over rows and dimensions.

    An action is the mean of 8 draws, an estimate of the conditional mean.
    """
    config, parts = restore(folder)
    sampler, own = Sampler(store, 1, seed=0, frame_stack=config.task.frame_stack), config.agent.acting.steps
    found = draws_of(parts.agent, sampler, store.transitions, (own,), parts.accelerator.device, draws=_DRAWS)[own]
    return float((found.drawn[:, :, 0].mean(1) - found.recorded[:, 0]).abs().mean())


def _constant_error(few: Store, held_out: Store) -> float:
    """The error of the mean action."""
    mean = few.actions[few.transitions].mean(0)
    return float(np.abs(held_out.actions[held_out.transitions] - mean).mean())


def table(results: Mapping[str, Any]) -> str:
    """The results as text: means over seeds, with the deviation between them."""
    lines = [f"{'row':<28}{'action error':>20}{'seconds of training':>22}"]
    for name, row in results["rows"].items():
        error = f"{np.mean(row['error']):.4f} +- {np.std(row['error']):.4f}"
        lines.append(f"{name:<28}{error:>20}{np.mean(row['train_seconds']):>22.0f}")
    lines.append(f"{'the mean action':<28}{results['constant']:>11.4f}")
    lines.append(
        f"{results['seeds']} seeds, {results['steps']} steps, {results['demonstrations']} demonstrations, judged on "
        f"{results['held_out']} others"
    )
    return "\n".join(lines)
