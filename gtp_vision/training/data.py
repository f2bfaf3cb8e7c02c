"""The data of a task: which files, which episodes, which observations, and the statistics networks are scaled by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from gtp_vision.config.schema import Config, TaskConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import ogbench, open_store
from gtp_vision.datasets.formats import open_states as open_states_of
from gtp_vision.datasets.statistics import ArrayStatistics, mean_images, store_statistics
from gtp_vision.datasets.store import ACTION_BOUNDS, Store, mix
from gtp_vision.datasets.validation import shape_errors, validate
from gtp_vision.encoders import Encoder

STATISTICS = "statistics.json"


def open_data(config: Config) -> Store:
    """The validated data set of a task; several ones mixed by their shares."""
    task = config.task
    stores = [open_for(task, path) for path in _paths(config)]
    return mix(stores, task.shares or [1.0] * len(stores)) if len(stores) > 1 else stores[0]


def open_for(task: TaskConfig, path: Path) -> Store:
    """One data set as the task sees it: the episodes of its filter, the observations it names, validated."""
    store = open_store(path, task.env)
    if faults := shape_errors(store):  # before anything relies on its lengths
        raise GtpVisionError(f"{path}: {faults[0]}")
    if task.filter is not None:
        store = store.filtered(task.filter)
    if task.observations is not None:
        store = store.select(task.observations)
    return validate(store)


def open_states(config: Config) -> Store:
    """The rows of `open_data` with every recorded state as an observation, also those that the task does not show.

    Of several data sets, the states that all of them record.

    Raises:
        GtpVisionError: a file cannot be read, or its states have other lengths than its actions.
    """
    task = config.task
    stores = []
    for path in _paths(config):
        store = open_states_of(path)
        if faults := shape_errors(store):
            raise GtpVisionError(f"{path}: {faults[0]}")
        stores.append(store if task.filter is None else store.filtered(task.filter))
    first, *others = stores
    shared = [name for name in first.observations if all(name in other.observations for other in others)]
    stores = [store.select(shared) for store in stores]
    return mix(stores, [1.0] * len(stores)) if others else stores[0]


def _paths(config: Config) -> list[Path]:
    """The data sets of a task, in order."""
    task = config.task
    if task.datasets:
        return [_path(name) for name in task.datasets]
    if task.dataset:
        return [_path(task.dataset)]
    assert task.env is not None, "checked with the configuration"
    return [ogbench.locate(task.env, Path(config.data_dir).expanduser())]


def _path(name: str) -> Path:
    return demo_path() if name == "demo" else Path(name).expanduser()


def fit(module: nn.Module, store: Store, *, standardize: bool) -> dict[str, ArrayStatistics]:
    """Tell every encoder in `module`, targets too, what it subtracts and divides by; it is saved with its weights.

    Args:
        module: an agent.
        store: the data set.
        standardize: whether states are brought to mean 0 and deviation 1 (near-constant dimensions only centred).

    Returns:
        The statistics of actions and states.
    """
    found = store_statistics(store)
    means = {name: torch.from_numpy(mean).permute(2, 0, 1) for name, mean in mean_images(store).items()}
    prefix = "observations/"
    scales = {
        name.removeprefix(prefix): (torch.tensor(s.mean, dtype=torch.float32), torch.from_numpy(s.scale()))
        for name, s in found.items()
        if name.startswith(prefix)
    }
    for encoder in module.modules():
        if isinstance(encoder, Encoder):
            encoder.centre(means)
            if standardize:
                encoder.standardize(scales)
    return found


def constant_dimensions(statistics: Mapping[str, ArrayStatistics]) -> str:
    """A sentence that names the near-constant dimensions, centred but not divided; empty if there are none."""
    named = [f"{name} {found.constant}" for name, found in statistics.items() if found.constant]
    return f"near-constant dimensions, not scaled: {', '.join(named)}" if named else ""


def save_statistics(folder: Path, statistics: Mapping[str, ArrayStatistics], store: Store) -> None:
    """Write statistics.json into a run folder, with the bounds that the actions were scaled from, if they were."""
    bounds = {bound: store.attributes[bound] for bound in ACTION_BOUNDS if bound in store.attributes}
    with atomic_write(folder / STATISTICS) as aside:
        aside.write_text(json.dumps({name: found.record() for name, found in statistics.items()} | bounds, indent=1))
