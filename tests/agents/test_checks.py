"""Parts that do not fit each other are refused in one sentence, with the mend, before anything is built."""

import pytest
from small import NAMES

from gtp_vision import agents
from gtp_vision.agents import AgentConfig, check_agent
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import EncoderConfig


def refusal(*overrides: str) -> str:
    with pytest.raises(GtpVisionError) as told:
        from_command_line(["task=demo", *overrides])
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # Unknown parts.
        (["agent=fqll"], ("agent 'fqll'", "'fql'")),
        (["agent.name=fqll"], ("agent.name=fqll", "'fql'")),
        (["agent=iql", "acting=best_of_n"], ("agent.acting.candidates=32", "the same action", "agent.acting.noise=1")),
        (["agent=td3_bc", "acting=best_of_n"], ("agent.acting.candidates=32", "the same action", "set it to 1")),
        (["agent.critic.backup=max"], ("agent.critic.backup=max", "agent.critic.next_actions to 2")),
        (["agent=iql", "agent.critic.next_penalty=1"], ("next_penalty", "agent.critic.backup=expectile")),
        (["agent.policy.architecture=mpl"], ("agent.policy.architecture=mpl", "'mlp'")),
        (["agent=idql", "agent.policy.hidden=[8,9]"], ("agent.policy.hidden=[8, 9]", "one width")),
        (["agent=bdm", "agent.policy.activation=relu"], ("bottleneck", "agent.policy.activation=gelu")),
        (["agent=bdm", "agent.improvement.pretrain_steps=0"], ("agent.improvement.pretrain_steps=0", "training.steps")),
        (["agent=bdm", "training.steps=9"], ("pretrain_steps=100000", "training.steps=9")),
        (["improvement=q_gradient", "training.eval_steps=5"], ("training.eval_steps=5", "make them equal")),
        (["agent.improvement.eta=inf"], ("agent.improvement.eta=inf", "finite")),
        (["improvement=q_gradeint"], ("improvement 'q_gradeint'", "'q_gradient'")),
        (["agent.improvement.name=q_gradeint"], ("agent.improvement.name=q_gradeint", "'q_gradient'")),
        (["agent.improvement.form=postive"], ("agent.improvement.form=postive", "'positive'")),
        (["agent.policy.family=gausian"], ("agent.policy.family=gausian", "'gaussian'")),
        (["agent.critic.backup=expectil"], ("agent.critic.backup=expectil", "'expectile'")),
        (["agent.critic.aggregate=mim"], ("agent.critic.aggregate=mim", "'min'")),
        (["agent.acting.choose=argmx"], ("agent.acting.choose=argmx", "'argmax'")),
        (["acting=best_off_n"], ("acting 'best_off_n'", "'best_of_n'")),
        # No critic.
        (["agent=gtp_bc", "improvement=advantage"], ("improvement=advantage needs a critic", "agent=gtp")),
        (["agent=diffusion_bc", "improvement=q_gradient"], ("needs a critic", "agent=diffusion_bc trains none")),
        (
            ["agent=gtp_bc", "acting=best_of_n"],
            ("agent.acting.candidates=32", "gtp_bc trains none", "backup=expectile"),
        ),
        (["agent=fql", "agent.critic.backup=none"], ("improvement=distillation needs a critic",)),
        # Improvements and families.
        (
            ["agent=diffusion_ql", "improvement=distillation"],
            ("improvement=distillation needs the policy's one answer", "vp_diffusion cannot", "flow_matching"),
        ),
        (["agent=consistency_ac", "improvement=distillation"], ("one answer", "consistency cannot", "gtp")),
        (
            ["agent=gtp", "improvement=alignment"],
            ("improvement=alignment compares densities", "gtp cannot", "gaussian"),
        ),
        (["agent=consistency_ac", "improvement=guidance"], ("improvement=guidance", "consistency cannot", "diffusion")),
        (["agent=iql", "improvement=guidance"], ("improvement=guidance", "gaussian cannot")),
        (["agent=td3_bc", "improvement=guidance"], ("improvement=guidance", "deterministic cannot")),
        (["agent=ifql", "agent.policy.family=one_step"], ("one_step learns from another policy", "distillation")),
        # Steps of a diffusion that has a number of its own.
        (["agent=diffusion_ql", "agent.acting.steps=3"], ("agent.acting.steps=3", "set it to 5", "agent.policy.grid")),
        (["agent=diffusion_ql", "agent.critic.next_steps=3"], ("agent.critic.next_steps=3", "set it to 5")),
        (["agent=diffusion_ql", "agent.improvement.q_steps=1"], ("agent.improvement.q_steps=1", "set it to 5")),
        (["agent=gtp", "improvement=q_gradient", "agent.acting.steps=5"], ("agent.acting.steps=5", "make them equal")),
        (["agent=diffusion_ql", "improvement=q_gradient"], ("agent.acting.steps=1", "set it to 5")),
        (
            ["agent=gtp", "agent.policy.family=vp_diffusion", "agent.policy.grid=5"],
            ("agent.improvement.value_steps=1", "set it to 5"),
        ),
        (
            [
                "agent=qgpo",
                "agent.policy.family=vp_diffusion",
                "agent.policy.grid=15",
                "agent.improvement.support_steps=5",
            ],
            ("agent.improvement.support_steps=5", "set it to 15"),
        ),
        (["agent=diffusion_bc", "training.eval_steps=3"], ("training.eval_steps=3", "set it to 5")),
        # Action chunks.
        (["agent.critic.chunk=true"], ("agent.critic.chunk=true", "agent.action_chunk is 1")),
        (
            ["agent.critic.chunk=true", "agent.action_chunk=5", "task.n_step=3"],
            ("agent.critic.chunk=true", "task.n_step=3", "agent.action_chunk=5"),
        ),
        (["agent.action_chunk=3", "agent.acting.execute=4"], ("agent.acting.execute=4", "the 3 actions of a chunk")),
        (["agent.acting.ensemble=0.1"], ("agent.acting.ensemble averages", "agent.action_chunk is 1")),
        (
            ["agent.action_chunk=3", "agent.acting.ensemble=0.1", "agent.acting.execute=2"],
            ("agent.acting.ensemble plans at every step", "agent.acting.execute=2", "null"),
        ),
        (["agent=rebrac", "agent.action_chunk=3"], ("agent.critic.next_penalty judges single actions", "=3 to 1")),
        # Numbers.
        (["agent.acting.candidates=0"], ("agent.acting.candidates=0 must be at least 1",)),
        (["agent.acting.temperature=0"], ("agent.acting.temperature=0.0 must be at least",)),
        (["agent.acting.noise=-1"], ("agent.acting.noise=-1",)),
        (["agent.acting.execute=0"], ("agent.acting.execute=0",)),
        (["agent.improvement.support_actions=1"], ("agent.improvement.support_actions=1",)),
        (["agent.improvement.beta=0"], ("agent.improvement.beta=0",)),
        (["agent.critic.expectile=1.5"], ("agent.critic.expectile=1.5", "[0, 1]")),
        (["agent.critic.next_actions=0"], ("agent.critic.next_actions=0",)),
        (["agent.action_chunk=0"], ("agent.action_chunk=0",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_with_the_thing_and_the_mend(overrides: list[str], words: tuple[str, ...]) -> None:
    told = refusal(*overrides)
    assert all(word in told for word in words), told


def test_an_agent_is_checked_when_it_is_created_too() -> None:
    config = AgentConfig(name="gtp_bc")
    config.critic.backup = "none"
    config.acting.candidates = 4
    with pytest.raises(GtpVisionError, match=r"agent\.acting\.candidates=4 are chosen by a critic"):
        agents.create({"state": (1, 3)}, 2, config, EncoderConfig(name="state"))


def fits(*overrides: str) -> AgentConfig:
    config = from_command_line(["task=demo", *overrides]).agent
    check_agent(config)
    return config


VP5 = ["agent.policy.family=vp_diffusion", "agent.policy.grid=5", "agent.acting.steps=5"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["agent=gtp", "improvement=q_gradient"],
        ["agent=gtp", "improvement=guidance"],
        ["agent=gtp", "improvement=distillation", "acting=best_of_n"],
        ["agent=diffusion_ql", "improvement=guidance", "agent.improvement.support_steps=5"],
        ["agent=diffusion_ql", "improvement=advantage", "agent.improvement.value_steps=5"],
        ["agent=iql", "improvement=alignment"],
        ["agent=iql", "improvement=q_gradient", "acting=softmax", "agent.acting.noise=1"],
        ["agent=gtp_bc", *VP5],
        ["agent=ifql", *VP5],
        ["agent=iql", *VP5],
        [
            "agent=fql",
            "agent.policy.family=meanflow",
            "agent.action_chunk=5",
            "agent.critic.chunk=true",
            "task.n_step=5",
        ],
        ["agent=gtp", "agent.action_chunk=4", "agent.acting.ensemble=0.01"],
        ["agent=gtp", "agent.action_chunk=4", "agent.acting.ensemble=0.01", "agent.acting.execute=1"],
        ["agent=rebrac", "agent.action_chunk=4", "agent.critic.next_penalty=0"],
    ],
    ids=" ".join,
)
def test_what_fits_is_let_pass(overrides: list[str]) -> None:
    fits(*overrides)


@pytest.mark.parametrize("name", NAMES)
def test_every_improvement_is_either_built_or_refused_in_a_sentence_for_every_agent(name: str) -> None:
    for improvement in agents.IMPROVEMENTS:
        config = from_command_line(["task=demo", f"agent={name}"]).agent
        config.improvement.name = improvement
        config.policy.hidden = config.critic.hidden = [8]
        try:
            check_agent(config)
        except GtpVisionError:
            continue
        learner = agents.create({"state": (1, 3)}, 2, config, EncoderConfig(name="state"))
        assert type(learner.improvement) is agents.IMPROVEMENTS[improvement]
