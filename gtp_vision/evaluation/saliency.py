"""Saliency maps: how much each pixel of the newest frame changes the action.

Gradient saliency (Simonyan et al., 2014), sqrt(sum over action dimensions k and channels c of (da_k / dx_c)^2), where a
is the mean of a few draws of the policy: a single draw is often at its bounds, where its gradient is 0. Any
differentiable backbone will do, convolutions and transformers alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
import torch
from torch import nn

from gtp_vision.agents import Agent
from gtp_vision.agents.acting import FrameStack
from gtp_vision.agents.base import evaluating
from gtp_vision.agents.search import scaled_noise
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise, NoiseSource
from gtp_vision.evaluation.evaluator import Episode, scaled_up

_DRAWS = 8  # they share one pass of the backbone
_BATCH = 64
_BLUR = 1 / 48  # of the frame's side: gradients of single pixels are noisy
_MAX_QUANTILE = 0.995  # of a video's values is drawn as hottest: one pixel should not darken the rest


def saliency(
    agent: Agent, observation: Mapping[str, torch.Tensor], camera: str, noise: NoiseSource, steps: int | None = None
) -> torch.Tensor:
    """How much each pixel of a camera's newest frame changes the next action, the mean of `_DRAWS` draws.

    float32 (B, H, W), in action units per unit of a pixel, which goes from 0 to 1, for stacked observations. A critic
    that chooses among candidates is ignored.
    """
    acting = agent.config.acting
    frames = observation[camera]
    pixels = (frames / 255 if frames.dtype == torch.uint8 else frames.clone()).requires_grad_()
    with evaluating(agent), torch.enable_grad():
        features = agent.actor_encoder(dict(observation) | {camera: pixels})
        scaled = scaled_noise(noise, acting.noise)
        plan = agent.improvement.act(agent, features, acting.steps if steps is None else steps, scaled, _DRAWS)
        squares = torch.zeros_like(pixels[:, -1, 0])
        for mean_action in plan[:, : agent.actions].sum(0) / _DRAWS:
            (gradient,) = torch.autograd.grad(mean_action, pixels, retain_graph=True)
            squares += gradient[:, -1].square().sum(1)
    return squares.sqrt()


@dataclass(frozen=True)
class Saliency:
    """Draws filmed episodes with heat where pixels changed the action; `seed` and `steps` are the evaluation's."""

    agent: Agent
    frame_stack: int
    seed: int
    steps: int | None = None

    def maps(self, episode: Episode) -> np.ndarray:
        """float32 (L, H, W), the `saliency` of each frame of a filmed episode, of its first camera."""
        device = next(self.agent.parameters()).device
        observations = self._observations(episode, device)
        maps = []
        for start in range(0, len(episode.film), _BATCH):
            rows = list(islice(observations, _BATCH))
            observation = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            steps = list(range(start, start + len(rows)))
            noise = EpisodeNoise(self.seed, [episode.number] * len(rows), steps, device)
            maps.append(saliency(self.agent, observation, episode.camera, noise, self.steps).cpu())
        return torch.cat(maps).numpy()

    def _observations(self, episode: Episode, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
        """What the policy was given at each step, (1, T, ...)."""
        frames = FrameStack(self.frame_stack)
        goals = {GOAL + name: goal for name, goal in (episode.goal or {}).items()}
        for newest in episode.film:
            frames.push({name: x[None] for name, x in (newest | goals).items()})
            yield frames.tensors(device)

    def __call__(self, episode: Episode) -> np.ndarray:
        """The video, uint8 (L, H, W, 3), scaled up, with heat by the root of the saliency, on one scale."""
        from scipy.ndimage import gaussian_filter

        maps = self.maps(episode)
        width = max(maps.shape[1:]) * _BLUR
        heat = torch.from_numpy(gaussian_filter(maps, (0, width, width)))
        hottest = float(np.quantile(heat.numpy(), _MAX_QUANTILE))
        heat = (heat / hottest).sqrt() if hottest > 0 else torch.zeros_like(heat)
        video = scaled_up(episode)
        heat = nn.functional.interpolate(heat[:, None], video.shape[1:3], mode="bilinear")[:, 0]
        level = heat.clamp(0, 1).mul(255).byte().numpy()
        for start in range(0, len(video), _BATCH):  # in pieces: as floats, long episodes would take gigabytes
            piece = slice(start, start + _BATCH)
            video[piece] = _TRANSPARENCY[level[piece]] * video[piece] + _heat()[level[piece]]
        return video


_OPACITY = 0.75 * np.linspace(0, 1, 256, dtype=np.float32)[:, None]
_TRANSPARENCY = 1 - _OPACITY  # (256, 1), the frame's share at each level of heat


@cache
def _heat() -> np.ndarray:
    """Return the color of each level of heat, by its opacity, (256, 3)."""
    import matplotlib

    return 255 * _OPACITY * matplotlib.colormaps["inferno"](np.arange(256))[:, :3].astype(np.float32)
