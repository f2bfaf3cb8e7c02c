"""Pixels (and states) in, features out: one interface over all encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gtp_vision.encoders.augmentation import RandomShift
from gtp_vision.encoders.impala import SIZES, ImpalaTower
from gtp_vision.errors import GtpVisionError, propose

ENCODERS = [*SIZES, "state"]


@dataclass
class EncoderConfig:
    """Settings of the encoder; the reasons stand in configs/encoder/.

    Attributes:
        name: impala_small, impala, impala_large, or state (no network: the states are the features).
        features: width of the features of an image encoder.
        share: one encoder for actor and critic, trained by both losses, instead of one each.
        shift: largest random shift in pixels; 0 for none.
        shift_probability: of shifting a sample.
        standardize: bring states to mean 0 and deviation 1 of the data set; near-constant dimensions are only centred.
    """

    name: str = "impala_small"
    features: int = 512
    share: bool = False
    shift: int = 3
    shift_probability: float = 0.5
    standardize: bool = True


class Encoder(nn.Module):
    """Named observations to one feature vector.

    Every camera has a tower of its own; their outputs are joined and projected to `features` by a normalised
    layer. States are appended, scaled as `standardize` says.

    Args:
        shapes: observation name to the shape of one stacked observation: (T, C, H, W) or (T, D).
        config: see `EncoderConfig`.

    Raises:
        GtpVisionError: unknown encoder, or one that does not fit the observations.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        cameras = {name: shape for name, shape in shapes.items() if len(shape) == 4}
        self.states = [name for name, shape in shapes.items() if len(shape) == 2]
        if config.name not in ENCODERS:
            raise GtpVisionError(f"unknown encoder '{config.name}': {propose(config.name, ENCODERS)}")
        if config.name == "state" and cameras:
            raise GtpVisionError(f"encoder=state cannot see the cameras {sorted(cameras)}; choose encoder=impala_small")
        self.cameras = list(cameras)
        self.towers = nn.ModuleList()  # by position: a camera may have a name that a module may not
        joined = 0
        for name, (frames, channels, height, width) in cameras.items():
            stacks, blocks, patch = SIZES[config.name]
            if height % patch or width % patch:
                raise GtpVisionError(
                    f"encoder={config.name} reads patches of {patch}x{patch} pixels, which do not divide the camera "
                    f"'{name}' of {height}x{width}; choose encoder=impala_small"
                )
            tower = ImpalaTower(frames, channels, height, width, stacks, blocks, patch)
            self.towers.append(tower)
            joined += tower.width
        for index, name in enumerate(self.states):
            self.register_buffer(f"state_mean_{index}", torch.zeros(shapes[name][1]))
            self.register_buffer(f"state_scale_{index}", torch.ones(shapes[name][1]))
        self.width = sum(shapes[name][0] * shapes[name][1] for name in self.states)
        if cameras:
            self.project = nn.Sequential(nn.Linear(joined, config.features), nn.LayerNorm(config.features), nn.ReLU())
            self.width += config.features
        self.apply(_initialise)

    @torch.no_grad()
    def centre(self, means: Mapping[str, torch.Tensor]) -> None:
        """Subtract each camera's mean frame from what it sees, from now on; saved with the parameters.

        Most of a frame is the same in all of them. Without its mean, untrained features differ by half a percent of
        their variance between observations, and whatever learns first pushes them all one way.

        Args:
            means: camera name to float32 (C, H, W) in [0, 255].
        """
        for name, tower in zip(self.cameras, self.towers, strict=True):
            tower.get_buffer("mean").copy_(means[name])

    @torch.no_grad()
    def standardize(self, scales: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Subtract each state's mean and divide by its scale, from now on; saved with the parameters.

        Args:
            scales: state name to float32 (D,) mean and (D,) scale.
        """
        for index, name in enumerate(self.states):
            mean, scale = scales[name]
            self.get_buffer(f"state_mean_{index}").copy_(mean)
            self.get_buffer(f"state_scale_{index}").copy_(scale)

    def _scaled(self, index: int, state: torch.Tensor) -> torch.Tensor:
        mean, scale = (self.get_buffer(f"state_{what}_{index}") for what in ("mean", "scale"))
        return ((state - mean) / scale).flatten(1)

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Name to uint8 (B, T, C, H, W) or float (B, T, D), to float (B, width).

        Raises:
            GtpVisionError: an observation is missing or has another shape than the encoder was built for.
        """
        self._check(observation)
        parts = [self._scaled(index, observation[name]) for index, name in enumerate(self.states)]
        if self.cameras:
            seen = [tower(observation[name]) for name, tower in zip(self.cameras, self.towers, strict=True)]
            parts.append(self.project(torch.cat(seen, dim=1)))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _check(self, observation: Mapping[str, torch.Tensor]) -> None:
        for name, shape in self.shapes.items():
            if name not in observation:
                raise GtpVisionError(f"the observation '{name}' is missing; given: {sorted(observation)}")
            if tuple(observation[name].shape[1:]) != shape:
                raise GtpVisionError(
                    f"the observation '{name}' has shape {tuple(observation[name].shape[1:])}, "
                    f"the encoder was made for {shape}"
                )


def _initialise(module: nn.Module) -> None:
    """Xavier's uniform weights and no biases, as FQL's encoders: signals keep their scale on the way up."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


__all__ = ["ENCODERS", "Encoder", "EncoderConfig", "RandomShift"]
