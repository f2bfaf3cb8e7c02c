"""Parts that do not fit each other are refused in one sentence, with what to set instead, before anything is built."""

from dataclasses import replace

import pytest
from small import NAMES
from small_runs import composed

from gtp_vision import agents
from gtp_vision.agents import AgentConfig, check_agent, improvement_settings
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import EncoderConfig

CHUNKS = "agent=gtp_bc agent.action_chunk=4"
JOINED = "agent.action_chunk=4 agent.acting.join=blend"
VP5 = "agent.policy.family=vp_diffusion agent.policy.grid=5"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # Unknown parts.
        ("agent=fqll", ("agent 'fqll'", "'fql'")),
        ("agent.improvement.name=q_gradeint", ("agent.improvement.name=q_gradeint", "'q_gradient'")),
        ("agent.improvement.form=postive", ("agent.improvement.form=postive", "'positive'")),
        # Candidates, next actions, networks.
        ("agent=iql agent.acting.candidates=32", ("agent.acting.candidates=32", "the same action", "acting.noise=1")),
        ("agent=td3_bc acting=best_of_n", ("agent.acting.candidates=32", "the same action", "set it to 1")),
        ("agent.critic.backup=max", ("agent.critic.backup=max", "agent.critic.next_actions to 2")),
        ("agent.critic.rho=-1", ("agent.critic.rho=-1", "at least 0")),
        ("agent.critic.rho=0.5", ("agent.critic.rho=0.5", "aggregate=min", "aggregate=mean")),
        ("agent.critic.rho=0.5 agent.critic.aggregate=mean agent.critic.members=1", ("rho=0.5", "members=1 ")),
        ("agent=iql agent.critic.next_penalty=1", ("next_penalty", "agent.critic.backup=expectile")),
        ("agent=idql agent.policy.hidden=[8,9]", ("agent.policy.hidden=[8, 9]", "one width")),
        ("agent=bdm agent.policy.activation=relu", ("bottleneck", "agent.policy.activation=gelu")),
        ("agent=bdm agent.improvement.pretrain_steps=0", ("agent.improvement.pretrain_steps=0", "training.steps")),
        ("agent=bdm training.steps=9", ("pretrain_steps=100000", "training.steps=9")),
        # No critic.
        ("agent=gtp_bc improvement=advantage", ("improvement=advantage needs a critic", "agent=gtp")),
        ("agent=fql agent.critic.backup=none", ("improvement=distillation needs a critic",)),
        ("agent=gtp_bc acting=best_of_n", ("agent.acting.candidates=32", "gtp_bc trains none", "backup=expectile")),
        # Cloning first.
        ("agent=gtp_bc agent.clone_steps=5", ("agent.clone_steps=5", "gtp_bc trains none", "=0")),
        ("agent.clone_steps=9 training.steps=9", ("agent.clone_steps=9", "training.steps=9", "gtp_bc")),
        ("agent=bdm agent.improvement.pretrain_steps=3 agent.clone_steps=4", ("clone_steps=4", "pretrain_steps=3")),
        # Beam search.
        ("agent=gtp_bc agent.acting.rounds=2", ("agent.acting.rounds=2 keep", "gtp_bc trains none")),
        ("agent=gaussian_bc agent.acting.gradient_step=0.1", ("gradient_step=0.1 follows", "gaussian_bc trains none")),
        ("agent.acting.candidates=4 agent.acting.beam=5", ("beam=5 keeps more", "candidates=4 draws", "lower beam")),
        ("agent.acting.rounds=1 agent.acting.noise=0", ("rounds=1 renoise with agent.acting.noise=0", "noise=1")),
        ("agent.acting.rounds=1 agent.acting.renoise=11", ("renoise=11", "sigma_max=10")),
        (
            "agent=ifql agent.acting.rounds=1",
            ("agent.acting.rounds=1 need the jump", "flow_matching cannot", "meanflow"),
        ),
        ("agent=iql agent.acting.rounds=1 agent.acting.noise=1", ("rounds=1 need the jump", "gaussian cannot")),
        ("agent=fql agent.policy.family=gtp agent.acting.rounds=1", ("improvement=distillation acts", "rounds=0")),
        ("improvement=guidance acting=beam", ("improvement=guidance acts in another way", "rounds=0")),
        # Improvements and families.
        ("agent=diffusion_ql improvement=distillation", ("one answer", "vp_diffusion cannot", "flow_matching")),
        ("agent=consistency_ac improvement=distillation", ("one answer", "consistency cannot", "gtp")),
        ("agent=gtp improvement=alignment", ("improvement=alignment compares densities", "gtp cannot", "gaussian")),
        ("agent=consistency_ac improvement=guidance", ("improvement=guidance", "consistency cannot", "diffusion")),
        ("agent=td3_bc improvement=guidance", ("improvement=guidance", "deterministic cannot")),
        ("agent=ifql agent.policy.family=one_step", ("only from another policy", "distillation")),
        # Families whose number of steps is fixed.
        ("agent=diffusion_ql agent.acting.steps=3", ("agent.acting.steps=3", "set it to 5", "agent.policy.grid")),
        ("agent=diffusion_ql agent.critic.next_steps=3", ("agent.critic.next_steps=3", "set it to 5")),
        ("agent=diffusion_ql agent.improvement.q_steps=1", ("agent.improvement.q_steps=1", "set it to 5")),
        ("agent=diffusion_ql improvement=q_gradient", ("agent.acting.steps=1", "set it to 5")),
        (f"agent=gtp {VP5} agent.critic.next_steps=5", ("agent.improvement.value_steps=1", "set it to 5")),
        (f"agent=qgpo {VP5} agent.acting.steps=5 agent.critic.next_steps=5", ("support_steps=15", "set it to 5")),
        ("agent=diffusion_bc training.eval_steps=3", ("training.eval_steps=3", "set it to 5")),
        ("improvement=q_gradient agent.acting.steps=5", ("agent.acting.steps=5", "make them equal")),
        ("improvement=q_gradient training.eval_steps=5", ("training.eval_steps=5", "make them equal")),
        # Action chunks.
        ("agent.critic.chunk=true", ("agent.critic.chunk=true", "agent.action_chunk is 1")),
        ("agent.critic.chunk=true agent.action_chunk=5 task.n_step=3", ("task.n_step=3", "agent.action_chunk=5")),
        ("agent.action_chunk=3 agent.acting.execute=4", ("agent.acting.execute=4", "the 3 actions of a chunk")),
        ("agent.acting.ensemble=0.1", ("agent.acting.ensemble averages", "agent.action_chunk is 1")),
        ("agent.action_chunk=3 agent.acting.ensemble=0.1 agent.acting.execute=2", ("execute=2", "null")),
        ("agent.acting.join=blend", ("join=blend joins", "agent.action_chunk=1")),
        (f"{CHUNKS} agent.acting.join=rtc agent.acting.execute=4", ("share none", "below agent.action_chunk=4")),
        (f"{CHUNKS} agent.acting.join=rtc agent.acting.ensemble=0.1", ("both join plans", "ensemble=null")),
        (f"{CHUNKS} agent.acting.join=rtc agent.policy.family=flow_matching", ("flow_matching cannot", "gtp")),
        (f"{CHUNKS} agent.acting.join=rtc agent.acting.noise=0", ("agent.acting.noise=0 has none", "join=blend")),
        (f"{CHUNKS} agent=fql agent.acting.join=rtc", ("improvement=distillation acts in another way", "join=blend")),
        (
            f"agent=gtp {JOINED} agent.acting.candidates=4",
            ("first actions alone", "chunk=true"),
        ),
        (f"agent=gtp {JOINED} agent.acting.gradient_step=1", ("undone", "join=cut")),
        ("agent.acting.delay=1", ("agent.acting.delay=1 is more than 0", "agent.action_chunk=1 ")),
        (f"{CHUNKS} agent.acting.delay=4", ("delay=4 is more than 2", "longer plans")),
        (f"{CHUNKS} agent.acting.delay=2 agent.acting.execute=3", ("execute=3 must be between 2 and 2",)),
        (f"{CHUNKS} agent.acting.delay=2 agent.acting.execute=1", ("execute=1 must be between 2 and 2",)),
        ("agent=rebrac agent.action_chunk=3", ("agent.critic.next_penalty judges single actions", "=3 to 1")),
    ],
)
def test_what_does_not_fit_is_refused(overrides: str, words: tuple[str, ...]) -> None:
    with pytest.raises(GtpVisionError) as error:
        from_command_line(["task=demo", *overrides.split()])
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_an_agent_is_checked_when_it_is_created_too() -> None:
    config = AgentConfig(name="gtp_bc")
    config.critic.backup, config.acting.candidates = "none", 4
    with pytest.raises(GtpVisionError, match=r"agent\.acting\.candidates=4 are chosen by a critic"):
        agents.create({"state": (1, 3)}, 2, config, EncoderConfig(name="state"))
    other = AgentConfig(improvement=replace(improvement_settings("advantage"), name="q_gradient"))
    with pytest.raises(GtpVisionError, match="holds AdvantageSettings, and improvement=q_gradient takes QGradientSet"):
        check_agent(other)


