"""QRL, in the order of the paper (Wang et al., ICML 2023), as OGBench has it (Park et al., ICLR 2025).

    1. Distance: d(o, g) = IQE(phi(o), phi(g)), a quasimetric: d(x, x) = 0, d >= 0, d(x, z) <= d(x, y) + d(y, z)
       (interval quasimetric embedding, Wang and Isola, 2022; `interval_quasimetric`). V(o, g) = -d(o, g).
    2. Value: push any two frames apart, while a step costs at most 1: the largest such d is the number of steps.
       min E[100 softplus(5 - d(o, g) / 100)] so that E[relu(d(o, o') - 1)^2] <= eps^2, by a multiplier lambda that
       ascends (`Quasimetric`); g is any frame of the data.
    3. Dynamics: E[d(z', f(z, a)) + d(f(z, a), z')] / 2, f(z, a) = z + h(z, a), z = phi(o), z' = phi(o').
    4. Policy, DDPG+BC: Q(o, a, g) = -d(f(phi(o), a), phi(g)), -E[Q(o, pi(o, g), g)] / E|Q| + alpha E||pi - a||^2 / 2:
       `bc_weight` is alpha / 2 (`gtp_vision.agents.diffusion_ql.QGradient`).
    5. Acting: pi(o, g).

The constants below are OGBench's. A single network is too; with `critic.members` above 1 it is an ensemble.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import relu, softplus

from gtp_vision.agents.base import Agent
from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import LossInputs, Metrics, Recipe
from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.models.critic import CriticConfig
from gtp_vision.models.networks import EnsembleMLP

QRL = Recipe(
    "qrl", "Wang et al., ICML 2023", family="deterministic", backup="quasimetric", improvement="q_gradient", goals=True
)
COMPONENT = 8  # intervals of a component, as OGBench
MARGIN = 0.05  # eps^2, how far a step may exceed 1 in the mean square, as OGBench
SCALE, OFFSET = 100.0, 5.0  # of the distances that are pushed apart: beyond 500 steps hardly any more


def interval_quasimetric(x: torch.Tensor, y: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """IQE: (..., d) and (..., d) to (...), d a multiple of `COMPONENT`.

    A component's distance is the length of the union of the intervals [x_i, max(x_i, y_i)]; the whole is
    mix mean + (1 - mix) max of the components, mix in [0, 1].
    """
    start = x.unflatten(-1, (-1, COMPONENT))
    end = torch.maximum(start, y.unflatten(-1, (-1, COMPONENT)))
    start, order = start.sort(-1)
    end = end.gather(-1, order)
    covered = torch.cat([start[..., :1], end.cummax(-1).values[..., :-1]], -1)  # up to here, before each interval
    components = relu(end - torch.maximum(start, covered)).sum(-1)
    return mix * components.mean(-1) + (1 - mix) * components.amax(-1)


class Quasimetric(OwnCritic):
    """Distances in steps between latents, and the latents' dynamics. Arguments as `Critic`.

    Raises:
        ValueError: a latent width that is not a multiple of `COMPONENT`.
    """

    name = "quasimetric"
    is_paired = True
    goals = HindsightGoals(current=0.0, trajectory=0.0, random=1.0)

    @staticmethod
    def unused(backup: str) -> frozenset[str]:
        """What a learned V needs, too."""
        return OwnCritic.unused(backup) | {"expectile"}

    def __init__(self, features: int, actions: int, config: CriticConfig) -> None:
        super().__init__(features, actions, config)
        c = config
        if c.latent % COMPONENT:
            raise ValueError(f"agent.critic.latent={c.latent} must be a multiple of {COMPONENT}")
        deeper = c.hidden, c.latent, c.activation, c.layer_norm, c.norm_after
        self.phi = EnsembleMLP(c.members, features // 2, *deeper)
        self.change = EnsembleMLP(c.members, c.latent + actions, *deeper)
        self.mix = nn.Parameter(torch.zeros(c.members, 1))
        self.log_lambda = nn.Parameter(torch.zeros(()))

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q_j = -d_j(f(phi(o), a), phi(g)): (B, F) and (B, A) to (E, B)."""
        observation, goal = (self.phi(half).float() for half in features.chunk(2, 1))
        return -self.distance(self.moved(observation, action), goal)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """d_j of latents: (E, B, d) and (E, B, d) to (E, B)."""
        return interval_quasimetric(x, y, self.mix.sigmoid())

    def moved(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """f_j(z, a): (E, B, d) and (B, A) to (E, B, d)."""
        action = action.to(latent.dtype).expand(len(latent), -1, -1)
        return latent + self.change.layers(torch.cat([latent, action], -1)).float()

    def loss(self, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, Metrics]:
        """The constrained distances with their multiplier, and the dynamics."""
        observation, goal = (self.phi(half).float() for half in inputs.critic.chunk(2, 1))
        following = self.phi(agent.seen_by_critic(inputs.next_observation).chunk(2, 1)[0]).float()
        far, step = self.distance(observation, goal), self.distance(observation, following)
        apart = (SCALE * softplus(OFFSET - far / SCALE)).mean()
        excess = relu(step - 1).square().mean()
        multiplier = self.log_lambda.exp()
        value_loss = apart + multiplier.detach() * excess
        multiplier_loss = multiplier * (MARGIN - excess.detach())
        moved = self.moved(observation, agent.critic_action(inputs.action))
        dynamics = (self.distance(following, moved) + self.distance(moved, following)).mean() / 2
        loss = value_loss + multiplier_loss + dynamics
        metrics = {"loss": loss, "far": far.mean(), "step": step.mean(), "excess": excess, "lambda": multiplier}
        metrics |= {"dynamics": dynamics}
        return loss, {f"critic/{name}": value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def advantage(self, agent: Agent, inputs: LossInputs) -> torch.Tensor:
        """d(o, g) - d(o', g): how much nearer the data's step leads, of the members the mean."""
        observation, goal = (self.phi(half).float() for half in inputs.critic.chunk(2, 1))
        following = self.phi(agent.seen_by_critic(inputs.next_observation).chunk(2, 1)[0]).float()
        return (self.distance(observation, goal) - self.distance(following, goal)).mean(0)
