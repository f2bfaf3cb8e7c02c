"""How a policy improves: one published algorithm a file, in the order of its paper, composed of the same parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gtp_vision.agents.base import Agent, Improvement, Recipe
from gtp_vision.agents.bc import GAUSSIAN_BC, Cloning
from gtp_vision.agents.checks import check
from gtp_vision.agents.consistency_ac import CONSISTENCY_AC, CONSISTENCY_BC
from gtp_vision.agents.diffusion_ql import DIFFUSION_BC, DIFFUSION_QL, QGradient
from gtp_vision.agents.eda import BDM, Alignment
from gtp_vision.agents.fql import FQL, IFQL, Distillation
from gtp_vision.agents.gtp import GTP, GTP_BC, AdvantageWeighting
from gtp_vision.agents.idql import IDQL
from gtp_vision.agents.iql import IQL
from gtp_vision.agents.qgpo import QGPO, EnergyGuidance
from gtp_vision.agents.settings import ActingConfig, AgentConfig, ImprovementConfig
from gtp_vision.agents.td3_bc import REBRAC, TD3_BC
from gtp_vision.encoders import EncoderConfig
from gtp_vision.errors import GtpVisionError

AGENTS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(GTP, GTP_BC, DIFFUSION_BC, DIFFUSION_QL, CONSISTENCY_BC, CONSISTENCY_AC, IDQL, QGPO, BDM),
        *(FQL, IFQL, IQL, TD3_BC, REBRAC, GAUSSIAN_BC),
    )
}
IMPROVEMENTS: dict[str, type[Improvement]] = {
    "none": Cloning,
    "advantage": AdvantageWeighting,
    "q_gradient": QGradient,
    "guidance": EnergyGuidance,
    "alignment": Alignment,
    "distillation": Distillation,
}
MARKS = {"none": "bc", "advantage": "a", "q_gradient": "q", "guidance": "e", "alignment": "l", "distillation": "d"}
"""What a label says of an improvement that is not the agent's own, see `label`."""


def check_agent(config: AgentConfig, *, steps_key: str = "agent.acting.steps") -> None:
    """Refuse an unknown agent or part, and parts that do not fit each other.

    Args:
        config: see `AgentConfig`.
        steps_key: what the number of acting steps is called to the user.

    Raises:
        GtpVisionError: the first fault, and the mend.
    """
    try:
        check(config, AGENTS, IMPROVEMENTS)
    except GtpVisionError as error:
        raise GtpVisionError(str(error).replace("agent.acting.steps", steps_key)) from None


def acting_in(config: AgentConfig, steps: int) -> AgentConfig:
    """The same agent, acting in K = `steps`."""
    return replace(config, acting=replace(config.acting, steps=steps))


def create(
    shapes: Mapping[str, tuple[int, ...]],
    actions: int,
    config: AgentConfig,
    encoder: EncoderConfig,
    *,
    pretrained: bool = True,
) -> Agent:
    """The agent of a configuration.

    Args:
        shapes: observation name to the shape of one stacked observation, (T, C, H, W) or (T, D).
        actions: number A of action dimensions.
        config: see `AgentConfig`.
        encoder: see `EncoderConfig`.
        pretrained: read the encoders' trained weights; False for an agent that a checkpoint will fill.

    Raises:
        GtpVisionError: an unknown agent, parts that do not fit each other, or settings that fit no network.
    """
    check_agent(config)
    try:
        return Agent(shapes, actions, config, encoder, IMPROVEMENTS[config.improvement.name], pretrained)
    except ValueError as error:
        raise GtpVisionError(f"agent={config.name} cannot be built: {error}") from error


def actions_needed(config: AgentConfig, n_step: int) -> int:
    """How many of the data's actions, from each row on, a batch must hold."""
    return n_step + 1 if config.critic.next_penalty else config.action_chunk


def label(config: AgentConfig) -> str:
    """The agent's name and what differs from the published system: `gtp`, `gtp+q` (q_gradient), `gtp+n` (best of N).

    Names that are unknown are told as they are: the run folder's path asks before `check_agent` can refuse them.
    """
    recipe = AGENTS.get(config.name)
    if recipe is None:
        return config.name
    parts = [config.name if config.policy.family == recipe.family else f"{config.name}-{config.policy.family}"]
    if config.improvement.name != recipe.improvement:
        parts.append(MARKS.get(config.improvement.name, config.improvement.name))
    if config.acting.candidates > 1 and not recipe.chooses:
        parts.append("n")
    return "+".join(parts)


__all__ = [
    "AGENTS",
    "IMPROVEMENTS",
    "ActingConfig",
    "Agent",
    "AgentConfig",
    "ImprovementConfig",
    "Recipe",
    "acting_in",
    "actions_needed",
    "check_agent",
    "create",
    "label",
]
