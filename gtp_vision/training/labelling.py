"""Labels by a classifier on frozen features of the episodes that are labelled already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.batch import channels_first
from gtp_vision.datasets.labels import Label
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import Encoder, EncoderConfig, check_encoder
from gtp_vision.evaluation.success_classifier import Validation, cross_validated, fit, frames_of
from gtp_vision.training.build import shapes
from gtp_vision.training.data import fit as fit_statistics
from gtp_vision.training.data import measure
from gtp_vision.training.evaluate import restore

BACKBONE = "impala_small"
THRESHOLD = 0.9
SOURCE = "classifier"
"""First word of who set a label."""
_BATCH = 64


@dataclass(frozen=True)
class Features:
    """What frames are described by: the vectors of each camera's backbone, and states; `name` is for people."""

    name: str
    encoder: Encoder
    sampler: Sampler

    @torch.no_grad()
    def of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Features of rows (N,): name of each camera, and `states` for all of them together, to float64 (N, W)."""
        found: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(rows), _BATCH):
            windows = self.sampler.windows(rows[start : start + _BATCH])
            for name, array in self.sampler.store.observations.items():
                values = torch.from_numpy(np.asarray(array[windows.ravel()]).reshape(*windows.shape, *array.shape[1:]))
                is_camera = name in self.encoder.cameras
                features = (
                    self.encoder.camera_features(name, channels_first(values)) if is_camera else values.flatten(1)
                )
                found.setdefault(name, []).append(features.double().numpy())
        whole = {name: np.concatenate(parts) for name, parts in found.items()}
        states = [whole.pop(name) for name in self.encoder.states if name in whole]
        return whole | ({"states": np.concatenate(states, 1)} if states else {})


def features_of(
    store: Store,
    *,
    run: Path | None = None,
    backbone: str = BACKBONE,
    weights: str | None = None,
    observations: Sequence[str] | None = None,
) -> Features:
    """Features by the encoder of a trained run, or by a backbone with given weights, or random ones if None.

    Raises:
        GtpVisionError: an unknown backbone or observation, weights or a run that do not fit.
    """
    if run is not None:
        config, trained = restore(run)
        names = [name for name in trained.record.observations if observations is None or name in observations]
        encoder, stack, name = trained.agent.actor_encoder.cpu(), config.task.frame_stack, f"the encoder of {run.name}"
        if {n: tuple(x.shape[1:]) for n, x in store.select(names).observations.items()} != {
            n: trained.record.observations[n] for n in names
        }:
            raise GtpVisionError(f"the frames of {store.path} have other sizes than those that {run} was trained on")
        return Features(name, encoder.eval(), Sampler(store.select(names), 1, 0, frame_stack=stack))
    if observations is not None:
        store = store.select(observations)
    statistics, record = measure(store)
    seen = shapes(record, 1)
    has_cameras = any(len(shape) == 4 for shape in seen.values())
    cameras = {name: {"depth": True} for name in depth.cameras(record.attributes) if name in seen}
    settings = EncoderConfig(name=backbone if has_cameras else "state", weights=weights, cameras=cameras)
    torch.manual_seed(0)
    encoder = Encoder(seen, check_encoder(settings))
    fit_statistics(encoder, statistics, standardize="none")
    name = f"{backbone} ({Path(weights).name if weights else 'random weights'})" if has_cameras else "states"
    return Features(name, encoder.eval(), Sampler(store, 1, 0))


def classified(
    store: Store, known: Mapping[int, Label], features: Features, threshold: float = THRESHOLD
) -> tuple[dict[int, Label], Validation]:
    """Label the episodes that are not known, where the probability of success is above `threshold` or below 1 - it.

    Labels that a classifier set are not learned from.

    Raises:
        GtpVisionError: too few labels of either kind.
    """
    learned = {
        number: label
        for number, label in known.items()
        if label.success is not None and label.by.partition(" ")[0] != SOURCE
    }
    rows: list[int] = []
    shows: list[bool] = []
    episodes: list[int] = []
    for number, label in learned.items():
        own, shown = frames_of(
            int(store.episode_starts[number]), int(store.episode_ends[number]), bool(label.success), label.frame
        )
        rows, shows, episodes = rows + own, shows + shown, episodes + [number] * len(own)
    of, shown_at = np.array(episodes, np.int64), np.array(shows, bool)
    places = np.array(rows, np.int64)
    is_last = places == store.episode_ends[of] - 1
    if not len(places):
        raise GtpVisionError("a classifier learns from labels, and there are none yet; set some: gtp-vision data label")
    frames = features.of(places)
    validation = cross_validated(frames, shown_at, of, is_last, seed=0)
    others = [number for number in range(store.episodes) if number not in learned]
    chances = np.empty(0)
    if others:
        classifier = fit(frames, shown_at, validation.ridge)
        chances = classifier.probability(features.of(store.episode_ends[others] - 1))
    found = {
        number: Label(bool(chance > 0.5), probability=round(float(chance), 4))
        for number, chance in zip(others, chances, strict=True)
        if max(chance, 1 - chance) >= threshold
    }
    return found, validation
