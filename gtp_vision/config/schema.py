"""The typed schema of everything under configs/."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import MISSING

from gtp_vision.agents import AgentConfig
from gtp_vision.core.settings import setting
from gtp_vision.datasets.goals import GOALS
from gtp_vision.datasets.instructions import MODES as INSTRUCTIONS
from gtp_vision.datasets.placement import PLACEMENTS
from gtp_vision.datasets.rewards import MODES as REWARDS
from gtp_vision.datasets.scaling import MODES
from gtp_vision.datasets.videos import MODES as VIDEO_MODES
from gtp_vision.encoders import EncoderConfig

TRACKERS = ("wandb", "mlflow")


@dataclass
class TaskConfig:
    """What is learned, and where it is evaluated."""

    name: str = setting(MISSING, "short name, part of the run folder's path", free=True)
    env: str | None = setting(
        MISSING,
        "environment, also the name of its official data set; robosuite: the file's own; null: no evaluation",
        free=True,
    )
    dataset: str | None = setting(
        None, "data set; demo: the one of this package; null: the official one in data_dir", free=True
    )
    datasets: list[str] | None = setting(None, "several data sets to mix, instead of task.dataset", free=True)
    shares: list[float] | None = setting(
        None, "relative share of a batch for each of task.datasets; null: equal", above=0
    )
    filter: str | None = setting(
        None,
        "only the episodes of this group of the file or its labels, e.g. robomimic's train, or success; null: all",
        free=True,
    )
    labels: str | None = setting(
        None,
        "file of labels of the episodes, or a folder of such files; null: DATA.labels.json beside the data",
        free=True,
    )
    rewards: str = setting(
        "file",
        "the file's rewards, or rewards from labels: 1 at success (sparse), -1 until then (steps), or discounted "
        "progress (dense); docs/labels.md",
        choices=REWARDS,
    )
    validation: float = setting(
        0.1,
        "share of the episodes, at most 50, that are held out of training to validate on, if the data name none; 0: "
        "none at all",
        low=0,
        high=0.9,
    )
    validation_seed: int = setting(0, "seed of the draw of held-out episodes", low=0)
    features: dict[str, str] | None = setting(
        None, "other names of arrays: NAME: NAME IN THE FILE, e.g. {action: actions}; null: the format's own", free=True
    )
    image_size: str | None = setting(
        None,
        "height x width to which the frames of all cameras are resized when the data are imported, e.g. 96x128; auto: "
        "larger ones to encoder.cameras.<name>.size; null: as recorded",
    )
    image_crop: str | None = setting(
        None, "height x width that are cut out of the middle of all frames before, e.g. 400x400; null: nothing"
    )
    video: str = setting(
        "unpacked",
        "frames of videos: decoded once, into the cache, or whenever a batch needs them, for data too large for the "
        "cache (seek; docs/data.md)",
        choices=VIDEO_MODES,
        free=True,
    )
    action_scaling: str = setting(
        "auto", "how actions in the file's units are brought to [-1, 1] (docs/data.md)", choices=MODES
    )
    observations: list[str] | None = setting(None, "only these observations, in this order; null: all", free=True)
    # The policy's is a later frame of the episode; a critic's any frame, in its paper's shares, with a reward of -1
    # until it is reached instead of the file's.
    goals: str | None = setting(None, "show each row a goal, relabelled in hindsight; null: no goals", choices=GOALS)
    # OGBench: 0.5 where no episode leads from every start to every goal (stitch), 1 where none leads to any (explore).
    random_goals: float = setting(
        0.0, "share of the policy's goals that are any frame, for agents with a critic", low=0, high=1
    )
    instructions: str | None = setting(
        None,
        "show the task of each episode that the data name: as a known one, or by its text (docs/instructions.md)",
        choices=INSTRUCTIONS,
    )
    text_encoder: str = setting(
        "sentence-transformers/all-MiniLM-L6-v2",
        "model of task.instructions=text: a folder, or its name on the hub",
        free=True,
    )
    frame_stack: int = setting(3, "frames per observation", low=1)
    n_step: int = setting(1, "steps of the return before it bootstraps", low=1)
    discount: float = setting(0.99, "discount factor per step", low=0, high=1)
    reward_scale: float = setting(1.0, "factor on rewards")
    reward_shift: float = setting(0.0, "number added to rewards before they are scaled")
    max_episode_steps: int | None = setting(
        None, "time limit in evaluations; null: the environment's", low=1, free=True
    )
    env_actions: str | None = setting(
        None,
        "what the environment gets: actions as recorded, or scaled from the data's bounds to its own; null: as the "
        "data say (docs/environments.md)",
        choices=("recorded", "scaled"),
        free=True,
    )
    success_reward: float | None = setting(
        None,
        "an episode of an evaluation succeeds by a reward of at least this; null: where the environment says so",
        free=True,
    )


@dataclass
class TrainingConfig:
    """How a run is trained, evaluated and logged; the defaults are FQL's protocol for pixels."""

    steps: int = setting(500_000, "gradient steps; online.steps sets them", low=1)
    batch_size: int = setting(256, "rows per step, see training.batch_per", low=1)
    batch_per: str = setting(
        "global", "whose rows batch_size counts: all processes', or each one's", choices=("global", "process")
    )
    learning_rate: float = setting(3e-4, "learning rate of Adam after the warm-up", above=0)
    warmup_steps: int = setting(0, "steps in which the learning rate grows linearly", low=0)
    schedule: str = setting(
        "constant", "learning rate after the warm-up; cosine: to 0 at the end", choices=("constant", "cosine")
    )
    schedule_start: int = setting(
        0, "steps before the warm-up and the cosine begin; gtp-vision train --resume RUN --new-segment sets it", low=0
    )
    weight_decay: float = setting(
        0.0, "decoupled weight decay (AdamW) of matrices and kernels; biases, norms and embeddings have none", low=0
    )
    accumulate: int = setting(
        1, "micro-batches in which a step's batch is computed one after the other, to save memory", low=1
    )
    ema: float = setting(
        0.0,
        "decay of an average of the acting weights, after a warm-up; it acts in their place; 0: none",
        low=0,
        high=0.999999,
    )
    clip_gradient: float | None = setting(None, "largest gradient norm; null: no clipping", above=0)
    on_nonfinite: str = setting(
        "stop",
        "at a loss or gradient that is not finite: stop, skip the step, or roll back to a checkpoint (docs/health.md)",
        choices=("stop", "skip", "rollback"),
        free=True,
    )
    log_every: int = setting(1000, "steps between two lines of metrics", low=1, free=True)
    checkpoint_every: int = setting(10_000, "steps between two checkpoints", low=1, free=True)
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept", low=1, free=True)
    eval_every: int = setting(100_000, "steps between two evaluations; 0: only at the end", low=0, free=True)
    eval_episodes: int = setting(50, "episodes per evaluation; 0: no evaluations", low=0, free=True)
    eval_envs: int | None = setting(
        None, "parallel environments per process; null: one per core, at most 8", low=1, free=True
    )
    eval_timeout: float = setting(
        300.0, "seconds that one step or reset of an environment may take", above=0, free=True
    )
    eval_steps: int | None = setting(None, "steps K when acting in evaluations; null: the agent's", low=1, free=True)
    eval_candidates: list[int] | None = setting(
        None,
        "evaluate again with the best of each of these numbers of actions by Q; null: no",
        low=2,
        free=True,
    )
    eval_acting: list[str] | None = setting(
        None, "evaluate again with each of these options of the group acting, e.g. [beam]; null: no", free=True
    )
    trackers: list[str] | None = setting(
        None, "log to these, too, beside TensorBoard, e.g. [wandb]; null: none", choices=TRACKERS, free=True
    )
    videos: int = setting(4, "filmed episodes per evaluation", low=0, free=True)
    validation_rows: int = setting(
        512,
        "rows of held-out episodes, and of trained ones, that are measured at each checkpoint; 0: no validation",
        low=0,
        high=100_000,
        free=True,
    )
    probe_rows: int = setting(
        1500,
        "rows on which the encoder's features are compared over training; 0: none",
        low=0,
        high=10_000,
        free=True,
    )
    device: str = setting("auto", "device of the training", choices=("auto", "cpu", "cuda", "mps"), free=True)
    placement: str = setting(
        "auto", "where frames are stored: on the device, or mapped from disk", choices=PLACEMENTS, free=True
    )
    # Sums, losses, targets and weights are always float32.
    precision: str = setting(
        "float32",
        "precision of matrix products; bf16: of whole backbones (docs/performance.md)",
        choices=("float32", "tf32", "bf16"),
    )
    engine: str = setting(
        "auto", "how a step runs, see gtp_vision.training.engines", choices=("auto", "eager", "compile", "graph")
    )
    seeds: int = setting(1, "runs that are trained at once, with seeds seed, seed + 1, ...", low=1, high=64)


