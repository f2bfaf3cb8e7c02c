"""What the actor's encoder makes of the cameras, before, during and after training: drift and linear probes.

    features/drift_<camera>  mean cosine distance of the camera's features from those that the run began with
    features/cka_<camera>    linear CKA of the two: 1 if they are the same but for rotation and scale, 0 if unrelated
    features/drift_fused     and cka_fused: the same of all cameras and states together, as the policy gets them
    probe                    R^2 of each recorded state, read linearly from the cameras' features

Both look at some rows of the data set, a function of the seed, as they are when acting: not augmented.
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
from scipy.linalg import eigh

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
_SALT = 0x9B  # keeps the choice of rows and episodes apart from other draws of the same seed
_RIDGES = 10.0 ** np.arange(-6, 4)  # relative to the mean eigenvalue
_FLOOR = 1e-4  # of a state's deviation relative to its magnitude: less is rounding or a sensor that stands still


def cosine_distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """The mean over rows of 1 - cos of the angle between features (N, W) and (N, W); 0 where both are 0."""
    alike = torch.cosine_similarity(before.double(), after.double(), dim=1)
    return float((1 - alike)[(before != after).any(1)].sum() / len(before))


def linear_cka(before: torch.Tensor, after: torch.Tensor) -> float:
    """Linear centred kernel alignment of features (N, W) and (N, W'), in [0, 1] (Kornblith et al., 2019)."""
    first, second = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (before.double(), after.double()))
    size = first.norm() * second.norm()
    return float((first * second).sum() / size) if size > 0 else float(torch.equal(before, after))


def linear_probe(
    features: np.ndarray, states: Mapping[str, np.ndarray], episodes: np.ndarray, seed: int
) -> dict[str, float]:
    """How well each state can be read linearly from features, in episodes that were not fitted to.

    Ridge regression in closed form, features and states standardised. Whole episodes are drawn: three fifths are fitted
    to, one fifth chooses the ridge of each state, one fifth is scored. Dimensions that stand still are left out.

    Args:
        features: (N, W).
        states: name to (N, D).
        episodes: (N,), the episode of each row; at least three different ones.
        seed: of the draw of episodes.

    Returns:
        Name to R^2, 1 - sum (y - y')^2 / sum (y - mean y)^2 over all dimensions together; states of which nothing
        moves are left out.
    """
    fit, choose, score = _split(episodes, seed)
    x = features.astype(np.float64) - features[fit].mean(0, dtype=np.float64)
    spread = x[fit].std(0)
    x /= np.where(spread > 1e-6 * spread.max(initial=0), spread, np.inf)  # what stands still says nothing
    kernel = x @ x[fit].T  # of rows: there are at most some thousands, and features are often more
    values, vectors = eigh(kernel[fit])
    ridges = _RIDGES * (values.mean() if values.mean() > 0 else 1.0)
    found = {}
    for name, y in states.items():
        mean, deviation = y[fit].mean(0, dtype=np.float64), y[fit].std(0, dtype=np.float64)
        moves = deviation > _FLOOR * np.maximum(np.abs(mean), 1e-2)
        z = (y[:, moves] - mean[moves]) / deviation[moves]
        turned = vectors.T @ z[fit]
        weights = [vectors @ (turned / (np.maximum(values, 0) + ridge)[:, None]) for ridge in ridges]
        best = max(weights, key=lambda weight: _r2(z[choose], kernel[choose] @ weight))
        scored = _r2(z[score], kernel[score] @ best)
        if np.isfinite(scored):
            found[name] = round(scored, 4)
    return found


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


