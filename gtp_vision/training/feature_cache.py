"""Cache of a frozen backbone's features, which are computed once for every frame before training.

Training then reads a store whose cameras are features, (N, W) or in V views (N, V, W): a row for the stack of T frames
that ends at each frame. States are stacked in advance, (N, T D). Acting uses the backbone itself.

An entry of the cache is named by what it depends on: the recordings, the backbone with its weights, the stack, crop and
size, and for augmented views the augmentation and the seed. Other differences, as of library versions, are detected by
comparing a few rows with the backbone whenever an entry is reused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import cached, fingerprint
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets import resumable
from gtp_vision.datasets.arrays import Array, Lookup
from gtp_vision.datasets.batch import channels_first
from gtp_vision.datasets.placement import take_rows
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import Augmentation, Encoder, EncoderConfig

_VERSION = "2"  # of the computation: another one invalidates the cache's entries
_PIECE = 256  # rows: augmented views are a function of (seed, piece, view)
_SALT = 1 << 62  # separates the augmentation's draws from those of training steps
_VALUES = {
    "cpu": 1 << 23,
    "cuda": 1 << 26,
}  # input values at once: the layers need many times as much memory
_EXCLUDED = {  # settings that do not affect the features of a frozen backbone, or that are named separately
    *("weights", "cameras", "views", "augmentation", "cache", "share", "gradient", "share_cameras", "features"),
    *("fusion", "fusion_layers", "fusion_heads", "state_hidden", "standardize", "tuning", "blocks", "decay"),
    *("learning_rate_scale", "unfreeze_step", "lora", "conditioning"),
}
_SAMPLE = 32  # rows that decide the dtype, and that are compared when an entry is reused
_ROUNDING = 2e-3  # largest error of float16, relative to the features' deviation between rows
_SAME = 0.02  # largest difference of a valid entry from the backbone, relative to the same

Rows = Callable[[np.ndarray], np.ndarray]
"""Rows (B,) of the data set to the (B, T) frames of their stacks."""


def cacheable(config: EncoderConfig, store: Store) -> bool:
    """Whether training uses features that are computed once."""
    return config.tuning == "frozen" and config.cache and any(x.ndim == 4 for x in store.observations.values())


def feature_store(encoder: Encoder, augment: Augmentation, frames: Sampler, device: torch.device) -> Store:
    """The data set with features in place of frames, computed unless the cache has them.

    Args:
        encoder: on `device`, with frozen backbones and their final weights.
        augment: of all views except the first.
        frames: of the data set itself, with its stack, its goals and the run's seed.
        device: of the computation.

    Returns:
        The same rows: for each camera float16 or float32 (N, W) or (N, V, W), for each state (N, T D). Goals of more
        than one frame have separate arrays, `goal/<name>`, as they repeat one frame T times.

    Raises:
        GtpVisionError: several views without augmentation; see `resumable.compute_array`.
    """
    if encoder.config.views > 1 and not augment.active:
        raise GtpVisionError(
            f"encoder.views={encoder.config.views} augments all views except the first, but encoder.augmentation is "
            f"off; set e.g. encoder.augmentation.shift=3, or encoder.views=1"
        )
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        builder = _Builder(encoder, augment, frames, device)
        observations: dict[str, Array] = {}
        for name, array in frames.store.observations.items():
            observations[name] = builder.array(name, array, frames.windows, "")
        if frames.goals is not None and frames.frame_stack > 1:
            for name, array in frames.store.observations.items():
                observations[GOAL + name] = builder.array(name, array, builder.repeated, "goal")
    finally:
        for module, mode in modes.items():
            module.training = mode
    return replace(frames.store, observations=observations)


@dataclass
class _Builder:
    encoder: Encoder
    augment: Augmentation
    frames: Sampler
    device: torch.device

    def __post_init__(self) -> None:
        self.config, self.store = self.encoder.config, self.frames.store
        self.recordings = _recordings(self.store)

    def repeated(self, rows: np.ndarray) -> np.ndarray:
        """The frames of stacks that repeat one frame."""
        return rows[:, None].repeat(self.frames.frame_stack, 1)

    def array(self, name: str, array: Array, windows: Rows, kind: str) -> Array:
        """Features of a camera, or stacks of a state, of all rows."""
        if array.ndim == 4:
            return self._camera(name, array, windows, kind)
        if self.frames.frame_stack == 1:
            return array
        if isinstance(array, Lookup):
            return Lookup(np.tile(array.table, self.frames.frame_stack), array.index)
        width = self.frames.frame_stack * array.shape[1]

        def piece(start: int, stop: int) -> np.ndarray:
            return np.asarray(array[windows(np.arange(start, stop))]).reshape(-1, width)

        target = self._target(kind, name, str(self.frames.frame_stack), _rows_hash(array))
        shape, dtype = (len(array), width), np.dtype(np.float32)
        return resumable.compute_array(target, shape, dtype, _PIECE**2, piece, f"stacks of '{name}'")

    def _camera(self, name: str, array: Array, windows: Rows, kind: str) -> Array:
        tower, views = self.encoder.tower(name), self.config.views
        label = f"features of '{GOAL if kind else ''}{name}'"

        def images(rows: np.ndarray) -> torch.Tensor:
            needed, position = np.unique(windows(rows), return_inverse=True)  # frames of several stacks are read once
            read = take_rows(array, needed, len(rows) * self.frames.frame_stack).to(self.device)
            index = torch.from_numpy(position.reshape(-1)).to(self.device)
            return channels_first(read[index].unflatten(0, (len(rows), -1)))

        def piece(start: int, stop: int) -> np.ndarray:
            frames = images(np.arange(start, stop))
            features = [self._features(name, x) for x in (frames, *self._augmented(name, frames, start))]
            return np.stack(features, 1) if views > 1 else features[0]

        target = self._target(kind, *self._description(name, tower, array))
        some = np.unique(np.linspace(0, len(array) - 1, _SAMPLE).astype(np.int64))
        sample = self._features(name, images(some))
        shape = (len(array), *((views,) if views > 1 else ()), tower.width)
        entry = resumable.finished_array(target)
        if entry is not None:
            first = entry[some, 0] if entry.ndim == 3 else entry[some]
            if entry.shape == shape and _relative_error(first, sample) <= _SAME:
                return entry
            resumable.discard(target)
        dtype = storage(sample)
        try:
            return resumable.compute_array(target, shape, dtype, _PIECE, piece, label)
        except resumable.OutOfRangeError:  # beyond the values of the sample
            resumable.discard(target)
            return resumable.compute_array(target, shape, np.dtype(np.float32), _PIECE, piece, label)

    @torch.no_grad()
    def _features(self, name: str, images: torch.Tensor) -> np.ndarray:
        """Frames (B, T, C, H, W) to float32 (B, W)."""
        limit = max(1, _VALUES.get(self.device.type, _VALUES["cpu"]) // max(1, images[0].numel()))
        parts = [self.encoder.camera_features(name, some).float().cpu() for some in images.split(limit)]
        return torch.cat(parts).numpy()

    def _augmented(self, name: str, images: torch.Tensor, start: int) -> Iterator[torch.Tensor]:
        """The frames of the piece that starts at row `start`, augmented, for each view except the first."""
        episodes, position = np.unique(
            self.store.episode_of(np.arange(start, start + len(images))), return_inverse=True
        )
        for view in range(1, self.config.views):
            noise = EpisodeNoise(self.frames.seed, episodes.tolist(), [_SALT + view] * len(episodes), self.device)
            yield self.augment({name: images}, self.augment.draw(len(images), _Repeated(noise, position)))[name]

    def _description(self, name: str, tower: nn.Module, array: Array) -> Iterator[str]:
        """Everything that the features depend on."""
        config, settings = self.config, self.encoder.preprocessing[name]
        yield from (name, weights_hash(tower), _rows_hash(array))
        yield json.dumps([self.encoder.shapes[name], settings.crop, settings.size, config.views])
        yield json.dumps({key: value for key, value in asdict(config).items() if key not in _EXCLUDED})
        if self.encoder.bf16:
            yield "bf16"
        if config.views > 1:
            cameras = {camera: self.encoder.preprocessing[camera].crop for camera in self.augment.cameras}
            yield json.dumps([asdict(config.augmentation), cameras, self.frames.seed, self.device.type])

    def _target(self, *key: str) -> Path:
        first, *others = _paths(self.store)
        return cached(first, "features", _VERSION, self.recordings, *map(fingerprint, others), *key)


class _Repeated:
    """A `NoiseSource` that draws the same for all rows of an episode.

    A view changes all frames of an episode alike; otherwise a critic would see a jump between an observation and the
    next one.
    """

    def __init__(self, noise: EpisodeNoise, position: np.ndarray) -> None:
        self._noise, self._position = noise, torch.from_numpy(position)
        self._episodes = len(noise.episodes)

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal (rows, *shape)."""
        return self._by_row(self._noise.normal(self._episodes, *shape))

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        return self._by_row(self._noise.uniform(self._episodes, *shape))

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""
        return self._by_row(self._noise.integers(high, self._episodes, *shape))

    def _by_row(self, draw: torch.Tensor) -> torch.Tensor:
        return draw[self._position.to(draw.device)]


