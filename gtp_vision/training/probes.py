"""Drift and linear probes of the features of the actor's encoder, before, during and after training.

    features/drift_<camera>  mean cosine distance of the camera's features from those at the start of the run
    features/cka_<camera>    linear CKA of the two: 1 if they are equal up to rotation and scale, 0 if unrelated
    features/drift_fused     and cka_fused: the same of all cameras and states together, as the policy gets them
    probe                    R^2 of each recorded state, predicted linearly from the cameras' features

Both use some rows of the data set, chosen by the seed, without augmentation.
Axes in names: N rows, W width of the features, D dimensions of a state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.training.build import Components
from gtp_vision.training.data import open_states

START, PROBE = "features_start.safetensors", "probe.json"
_CAMERA, _FUSED = "camera/", "fused"  # names of features: of each camera, and of all cameras and states together
_BATCH = 64
_DRIFT_ROWS = 256
_SALT = 0x9B  # separates the choice of rows and episodes from other draws of the same seed
_RIDGES = 10.0 ** np.arange(-6, 4)  # relative to the mean eigenvalue
_FLOOR = 1e-4  # of a state's deviation relative to its magnitude: less is rounding or a constant sensor


def cosine_distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """The mean over rows of 1 - cos of the angle between features (N, W) and (N, W); 0 where both are 0."""
    similarity = torch.cosine_similarity(before.double(), after.double(), dim=1)
    return float((1 - similarity)[(before != after).any(1)].sum() / len(before))


def linear_cka(before: torch.Tensor, after: torch.Tensor) -> float:
    """Linear centered kernel alignment of features (N, W) and (N, W'), in [0, 1] (Kornblith et al., 2019)."""
    first, second = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (before.double(), after.double()))
    size = first.norm() * second.norm()
    return float((first * second).sum() / size) if size > 0 else float(torch.equal(before, after))


def linear_probe(
    features: np.ndarray, states: Mapping[str, np.ndarray], episodes: np.ndarray, seed: int
) -> dict[str, float]:
    """How well each state can be predicted linearly from features (N, W), in episodes that were not fitted.

    Ridge regression in closed form of standardized features and states (N, D). Three fifths of the episodes (N,), at
    least three, are fitted, one fifth chooses the ridge of each state, one fifth is scored. Constant dimensions are
    left out.

    Returns:
        Name to R^2, 1 - sum (y - y')^2 / sum (y - mean y)^2 over all dimensions together; constant states are left
        out.
    """
    from scipy.linalg import eigh

    fit, choose, score = _split(episodes, seed)
    x = features.astype(np.float64) - features[fit].mean(0, dtype=np.float64)
    deviation = x[fit].std(0)
    x /= np.where(deviation > 1e-6 * deviation.max(initial=0), deviation, np.inf)  # constants are left out
    kernel = x @ x[fit].T  # of rows: there are at most some thousands, often fewer than features
    values, vectors = eigh(kernel[fit])
    ridges = _RIDGES * (values.mean() if values.mean() > 0 else 1.0)
    scores = {}
    for name, y in states.items():
        mean, deviation = y[fit].mean(0, dtype=np.float64), y[fit].std(0, dtype=np.float64)
        moves = deviation > _FLOOR * np.maximum(np.abs(mean), 1e-2)
        z = (y[:, moves] - mean[moves]) / deviation[moves]
        rotated = vectors.T @ z[fit]
        weights = [vectors @ (rotated / (np.maximum(values, 0) + ridge)[:, None]) for ridge in ridges]
        best = max(weights, key=lambda weight: _r2(z[choose], kernel[choose] @ weight))
        r2 = _r2(z[score], kernel[score] @ best)
        if np.isfinite(r2):
            scores[name] = round(r2, 4)
    return scores


def _r2(y: np.ndarray, guess: np.ndarray) -> float:
    total = float(np.square(y - y.mean(0)).sum()) if y.size else 0.0
    return 1 - float(np.square(y - guess).sum()) / total if total > 0 else -np.inf


