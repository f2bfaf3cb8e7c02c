"""The settings of an agent: a policy, a critic, an improvement, a way of acting."""

from __future__ import annotations

from dataclasses import dataclass, field

from gtp_vision.models import PolicyConfig
from gtp_vision.models.critic import CriticConfig

FORMS = ("positive", "exponential")
CHOOSES = ("argmax", "softmax")


@dataclass
class ImprovementConfig:
    """How the critic makes the policy better than the data; the reasons stand in configs/agent/.

    Attributes:
        name: none, advantage, q_gradient, guidance, alignment or distillation.
        form: of the weights (advantage): `positive`, exp(eta max(0, A)), the paper's, or `exponential`, exp(eta A).
        eta: how strongly advantages weigh (advantage).
        standardize: divide advantages by their deviation over the batch (advantage).
        weight_clip: largest weight (advantage).
        value_samples: policy samples that estimate V(o), unless the critic learns a V (advantage).
        value_steps: K in which they are drawn (the same).
        bc_weight: weight of the cloning loss (q_gradient).
        q_weight: weight of the Q term (q_gradient, distillation).
        q_steps: K through which Q's gradient goes; 1 is the single jump of a flow map (q_gradient).
        normalize_q: divide Q by its mean size over the batch (q_gradient, distillation).
        per_dimension: cloning losses are means over action dimensions instead of sums (q_gradient).
        distill_weight: weight of the distance between the one-step policy and the policy it learns from (distillation).
        distill_steps: K of the latter (distillation).
        alpha: inverse temperature of the energy alpha Q (guidance, alignment).
        beta: how strongly the policy is held to the behaviour; the target is behaviour exp(alpha Q / beta) (alignment).
        support_actions: actions an observation drawn from the behaviour (guidance, alignment).
        support_steps: K in which they are drawn (the same).
        guidance_scale: factor on the energy's gradient when acting (guidance).
        pretrain_steps: steps of behaviour cloning before the policy is aligned (alignment).
    """

    name: str = "none"
    form: str = "positive"
    eta: float = 1.0
    standardize: bool = True
    weight_clip: float = 100.0
    value_samples: int = 4
    value_steps: int = 1
    bc_weight: float = 1.0
    q_weight: float = 1.0
    q_steps: int = 1
    normalize_q: bool = True
    per_dimension: bool = True
    distill_weight: float = 10.0
    distill_steps: int = 10
    alpha: float = 1.0
    beta: float = 1.0
    support_actions: int = 16
    support_steps: int = 5
    guidance_scale: float = 1.0
    pretrain_steps: int = 0


@dataclass
class ActingConfig:
    """How the policy acts; the reasons stand in configs/agent/ and configs/acting/.

    Attributes:
        steps: K, unless the caller says otherwise.
        candidates: actions drawn at once, one of which is chosen by Q.
        choose: `argmax` of Q, or a draw by `softmax` of Q / temperature.
        temperature: of the softmax; Q's own unit.
        noise: factor on the policy's noise; 0 is a Gaussian's mean.
        execute: of an action chunk, how many actions are executed before the next is planned; null for all of them.
        ensemble: null, or the decay m of temporal ensembling: every step plans, and the actions that chunks hold for
            the same moment are averaged with weights exp(-m i), the oldest chunk's first (ACT; Zhao et al., 2023).
    """

    steps: int = 5
    candidates: int = 1
    choose: str = "argmax"
    temperature: float = 1.0
    noise: float = 1.0
    execute: int | None = None
    ensemble: float | None = None


@dataclass
class AgentConfig:
    """Settings of the agent; the reasons stand in configs/agent/.

    Attributes:
        name: the published system it starts from, see `gtp_vision.agents.AGENTS`.
        policy: how actions are generated.
        critic: what they are worth.
        improvement: how the one makes the other better.
        acting: how the policy acts.
        action_chunk: actions that the policy generates at once.
        tau: Polyak rate of the critic's and the encoders' targets.
        policy_tau: of the policy's; null is `tau`.
    """

    name: str = "gtp"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    improvement: ImprovementConfig = field(default_factory=ImprovementConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    action_chunk: int = 1
    tau: float = 0.005
    policy_tau: float | None = None
