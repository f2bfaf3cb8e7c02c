"""The typed schema of everything under configs/, and how a command line becomes a Config."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gtp_vision.agents import AgentConfig, acting_in, check_agent, label
from gtp_vision.config.presets import options, register
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.safe_yaml import plain_yaml, whole_numbers
from gtp_vision.datasets.goals import GOALS
from gtp_vision.datasets.placement import PLACEMENTS
from gtp_vision.encoders import EncoderConfig, check_encoder, settings
from gtp_vision.models.networks import ACTIVATIONS

ENGINES = ("auto", "eager", "compile", "graph")
ON_NONFINITE = ("stop", "skip", "rollback")
GROUPS = ("task", "agent", "improvement", "acting", "encoder", "training", "tuned")


@dataclass
class TaskConfig:
    """What is learned and where it is tried.

    Attributes:
        name: short name, used in the run folder's path.
        env: environment name; also names the official data set. `robosuite`: what the robomimic file says of its own.
            Null: no simulator, nothing is evaluated.
        dataset: a data set; `demo` is the one this package carries; null is the official one in `data_dir`.
        datasets: instead of `dataset`, several data sets to be mixed.
        shares: of a batch, one for each of `datasets`; only their ratios count; null for equal ones.
        filter: only the episodes of this group of the file's own, e.g. robomimic's train; null for all.
        observations: only these observations, in this order; null for all.
        goals: `hindsight` tells every row what to reach: for agents without a critic a later frame of its episode; for
            the others, which learn from a reward of -1 until it is reached instead of the file's, any frame, in
            OGBench's shares for values. Null for no goals.
        frame_stack: frames an observation.
        n_step: steps of the return before it bootstraps.
        discount: gamma a step.
        reward_scale: factor on rewards.
        reward_shift: added to rewards before scaling.
        max_episode_steps: time limit in evaluation; null is the environment's own.
    """

    name: str = MISSING
    env: str | None = MISSING
    dataset: str | None = None
    datasets: list[str] | None = None
    shares: list[float] | None = None
    filter: str | None = None
    observations: list[str] | None = None
    goals: str | None = None
    frame_stack: int = 3
    n_step: int = 1
    discount: float = 0.99
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    max_episode_steps: int | None = None


@dataclass
class TrainingConfig:
    """How it is trained, evaluated and written down.

    Attributes:
        steps: gradient steps.
        batch_size: rows of a step, see `batch_per`.
        batch_per: whose rows `batch_size` counts: `global`, over all processes, so that their number changes nothing,
            or each `process`'s.
        learning_rate: of Adam, after warm-up.
        warmup_steps: steps of linear growth of the learning rate.
        schedule: constant or cosine (to 0 at the last step).
        clip_gradient: largest gradient norm; null for none.
        on_nonfinite: what happens at a loss or gradient that is not finite, see docs/health.md: stop, skip the step, or
            rollback to the last checkpoint and leave out the step that it was.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: newest checkpoints that are kept.
        eval_every: steps between two evaluations; 0 evaluates at the end only; the end is always evaluated.
        eval_episodes: episodes an evaluation; 0 never evaluates.
        eval_envs: environments side by side in each process; null is one a core, 8 at most.
        eval_timeout: seconds that a step or a reset of an environment may take in evaluations.
        eval_steps: K when acting in evaluations; null is the agent's.
        eval_candidates: numbers N with which every evaluation is made once more, acting by the best of N by Q; null for
            none.
        videos: episodes an evaluation that are filmed.
        probe_rows: rows of the data set that the encoder is looked at through, before, during and after training: how
            far its features drift, and what they tell of the recorded states; 0 for none.
        device: auto, cpu or cuda.
        placement: where the frames live: auto, device (all on the GPU) or mapped (shipped batch by batch).
        precision: of matrix products, see docs/performance.md: float32; tf32, in which GPUs multiply with 10 bits of
            mantissa; or bf16, in which moreover backbones compute. Sums, losses, targets and weights are float32.
        engine: how a step is run, see `gtp_vision.training.engines`: eager, compile, graph, or auto.
        seeds: how many runs are trained at once, with the seeds `seed`, `seed` + 1, ...
    """

    steps: int = 500_000
    batch_size: int = 256
    batch_per: str = "global"
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    clip_gradient: float | None = None
    on_nonfinite: str = "stop"
    log_every: int = 1000
    checkpoint_every: int = 10_000
    keep_checkpoints: int = 2
    eval_every: int = 100_000
    eval_episodes: int = 50
    eval_envs: int | None = None
    eval_timeout: float = 300.0
    eval_steps: int | None = None
    eval_candidates: list[int] | None = None
    videos: int = 4
    probe_rows: int = 1500
    device: str = "auto"
    placement: str = "auto"
    precision: str = "float32"
    engine: str = "auto"
    seeds: int = 1


@dataclass
class Config:
    """One run.

    Attributes:
        seed: of everything random.
        run_dir: where it goes.
        data_dir: where OGBench's official data sets lie.
        tuned: the published settings that were taken, of configs/tuned/, e.g. `fql/scene-play`; null for none.
        task: what is learned.
        agent: by which algorithm.
        encoder: from which features.
        training: for how long, how it is judged.
    """

    seed: int = 0
    run_dir: str = MISSING
    data_dir: str = "~/.ogbench/data"
    tuned: str | None = None
    task: TaskConfig = field(default_factory=TaskConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


_TINY = 1e-12  # stands for "above 0"
_MOST = 2**63  # whole numbers beyond are none of PyTorch's and NumPy's
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, math.inf),
    "task.frame_stack": (1, math.inf),
    "task.n_step": (1, math.inf),
    "task.discount": (0, 1),
    "task.max_episode_steps": (1, math.inf),
    "agent.action_chunk": (1, math.inf),
    "agent.tau": (0, 1),
    "agent.policy_tau": (0, 1),
    "agent.improvement.eta": (0, math.inf),
    "agent.improvement.weight_clip": (1, math.inf),
    "agent.improvement.value_samples": (1, math.inf),
    "agent.improvement.value_steps": (1, math.inf),
    "agent.improvement.bc_weight": (0, math.inf),
    "agent.improvement.q_weight": (0, math.inf),
    "agent.improvement.q_steps": (1, math.inf),
    "agent.improvement.distill_weight": (0, math.inf),
    "agent.improvement.distill_steps": (1, math.inf),
    "agent.improvement.alpha": (0, math.inf),
    "agent.improvement.beta": (_TINY, math.inf),
    "agent.improvement.support_actions": (2, math.inf),
    "agent.improvement.support_steps": (1, math.inf),
    "agent.improvement.guidance_scale": (0, math.inf),
    "agent.improvement.pretrain_steps": (0, math.inf),
    "agent.acting.steps": (1, math.inf),
    "agent.acting.candidates": (1, math.inf),
    "agent.acting.temperature": (_TINY, math.inf),
    "agent.acting.noise": (0, math.inf),
    "agent.acting.execute": (1, math.inf),
    "agent.acting.ensemble": (0, math.inf),
    "agent.policy.sigma_min": (_TINY, math.inf),
    "agent.policy.rho": (_TINY, math.inf),
    "agent.policy.sigma_data": (_TINY, math.inf),
    "agent.policy.grid": (2, math.inf),
    "agent.policy.lambda_flow": (0, math.inf),
    "agent.policy.zero_share": (0, 1),
    "agent.policy.input_gain": (_TINY, math.inf),
    "agent.policy.noise_draws": (1, math.inf),
    "agent.critic.members": (1, math.inf),
    "agent.critic.next_actions": (1, math.inf),
    "agent.critic.next_steps": (1, math.inf),
    "agent.critic.next_noise": (0, math.inf),
    "agent.critic.next_noise_clip": (0, math.inf),
    "agent.critic.next_penalty": (0, math.inf),
    "agent.critic.softmax_alpha": (0, math.inf),
    "agent.critic.expectile": (0, 1),
    "encoder.features": (1, math.inf),
    "encoder.level": (0, math.inf),
    "encoder.keypoints": (0, math.inf),
    "encoder.fusion_layers": (1, math.inf),
    "encoder.fusion_heads": (1, math.inf),
    "encoder.blocks": (1, math.inf),
    "encoder.decay": (_TINY, 1),
    "encoder.learning_rate_scale": (_TINY, math.inf),
    "encoder.unfreeze_step": (0, math.inf),
    "encoder.lora.rank": (1, math.inf),
    "encoder.lora.alpha": (_TINY, math.inf),
    "encoder.views": (1, math.inf),
    "encoder.augmentation.shift": (0, math.inf),
    "encoder.augmentation.shift_probability": (0, 1),
    "encoder.augmentation.brightness": (0, 1),
    "encoder.augmentation.contrast": (0, 1),
    "encoder.augmentation.saturation": (0, 1),
    "encoder.augmentation.hue": (0, 0.5),
    "encoder.augmentation.color_probability": (0, 1),
    "encoder.augmentation.blur": (0, math.inf),
    "encoder.augmentation.blur_probability": (0, 1),
    "encoder.augmentation.erase": (0, 1),
    "encoder.augmentation.erase_probability": (0, 1),
    "encoder.augmentation.warmup_steps": (0, math.inf),
    "training.steps": (1, math.inf),
    "training.batch_size": (1, math.inf),
    "training.learning_rate": (_TINY, math.inf),
    "training.warmup_steps": (0, math.inf),
    "training.clip_gradient": (_TINY, math.inf),
    "training.log_every": (1, math.inf),
    "training.checkpoint_every": (1, math.inf),
    "training.keep_checkpoints": (1, math.inf),
    "training.eval_every": (0, math.inf),
    "training.eval_episodes": (0, math.inf),
    "training.eval_envs": (1, math.inf),
    "training.eval_timeout": (_TINY, math.inf),
    "training.eval_steps": (1, math.inf),
    "training.videos": (0, math.inf),
    "training.probe_rows": (0, 10_000),
    "training.seeds": (1, 64),
}
_CHOICES: dict[str, Collection[str]] = {
    "task.goals": GOALS,
    "agent.policy.residual": ("plain", "phi"),
    "agent.policy.teacher": ("data", "model"),
    "agent.policy.activation": ACTIVATIONS,
    "agent.critic.activation": ACTIVATIONS,
    "encoder.stack": settings.STACKS,
    "encoder.pooling": settings.POOLINGS,
    "encoder.batch_norm": settings.BATCH_NORMS,
    "encoder.gradient": settings.GRADIENTS,
    "encoder.fusion": settings.FUSIONS,
    "encoder.tuning": settings.TUNINGS,
    "training.batch_per": ("global", "process"),
    "training.schedule": ("constant", "cosine"),
    "training.on_nonfinite": ON_NONFINITE,
    "training.device": ("auto", "cpu", "cuda"),
    "training.placement": PLACEMENTS,
    "training.engine": ENGINES,
    "training.precision": ("float32", "tf32", "bf16"),
}

ConfigStore.instance().store(name="schema", node=Config)
register()
OmegaConf.register_new_resolver("flat", lambda name: name.replace("/", "-"), replace=True)
OmegaConf.register_new_resolver("label", lambda agent: label(_agent(agent)), replace=True)


def from_command_line(overrides: Sequence[str]) -> Config:
    """Compose configs/config.yaml with Hydra's `key=value` overrides.

    Raises:
        GtpVisionError: a mistyped key or value (with the nearest right one), a missing task, a value out of range.
    """
    check_overrides(overrides)
    try:
        with initialize_config_module("gtp_vision.configs", version_base="1.3"):
            composed = compose("config", [_added(override) for override in overrides])
        return checked(OmegaConf.to_object(composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise GtpVisionError(_told(error)) from error


def from_run(folder: Path) -> Config:
    """The configuration that a run folder was made with.

    Raises:
        GtpVisionError: no run there, or a configuration of another version.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise GtpVisionError(f"{folder} is no run folder (no config.yaml in it); check the path")
    try:
        stored = OmegaConf.create(plain_yaml(path))
        if OmegaConf.select(stored, "training.precision") == "no":  # an earlier name
            stored.training.precision = "float32"
        return checked(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), stored)))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise GtpVisionError(
            f"{path} does not fit this version's configuration: {_told(error)}; train it anew, or use the version that "
            f"made it"
        ) from error


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, to be read back by `from_run`."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _agent(node: Any) -> AgentConfig:
    config = OmegaConf.to_object(node)
    assert isinstance(config, AgentConfig)
    return config


