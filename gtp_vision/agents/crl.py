"""CRL, in the order of the paper (Eysenbach et al., NeurIPS 2022), as OGBench has it (Park et al., ICLR 2025).

    1. Critic: Q_j(o, a, g) = phi_j(o, a)^T psi_j(g) / sqrt(d). Row i's goal g_i is a frame k steps later, with
       P(k) ~ gamma^(k - 1); all other goals of the batch are negatives:
       E_ij[-1(i = j) log s(Q_ij) - 1(i != j) log(1 - s(Q_ij))], Q_ij = Q(o_i, a_i, g_j), s the sigmoid (`Contrastive`).
       Its optimum is log p(g | o, a) / p(g) up to a constant: how likely the goal is to be reached, and how soon.
    2. Policy, DDPG+BC: -E[Q(o, pi(o, g), g)] / E|Q| + alpha E||pi(o, g) - a||^2 / 2: `bc_weight` is alpha / 2
       (`gtp_vision.agents.diffusion_ql.QGradient`).
    3. Acting: pi(o, g).

Of several processes or micro-batches, each compares its rows with the goals of all, and its goals with the rows of all.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gtp_vision.agents.base import Agent
from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import LossInputs, Metrics, Recipe
from gtp_vision.core.distributed import first_row, gathered
from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.models.critic import CriticConfig
from gtp_vision.models.networks import EnsembleMLP

CRL = Recipe(
    "crl",
    "Eysenbach et al., NeurIPS 2022",
    family="deterministic",
    backup="contrastive",
    improvement="q_gradient",
    goals=True,
)


class Contrastive(OwnCritic):
    """The bilinear critic of actions and goals. Arguments as `Critic`."""

    name = "contrastive"
    is_paired = True
    goals = HindsightGoals(current=0.0, trajectory=1.0, random=0.0)

    @staticmethod
    def unused(backup: str) -> frozenset[str]:
        """What a learned V needs, too."""
        return OwnCritic.unused(backup) | {"expectile"}

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        super().__init__(features, actions, config)
        c, own = config, features // 2
        deeper = c.hidden, c.latent, c.activation, c.layer_norm, c.norm_after
        self.phi, self.psi = (EnsembleMLP(c.members, width, *deeper) for width in (own + actions, own))

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q_j of each row's own goal: (B, F) and (B, A) to (E, B)."""
        phi, psi = self.represent(features, action)
        return (phi * psi).sum(-1)

    def represent(self, features: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """phi(o, a) / sqrt(d) and psi(g), (E, B, d) each."""
        observation, goal = features.chunk(2, 1)
        phi = self.phi(torch.cat([observation, action.to(features.dtype)], 1))
        return phi.float() / math.sqrt(self.config.latent), self.psi(goal).float()

    def loss(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """Binary cross-entropy of all pairs of a row and a goal of the global batch."""
        phi, psi = self.represent(inputs.critic, agent.critic_action(inputs.action))
        every_phi, every_psi = gathered(phi, 1), gathered(psi, 1)
        start, rows = first_row(phi.shape[1]), phi.shape[1]
        if every_phi.shape == phi.shape:
            loss, logits = contrast(phi, psi, 0)
        else:  # the mean of the parts' gradients is the whole's
            loss, logits = contrast(phi, every_psi, start)
            others, _ = contrast(every_phi, psi, -start)
            loss = loss + others - others.detach()
        own = logits.detach()[:, :, start : start + rows].diagonal(dim1=1, dim2=2)
        return loss, {
            "critic/loss": loss.detach(),
            "critic/logit_own": own.mean(),
            "critic/logit": logits.detach().mean(),
        }


def contrast(phi: torch.Tensor, psi: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean binary cross-entropy, (), and logits (E, B, C), of phi (E, B, d) with psi (E, C, d).

    Row i belongs to goal `start` + i.
    """
    logits = phi @ psi.transpose(1, 2)
    rows, goals = (torch.arange(size, device=phi.device) for size in logits.shape[1:])
    pairs = (rows[:, None] + start == goals).to(logits.dtype).expand_as(logits)
    return binary_cross_entropy_with_logits(logits, pairs), logits
