"""What a pretrained backbone is worth with few demonstrations: robosuite's Lift, cloned from cameras alone.

Every row sees the same frames of the same few demonstrations; they are judged by the error of their actions on many
demonstrations that none of them has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.files import atomic_write, fingerprint
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.training.evaluate import restore
from gtp_vision.training.jobs import train_all

_BACKBONE = (
    *("encoder=timm", "encoder.name=timm/tf_efficientnet_lite0"),
    # Where the cube is counts, so no average over places, and not the coarsest map.
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
    *("task=own", "task.name=lift", "task.frame_stack=1", "agent=gtp_bc"),
    *("agent.policy.hidden=[256,256]", "agent.tau=0.02", "encoder.features=256"),
    *("encoder.augmentation.shift=4", "encoder.augmentation.shift_probability=1"),
    *("training.batch_size=32", "training.learning_rate=1e-3", "training.schedule=cosine", "training.warmup_steps=20"),
    *("training.log_every=50", "training.device=cpu"),
)
_DRAWS = 8  # the mean of a policy's actions is compared with the demonstrator's
_ROWS_AT_ONCE = 64


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
    """Train every row with every seed, and measure its actions on the demonstrations that were kept from it.

    Args:
        data: demonstrations, e.g. of `gtp-vision data collect robosuite/Lift --size 96`.
        weights: of timm's tf_efficientnet_lite0, or under the names of `efficientnet_lite0`.
        out: folder of the runs; what stands there is gone on with.
        rows: of `ROWS`; empty for all.
        demonstrations: episodes that are trained on, the file's first; the rest judges.
        seeds: 0 up to this number.
        steps: gradient steps of each run.
        cameras: what is seen.
        progress: show a bar.

    Returns:
        JSON-able: for each row, by seed, the mean absolute error of an action's dimensions, and the seconds of
        training; `constant` is the error of the mean action.

    Raises:
        GtpVisionError: no weights there, too few demonstrations, an unknown row, or a run that failed.
    """
    if not weights.is_file():
        raise GtpVisionError(f"{weights} is no file; name the weights of an ImageNet EfficientNet-Lite0")
    if unknown := [name for name in rows if name not in ROWS]:
        raise GtpVisionError(f"there is no row '{unknown[0]}' here: {propose(unknown[0], ROWS)}")
    store = open_store(data).select(cameras)
    if not 0 < demonstrations < store.episodes:
        raise GtpVisionError(
            f"--demonstrations {demonstrations} must leave some of the {store.episodes} in {data} to judge by"
        )
    few, held_out = (
        out / f"{demonstrations}-{_named(data, cameras)}.h5",
        store.subset(range(demonstrations, store.episodes)),
    )
    out.mkdir(parents=True, exist_ok=True)
    if not few.exists():
        native.write(few, store.subset(range(demonstrations)))
    names = list(rows or ROWS)
    common = (*_COMMON, f"task.dataset={few}", f"training.steps={steps}", f"training.checkpoint_every={steps}")
    runs = {
        out / name.replace(", ", "-").replace(" ", "-") / f"seed{seed}": (
            *(override.format(weights=weights) for override in (*_defaults(ROWS[name]), *common, *_others(ROWS[name]))),
            f"seed={seed}",
        )
        for seed in range(seeds)
        for name in names
    }
    train_all(runs, progress=progress)
    folders = list(runs)
    told: dict[str, Any] = {"rows": {}, "constant": _constant(store.subset(range(demonstrations)), held_out)}
    for number, name in enumerate(names):
        own = folders[number :: len(names)]
        told["rows"][name] = {
            "error": [held_out_error(folder, held_out) for folder in own],
            "train_seconds": [json.loads((folder / "results.json").read_text())["train_seconds"] for folder in own],
        }
    told |= {"demonstrations": demonstrations, "held_out": held_out.episodes, "seeds": seeds, "steps": steps}
    with atomic_write(out / "encoders.json") as aside:
        aside.write_text(json.dumps(told, indent=1))
    return told


def _named(data: Path, cameras: Sequence[str]) -> str:
    """A short name of what the demonstrations are taken from: others in the same folder are other runs."""
    return hashlib.blake2b(f"{fingerprint(data)} {list(cameras)}".encode(), digest_size=6).hexdigest()


def _defaults(overrides: Sequence[str]) -> list[str]:
    """The choice of a preset, which comes first: what follows changes it."""
    return [override for override in overrides if override.startswith("encoder=")]


def _others(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("encoder=")]


def held_out_error(folder: Path, store: Store) -> float:
    """The mean absolute error of a run's actions on a data set, in units of [-1, 1], over rows and dimensions.

    An action is the mean of 8 draws, as the conditional mean is what this error asks for.
    """
    config, parts = restore(folder)
    sampler = Sampler(store, _ROWS_AT_ONCE, seed=0, frame_stack=config.task.frame_stack)
    device = parts.accelerator.device
    errors = []
    for start in range(0, len(store.transitions), _ROWS_AT_ONCE):
        batch = sampler.gather(store.transitions[start : start + _ROWS_AT_ONCE]).to(device)
        with torch.no_grad():
            features = parts.agent.actor_encoder(batch.observation)
            noise = RandomStream(0, start, device=device)
            drawn = parts.agent.improvement.act(parts.agent, features, config.agent.acting.steps, noise, _DRAWS)
        actions = drawn.view(len(batch), _DRAWS, -1)[..., : store.action_dim].mean(1)
        errors.append((actions - batch.action).abs().mean(1))
    return float(torch.cat(errors).mean())


def _constant(few: Store, held_out: Store) -> float:
    mean = few.actions[few.transitions].mean(0)
    return float(np.abs(held_out.actions[held_out.transitions] - mean).mean())


def table(told: Mapping[str, Any]) -> str:
    """The results as text: means over seeds, with the deviation between them."""
    lines = [f"{'row':<28}{'action error':>20}{'seconds of training':>22}"]
    for name, found in told["rows"].items():
        error = f"{np.mean(found['error']):.4f} +- {np.std(found['error']):.4f}"
        lines.append(f"{name:<28}{error:>20}{np.mean(found['train_seconds']):>22.0f}")
    lines.append(f"{'the mean action':<28}{told['constant']:>11.4f}")
    lines.append(
        f"{told['seeds']} seeds, {told['steps']} steps, {told['demonstrations']} demonstrations, judged on "
        f"{told['held_out']} others"
    )
    return "\n".join(lines)