def checked(config: Any) -> Config:
    """The configuration itself, if every value is in its range.

    Raises:
        GtpVisionError: the first value that is not, with the range.
    """
    if not isinstance(config, Config):
        raise GtpVisionError("the configuration is empty")
    tuned_agent = (config.tuned or config.agent.name).partition("/")[0]
    if tuned_agent != config.agent.name:
        raise GtpVisionError(
            f"tuned={config.tuned} holds what was published for {tuned_agent}, and the agent is {config.agent.name}; "
            f"set agent={tuned_agent}, or tuned=none"
        )
    for key, number in whole_numbers(config):
        if not -_MOST < number < _MOST:
            raise GtpVisionError(f"{key} is a number of {number.bit_length()} bits; give one below 2^63")
    for key, (low, high) in _RANGES.items():
        value = attrgetter(key)(config)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            within = f"at least {low:g}" if high == math.inf else f"within [{low:g}, {high:g}]"
            raise GtpVisionError(f"{key}={value} must be {'finite' if value == math.inf else within}")
    for key, known in _CHOICES.items():
        value = attrgetter(key)(config)
        if value is not None and value not in known:
            raise GtpVisionError(f"{key}={value} is unknown: {propose(value, known)}")
    task = config.task
    if task.env is None:
        if not (task.dataset or task.datasets):
            raise GtpVisionError("task.env=null names no data set either; set task.dataset to a file or folder")
        config.training.eval_episodes = 0
    if task.dataset and task.datasets:
        raise GtpVisionError("task.dataset and task.datasets are both given; set task.dataset=null to mix the latter")
    if task.datasets is not None and not task.datasets:
        raise GtpVisionError("task.datasets=[] names no data set; name some, or set it to null")
    if task.shares is not None and (
        len(task.shares) != len(task.datasets or ()) or not all(0 < share < math.inf for share in task.shares)
    ):
        raise GtpVisionError(
            f"task.shares={task.shares} must hold a number above 0 for each of the {len(task.datasets or ())} "
            f"data sets in task.datasets"
        )
    if task.observations is not None and not task.observations:
        raise GtpVisionError("task.observations=[] leaves nothing to see; name observations, or set it to null")
    if task.goals is not None and config.agent.critic.backup != "none" and task.n_step != 1:
        raise GtpVisionError(
            f"task.n_step={task.n_step} does not fit task.goals={task.goals}, whose rewards are those of one step; set "
            f"task.n_step=1"
        )
    policy = config.agent.policy
    if not policy.sigma_min < policy.sigma_last < policy.sigma_max < math.inf:
        raise GtpVisionError(
            f"agent.policy: sigma_min={policy.sigma_min}, sigma_last={policy.sigma_last} and "
            f"sigma_max={policy.sigma_max} must be finite and grow in this order"
        )
    check_encoder(config.encoder)
    check_agent(config.agent)
    if config.training.eval_steps is not None:
        check_agent(acting_in(config.agent, config.training.eval_steps), steps_key="training.eval_steps")
    for candidates in config.training.eval_candidates or ():
        if candidates < 2:
            raise GtpVisionError(
                f"training.eval_candidates: {candidates} leaves nothing to choose from; name 2 or more"
            )
        try:
            check_agent(replace(config.agent, acting=replace(config.agent.acting, candidates=candidates)))
        except GtpVisionError as error:
            raise GtpVisionError(f"training.eval_candidates=[{candidates}] do not fit: {error}") from error
    if task.goals is not None and config.agent.critic.backup != "none" and task.discount == 1:
        raise GtpVisionError(
            "task.discount=1: goals of an agent with a critic are drawn at distances that the discount decides; set it "
            "below 1"
        )
    if config.encoder.gradient == "critic" and config.agent.critic.backup == "none":
        raise GtpVisionError(
            f"encoder.gradient=critic: agent={config.agent.name} has no critic, and the encoder would never be "
            f"trained; set it to both"
        )
    if config.encoder.unfreeze_step >= config.training.steps:
        raise GtpVisionError(
            f"encoder.unfreeze_step={config.encoder.unfreeze_step} must be below training.steps="
            f"{config.training.steps}, or the backbone is never trained; lower it, or set encoder.tuning=frozen"
        )
    pretrain = config.agent.improvement.pretrain_steps
    if config.agent.improvement.name == "alignment" and not 0 < pretrain < config.training.steps:
        raise GtpVisionError(
            f"agent.improvement.pretrain_steps={pretrain} must lie between 0 and training.steps="
            f"{config.training.steps}: a behaviour is cloned first and aligned then"
        )
    if config.agent.critic.chunk and task.n_step != config.agent.action_chunk:
        raise GtpVisionError(
            f"agent.critic.chunk=true values whole chunks: task.n_step={task.n_step} must be "
            f"agent.action_chunk={config.agent.action_chunk}"
        )
    for key in ("agent.policy.hidden", "agent.critic.hidden"):
        widths = attrgetter(key)(config)
        if not widths or min(widths) < 1:
            raise GtpVisionError(f"{key}={widths} must be one width of at least 1 or more")
    return config


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse a mistyped key or choice with the nearest right one, before Hydra sees it.

    Raises:
        GtpVisionError: the first mistake.
    """
    for override in overrides:
        _check_override(override)
    if not any(override.partition("=")[0].lstrip("+") == "task" for override in overrides):
        raise GtpVisionError(f"no task is given; add task=..., {propose('', options('task'))}")


def _check_override(override: str) -> None:
    key, equals, value = override.partition("=")
    key = key.lstrip("+~")
    if not equals:
        raise GtpVisionError(f"'{override}' is no setting; write key=value, e.g. training.steps=1000")
    if key in GROUPS:
        choice = value.strip("'\"")
        for one in choice.split(","):  # several in a sweep
            if one not in options(key):
                raise GtpVisionError(f"there is no {key} '{one}': {propose(one, options(key))}")
    elif _by_camera(key) not in _keys() and not key.startswith(("hydra.", *_HYDRA_GROUPS)):
        name = key.rpartition(".")[2]
        moved = [known for known in _keys() if known.rpartition(".")[2] == name]  # agent.eta for agent.improvement.eta
        near = f"did you mean '{moved[0]}'?" if len(moved) == 1 else propose(key, _keys() | set(GROUPS))
        raise GtpVisionError(f"there is no setting '{key}': {near}")


_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
_CAMERAS = "encoder.cameras"  # the one table whose keys the user names


def _by_camera(key: str) -> str:
    """The key with the camera's name, which may be any, replaced by a star."""
    under = key.removeprefix(f"{_CAMERAS}.")
    return key if under == key else f"{_CAMERAS}.*.{under.rpartition('.')[2]}" if "." in under else f"{_CAMERAS}.*"


