"""The data of a task: its files, episodes and observations, and the statistics that scale the networks' inputs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gtp_vision.agents import Agent
from gtp_vision.agents.representation import reaches
from gtp_vision.config.schema import Config, TaskConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.framing import ALL, Framing, Size, size_of
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.core.safe_json import read_json
from gtp_vision.datasets import demo_path
from gtp_vision.datasets.formats import ogbench, open_store
from gtp_vision.datasets.formats import open_states as open_states_of
from gtp_vision.datasets.instructions import Instructions, named_tasks, table_of, texts_of
from gtp_vision.datasets.record import DataRecord, differences, record_of
from gtp_vision.datasets.rewards import check_contrast, check_marked, rewarded
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.scaling import fitted, fitted_by, scaled
from gtp_vision.datasets.split import Split, divided, recorded_part
from gtp_vision.datasets.statistics import ArrayStatistics, farthest, mean_images, store_statistics
from gtp_vision.datasets.store import ACTION_BOUNDS, ACTIONS_BETWEEN, Store, mix
from gtp_vision.datasets.validation import shape_errors, validate
from gtp_vision.encoders import Encoder
from gtp_vision.encoders.text import sentence_features
from gtp_vision.models import Policy

STATISTICS = "statistics.json"
_REPRESENTED = 1 << 15  # rows, spread evenly, on whose chunks a representation is fitted


@dataclass(frozen=True)
class TaskData:
    """The data of a task.

    Attributes:
        training: what is trained on.
        held_out: episodes that are not, in the same units; None if there are none.
        split: how they were divided.
    """

    training: Store
    held_out: Store | None
    split: Split


def open_data(config: Config, known: Mapping[str, Any] | None = None) -> Store:
    """The episodes of a task that are trained on, validated, see `open_split`."""
    return open_split(config, known).training


def open_split(config: Config, known: Mapping[str, Any] | None = None, *, rescales: bool = False) -> TaskData:
    """The validated data of a task; several sets are mixed by their shares.

    `known` is a run's `kept_scale`; with `rescales` it also holds for data that their file has in another scale.
    """
    task, paths = config.task, paths_of(config)
    stores = [_opened(config, path) for path in paths]
    has_cameras = any(array.ndim == 4 for store in stores for array in store.observations.values())
    wants_videos = task.video == "seek" and (task.observations is None or has_cameras)
    if wants_videos and not any(store.has_videos for store in stores):
        raise GtpVisionError(f"task.video=seek is for videos, and {stores[0].path} has none; leave it out")
    for store in stores:
        check_marked(_filtered(store, task), task.rewards)  # counts all episodes
    others = [recorded_part(path, partial(_opened, config)) if task.validation else None for path in paths]
    split = divided(stores, group=task.filter, share=task.validation, seed=task.validation_seed, others=others)
    found = _scaled(config, split.training, known, split.held_out, rescales=rescales)
    training, held_out = found[: len(stores)], found[len(stores) :]
    if task.rewards != "file" and config.agent.critic.backup != "none" and task.goals is None:
        check_contrast(training, config.agent.name)
    table = _instructions(task, found, table_of(known))
    return TaskData(
        _shown(_mixed(training, task.shares), training, table),
        _shown(_mixed(held_out), held_out, table) if held_out else None,
        split,
    )


def _instructions(task: TaskConfig, stores: Sequence[Store], known: Instructions | None) -> Instructions | None:
    """The table of the tasks of all data sets, after those of a run that is continued; None: none are shown."""
    if task.instructions is None:
        return None
    texts = sorted({text for store in stores for text in texts_of(store)})
    encoder = task.text_encoder if task.instructions == "text" else None
    encode = None if encoder is None else partial(sentence_features, source=encoder)
    if known is not None and (known.encoder is None) == (encoder is None):
        return known.extended(texts, encode)
    return Instructions.made(texts, encoder, encode)


def _shown(store: Store, parts: Sequence[Store], table: Instructions | None) -> Store:
    """A store that joins `parts` with the instruction of each row, if there is a table of them."""
    return store if table is None else table.shown(store, [text for part in parts for text in texts_of(part)])


def open_for(config: Config, path: Path, past: DataRecord) -> Store:
    """Other recordings of a run's task, validated: with its filter, its observations in order, its scale of actions."""
    beside = replace(config, task=replace(config.task, labels=None))  # those of the run are of its own data
    store = _filtered(_opened(beside, path), config.task)
    store = _scaled(config, [store], past.attributes)[0]
    return in_order(_shown(store, [store], table_of(past.attributes)), past, config.task)


