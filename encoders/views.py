"""Choice of one view among features that were computed in advance for several augmented views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gtp_vision.core.random import NoiseSource

_NDIM = 4  # of (B, 1, V, W): frames have 5, states and features of one view 3


def one_view(
    observations: Sequence[Mapping[str, torch.Tensor]], generator: NoiseSource
) -> list[dict[str, torch.Tensor]]:
    """Choose one of the V views for each sample, the same in all observations and cameras.

    Cameras of several views are (B, 1, V, W), and (B, 1, W) in the result; all others stay. Without views the generator
    is not used.
    """
    several = [x for observation in observations for x in observation.values() if x.ndim == _NDIM]
    if not several:
        return [dict(observation) for observation in observations]
    batch, views = several[0].shape[0], several[0].shape[2]
    view = generator.integers(views, batch)
    sample = torch.arange(batch, device=view.device)
    return [
        {name: x[sample, :, view] if x.ndim == _NDIM else x for name, x in observation.items()}
        for observation in observations
    ]


def first_view(observation: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The view that is not augmented, of cameras (B, 1, V, W) with several; all others stay."""
    return {name: x[:, :, 0] if x.ndim == _NDIM else x for name, x in observation.items()}