def _added(override: str) -> str:
    """Hydra wants a plus before a key that no file holds, such as a camera's, and takes dots in it for levels."""
    key, _, value = override.removeprefix("+").partition("=")
    if key == _CAMERAS:
        return f"+{key}={value}"
    if not key.startswith(f"{_CAMERAS}."):
        return override
    camera = key.removeprefix(f"{_CAMERAS}.")
    name, _, setting = camera.rpartition(".")
    if setting in (known.name for known in fields(settings.CameraConfig)) and name:
        return f"+{_CAMERAS}={{{name}:{{{setting}:{value}}}}}"
    return f"+{_CAMERAS}={{{camera}:{value}}}"


@cache
def _keys() -> set[str]:
    def walk(node: Any, prefix: str) -> set[str]:
        found = set()
        if prefix == f"{_CAMERAS}.":
            own = {_CAMERAS, f"{_CAMERAS}.*"}
            return own | {f"{_CAMERAS}.*.{setting.name}" for setting in fields(settings.CameraConfig)}
        for name in node:
            here = f"{prefix}{name}"
            child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
            found |= walk(child, f"{here}.") if OmegaConf.is_dict(child) else {here}
        return found

    return walk(OmegaConf.structured(Config), "")


def _told(error: BaseException) -> str:
    """The first cause of a configuration error as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if "is not a ListConfig" in text:
        text = "this is a list; write it in brackets, key=[one,two]"
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {text}" if key and key not in text else text