def storage(sample: np.ndarray) -> np.dtype:
    """The dtype to store features (n, W): float16 where its rounding is small against the deviation between rows."""
    is_small = np.abs(sample).max() < np.finfo(np.float16).max / 10
    rounded = sample.astype(np.float16).astype(np.float32)
    return np.dtype(np.float16 if is_small and _relative_error(rounded, sample) <= _ROUNDING else np.float32)


def weights_hash(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _relative_error(values: np.ndarray, true: np.ndarray) -> float:
    """Root mean squared error relative to the deviation of the true values between rows."""
    error = float(np.square(values.astype(np.float64) - true).mean())
    variance = float(np.square(true - true.mean(0, dtype=np.float64)).mean())
    return (error / max(variance, np.finfo(float).tiny)) ** 0.5 if np.isfinite(error) else np.inf


def _paths(store: Store) -> list[Path]:
    """Paths of the recordings: one, or those of a mixture."""
    mixed = store.attributes.get("mixed")
    if isinstance(mixed, list):
        return [Path(source["path"]) for source in mixed]
    assert store.path is not None, "training data come from files"
    return [store.path]


def _recordings(store: Store) -> str:
    """A hash of the rows of its files that a store contains."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (store.episode_ends, store.actions):
        digest.update(f"{array.dtype}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _rows_hash(array: Array) -> str:
    """A hash of a few rows, which differs between different ways of reading the same file."""
    some = np.unique(np.linspace(0, len(array) - 1, _SAMPLE).astype(np.int64))
    rows = np.ascontiguousarray(array[some])
    return hashlib.blake2b(rows.data, digest_size=16).hexdigest() + f":{array.dtype}:{tuple(array.shape)}"
