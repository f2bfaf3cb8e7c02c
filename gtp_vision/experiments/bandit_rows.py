"""The agents of `gtp-vision experiment bandit`: every preset, with the overrides for this problem and their reasons."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.config.schema import Config


class Row(NamedTuple):
    """An agent to train, with overrides of its preset in which `{half}` is half of the training's steps."""

    overrides: str
    share: float = 1.0  # of the training's steps; agents that learn sooner are trained shorter


# Of all agents: small networks and short trainings, with targets that follow within them.
COMMON = (
    "agent.policy.hidden=[128,128,128] agent.critic.hidden=[128,128] agent.tau=0.02 agent.policy_tau=null "
    "training.learning_rate=1e-3 training.warmup_steps=100 training.schedule=cosine"
)
# Every episode ends with its one step, so that next actions do not matter; draw them in the cheapest way.
_NEXT = "agent.critic.next_steps=1"
_ONE_NEXT = f"{_NEXT} agent.critic.next_actions=1"
# The solution map is steep between narrow modes (docs/few-step.md), and a start at 80 is as good as one at 10.
_STEEP = "agent.policy.input_gain=3 agent.policy.activation=relu"
_SHARP = f"agent.policy.sigma_max=10 {_STEEP}"
# With its 5 steps the sampler leaves 46 % of all actions between the modes, even with the exact denoiser; with 20, 1 %.
_FINE = "agent.policy.grid=20 agent.acting.steps=20 agent.policy.input_gain=3"
# Of 32 candidates 3 % of all draws hold none of a mode with a share of 0.1.
_MANY = "agent.acting.candidates=64"
# Small batches with more noises a sample, where most of a step's cost is per sample and not per noise.
_FEW_SAMPLES = "training.batch_size=64 agent.policy.noise_draws=4"
# exp(alpha Q) is normalised over the M support actions, which flattens the target if they are few: by a total
# variation of 0.07 for alpha = 3 and M = 16, of 0.02 for alpha = 1.5. Drawing them costs most of a step. The last
# Euler step starts where the modes are separate.
_SUPPORT = (
    "agent.improvement.alpha=1.5 agent.improvement.support_actions=16 agent.improvement.support_steps=5 "
    f"{_FEW_SAMPLES} agent.policy.sigma_max=10 agent.policy.sigma_last=0.1 agent.acting.steps=15"
)
# A critic without LayerNorm grows beyond the best mode, and Q's gradient follows it out of the support. Candidates are
# drawn by softmax(Q / temperature): the published 1 is for returns far above 1, where it is nearly the maximum.
_HELD = "agent.critic.layer_norm=true agent.acting.temperature=0.05"
_EXACT = "agent.improvement.form=exponential agent.improvement.weight_clip=1e6"  # a clip that does not bind
ROWS = {
    "gaussian_bc": Row("agent=gaussian_bc", 0.25),
    "diffusion_bc": Row(f"agent=diffusion_bc agent.policy.grid=30 agent.acting.steps=30 {_STEEP}"),
    "consistency_bc": Row(
        # Its target is exact for infinitely many levels. The teacher's noise adds up over them, and a faster teacher
        # blurs the modes.
        f"agent=consistency_bc {_SHARP} agent.policy.grid=80 agent.policy_tau=0.005 "
        "agent.policy.sigma_last=0.15 agent.acting.steps=20",
        2.0,
    ),
    "gtp_bc": Row("agent=gtp_bc", 1.5),
    "iql": Row("agent=iql", 0.25),
    "gtp": Row(f"agent=gtp {_ONE_NEXT}"),
    "gtp exponential": Row(f"agent=gtp {_ONE_NEXT} {_EXACT}"),
    "gtp IQL's weights": Row(
        f"agent=gtp agent.critic.backup=expectile {_EXACT} agent.improvement.standardize=false agent.improvement.eta=3"
    ),
    "gtp+e": Row(f"agent=gtp improvement=guidance {_ONE_NEXT} {_SUPPORT}"),
    "qgpo": Row(f"agent=qgpo {_NEXT} agent.critic.next_actions=2 {_SUPPORT} {_STEEP}"),
    "bdm": Row(
        f"agent=bdm {_SUPPORT} agent.policy.architecture=mlp agent.policy.input_gain=6 agent.policy.activation=gelu "
        "agent.improvement.pretrain_steps={half} agent.acting.candidates=1",
        2.0,  # half of it clones
    ),
    "td3_bc": Row("agent=td3_bc", 0.25),
    "rebrac": Row("agent=rebrac", 0.25),
    "diffusion_ql": Row(  # Q's gradient through 20 steps costs most
        f"agent=diffusion_ql {_HELD} agent.improvement.q_weight=0.02 {_FINE} agent.policy.activation=relu "
        f"agent.critic.next_steps=20 agent.improvement.q_steps=20 {_FEW_SAMPLES}",
        0.6,
    ),
    "consistency_ac": Row(
        f"agent=consistency_ac {_HELD} {_SHARP} agent.policy.sigma_last=0.25 agent.improvement.q_weight=0.01", 0.5
    ),
    "gtp+q": Row("agent=gtp improvement=q_gradient", 0.5),
    "gtp+q, K=5": Row("agent=gtp improvement=q_gradient agent.improvement.q_steps=5 agent.acting.steps=5", 0.5),
    "fql": Row("agent=fql agent.improvement.distill_weight=0.1", 0.5),
    # An alpha of 0.1, as FQL's, and samples, of which the table tells where they lie.
    "gtp_ql": Row("agent=gtp_ql agent.improvement.q_weight=10 agent.acting.noise=1", 0.5),
    "idql": Row(f"agent=idql {_FINE} agent.policy.hidden=[64,64,64]"),
    "ifql": Row(f"agent=ifql agent.policy.input_gain=3 {_MANY}"),
    "gtp+n": Row(f"agent=gtp {_ONE_NEXT} acting=best_of_n {_MANY}"),
}


def run_config(label: str, data: Path, steps: int, seed: int) -> Config:
    """The run of one of `ROWS`: its agent's preset with the overrides of `COMMON` and of the row."""
    row = ROWS[label]
    steps = max(1, round(steps * row.share))
    task = f"task=own task.name=bandit task.frame_stack=1 encoder=state encoder.standardize=none seed={seed}"
    overrides = f"{task} training.device=cpu training.steps={steps} {COMMON} {row.overrides.format(half=steps // 2)}"
    return from_command_line([*overrides.split(), quoted("task.dataset", data)])
