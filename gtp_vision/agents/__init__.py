"""How a policy improves: one published algorithm a file, in the order of its paper, composed of the same parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gtp_vision.agents.base import Agent
from gtp_vision.agents.checks import check, unused
from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import Improvement, Recipe
from gtp_vision.agents.settings import ActingConfig, AgentConfig, ImprovementSettings
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import GOAL
from gtp_vision.core.registry import Registry
from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.encoders import EncoderConfig
from gtp_vision.models.critic import Critic

_KINDS = (Recipe, Improvement, OwnCritic)
AGENTS: Registry[Recipe] = Registry(__name__, "gtp_vision.agents", Recipe, beside=_KINDS)
IMPROVEMENTS: Registry[type[Improvement]] = Registry(__name__, "gtp_vision.agents", Improvement, beside=_KINDS)
CRITICS: Registry[type[OwnCritic]] = Registry(__name__, "gtp_vision.agents", OwnCritic, beside=_KINDS)


def check_agent(
    config: AgentConfig, *, steps_key: str = "agent.acting.steps", noise_key: str = "agent.acting.noise"
) -> None:
    """Refuse an unknown agent or part, and parts that do not fit each other.

    `steps_key` and `noise_key` are the user's names for K and for the noise of acting.
    """
    try:
        check(config, AGENTS, IMPROVEMENTS, CRITICS)
    except GtpVisionError as error:
        raise GtpVisionError(
            str(error).replace("agent.acting.steps", steps_key).replace("agent.acting.noise", noise_key)
        ) from None


def unused_settings(config: AgentConfig) -> dict[str, str]:
    """The keys of settings that change nothing in a checked configuration, and because of which other setting."""
    return unused(config, IMPROVEMENTS, CRITICS)


def improvement_settings(name: str) -> ImprovementSettings:
    """The default settings of an improvement. Raises GtpVisionError: unknown name."""
    if name not in IMPROVEMENTS:
        raise GtpVisionError(f"agent.improvement.name={name} is unknown: {propose(name, IMPROVEMENTS)}")
    return IMPROVEMENTS[name].Settings(name=name)


def read_agent(stored: Any) -> tuple[AgentConfig, Any]:
    """Prepare stored settings of an agent for a merge.

    Earlier versions stored the settings of all improvements; those of others than the agent's are left out.

    Returns:
        The defaults, of the improvement that is stored, and the stored settings that belong to them.

    Raises:
        GtpVisionError: unknown improvement.
    """
    improvement = stored.get("improvement") if isinstance(stored, Mapping) else None
    if not isinstance(improvement, Mapping):
        return AgentConfig(), stored
    defaults = improvement_settings(str(improvement.get("name", "none")))
    own = {declared.name for declared in fields(defaults)}
    others = {declared.name for known in IMPROVEMENTS.values() for declared in fields(known.Settings)} - own
    kept = {name: value for name, value in improvement.items() if name not in others}
    return AgentConfig(improvement=defaults), {**stored, "improvement": kept}


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
        GtpVisionError: an unknown agent, parts that do not fit each other or the observations, or settings that fit no
            network.
    """
    check_agent(config)
    backup = config.critic.backup
    own = CRITICS.get(backup)
    needs_goals = AGENTS[config.name].goals or (own is not None and own.is_paired)
    if needs_goals and not any(name.startswith(GOAL) for name in shapes):
        raise GtpVisionError(
            f"agent={config.name} with agent.critic.backup={backup} learns to reach goals, and the task shows none; "
            f"set task.goals=hindsight"
        )
    try:
        return Agent(shapes, actions, config, encoder, IMPROVEMENTS[config.improvement.name], own or Critic, pretrained)
    except ValueError as error:
        raise GtpVisionError(f"agent={config.name} cannot be built: {error}") from error


def actions_needed(config: AgentConfig, n_step: int) -> int:
    """How many of the data's actions, from each row on, a batch must hold."""
    return n_step + 1 if config.critic.next_penalty else config.action_chunk


def critic_goals(config: AgentConfig) -> HindsightGoals | None:
    """The law of the goals that an agent's critic learns values of, but for the discount; None without a critic."""
    backup = config.critic.backup
    return None if backup == "none" else CRITICS[backup].goals if backup in CRITICS else HindsightGoals()


def label(config: AgentConfig) -> str:
    """The agent's name and what differs from the published system, e.g. `gtp`, `gtp+q` for q_gradient.

    The last mark is of acting: `gtp+n` for the best of N, `gtp+b` for beam search.

    Unknown names stay as they are: the run folder's path is made before `check_agent` can refuse them.
    """
    recipe = AGENTS.get(config.name)
    if recipe is None:
        return config.name
    parts = [config.name if config.policy.family == recipe.family else f"{config.name}-{config.policy.family}"]
    if config.improvement.name != recipe.improvement:
        improvement = IMPROVEMENTS.get(config.improvement.name)
        parts.append(improvement.label_suffix if improvement else config.improvement.name)
    if (config.acting.rounds or config.acting.candidates > 1) and not recipe.chooses:
        parts.append("b" if config.acting.rounds else "n")
    return "+".join(parts)


def label_of(stored: Any) -> str | None:
    """The agent's label (`gtp`, `gtp+q`) from a run's stored configuration; None if it is not one of this version."""
    try:
        defaults, kept = read_agent(stored["agent"])
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(defaults), kept))
        return label(config) if isinstance(config, AgentConfig) else None
    except (KeyError, TypeError, ValueError, OmegaConfBaseException, GtpVisionError):
        return None


__all__ = [
    "AGENTS",
    "CRITICS",
    "IMPROVEMENTS",
    "ActingConfig",
    "Agent",
    "AgentConfig",
    "ImprovementSettings",
    "Recipe",
    "acting_in",
    "actions_needed",
    "check_agent",
    "create",
    "critic_goals",
    "improvement_settings",
    "label",
    "label_of",
    "read_agent",
    "unused_settings",
]