def _opened(config: Config, path: Path) -> Store:
    task = config.task
    store = open_store(
        path, task.env, task.features, framing=framing_of(config), labels=_labels(task), video=task.video
    )
    if ACTIONS_BETWEEN in store.attributes:
        raise GtpVisionError(
            f"{path} holds recordings of plans, whose observations are up to {store.attributes[ACTIONS_BETWEEN]} "
            f"actions apart, so what followed an action is not known; record with serve --record DIR --answer action"
        )
    names = list(store.observations) if task.observations is None else task.observations
    if task.instructions is not None and named_tasks(store.attributes, store.episodes):  # recordings hold both
        names = [name for name in names if name != INSTRUCTION]
    return _checked(store if names == list(store.observations) else store.select(names), path)


def _scaled(
    config: Config,
    stores: Sequence[Store],
    known: Mapping[str, Any] | None,
    held_out: Sequence[Store] = (),
    *,
    rescales: bool = False,
) -> list[Store]:
    mode, representation = config.task.action_scaling, config.agent.representation
    if representation.active and mode != "none":
        mode = "minmax"  # nothing is clipped; what the policy sees is scaled by `represent`
    task = config.task
    made = [rewarded(store, task.rewards, task.discount) for store in (*stores, *held_out)]
    found = scaled(made[: len(stores)], mode, known, reaches(representation), made[len(stores) :], rescales=rescales)
    return [validate(store) for store in found]


def kept_scale(config: Config, past: DataRecord | None) -> Mapping[str, Any] | None:
    """The attributes by which a run's actions were scaled, which scale the data that it continues with.

    Of a run without a record of its data, what its statistics.json says. None if `task.action_scaling` has changed.
    """
    if past is None:
        with contextlib.suppress(GtpVisionError):
            return read_json(Path(config.run_dir) / STATISTICS)
        return None
    return past.attributes if config.task.action_scaling in ("auto", fitted_by(past.attributes)) else None


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
    task, paths, trained = config.task, paths_of(config), open_split(config).split.training
    stores = [
        _checked(open_states_of(path, task.features, labels=_labels(task), video=task.video), path) for path in paths
    ]
    stores = [
        store if same.numbers is None else store.subset(same.numbers)
        for store, same in zip(stores, trained, strict=True)
    ]
    first, *others = stores = scaled(stores, task.action_scaling)
    shared = [name for name in first.observations if all(name in other.observations for other in others)]
    return _mixed([store.select(shared) for store in stores])


def _checked(store: Store, path: Path) -> Store:
    if errors := shape_errors(store):  # before anything relies on its lengths
        raise GtpVisionError(f"{path}: {errors[0]}")
    return store


def _filtered(store: Store, task: TaskConfig) -> Store:
    return store if task.filter is None else store.filtered(task.filter)


def _labels(task: TaskConfig) -> Path | None:
    return None if task.labels is None else Path(task.labels).expanduser()


def _mixed(stores: list[Store], shares: list[float] | None = None) -> Store:
    return mix(stores, shares or [1.0] * len(stores)) if len(stores) > 1 else stores[0]


def drawable_rows(config: Config, name: str) -> int:
    """How many rows of one of a task's data sets, as `task.datasets` names it, can be drawn."""
    return len(_filtered(_opened(config, _path(name)), config.task).transitions)


def _path(name: str) -> Path:
    return demo_path() if name == "demo" else Path(name).expanduser()