def _split(episodes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bool (N,) each: the rows of three fifths, one fifth and one fifth of the episodes."""
    numbers = counter_rng(seed, _SALT, 1).permutation(np.unique(episodes))
    fifth = max(1, len(numbers) // 5)
    parts = numbers[2 * fifth :], numbers[:fifth], numbers[fifth : 2 * fifth]
    fit, choose, score = (np.isin(episodes, part) for part in parts)
    return fit, choose, score


def evenly_spaced(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of the rows: one from each of as many equal parts."""
    count = min(count, len(rows))
    places = (np.arange(count) + counter_rng(seed, _SALT).random(count)) * len(rows) / max(1, count)
    return rows[places.astype(np.int64)]


class FeatureMonitor:
    """Measures the actor's encoder on the same rows of the data set throughout a run.

    The features at the start are stored in the run folder, so that a resumed run, which loads them, compares with its
    true start, if it has the data of its start (`same_data`). `note` says which measurements are missing, and why.
    """

    def __init__(
        self, folder: Path, config: Config, parts: Components, *, resumed: bool, same_data: bool = True
    ) -> None:
        self.folder, self.seed = folder, config.seed
        self.encoder, self.device = parts.agent.actor_encoder, parts.accelerator.device
        self.cameras = [name for name in self.encoder.cameras if not name.startswith(GOAL)]
        self.is_frozen = config.encoder.tuning == "frozen"
        self.note = ""
        self._sampler = Sampler(parts.store, 1, config.seed, frame_stack=config.task.frame_stack)
        self._rows = evenly_spaced(parts.store.transitions, config.training.probe_rows, config.seed)
        self._drift_rows = evenly_spaced(np.arange(len(self._rows)), _DRIFT_ROWS, config.seed)
        self._episodes = parts.store.episode_of(self._rows)
        self._states = self._recorded_states(config)
        self._start: dict[str, torch.Tensor] | None = None
        self._before: dict[str, float] | None = None
        if resumed:
            self._load(same_data=same_data)
        else:
            self._store()

    def drift(self) -> dict[str, float]:
        """Metrics of the distance from the features at the start; empty if the backbones are frozen."""
        if self._start is None:
            return {}
        current = self._features(self._rows[self._drift_rows])
        metrics = {}
        for name, before in self._start.items():
            camera = name.removeprefix(_CAMERA).replace("/", ".")
            metrics[f"features/drift_{camera}"] = cosine_distance(before, current[name])
            metrics[f"features/cka_{camera}"] = linear_cka(before, current[name])
        return metrics

    def probe(self) -> dict[str, Any]:
        """Probes at the start and now: `before` and `after`, state to R^2, `rows`, and a `note` if some are missing."""
        if not self._states:
            return {"note": self.note}
        before = self._before
        after = before if self.is_frozen and before is not None else self._probe_features(self._features(self._rows))
        return {"before": before, "after": after, "rows": len(self._rows)} | ({"note": self.note} if self.note else {})

    def _store(self) -> None:
        if self.is_frozen and not self._states:
            return
        features = self._features(self._rows if self._states else self._rows[self._drift_rows])
        if self._states:
            self._before = self._probe_features(features)
            with atomic_write(self.folder / PROBE) as aside:
                aside.write_text(json.dumps(self._before))
        if not self.is_frozen:
            self._start = {name: x[self._drift_rows] for name, x in features.items()} if self._states else features
            with atomic_write(self.folder / START) as aside:
                save_file(self._start | {"rows": torch.from_numpy(self._rows[self._drift_rows])}, aside)

    def _load(self, *, same_data: bool) -> None:
        try:
            if not same_data:
                raise ValueError("they are of another data set")
            if self._states:
                self._before = json.loads((self.folder / PROBE).read_text())
            if not self.is_frozen:
                start = load_file(self.folder / START)
                if not np.array_equal(start.pop("rows"), self._rows[self._drift_rows]):
                    raise ValueError("it was stored for other rows of the data set")
                self._start = start
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            self.note = f"the features at the start of the run cannot be read ({error})"

    def _recorded_states(self, config: Config) -> dict[str, np.ndarray]:
        """Name to (N, D) of `_rows`; sets the note if there are none."""
        try:
            store = open_states(config)
        except GtpVisionError as error:
            self.note = f"no linear probe: {error}"
            return {}
        arrays = {name: np.asarray(array[self._rows]) for name, array in store.observations.items()}
        states = {name: array for name, array in arrays.items() if np.isfinite(array).all()}
        if not states:
            self.note = "no linear probe: the data set has no states"
        elif len(np.unique(self._episodes)) < 3:
            self.note, states = "no linear probe: the data set has fewer than three episodes", {}
        return states

    def _probe_features(self, features: Mapping[str, torch.Tensor]) -> dict[str, float]:
        joined = torch.cat([features[_CAMERA + camera] for camera in self.cameras], 1).numpy()
        if not np.isfinite(joined).all():  # of a diverged run, which reports that itself
            return {}
        return linear_probe(joined, self._states, self._episodes, self.seed)

    @torch.no_grad()
    def _features(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Features of the rows, of each camera and of all cameras and states together; float32 (N, W), CPU."""
        names = [*(_CAMERA + camera for camera in self.cameras), _FUSED]
        batches: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        mode = self.encoder.training
        self.encoder.eval()
        try:
            for start in range(0, len(rows), _BATCH):
                inputs = dict(self._sampler.gather(rows[start : start + _BATCH]).to(self.device).observation)
                for camera in self.cameras:
                    features = self.encoder.camera_features(camera, inputs[camera])
                    inputs[camera] = features[:, None]  # instead of frames
                    batches[_CAMERA + camera].append(features)
                inputs = {name: inputs[name.removeprefix(GOAL)] for name in self.encoder.shapes}  # as its own goal
                batches[_FUSED].append(self.encoder(inputs))
        finally:
            self.encoder.train(mode)
        return {name: torch.cat(features).float().cpu() for name, features in batches.items()}
