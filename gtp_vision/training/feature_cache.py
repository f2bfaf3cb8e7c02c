"""Frozen is fast: what a frozen backbone makes of every frame is computed once before training, and kept in the cache.

Training then runs on a store whose cameras are features, (N, W) or in V views (N, V, W): a row for the stack of T
frames that ends at each frame. States are stacked ahead, (N, T D). Acting goes through the live backbone, which makes
the same of the same frames.

An entry of the cache is named by everything it depends on: the recordings, the backbone with its weights, the stack,
crop and size, and for augmented views the augmentation and the seed. Whatever is not named, the versions of libraries,
say, is caught by comparing a few rows with the live backbone whenever an entry is used again.
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
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.batch import channels_first
from gtp_vision.datasets.placement import take_rows
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import Augmentation, Encoder, EncoderConfig

_VERSION = "2"  # of how features are computed: another one makes the cache's entries anew
_PIECE = 256  # rows: augmented views are a function of (seed, piece, view)
_SALT = 1 << 62  # keeps the augmentation's draws apart from those of training steps
_VALUES = {"cpu": 1 << 23, "cuda": 1 << 26}  # that a backbone is given at once: its layers hold many times as much
_APART = {  # settings that the features of a frozen backbone do not depend on, or that are named apart
    *("weights", "cameras", "views", "augmentation", "cache", "share", "gradient", "share_cameras", "features"),
    *("fusion", "fusion_layers", "fusion_heads", "state_hidden", "standardize", "tuning", "blocks", "decay"),
    *("learning_rate_scale", "unfreeze_step", "lora"),
}
_SAMPLE = 32  # rows that are looked at before anything is stored, and compared when it is used again
_ROUNDING = 2e-3  # of float16, relative to the features' deviation between rows, below which it is as good as float32
_SAME = 0.02  # difference from the live backbone, relative to the same, below which an entry is what it should be

Rows = Callable[[np.ndarray], np.ndarray]
"""Rows (B,) of the data set to the (B, T) frames of their stacks."""


def cacheable(config: EncoderConfig, store: Store) -> bool:
    """Whether training is to run on features that are computed once."""
    return config.tuning == "frozen" and config.cache and any(x.ndim == 4 for x in store.observations.values())


def feature_store(encoder: Encoder, augment: Augmentation, frames: Sampler, device: torch.device) -> Store:
    """The data set with what the backbones make of its frames in place of them, computed if the cache has it not yet.

    Args:
        encoder: whose backbones are frozen, on `device`, with the weights that are to be used.
        augment: of the views but the first.
        frames: over the data set itself, with its stack, its goals and the run's seed.
        device: that computes.

    Returns:
        The same rows: for each camera float16 or float32 (N, W) or (N, V, W), for each state (N, T D). A goal of more
        than one frame has arrays of its own, `goal/<name>`: it shows one moment T times.

    Raises:
        GtpVisionError: several views that would all be the same; what `resumable.compute_array` refuses.
    """
    if encoder.config.views > 1 and not augment.active:
        raise GtpVisionError(
            f"encoder.views={encoder.config.views} augments all views but the first, and encoder.augmentation changes "
            f"nothing; set encoder.augmentation.shift=3, say, or encoder.views=1"
        )
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        maker = _Maker(encoder, augment, frames, device)
        observations: dict[str, Array] = {}
        for name, array in frames.store.observations.items():
            observations[name] = maker.array(name, array, frames.windows, "")
        if frames.goals is not None and frames.frame_stack > 1:
            for name, array in frames.store.observations.items():
                observations[GOAL + name] = maker.array(name, array, maker.still, "goal")
    finally:
        for module, mode in modes.items():
            module.training = mode
    return replace(frames.store, observations=observations)


@dataclass
class _Maker:
    encoder: Encoder
    augment: Augmentation
    frames: Sampler
    device: torch.device

    def __post_init__(self) -> None:
        self.config, self.store = self.encoder.config, self.frames.store
        self.recordings = _recordings(self.store)

    def still(self, rows: np.ndarray) -> np.ndarray:
        """The stacks of moments that stand still."""
        return rows[:, None].repeat(self.frames.frame_stack, 1)

    def array(self, name: str, array: Array, windows: Rows, kind: str) -> Array:
        """The features of a camera, or the stacks of a state, of all rows."""
        if array.ndim == 4:
            return self._camera(name, array, windows, kind)
        if self.frames.frame_stack == 1:
            return array
        width = self.frames.frame_stack * array.shape[1]

        def piece(start: int, stop: int) -> np.ndarray:
            return np.asarray(array[windows(np.arange(start, stop))]).reshape(-1, width)

        target = self._target(kind, name, str(self.frames.frame_stack), _of_rows(array))
        shape, dtype = (len(array), width), np.dtype(np.float32)
        return resumable.compute_array(target, shape, dtype, _PIECE**2, piece, f"stacks of '{name}'")

    def _camera(self, name: str, array: Array, windows: Rows, kind: str) -> Array:
        tower, views = self.encoder.tower(name), self.config.views
        label = f"features of '{GOAL if kind else ''}{name}'"

        def images(rows: np.ndarray) -> torch.Tensor:
            wanted, position = np.unique(windows(rows), return_inverse=True)  # a frame of several stacks is read once
            read = take_rows(array, wanted, len(rows) * self.frames.frame_stack).to(self.device)
            index = torch.from_numpy(position.reshape(-1)).to(self.device)
            return channels_first(read[index].unflatten(0, (len(rows), -1)))

        def piece(start: int, stop: int) -> np.ndarray:
            seen = images(np.arange(start, stop))
            found = [self._features(name, seen), *(self._features(name, x) for x in self._changed(name, seen, start))]
            return np.stack(found, 1) if views > 1 else found[0]

        target = self._target(kind, *self._description(name, tower, array))
        some = np.unique(np.linspace(0, len(array) - 1, _SAMPLE).astype(np.int64))
        sample = self._features(name, images(some))
        shape = (len(array), *((views,) if views > 1 else ()), tower.width)
        found = resumable.finished_array(target)
        if found is not None:
            first = found[some, 0] if found.ndim == 3 else found[some]
            if found.shape == shape and _off(first, sample) <= _SAME:
                return found
            resumable.discard(target)
        dtype = storage(sample)
        try:
            return resumable.compute_array(target, shape, dtype, _PIECE, piece, label)
        except resumable.OutOfRangeError:  # what the sample did not show
            resumable.discard(target)
            return resumable.compute_array(target, shape, np.dtype(np.float32), _PIECE, piece, label)

    @torch.no_grad()
    def _features(self, name: str, images: torch.Tensor) -> np.ndarray:
        """Frames (B, T, C, H, W) to float32 (B, W)."""
        limit = max(1, _VALUES.get(self.device.type, _VALUES["cpu"]) // max(1, images[0].numel()))
        parts = [self.encoder.camera_features(name, some).float().cpu() for some in images.split(limit)]
        return torch.cat(parts).numpy()

    def _changed(self, name: str, images: torch.Tensor, start: int) -> Iterator[torch.Tensor]:
        """The frames of the piece that begins at row `start`, augmented, for each view but the first."""
        episodes, position = np.unique(
            self.store.episode_of(np.arange(start, start + len(images))), return_inverse=True
        )
        for view in range(1, self.config.views):
            noise = EpisodeNoise(self.frames.seed, episodes.tolist(), [_SALT + view] * len(episodes), self.device)
            yield self.augment({name: images}, self.augment.draw(len(images), _Repeated(noise, position)))[name]

    def _description(self, name: str, tower: nn.Module, array: Array) -> Iterator[str]:
        """Everything about the computation that another result could come from."""
        config, look = self.config, self.encoder.looks[name]
        yield from (name, weights_hash(tower), _of_rows(array))
        yield json.dumps([self.encoder.shapes[name], look.crop, look.size, config.views])
        yield json.dumps({key: value for key, value in asdict(config).items() if key not in _APART})
        if self.encoder.bf16:
            yield "bf16"
        if config.views > 1:
            cameras = {camera: self.encoder.looks[camera].crop for camera in self.augment.cameras}
            yield json.dumps([asdict(config.augmentation), cameras, self.frames.seed, self.device.type])

    def _target(self, *key: str) -> Path:
        first, *others = _paths(self.store)
        return cached(first, "features", _VERSION, self.recordings, *map(fingerprint, others), *key)


class _Repeated:
    """A `NoiseSource` of rows of which all of an episode draw the same.

    A view changes an episode's frames alike, so that it changes an observation and the next one alike: a critic would
    see a jump between them that no action made.
    """

    def __init__(self, noise: EpisodeNoise, position: np.ndarray) -> None:
        self._noise, self._position = noise, torch.from_numpy(position)
        self._episodes = len(noise.episodes)

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """Standard normal (rows, *shape)."""
        return self._spread(self._noise.normal(self._episodes, *shape))

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        return self._spread(self._noise.uniform(self._episodes, *shape))

    def integers(self, high: int, rows: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), (rows, *shape)."""
        return self._spread(self._noise.integers(high, self._episodes, *shape))

    def _spread(self, draw: torch.Tensor) -> torch.Tensor:
        return draw[self._position.to(draw.device)]