def spread(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of the rows, spread evenly over them: one out of each of as many equal parts."""
    count = min(count, len(rows))
    places = (np.arange(count) + counter_rng(seed, _SALT).random(count)) * len(rows) / max(1, count)
    return rows[places.astype(np.int64)]


class Watch:
    """Looks at the actor's encoder through the same rows of the data set all through a run.

    What it finds at the start lies in the run folder, so that a run that goes on compares with its very beginning.

    Args:
        folder: the run folder.
        config: of the run.
        parts: of the run.
        resumed: it goes on, and what it began with is read; else that is looked at now, and written.

    Attributes:
        note: what is not measured, and why; empty if all is.
    """

    def __init__(self, folder: Path, config: Config, parts: Components, *, resumed: bool) -> None:
        self.folder, self.seed = folder, config.seed
        self.encoder, self.device = parts.agent.actor_encoder, parts.accelerator.device
        self.cameras = [name for name in self.encoder.cameras if not name.startswith(GOAL)]
        self.frozen = config.encoder.tuning == "frozen"
        self.note = ""
        self._sampler = Sampler(parts.store, 1, config.seed, frame_stack=config.task.frame_stack)
        self._rows = spread(parts.store.transitions, config.training.probe_rows, config.seed)
        self._few = spread(np.arange(len(self._rows)), _DRIFT_ROWS, config.seed)
        self._episodes = parts.store.episode_of(self._rows)
        self._states = self._recorded_states(config)
        self._start: dict[str, torch.Tensor] | None = None
        self._before: dict[str, float] | None = None
        if resumed:
            self._read()
        else:
            self._begin()

    def drift(self) -> dict[str, float]:
        """How far the features are from those at the start, as metrics; nothing if the backbones are frozen."""
        if self._start is None:
            return {}
        now = self._features(self._rows[self._few])
        told = {}
        for name, before in self._start.items():
            camera = name.removeprefix(_CAMERA).replace("/", ".")
            told[f"features/drift_{camera}"] = cosine_distance(before, now[name])
            told[f"features/cka_{camera}"] = linear_cka(before, now[name])
        return told

    def probe(self) -> dict[str, Any]:
        """The probes before training and now: `before` and `after`, state to R^2, `rows`, and a `note` if they lack."""
        if not self._states:
            return {"note": self.note}
        before = self._before
        after = before if self.frozen and before is not None else self._probed(self._features(self._rows))
        told = {"before": before, "after": after, "rows": len(self._rows)}
        return told | ({"note": self.note} if self.note else {})

    def _begin(self) -> None:
        if self.frozen and not self._states:
            return
        found = self._features(self._rows if self._states else self._rows[self._few])
        if self._states:
            self._before = self._probed(found)
            with atomic_write(self.folder / PROBE) as aside:
                aside.write_text(json.dumps(self._before))
        if not self.frozen:
            self._start = {name: x[self._few] for name, x in found.items()} if self._states else found
            with atomic_write(self.folder / START) as aside:
                save_file(self._start | {"rows": torch.from_numpy(self._rows[self._few])}, aside)

    def _read(self) -> None:
        try:
            if self._states:
                self._before = json.loads((self.folder / PROBE).read_text())
            if not self.frozen:
                start = load_file(self.folder / START)
                if not np.array_equal(start.pop("rows"), self._rows[self._few]):
                    raise ValueError("other rows of the data set")
                self._start = start
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            self.note = f"what its features were at the start cannot be read any more ({error})"

    def _recorded_states(self, config: Config) -> dict[str, np.ndarray]:
        """Name to (N, D) of `_rows`; a note says why there are none."""
        try:
            store = open_states(config)
        except GtpVisionError as error:
            self.note = f"no linear probe: {error}"
            return {}
        found = {name: np.asarray(array[self._rows]) for name, array in store.observations.items()}
        found = {name: array for name, array in found.items() if np.isfinite(array).all()}
        if not found:
            self.note = "no linear probe: the data set records no states"
        elif len(np.unique(self._episodes)) < 3:
            self.note, found = "no linear probe: the data set has fewer than three episodes", {}
        return found

    def _probed(self, features: Mapping[str, torch.Tensor]) -> dict[str, float]:
        seen = torch.cat([features[_CAMERA + camera] for camera in self.cameras], 1).numpy()
        if not np.isfinite(seen).all():  # of a run that diverged, and will say so itself
            return {}
        return linear_probe(seen, self._states, self._episodes, self.seed)

    @torch.no_grad()
    def _features(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Each camera's features of the rows, and those of all cameras and states together; float32 (N, W), CPU."""
        names = [*(_CAMERA + camera for camera in self.cameras), _FUSED]
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        mode = self.encoder.training
        self.encoder.eval()
        try:
            for start in range(0, len(rows), _BATCH):
                seen = dict(self._sampler.gather(rows[start : start + _BATCH]).to(self.device).observation)
                for camera in self.cameras:
                    features = self.encoder.camera_features(camera, seen[camera])
                    seen[camera] = features[:, None]  # what the encoder takes in place of frames
                    found[_CAMERA + camera].append(features)
                whole = {name: seen[name.removeprefix(GOAL)] for name in self.encoder.shapes}  # a goal: where one is
                found[_FUSED].append(self.encoder(whole))
        finally:
            self.encoder.train(mode)
        return {name: torch.cat(features).float().cpu() for name, features in found.items()}
