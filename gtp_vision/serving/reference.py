"""What an artifact knows of the data that its policy was trained on: features and numbers of at most 1000 frames.

It holds no frame. An observation is near the data if the k-th of its nearest recorded neighbours is nearer than that of
95 % of the frames of other episodes, as in `evaluation.coverage`: of those that are not among them, or, where few are
held out and are more alike than robots' days are, of the recorded ones, each compared with the others.

Axes in names: B observations, N recorded frames, F features of a camera, D numbers of a state, A action dimensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import metadata_of, tensor_shapes
from gtp_vision.core.random import counter_rng
from gtp_vision.core.safe_json import parse_json
from gtp_vision.evaluation.coverage import NEIGHBOURS, neighbour_distances

REFERENCE = "reference.safetensors"
MOST_ROWS = 1000
MOST_BYTES = 8 << 20
"""Of the file."""
_NUMBERS = ("still", "edges", "thresholds")  # of the file's metadata, as JSON
_DTYPES = {"F16": 2, "F32": 4}
_QUIET = 0.1  # share of the root mean square deviation: what features vary less counts as if it varied so much
_FIXED = 1e-3  # of a state's largest magnitude, likewise
_PROJECTED = 64  # dimensions
_SALT = 0x2EFE2  # of the projection


@dataclass(frozen=True)
class Reference:
    """Frames of the training data, spread evenly, as features and numbers.

    Attributes:
        features: camera to float32 (N, F), of its backbone, see `Encoder.camera_features`.
        states: name to float32 (N, D), as recorded.
        actions: float32 (N, A), executed, in the robot's units.
        still: camera to the longest run of equal frames, one after another, in the data; 1 if all differ.
        edges: camera or state to the distance below which 95 % of other frames are, see `distances`.
        thresholds: of the signals of doubt, see `serving.doubt`.
    """

    features: Mapping[str, torch.Tensor]
    states: Mapping[str, torch.Tensor]
    actions: torch.Tensor
    still: Mapping[str, float]
    edges: Mapping[str, float]
    thresholds: Mapping[str, float]

    def camera_distance(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """The distance of a camera's features (B, F) from the data, (B,); 1 is the edge of what is near."""
        return self._nearest[name](features) / self.edges[name]

    def state_distance(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The distance of a state's values (B, D) from the data, (B,); 1 is the edge of what is near."""
        return self._nearest[name](values) / self.edges[name]

    @cached_property
    def _nearest(self) -> dict[str, Nearest]:
        cameras = {name: Nearest(rows, scale_of_features(rows)) for name, rows in self.features.items()}
        return cameras | {name: Nearest(rows, scale_of_states(rows)) for name, rows in self.states.items()}

    def to(self, device: torch.device) -> Reference:
        """The same, measuring on another device."""
        features, states = (
            {name: rows.to(device) for name, rows in held.items()} for held in (self.features, self.states)
        )
        return Reference(features, states, self.actions.to(device), self.still, self.edges, self.thresholds)

    def write(self, path: Path) -> None:
        """Write the file, with features in half precision."""
        most = torch.finfo(torch.float16).max
        tensors = {f"features/{name}": rows.clamp(-most, most).half() for name, rows in self.features.items()}
        tensors |= {f"states/{name}": rows for name, rows in self.states.items()} | {"actions": self.actions}
        numbers = {name: dict(getattr(self, name)) for name in _NUMBERS}
        save_file({name: rows.contiguous() for name, rows in tensors.items()}, path, {"numbers": json.dumps(numbers)})

    @staticmethod
    def read(path: Path, features: Mapping[str, int], states: Mapping[str, int], actions: int) -> Reference:
        """Read an untrusted file of a policy whose cameras, states and actions have these widths.

        Raises:
            GtpVisionError: it is not such a file, or of another policy.
        """
        shapes = tensor_shapes(path)
        rows = shapes.get("actions", ((0,), ""))[0][0]
        kinds = {"features": features, "states": states}
        widths = {f"{kind}/{name}": width for kind, own in kinds.items() for name, width in own.items()}
        widths["actions"] = actions
        fits = 0 < rows <= MOST_ROWS and shapes.keys() == widths.keys()
        if not fits or any(shapes[name][0] != (rows, width) for name, width in widths.items()):
            raise GtpVisionError(f"{path.name} is not of the policy's cameras, states and actions; export it again")
        if any(dtype not in _DTYPES for _, dtype in shapes.values()):
            raise GtpVisionError(f"{path.name} holds other numbers than float16 and float32; export it again")
        found = parse_json(metadata_of(path).get("numbers", ""), f"the metadata of {path.name}")
        numbers = {name: _numbers(found.get(name)) for name in _NUMBERS}
        if numbers["still"].keys() != features.keys() or numbers["edges"].keys() != {*features, *states}:
            raise GtpVisionError(f"{path.name} lacks numbers of a camera or state; export it again")
        tensors = {name: rows.float() for name, rows in load_file(path).items()}
        if not all(rows.isfinite().all() for rows in tensors.values()):
            raise GtpVisionError(f"{path.name} holds a number that is not finite; export it again")
        held = [{name: tensors[f"{kind}/{name}"] for name in own} for kind, own in kinds.items()]
        return Reference(held[0], held[1], tensors["actions"], **numbers)


class Nearest:
    """The distance of rows (B, F) to the k-th nearest of recorded ones (N, F), with dimensions divided by `scale` (F,).

    Distances of wide rows are those of a random projection, which keeps them within about a tenth (Johnson and
    Lindenstrauss, 1984), for a hundredth of the time.
    """

    def __init__(self, recorded: torch.Tensor, scale: torch.Tensor) -> None:
        width = len(scale)
        projection = torch.eye(width, device=scale.device)
        if width > _PROJECTED:
            drawn = counter_rng(_SALT, width).standard_normal((width, _PROJECTED), np.float32)
            projection = torch.from_numpy(drawn).to(scale.device) / _PROJECTED**0.5
        self._map = projection / scale[:, None]
        self._recorded = recorded @ self._map

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The distance of each row, (B,)."""
        return neighbour_distances(rows @ self._map, self._recorded)

    def own(self, episodes: np.ndarray) -> torch.Tensor:
        """The distance of each recorded row, of the episode (N,), to those of other episodes: those that have k."""
        groups = torch.from_numpy(episodes).to(self._recorded.device)
        distances = torch.cdist(self._recorded, self._recorded)
        distances[groups[:, None] == groups] = torch.inf
        found = distances.kthvalue(min(NEIGHBOURS, len(distances)), 1).values
        return found[found.isfinite()]


def scale_of_features(rows: torch.Tensor) -> torch.Tensor:
    """The deviation of each feature of (N, F), (F,); a feature that hardly varies must not outweigh the others."""
    deviation = rows.std(0, correction=0)
    return deviation.clamp_min(_QUIET * float(deviation.square().mean().sqrt()) + 1e-6)


def scale_of_states(rows: torch.Tensor) -> torch.Tensor:
    """The deviation of each number of a state (N, D), (D,); one that is constant in the data may be so elsewhere."""
    return rows.std(0, correction=0).maximum(_FIXED * rows.abs().amax(0) + 1e-6)


def _numbers(stored: Any) -> dict[str, float]:
    """Untrusted names and finite numbers above 0."""
    if not isinstance(stored, Mapping) or not all(_is_positive(value) for value in stored.values()):
        raise GtpVisionError(f"the metadata of {REFERENCE} is damaged; export it again")
    return {name: float(value) for name, value in stored.items()}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
