"""The data of a task: its files, episodes and observations, and the statistics that scale the networks' inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gtp_vision.config.schema import Config, TaskConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.framing import ALL, Framing, Size, size_of
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import ogbench, open_store
from gtp_vision.datasets.formats import open_states as open_states_of
from gtp_vision.datasets.record import DataRecord, differences, record_of
from gtp_vision.datasets.statistics import ArrayStatistics, farthest, mean_images, store_statistics
from gtp_vision.datasets.store import ACTION_BOUNDS, Store, mix
from gtp_vision.datasets.validation import shape_errors, validate
from gtp_vision.encoders import Encoder
from gtp_vision.models import Policy

STATISTICS = "statistics.json"


def open_data(config: Config) -> Store:
    """The validated data set of a task; several are mixed by their shares."""
    return _mixed([open_for(config, path) for path in _paths(config)], config.task.shares)


def open_for(config: Config, path: Path) -> Store:
    """One data set with the task's frames, filter and observations, validated."""
    task = config.task
    store = _filtered(open_store(path, task.env, task.features, framing=framing_of(config)), task, path)
    if task.observations is not None:
        store = store.select(task.observations)
    return validate(store)


def framing_of(config: Config) -> Framing | None:
    """How the frames of the task's data are cropped and resized when they are imported; None: not at all.

    Raises GtpVisionError: a size that cannot be read, or `auto` without the size of a camera in the encoder.
    """
    task, sizes = config.task, dict[str, Size]()
    if task.image_size == "auto":
        for name, camera in config.encoder.cameras.items():
            if camera.size and camera.crop:
                raise GtpVisionError(
                    f"task.image_size=auto cannot resize camera '{name}': encoder.cameras.{name}.crop cuts a part out "
                    f"of its frames first; set task.image_size to a height and width"
                )
            if camera.size:
                sizes[name] = size_of("x".join(map(str, camera.size)), f"encoder.cameras.{name}.size")
        if not sizes:
            raise GtpVisionError(
                "task.image_size=auto takes the sizes of encoder.cameras.<name>.size, and none is set; set one, or "
                "task.image_size to a height and width"
            )
    elif task.image_size is not None:
        sizes = {ALL: size_of(task.image_size, "task.image_size")}
    crop = None if task.image_crop is None else size_of(task.image_crop, "task.image_crop")
    return Framing(sizes, crop, shrinks=task.image_size == "auto") if sizes or crop else None


def open_states(config: Config) -> Store:
    """The rows of `open_data` with every recorded state as an observation, also those that the task leaves out.

    Of several data sets, the states that all of them record.

    Raises:
        GtpVisionError: a file cannot be read, or its states have other lengths than its actions.
    """
    stores = [_filtered(open_states_of(path, config.task.features), config.task, path) for path in _paths(config)]
    first, *others = stores
    shared = [name for name in first.observations if all(name in other.observations for other in others)]
    return _mixed([store.select(shared) for store in stores])


def _filtered(store: Store, task: TaskConfig, path: Path) -> Store:
    if errors := shape_errors(store):  # before anything relies on its lengths
        raise GtpVisionError(f"{path}: {errors[0]}")
    return store if task.filter is None else store.filtered(task.filter)


def _mixed(stores: list[Store], shares: list[float] | None = None) -> Store:
    return mix(stores, shares or [1.0] * len(stores)) if len(stores) > 1 else stores[0]


def _paths(config: Config) -> list[Path]:
    """The data sets of a task, in order."""
    task = config.task
    if names := task.datasets or ([task.dataset] if task.dataset else []):
        return [demo_path() if name == "demo" else Path(name).expanduser() for name in names]
    assert task.env is not None, "checked with the configuration"
    return [ogbench.locate(task.env, Path(config.data_dir).expanduser())]


@dataclass(frozen=True)
class DataStatistics:
    """Statistics of actions and states, and the mean frame of each camera, float32 (H, W, C).

    Of each depth camera also the farthest distance, in millimeters.
    """

    arrays: dict[str, ArrayStatistics]
    means: dict[str, np.ndarray]
    farthest: dict[str, float] = field(default_factory=dict)


def measure(store: Store) -> tuple[DataStatistics, DataRecord]:
    """The statistics of a data set, and its record."""
    statistics = DataStatistics(store_statistics(store), mean_images(store), farthest(store))
    return statistics, record_of(store, statistics.arrays, statistics.means)


def open_recorded(config: Config, record: DataRecord) -> Store:
    """The data set that a run was trained on.

    Raises:
        GtpVisionError: it is missing, or another one by now.
    """
    store = in_order(open_data(config), record)
    if differ := differences(record, measure(store)[1]):
        raise GtpVisionError(
            f"{store.path} is no longer the data set of {config.run_dir}: {'; '.join(differ)}; restore it, or give "
            f"other recordings"
        )
    return store


def in_order(store: Store, record: DataRecord | None) -> Store:
    """The data set with its observations in the order of a record, if it has the same."""
    names = list(record.observations) if record else []
    return store.select(names) if names and store.observations.keys() == set(names) else store


def fit(module: nn.Module, found: DataStatistics, *, standardize: bool) -> None:
    """Set mean and scale of every encoder, and bounds of every policy in `module`, targets included.

    `standardize` gives states mean 0 and deviation 1 (near-constant dimensions are only centered, constant ones become
    0). Dimensions of actions that the data hold constant are acted as their constant.
    """
    means = {name: torch.from_numpy(mean).permute(2, 0, 1) for name, mean in found.means.items()}
    prefix = "observations/"
    scales = {
        name.removeprefix(prefix): (torch.tensor(s.mean, dtype=torch.float32), torch.from_numpy(s.scale()))
        for name, s in found.arrays.items()
        if name.startswith(prefix)
    }
    for encoder in module.modules():
        if isinstance(encoder, Encoder):
            encoder.scale_distances(found.farthest)
            encoder.centre(means)
            if standardize:
                encoder.standardize(scales)
    bounds = torch.from_numpy(found.arrays["actions"].bounds())
    for policy in module.modules():
        if isinstance(policy, Policy):
            policy.hold(bounds)


def constant_dimensions(statistics: Mapping[str, ArrayStatistics]) -> str:
    """Sentences that name dimensions that hardly change, and what becomes of them; empty if there are none."""
    parts: dict[str, list[str]] = {}
    for name, array in statistics.items():
        fixed = np.flatnonzero(array.fixed()).tolist()
        scaled = [dimension for dimension in array.constant if dimension not in fixed]
        effect = "acted as their constant" if name == "actions" else "ignored"
        for dimensions, found in ((fixed, f"constant dimensions, {effect}"), (scaled, "near-constant, not scaled")):
            if dimensions:
                parts.setdefault(found, []).append(f"{name} {dimensions}")
    return "; ".join(f"{found}: {', '.join(named)}" for found, named in parts.items())


def save_statistics(folder: Path, statistics: Mapping[str, ArrayStatistics], store: Store) -> None:
    """Write statistics.json into a run folder, with the bounds of the actions before scaling, if they were scaled."""
    bounds = {bound: store.attributes[bound] for bound in ACTION_BOUNDS if bound in store.attributes}
    with atomic_write(folder / STATISTICS) as aside:
        aside.write_text(json.dumps({name: array.record() for name, array in statistics.items()} | bounds, indent=1))
