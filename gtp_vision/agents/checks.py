"""Which parts fit each other: every other composition is refused with a sentence, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gtp_vision.agents.base import Improvement, Recipe
from gtp_vision.agents.settings import CHOOSES, FORMS, AgentConfig
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.models import FAMILIES
from gtp_vision.models.critic import AGGREGATES, BACKUPS
from gtp_vision.models.networks import ARCHITECTURES


def check(config: AgentConfig, recipes: Mapping[str, Recipe], improvements: Mapping[str, type[Improvement]]) -> None:
    """Refuse what does not fit.

    Raises:
        GtpVisionError: the first part that does not fit the others, and the mend.
    """
    known = {
        "agent.name": (config.name, recipes),
        "agent.policy.family": (config.policy.family, FAMILIES),
        "agent.improvement.name": (config.improvement.name, improvements),
        "agent.improvement.form": (config.improvement.form, FORMS),
        "agent.critic.backup": (config.critic.backup, BACKUPS),
        "agent.critic.aggregate": (config.critic.aggregate, AGGREGATES),
        "agent.acting.choose": (config.acting.choose, CHOOSES),
    }
    for key, (value, choices) in known.items():
        if value not in choices:
            raise GtpVisionError(f"{key}={value} is unknown: {propose(value, choices)}")
    for fault in _conflicts(config, improvements[config.improvement.name]):
        raise GtpVisionError(fault)


def _conflicts(config: AgentConfig, improvement: type[Improvement]) -> Iterator[str]:
    critic, acting, family = config.critic, config.acting, config.policy.family
    if critic.backup == "none":
        mend = "take an agent that trains one, e.g. agent=gtp, or set agent.critic.backup=expectile"
        if improvement.needs_critic:
            yield f"improvement={config.improvement.name} needs a critic, and agent={config.name} trains none; {mend}"
        if acting.candidates > 1:
            chosen = f"agent.acting.candidates={acting.candidates} are chosen by a critic"
            yield f"{chosen}, and agent={config.name} trains none; {mend}"
    if acting.candidates > 1 and (family == "deterministic" or acting.noise == 0):
        mend = "set it to 1" if family == "deterministic" else "set agent.acting.noise=1, or it to 1"
        yield f"agent.acting.candidates={acting.candidates} would all be the same action without noise; {mend}"
    if critic.backup in ("max", "softmax") and critic.next_actions == 1:
        yield f"agent.critic.backup={critic.backup} weighs next actions; set agent.critic.next_actions to 2 or more"
    if critic.backup in ("none", "expectile") and (critic.next_penalty or critic.next_noise):
        yield (
            f"agent.critic.next_penalty and next_noise change the policy's next action, which agent.critic.backup="
            f"{critic.backup} does not ask for; set both to 0"
        )
    yield from _networks(config)
    if family == "one_step":
        yield (
            "agent.policy.family=one_step learns from another policy only; set improvement=distillation and "
            "agent.policy.family=flow_matching"
        )
    yield from _fixed_steps(config, improvement)
    yield from improvement.conflicts(config)
    chunk = config.action_chunk
    if critic.next_penalty and (chunk > 1 or critic.chunk):
        yield f"agent.critic.next_penalty judges single actions; set it to 0, or agent.action_chunk={chunk} to 1"
    if critic.chunk and chunk == 1:
        yield "agent.critic.chunk=true judges action chunks, and agent.action_chunk is 1; set it to 2 or more"
    if acting.execute is not None and acting.execute > chunk:
        yield f"agent.acting.execute={acting.execute} is more than the {chunk} actions of a chunk (agent.action_chunk)"
    if acting.ensemble is not None and chunk == 1:
        yield "agent.acting.ensemble averages action chunks, and agent.action_chunk is 1; set it to null, or chunk more"
    if acting.ensemble is not None and acting.execute not in (None, 1):
        yield (
            f"agent.acting.ensemble plans at every step, and agent.acting.execute={acting.execute} does not; "
            "set one of them to null"
        )


def _networks(config: AgentConfig) -> Iterator[str]:
    policy = config.policy
    if policy.architecture not in ARCHITECTURES:
        near = propose(policy.architecture, ARCHITECTURES)
        yield f"agent.policy.architecture={policy.architecture} is unknown: {near}"
    if policy.architecture == "ln_resnet" and len(set(policy.hidden)) > 1:
        yield f"agent.policy.hidden={policy.hidden}: the residual blocks of ln_resnet have one width; make them equal"
    if policy.family == "bottleneck" and policy.activation == "relu":
        yield (
            "agent.policy.family=bottleneck learns through its network's slope, which is a step for relu; set "
            "agent.policy.activation=gelu"
        )


def _fixed_steps(config: AgentConfig, improvement: type[Improvement]) -> Iterator[str]:
    """Families whose number of steps is fixed when training."""
    if config.policy.family != "vp_diffusion":
        return
    wanted = {"agent.acting.steps": config.acting.steps}
    if config.critic.backup not in ("none", "expectile"):
        wanted["agent.critic.next_steps"] = config.critic.next_steps
    wanted |= {
        f"agent.improvement.{key}": getattr(config.improvement, key) for key in improvement.steps_of_policy(config)
    }
    for key, value in wanted.items():
        if value != config.policy.grid:
            yield (
                f"{key}={value}: vp_diffusion acts in as many steps as it is trained for; set it to "
                f"{config.policy.grid}, which is agent.policy.grid"
            )
