"""Where a policy looks: how much each pixel of the newest frame moves the action.

Gradient saliency (Simonyan et al., 2014), sqrt(sum over action dimensions k and channels c of (da_k / dx_c)^2), where a
is the mean of a few draws of the policy: a single one is often at its bounds, where nothing moves it. It needs nothing
of the backbone but that it can be differentiated, so that it is the same for convolutions and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from gtp_vision.agents import Agent
from gtp_vision.agents.base import ScaledNoise
from gtp_vision.core.names import GOAL
from gtp_vision.core.random import EpisodeNoise, NoiseSource
from gtp_vision.evaluation.evaluator import VIDEO_SCALE, Episode, scaled_up, to_tensors

_DRAWS = 8  # they share the backbone's pass
_BATCH = 64
_BLUR = 1 / 48  # of the frame's side: single pixels' gradients are noisy
_FULL = 0.995  # quantile of a video that is drawn as hottest: one pixel should not darken the rest


def saliency(
    agent: Agent, observation: Mapping[str, torch.Tensor], camera: str, noise: NoiseSource, steps: int | None = None
) -> torch.Tensor:
    """How much each pixel of a camera's newest frame moves the next action, the mean of `_DRAWS` of the policy.

    Args:
        agent: its policy is looked at, not the critic that may choose among candidates.
        observation: stacked; name to uint8 (B, T, C, H, W) or float (B, T, D).
        camera: of the observation.
        noise: of the policy.
        steps: K; None is the agent's.

    Returns:
        float32 (B, H, W), in action units per unit of a pixel, which goes from 0 to 1.
    """
    acting = agent.config.acting
    pixels = (observation[camera].float() / 255).requires_grad_()
    mode = agent.training
    agent.eval()
    try:
        with torch.enable_grad():
            features = agent.actor_encoder(dict(observation) | {camera: pixels})
            scaled = noise if acting.noise == 1 else ScaledNoise(noise, acting.noise)
            plan = agent.improvement.act(agent, features, acting.steps if steps is None else steps, scaled, _DRAWS)
            squares = torch.zeros_like(pixels[:, -1, 0])
            for one in plan[:, : agent.actions].sum(0) / _DRAWS:
                (gradient,) = torch.autograd.grad(one, pixels, retain_graph=True)
                squares += gradient[:, -1].square().sum(1)
    finally:
        agent.train(mode)
    return squares.sqrt()


@dataclass(frozen=True)
class Saliency:
    """Filmed episodes drawn with heat where the policy looked.

    Attributes:
        agent: that acted.
        frame_stack: T.
        seed: of the evaluation.
        steps: K of the evaluation; None is the agent's.
    """

    agent: Agent
    frame_stack: int
    seed: int
    steps: int | None = None

    def maps(self, episode: Episode) -> np.ndarray:
        """float32 (L, H, W), the `saliency` of each frame of a filmed episode, of its first camera."""
        device = next(self.agent.parameters()).device
        names = list(episode.seen[0])
        seen = {name: torch.from_numpy(np.stack([shown[name] for shown in episode.seen])).to(device) for name in names}
        goals = {GOAL + name: torch.from_numpy(goal).to(device) for name, goal in (episode.goal or {}).items()}
        past = torch.arange(self.frame_stack - 1, -1, -1, device=device)
        found = []
        for start in range(0, len(episode.seen), _BATCH):
            steps = torch.arange(start, min(start + _BATCH, len(episode.seen)), device=device)
            stacked = (steps[:, None] - past).clamp_min(0)
            observation = {name: to_tensors(frames[stacked]) for name, frames in seen.items()}
            for name, goal in goals.items():
                observation[name] = to_tensors(goal.expand(*stacked.shape, *goal.shape))
            noise = EpisodeNoise(self.seed, [episode.number] * len(steps), steps.tolist(), device)
            found.append(saliency(self.agent, observation, episode.camera, noise, self.steps).cpu())
        return torch.cat(found).numpy()

    def __call__(self, episode: Episode) -> np.ndarray:
        """Uint8 (L, H, W, 3), scaled up, with heat by the saliency's root; its scale is one for the whole video."""
        maps = self.maps(episode)
        width = max(maps.shape[1:]) * _BLUR
        heat = torch.from_numpy(gaussian_filter(maps, (0, width, width)))
        hottest = float(np.quantile(heat.numpy(), _FULL))
        heat = (heat / hottest).sqrt() if hottest > 0 else torch.zeros_like(heat)
        heat = nn.functional.interpolate(heat[:, None], scale_factor=VIDEO_SCALE, mode="bilinear")[:, 0]
        level = heat.clamp(0, 1).mul(255).byte().numpy()
        video = scaled_up(episode)
        for start in range(0, len(video), _BATCH):  # in pieces: as floats, long episodes would take gigabytes
            some = slice(start, start + _BATCH)
            video[some] = _LEFT[level[some]] * video[some] + _HEAT[level[some]]
        return video


_OPACITY = 0.75 * np.linspace(0, 1, 256, dtype=np.float32)[:, None]
_LEFT = 1 - _OPACITY  # (256, 1), what is left of the frame at each level of heat
_HEAT = 255 * _OPACITY * matplotlib.colormaps["inferno"](np.arange(256))[:, :3].astype(np.float32)  # (256, 3)
