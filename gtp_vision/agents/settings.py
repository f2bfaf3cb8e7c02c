"""The settings of an agent: a policy, a critic, an improvement and a way of acting."""

from __future__ import annotations

from dataclasses import dataclass

from gtp_vision.core.settings import setting
from gtp_vision.models import PolicyConfig
from gtp_vision.models.critic import CriticConfig

CUT, BLEND, RTC = "cut", "blend", "rtc"


@dataclass
class ImprovementSettings:
    """Settings that every improvement has; each declares its own beside its class, as `Improvement.Settings`."""

    name: str = setting("none", "how the critic improves the policy, one of gtp_vision.agents.IMPROVEMENTS")


@dataclass
class ActingConfig:
    """Settings of acting."""

    steps: int = setting(5, "steps K of the policy, unless the caller gives another number", low=1)
    candidates: int = setting(1, "actions that are drawn, of which Q chooses one", low=1)
    choose: str = setting(
        "argmax", "how Q chooses: the best, or a draw by softmax(Q / temperature)", choices=("argmax", "softmax")
    )
    temperature: float = setting(1.0, "temperature of the softmax, in units of Q", above=0)
    noise: float = setting(1.0, "factor on the policy's noise; 0 is a Gaussian's mean", low=0)
    rounds: int = setting(0, "rounds of beam search: renoise the best candidates, and jump again", low=0, high=1000)
    beam: int = setting(1, "best candidates that each round renoises", low=1)
    branch: int = setting(4, "new noises for each of them", low=1, high=1000)
    renoise: float = setting(0.5, "noise level to which they are renoised", above=0)
    gradient_step: float = setting(
        0.0, "length of each candidate's step along the normalized gradient of Q; 0: none", low=0
    )
    execute: int | None = setting(
        None,
        "actions of a chunk that are executed before the next plan; null: all, or half of them unless join=cut",
        low=1,
    )
    join: str = setting(
        CUT,
        "how a plan continues the one before: cut does not, blend averages both, rtc inpaints (real-time chunking)",
        choices=(CUT, BLEND, RTC),
    )
    draws: int = setting(
        8, "noises of join=rtc, of which the one whose plan is nearest to the plan before is taken", low=1, high=1000
    )
    delay: int = setting(
        0, "steps from the observation that a plan is made for to the plan's first action that is executed", low=0
    )
    ensemble: float | None = setting(
        None, "decay of temporal ensembling (ACT): plan at every step and average the chunks; null: off", low=0
    )

    @property
    def needs_critic(self) -> bool:
        """Whether the critic takes part in acting."""
        return self.candidates > 1 or self.rounds > 0 or self.gradient_step > 0

    def horizon(self, chunk: int) -> int:
        """Steps from one plan of `chunk` actions to the next."""
        if self.ensemble is not None:
            return 1
        return self.execute or (chunk - self.delay if self.join == CUT else max(self.delay, chunk // 2))


@dataclass
class RepresentationConfig:
    """How the policy sees actions whose columns are rotations or poses; see `agents.representation`."""

    rotations: list[str] = setting(
        [], 'columns of actions that hold a rotation, and its kind, e.g. ["3:7=quaternion_xyzw"]; the policy has 6-D'
    )
    relative: list[str] = setting(
        [], 'columns that the policy has relative to a state, e.g. ["0:3=eef_pos", "7:14=qpos[0:7]"]'
    )
    chain: bool = setting(False, "relative to the action before it, and only the first of a chunk to the state")
    frame: str = setting(
        "world",
        "axes of relative poses: the robot's, or those of the pose that they are relative to (UMI)",
        choices=("world", "wrist"),
    )

    @property
    def active(self) -> bool:
        """Whether the policy's actions are others than the data's."""
        return bool(self.rotations or self.relative)


@dataclass
class AgentConfig:
    """Settings of an agent."""

    name: str = setting("gtp", "published system, one of gtp_vision.agents.AGENTS")
    policy: PolicyConfig = setting(PolicyConfig, "how actions are generated")
    critic: CriticConfig = setting(CriticConfig, "what actions are worth")
    improvement: ImprovementSettings = setting(ImprovementSettings, "how the critic improves the policy")
    acting: ActingConfig = setting(ActingConfig, "how the policy acts")
    action_chunk: int = setting(1, "actions that the policy generates at once", low=1)
    representation: RepresentationConfig = setting(RepresentationConfig, "how the policy sees rotations and poses")
    # TRQAM's recipe (arXiv 2605.27079): 300 000 steps. Acting with one-step policies and energies begins untrained.
    clone_steps: int = setting(
        0, "first steps, in which the policy clones, every action alike, and nothing else is trained", low=0
    )
    tau: float = setting(0.005, "Polyak rate of the targets of critic and encoders", low=0, high=1)
    policy_tau: float | None = setting(None, "Polyak rate of the policy's target; null: tau", low=0, high=1)
