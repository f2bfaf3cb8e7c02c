"""Checks of an agent's settings: parts that do not fit each other are refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gtp_vision.agents.critics import OwnCritic
from gtp_vision.agents.improvement import Improvement, Recipe, missing_ability
from gtp_vision.agents.settings import CUT, RTC, AgentConfig
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.settings import check_settings
from gtp_vision.models import FAMILIES, Renoisable
from gtp_vision.models.critic import BACKUPS, Critic


def check(
    config: AgentConfig,
    recipes: Mapping[str, Recipe],
    improvements: Mapping[str, type[Improvement]],
    critics: Mapping[str, type[OwnCritic]],
) -> None:
    """Check each setting, and that the parts fit each other; a GtpVisionError says what to set instead."""
    known: dict[str, tuple[str, Mapping[str, object]]] = {
        "agent.name": (config.name, recipes),
        "agent.policy.family": (config.policy.family, FAMILIES),
        "agent.improvement.name": (config.improvement.name, improvements),
        "agent.critic.backup": (config.critic.backup, {**dict.fromkeys(BACKUPS), **critics}),
    }
    for key, (value, choices) in known.items():
        if value not in choices:
            raise GtpVisionError(f"{key}={value} is unknown: {propose(value, choices)}")
    check_settings(config, "agent.")
    improvement = improvements[config.improvement.name]
    if type(config.improvement) is not improvement.Settings:
        raise GtpVisionError(
            f"agent.improvement holds {type(config.improvement).__name__}, and improvement={config.improvement.name} "
            f"takes {improvement.Settings.__name__}; make them with agents.improvement_settings"
        )
    for conflict in _conflicts(config, improvement):
        raise GtpVisionError(conflict)
    for conflict in _own_critic(config, improvement, critics.get(config.critic.backup)):
        raise GtpVisionError(conflict)


def unused(
    config: AgentConfig, improvements: Mapping[str, type[Improvement]], critics: Mapping[str, type[OwnCritic]]
) -> dict[str, str]:
    """The keys of settings that change nothing, and the setting of the part to which they mean nothing."""
    policy, improvement, backup = FAMILIES[config.policy.family], config.improvement.name, config.critic.backup
    critic = critics.get(backup)
    found = {
        "policy": (policy.unused, f"family={config.policy.family}"),
        "critic": ((critic or Critic).unused(backup), f"backup={backup}"),
        "improvement": (improvements[improvement].unused(config, critic), f"critic.backup={backup}"),
    }
    return {
        f"agent.{part}.{name}": because if "." in because else f"{part}.{because}"
        for part, (names, because) in found.items()
        for name in names
    }


def _conflicts(config: AgentConfig, improvement: type[Improvement]) -> Iterator[str]:
    critic, acting, family, chunk = config.critic, config.acting, config.policy.family, config.action_chunk
    if critic.backup == "none":
        fix = "take an agent that trains one, e.g. agent=gtp, or set agent.critic.backup=expectile"
        if improvement.needs_critic:
            yield f"improvement={config.improvement.name} needs a critic, and agent={config.name} trains none; {fix}"
        for is_set, what in (
            (acting.candidates > 1, f"candidates={acting.candidates} are chosen by a critic"),
            (acting.rounds > 0, f"rounds={acting.rounds} keep the best actions by a critic"),
            (acting.gradient_step > 0, f"gradient_step={acting.gradient_step} follows a critic"),
        ):
            if is_set:
                yield f"agent.acting.{what}, and agent={config.name} trains none; {fix}"
        if config.clone_steps:
            yield (
                f"agent.clone_steps={config.clone_steps} come before a critic is trained, and agent={config.name} "
                f"trains none: all of its steps clone; set agent.clone_steps=0"
            )
    if acting.candidates > 1 and (family == "deterministic" or acting.noise == 0):
        fix = "set it to 1" if family == "deterministic" else "set agent.acting.noise=1, or it to 1"
        yield f"agent.acting.candidates={acting.candidates} would all be the same action without noise; {fix}"
    yield from _search(config, improvement)
    if critic.backup in ("max", "softmax") and critic.next_actions == 1:
        yield f"agent.critic.backup={critic.backup} weighs next actions; set agent.critic.next_actions to 2 or more"
    if critic.backup in ("none", "expectile") and (critic.next_penalty or critic.next_noise):
        yield (
            f"agent.critic.next_penalty and next_noise change the policy's next action, which "
            f"agent.critic.backup={critic.backup} does not use; set both to 0"
        )
    if critic.rho and (critic.aggregate != "mean" or critic.members == 1):
        yield (
            f"agent.critic.rho={critic.rho:g} lowers the mean of several members by their deviation, and there are "
            f"agent.critic.members={critic.members} with agent.critic.aggregate={critic.aggregate}; set rho to 0, or "
            f"aggregate=mean and members to 2 or more"
        )
    yield from _networks(config)
    if family == "one_step":
        yield (
            "agent.policy.family=one_step learns only from another policy; set improvement=distillation and "
            "agent.policy.family=flow_matching"
        )
    yield from _fixed_steps(config, improvement)
    yield from improvement.conflicts(config)
    if critic.next_penalty and (chunk > 1 or critic.chunk):
        yield f"agent.critic.next_penalty judges single actions; set it to 0, or agent.action_chunk={chunk} to 1"
    if critic.next_penalty and config.representation.active:
        yield (
            "agent.critic.next_penalty compares actions of two states; set it to 0, or "
            "agent.representation.rotations and relative to []"
        )
    if critic.chunk and chunk == 1:
        yield "agent.critic.chunk=true values action chunks, and agent.action_chunk is 1; set it to 2 or more"
    if acting.execute is not None and acting.execute > chunk:
        yield f"agent.acting.execute={acting.execute} is more than the {chunk} actions of a chunk (agent.action_chunk)"
    if acting.ensemble is not None and chunk == 1:
        yield (
            "agent.acting.ensemble averages action chunks, and agent.action_chunk is 1; set ensemble to null, or "
            "action_chunk to 2 or more"
        )
    if acting.ensemble is not None and acting.execute not in (None, 1):
        yield (
            f"agent.acting.ensemble plans at every step, and agent.acting.execute={acting.execute} does not; "
            "set one of them to null"
        )
    yield from _joining(config, improvement)


def _own_critic(config: AgentConfig, improvement: type[Improvement], critic: type[OwnCritic] | None) -> Iterator[str]:
    if critic is None:
        return
    backup, acting = f"agent.critic.backup={config.critic.backup}", config.acting
    fix = "set agent.critic.backup=expectile or contrastive"
    if config.critic.next_penalty or config.critic.next_noise:
        yield f"{backup} uses no next action of the policy; set agent.critic.next_penalty and next_noise to 0"
    if critic.judges_actions:
        return
    if acting.needs_critic:
        yield (
            f"agent.acting.candidates={acting.candidates}, rounds={acting.rounds} and "
            f"gradient_step={acting.gradient_step:g} compare actions, and {backup} compares observations alone; set "
            f"acting=single, or {fix.removeprefix('set ')}"
        )
    if improvement.needs_critic and improvement.needs_q:
        yield (
            f"improvement={config.improvement.name} needs the value of an action, and {backup} has that of "
            f"observations alone; {fix}"
        )


def _search(config: AgentConfig, improvement: type[Improvement]) -> Iterator[str]:
    acting, policy, rounds = config.acting, config.policy, f"agent.acting.rounds={config.acting.rounds}"
    if acting.beam > acting.candidates:
        yield (
            f"agent.acting.beam={acting.beam} keeps more actions than agent.acting.candidates={acting.candidates} "
            "draws; lower beam or raise candidates"
        )
    if acting.rounds == 0:
        return
    if not improvement.may_renoise:
        yield (
            f"{rounds} renoise the policy's own actions, and improvement={config.improvement.name} acts in another "
            "way; set rounds=0 (candidates and gradient_step fit)"
        )
    yield from missing_ability(config, Renoisable, "need the jump from any noise level to an action", part=rounds)
    if acting.noise == 0:
        yield f"{rounds} renoise with agent.acting.noise=0, which changes nothing; set noise=1, or rounds=0"
    if not policy.sigma_min < acting.renoise <= policy.sigma_max:
        yield (
            f"agent.acting.renoise={acting.renoise} must be above agent.policy.sigma_min={policy.sigma_min} and at "
            f"most agent.policy.sigma_max={policy.sigma_max}"
        )


def _joining(config: AgentConfig, improvement: type[Improvement]) -> Iterator[str]:
    acting, chunk, join = config.acting, config.action_chunk, f"agent.acting.join={config.acting.join}"
    delay, horizon = f"agent.acting.delay={acting.delay}", acting.horizon(chunk)
    longest = chunk - 1 if acting.ensemble is not None else chunk // 2
    if acting.delay > longest:
        yield (
            f"{delay} is more than {longest}, the longest that plans of agent.action_chunk={chunk} actions bridge "
            "until the next arrives; lower it, or train with longer plans"
        )
    elif acting.delay and acting.ensemble is None and not acting.delay <= horizon <= chunk - acting.delay:
        yield (
            f"agent.acting.execute={acting.execute} must be between {acting.delay} and {chunk - acting.delay} with "
            f"{delay}, so that a plan arrives before the next is due and before the one before has ended"
        )
    if acting.join == CUT:
        return
    if chunk == 1 or acting.execute == chunk:
        yield (
            f"{join} joins what two plans hold for the same moment, and they share none; set "
            f"agent.acting.execute below agent.action_chunk={chunk}, or join=cut"
        )
    if acting.ensemble is not None:
        yield f"{join} and agent.acting.ensemble={acting.ensemble} both join plans; set join=cut, or ensemble=null"
    if acting.rounds or acting.gradient_step:
        yield f"{join} would be undone by agent.acting.rounds and gradient_step; set both to 0, or join=cut"
    if acting.candidates > 1 and not config.critic.chunk:
        yield (
            f"{join} leaves the critic no choice, as it values first actions alone; set agent.acting.candidates=1, "
            f"join=cut, or train with agent.critic.chunk=true"
        )
    if acting.join != RTC:
        return
    fix = "set agent.acting.join=blend"
    if not improvement.may_renoise:
        yield (
            f"{join} completes plans by jumps of the policy, and improvement={config.improvement.name} acts in another "
            f"way; {fix}"
        )
    yield from missing_ability(config, Renoisable, "needs the jump from any noise level to an action", part=join)
    if acting.noise == 0:
        yield f"{join} chooses among noises, and agent.acting.noise=0 has none; set noise=1, or join=blend"


def _networks(config: AgentConfig) -> Iterator[str]:
    policy = config.policy
    for key, widths in (("policy", policy.hidden), ("critic", config.critic.hidden)):
        if not widths:
            yield f"agent.{key}.hidden=[] is a network without layers; give at least one width"
    if policy.architecture == "ln_resnet" and len(set(policy.hidden)) > 1:
        yield f"agent.policy.hidden={policy.hidden}: the residual blocks of ln_resnet have one width; make them equal"
    if policy.family == "bottleneck" and policy.activation == "relu":
        yield (
            "agent.policy.family=bottleneck learns through its network's slope, which is a step for relu; set "
            "agent.policy.activation=gelu"
        )
    if not policy.sigma_min < policy.sigma_last < policy.sigma_max:
        yield (
            f"agent.policy: sigma_min={policy.sigma_min}, sigma_last={policy.sigma_last} and "
            f"sigma_max={policy.sigma_max} must grow in this order"
        )


def _fixed_steps(config: AgentConfig, improvement: type[Improvement]) -> Iterator[str]:
    """Families whose number of steps is fixed by training."""
    if config.policy.family != "vp_diffusion":
        return
    steps = {"agent.acting.steps": config.acting.steps}
    if config.critic.backup not in ("none", "expectile"):
        steps["agent.critic.next_steps"] = config.critic.next_steps
    for key in improvement.steps_of_policy(config):
        steps[f"agent.improvement.{key}"] = getattr(config.improvement, key)
    for key, value in steps.items():
        if value != config.policy.grid:
            yield (
                f"{key}={value}: vp_diffusion acts in as many steps as it is trained for; set it to "
                f"{config.policy.grid}, which is agent.policy.grid"
            )