def paths_of(config: Config) -> list[Path]:
    """The data sets of a task, in order."""
    task = config.task
    if names := task.datasets or ([task.dataset] if task.dataset else []):
        return [_path(name) for name in names]
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
    """The data set that a run was trained on; errors as `split_recorded`."""
    return split_recorded(config, record).training


def split_recorded(config: Config, record: DataRecord) -> TaskData:
    """The data set that a run was trained on, and the episodes that were held out.

    Raises:
        GtpVisionError: it is missing, or another one by now.
    """
    data = open_split(config, kept_scale(config, record))
    store = in_order(data.training, record, config.task)
    if differ := differences(record, measure(store)[1]):
        raise GtpVisionError(
            f"{store.path} is no longer the data set of {config.run_dir}: {'; '.join(differ)}; restore it, or give "
            f"other recordings"
        )
    held_out = data.held_out.select(list(store.observations)) if data.held_out is not None else None
    return replace(data, training=store, held_out=held_out)


def in_order(store: Store, record: DataRecord | None, task: TaskConfig) -> Store:
    """The data set with its observations in the order of a record, if it has the same.

    If the task names none, others are left out: the reader of an earlier version may not have known them.
    """
    names, held = list(record.observations) if record else [], store.observations.keys()
    has_same = held == set(names) or (task.observations is None and held >= set(names))
    return store.select(names) if names and has_same else store


def fit(module: nn.Module, found: DataStatistics, *, standardize: str) -> None:
    """Set mean and scale of every encoder, and bounds of every policy in `module`, targets included.

    `standardize` is a mode of `ArrayStatistics.standardizer`, or `none`. Dimensions of actions that the data hold
    constant are acted as their constant.
    """
    means = {name: torch.from_numpy(mean).permute(2, 0, 1) for name, mean in found.means.items()}
    prefix = "observations/"
    scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, statistics in found.arrays.items():
        if name.startswith(prefix) and standardize != "none":
            offset, divisor = statistics.standardizer(standardize)
            scales[name.removeprefix(prefix)] = torch.from_numpy(offset), torch.from_numpy(divisor)
    for encoder in module.modules():
        if isinstance(encoder, Encoder):
            encoder.scale_distances(found.farthest)
            encoder.centre(means)
            if scales:
                encoder.standardize(scales)
    bounds = torch.from_numpy(found.arrays["actions"].bounds())
    for policy in module.modules():
        if isinstance(policy, Policy) and getattr(module, "representation", None) is None:
            policy.hold(bounds)


@torch.no_grad()
def represent(agent: Agent, frames: Sampler, data: DataRecord, mode: str) -> None:
    """Fit what -1 and 1 of the policy's actions are, where these are others than the data's.

    `mode` is `task.action_scaling`; auto takes the extremes, so that nothing is clipped.

    Raises:
        GtpVisionError: what is named as a rotation is none.
    """
    made, store = agent.representation, frames.store
    if made is None:
        return
    rows = store.transitions[np.linspace(0, len(store.transitions) - 1, _REPRESENTED).astype(np.int64)]
    rows = np.unique(rows)
    chunks, is_real = frames.chunks(rows)
    chunks, is_real = (x[:, : agent.config.action_chunk] for x in (chunks, is_real))
    actions = torch.from_numpy(np.asarray(store.actions[chunks], np.float32))
    states = {name: torch.from_numpy(np.asarray(store.observations[name][rows]))[:, None] for name in made.states}
    for bound, values in zip((made.file_low, made.file_high), data.action_bounds, strict=True):
        bound.copy_(torch.tensor(values))
    made.check_unit(actions, states)
    seen = made.relative(made.in_file_units(actions), states)[torch.from_numpy(is_real)]
    low, high = fitted(seen.numpy(), "minmax" if mode in ("auto", "none") else mode)
    made.low.copy_(torch.from_numpy(low))
    made.high.copy_(torch.from_numpy(high))
    fixed = torch.where(made.high > made.low, 1.0, 0.0)
    for policy in agent.modules():
        if isinstance(policy, Policy):
            policy.hold(torch.stack([-fixed, fixed]))


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