def storage(sample: np.ndarray) -> np.dtype:
    """The dtype in which features (n, W) are kept: float16 where its rounding is lost in what tells rows apart."""
    half = np.abs(sample).max() < np.finfo(np.float16).max / 10 and _off(_rounded(sample), sample) <= _ROUNDING
    return np.dtype(np.float16 if half else np.float32)


def weights_hash(module: nn.Module) -> str:
    """A short name for a module's parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _rounded(sample: np.ndarray) -> np.ndarray:
    return sample.astype(np.float16).astype(np.float32)


def _off(values: np.ndarray, true: np.ndarray) -> float:
    """The size of the difference, relative to the deviation of the true ones between rows."""
    wrong = float(np.square(values.astype(np.float64) - true).mean())
    spread = float(np.square(true - true.mean(0, dtype=np.float64)).mean())
    return (wrong / max(spread, np.finfo(float).tiny)) ** 0.5 if np.isfinite(wrong) else np.inf


def _paths(store: Store) -> list[Path]:
    """Where the recordings lie: one place, or those of a mixture."""
    mixed = store.attributes.get("mixed")
    if isinstance(mixed, list):
        return [Path(each["path"]) for each in mixed]
    assert store.path is not None, "data sets that are trained on come from files"
    return [store.path]


def _recordings(store: Store) -> str:
    """A short name for which rows of its files a store holds."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (store.episode_ends, store.actions):
        digest.update(f"{array.dtype}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _of_rows(array: Array) -> str:
    """A short name for a few rows, which other ways of reading the same file would show otherwise."""
    some = np.unique(np.linspace(0, len(array) - 1, _SAMPLE).astype(np.int64))
    rows = np.ascontiguousarray(array[some])
    return hashlib.blake2b(rows.data, digest_size=16).hexdigest() + f":{array.dtype}:{tuple(array.shape)}"
