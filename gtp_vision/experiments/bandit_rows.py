"""The agents of `gtp-vision experiment bandit`: every preset, and what differs from it here, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gtp_vision.config.schema import Config, from_command_line


@dataclass(frozen=True)
class Row:
    """An agent to be tried.

    Attributes:
        overrides: of its preset; `{half}` is half of the training's steps.
        share: of the training's steps; what is learned sooner is trained shorter.
    """

    overrides: tuple[str, ...]
    share: float = 1.0


# Of all agents: small networks and short trainings.
COMMON = (
    "agent.policy.hidden=[128,128,128]",
    "agent.critic.hidden=[128,128]",
    "agent.tau=0.02",  # targets that follow within a short training
    "agent.policy_tau=null",
)
# Every episode ends with its one step, so that no next action counts; draw them in the cheapest way.
_NEXT = ("agent.critic.next_steps=1", "agent.critic.next_actions=1")
# The solution map is steep between narrow modes (docs/few-step.md), and a start at 80 is as good as one at 10.
_SHARP = ("agent.policy.sigma_max=10", "agent.policy.input_gain=3", "agent.policy.activation=relu")
# With its 5 steps the sampler leaves 46 % of all actions between the modes, even with the exact denoiser; with 20, 1 %.
_FINE = ("agent.policy.grid=20", "agent.acting.steps=20", "agent.policy.input_gain=3")
# Of 32 candidates 3 % of all draws hold none of a mode with a share of 0.1.
_MANY = "agent.acting.candidates=64"
# exp(alpha Q) is normalised over the M support actions, which flattens the target if they are few: by a total
# variation of 0.07 for alpha = 3 and M = 16, of 0.02 for alpha = 1.5. Drawing them costs most of a step, so batches are
# small, with more noises a sample. The last Euler step starts where the modes are told apart.
_SUPPORT = (
    *("agent.improvement.alpha=1.5", "agent.improvement.support_actions=16", "agent.improvement.support_steps=5"),
    *("training.batch_size=64", "agent.policy.noise_draws=4"),
    *("agent.policy.sigma_max=10", "agent.policy.sigma_last=0.1", "agent.acting.steps=15"),
)
# A critic without LayerNorm grows beyond the best mode, and Q's gradient follows it out of the support. Candidates are
# drawn by softmax(Q / temperature): the published 1 is for returns far above 1, where it is nearly the maximum.
_HELD = ("agent.critic.layer_norm=true", "agent.acting.temperature=0.05")
_EXACT = ("agent.improvement.form=exponential", "agent.improvement.weight_clip=1e6")  # a clip that does not bind
ROWS: dict[str, Row] = {
    "gaussian_bc": Row(("agent=gaussian_bc",), 0.25),
    "diffusion_bc": Row(
        (
            *("agent=diffusion_bc", "agent.policy.grid=30", "agent.acting.steps=30"),
            *("agent.policy.input_gain=3", "agent.policy.activation=relu"),
        )
    ),
    "consistency_bc": Row(
        (
            *("agent=consistency_bc", *_SHARP, "agent.policy.grid=80"),  # its target is exact for infinitely many
            "agent.policy_tau=0.005",  # the teacher's noise adds up over these levels; a faster one blurs the modes
            *("agent.policy.sigma_last=0.15", "agent.acting.steps=20"),
        ),
        2.0,
    ),
    "gtp_bc": Row(("agent=gtp_bc",), 1.5),
    "iql": Row(("agent=iql",), 0.25),
    "gtp": Row(("agent=gtp", *_NEXT)),
    "gtp exponential": Row(("agent=gtp", *_NEXT, *_EXACT)),
    "gtp IQL's weights": Row(
        (
            *("agent=gtp", "agent.critic.backup=expectile", *_EXACT),
            *("agent.improvement.standardize=false", "agent.improvement.eta=3"),
        )
    ),
    "gtp+e": Row(("agent=gtp", "improvement=guidance", *_NEXT, *_SUPPORT)),
    "qgpo": Row(
        (
            *("agent=qgpo", _NEXT[0], "agent.critic.next_actions=2", *_SUPPORT),
            *("agent.policy.input_gain=3", "agent.policy.activation=relu"),
        )
    ),
    "bdm": Row(
        (
            *("agent=bdm", *_SUPPORT, "agent.policy.architecture=mlp", "agent.policy.input_gain=6"),
            "agent.policy.activation=gelu",
            *("agent.improvement.pretrain_steps={half}", "agent.acting.candidates=1"),
        ),
        2.0,  # half of it clones
    ),
    "td3_bc": Row(("agent=td3_bc",), 0.25),
    "rebrac": Row(("agent=rebrac",), 0.25),
    "diffusion_ql": Row(
        (
            *("agent=diffusion_ql", *_HELD, "agent.improvement.q_weight=0.02", *_FINE, "agent.policy.activation=relu"),
            *("agent.critic.next_steps=20", "agent.improvement.q_steps=20"),
            *("training.batch_size=64", "agent.policy.noise_draws=4"),  # Q's way through 20 steps is the costly part
        ),
        0.6,
    ),
    "consistency_ac": Row(
        (
            *("agent=consistency_ac", *_HELD, *_SHARP),
            *("agent.policy.sigma_last=0.25", "agent.improvement.q_weight=0.01"),
        ),
        0.5,
    ),
    "gtp+q": Row(("agent=gtp", "improvement=q_gradient"), 0.5),
    "gtp+q, K=5": Row(
        ("agent=gtp", "improvement=q_gradient", "agent.improvement.q_steps=5", "agent.acting.steps=5"), 0.5
    ),
    "fql": Row(("agent=fql", "agent.improvement.distill_weight=0.1"), 0.5),
    "idql": Row(("agent=idql", *_FINE, "agent.policy.hidden=[64,64,64]")),
    "ifql": Row(("agent=ifql", "agent.policy.input_gain=3", _MANY)),
    "gtp+n": Row(("agent=gtp", *_NEXT, "acting=best_of_n", _MANY)),
}


def configured(label: str, data: Path, steps: int, seed: int) -> Config:
    """The run of one of `ROWS`: its agent's preset but for what `COMMON` and the row change."""
    row = ROWS[label]
    steps = max(1, round(steps * row.share))
    return from_command_line(
        [
            *("task=own", "task.name=bandit", f"task.dataset={data}", "task.frame_stack=1", f"seed={seed}"),
            *("encoder=state", "encoder.standardize=false", "training.device=cpu", f"training.steps={steps}"),
            *("training.learning_rate=1e-3", "training.warmup_steps=100", "training.schedule=cosine"),
            *COMMON,
            *(override.format(half=steps // 2) for override in row.overrides),
        ]
    )