@pytest.mark.parametrize(
    "overrides",
    [
        "agent=diffusion_ql improvement=advantage agent.improvement.value_steps=5",
        "agent=iql improvement=q_gradient acting=softmax",
        "agent=fql agent.policy.family=meanflow agent.action_chunk=5 agent.critic.chunk=true task.n_step=5",
        "agent=gtp agent.action_chunk=4 agent.acting.ensemble=0.01 agent.acting.execute=1",
        "agent=rebrac agent.action_chunk=4 agent.critic.next_penalty=0",
        f"{CHUNKS} agent.acting.delay=2 agent.acting.join=rtc",
        f"{CHUNKS} agent.acting.delay=2",
        f"{CHUNKS} agent.acting.delay=3 agent.acting.ensemble=0.1",
        "agent=consistency_ac acting=beam",
        "agent=fql agent.policy.family=shortcut agent.acting.candidates=8 agent.acting.gradient_step=0.1",
        "agent=td3_bc agent.acting.gradient_step=0.1",
    ],
)
def test_what_fits_is_allowed(overrides: str) -> None:
    check_agent(composed("task=demo", *overrides.split()).agent)


@pytest.mark.parametrize("name", NAMES)
def test_every_improvement_is_either_built_or_refused_for_every_agent(name: str) -> None:
    config = composed("task=demo", f"agent={name}", "agent.critic.hidden=[8]").agent
    for improvement, kind in agents.IMPROVEMENTS.items():
        policy = replace(config.policy, hidden=[8])
        small = replace(config, policy=policy, improvement=improvement_settings(improvement))
        try:
            check_agent(small)
        except GtpVisionError:
            continue
        shapes = {"state": (1, 3), "goal/state": (1, 3)}
        assert type(agents.create(shapes, 2, small, EncoderConfig(name="state")).improvement) is kind