@dataclass
class InitConfig:
    """The weights that a new run begins with; a run that is resumed does not read them again (docs/warm-start.md)."""

    source: str | None = setting(
        None, "run, checkpoint or artifact whose weights a new run begins with; null: none", free=True
    )
    optimizer: bool = setting(False, "begin with its Adam moments, too, where they fit", free=True)
    refit: bool = setting(False, "fit the statistics of states and the scale of actions to the new data", free=True)
    partial: bool = setting(False, "load what fits, even if neither its policy nor a backbone does", free=True)


@dataclass
class OnlineConfig:
    """Online fine-tuning: the policy acts in the task's simulator, and is trained on that and the data set together.

    Steps of the simulator are collected in rounds. The gradient steps of a round learn from all rounds before it, while
    the next one is collected by the policy as it was when the round began.
    """

    steps: int = setting(0, "steps of the simulator that are collected; 0: the run is offline", low=0)
    start: int = setting(1000, "of them before the first gradient step, by the policy that the run begins with", low=1)
    round: int = setting(1000, "steps of a round; it ends with the episode that reaches them", low=1)
    updates: float = setting(1.0, "gradient steps for each step of the simulator", above=0)
    ratio: float = setting(0.5, "share of a batch that is from the simulator, the rest is from the data", low=0, high=1)
    noise: float = setting(1.0, "factor on the policy's noise while it collects, for agent.acting.noise", low=0)
    acting: str | None = setting(None, "option of the group acting while it collects; null: as the agent acts")
    collectors: int = setting(1, "processes that collect side by side", low=1, high=256)

    @property
    def rounds(self) -> int:
        """Number of rounds, the one before the first gradient step included."""
        return 1 + max(0, math.ceil((self.steps - self.start) / self.round))

    @property
    def round_updates(self) -> int:
        """Gradient steps of a round."""
        return max(1, round(self.round * self.updates))

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of all rounds."""
        return self.rounds * self.round_updates


@dataclass
class Config:
    """One run."""

    seed: int = setting(0, "seed of everything random", low=0)
    run_dir: str = setting(MISSING, "run folder", free=True)
    data_dir: str = setting("~/.ogbench/data", "folder of OGBench's official data sets", free=True)
    tuned: str | None = setting(
        None, "published settings that are applied, of configs/published/, e.g. fql/scene-play", free=True
    )
    init: InitConfig = setting(InitConfig, "weights that the run begins with")
    task: TaskConfig = setting(TaskConfig, "what is learned")
    agent: AgentConfig = setting(AgentConfig, "algorithm")
    encoder: EncoderConfig = setting(EncoderConfig, "way from observations to features")
    training: TrainingConfig = setting(TrainingConfig, "duration, evaluation, logging, hardware")
    online: OnlineConfig = setting(OnlineConfig, "fine-tuning in the task's simulator")
