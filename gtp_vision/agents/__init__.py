"""How a policy improves: one published algorithm a file, in the order of its paper, composed of the same parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gtp_vision.agents.base import Agent, Improvement, Recipe
from gtp_vision.agents.checks import check
from gtp_vision.agents.settings import ActingConfig, AgentConfig, ImprovementConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.registry import Registry
from gtp_vision.encoders import EncoderConfig

AGENTS: Registry[Recipe] = Registry(__name__, "gtp_vision.agents", Recipe, beside=(Improvement,))
IMPROVEMENTS: Registry[type[Improvement]] = Registry(__name__, "gtp_vision.agents", Improvement, beside=(Recipe,))


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
        improvement = IMPROVEMENTS.get(config.improvement.name)
        parts.append(improvement.label_suffix if improvement else config.improvement.name)
    if config.acting.candidates > 1 and not recipe.chooses:
        parts.append("n")
    return "+".join(parts)


def label_of(stored: Any) -> str | None:
    """The agent's label (`gtp`, `gtp+q`) by a run's stored configuration; None if it is not one of this version."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AgentConfig), stored["agent"]))
        return label(config) if isinstance(config, AgentConfig) else None
    except (KeyError, TypeError, ValueError, OmegaConfBaseException):
        return None


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
    "label_of",
]
