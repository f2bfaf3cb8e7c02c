"""Settings that are each in range and do not fit together."""

from __future__ import annotations

from collections.abc import Iterator

from gtp_vision.config.overrides import IMPROVEMENT
from gtp_vision.config.schema import Config, InitConfig, TaskConfig


def contradictions(config: Config) -> Iterator[str]:
    """A sentence for each setting that another one forbids: which, why, and what to set."""
    task, agent, encoder, training = config.task, config.agent, config.encoder, config.training
    has_critic = agent.critic.backup != "none"
    if "://" in config.run_dir:
        yield f"run_dir={config.run_dir} is an address, and a run is a folder; name one, e.g. where that is mounted"
    if config.init.source is None and config.init != InitConfig():
        yield "init.optimizer, init.refit and init.partial are of weights that init.source names; give --init RUN"
    if task.env is None and not (task.dataset or task.datasets):
        yield "task.env=null names no data set either; set task.dataset to a file or folder"
    if task.dataset and task.datasets:
        yield "task.dataset and task.datasets are both given; set task.dataset=null to mix the latter"
    if task.datasets is not None and not task.datasets:
        yield "task.datasets=[] names no data set; name some, or set it to null"
    if task.shares is not None and len(task.shares) != len(task.datasets or ()):
        yield (
            f"task.shares={task.shares} must hold a number above 0 for each of the {len(task.datasets or ())} data "
            f"sets in task.datasets"
        )
    if task.observations is not None and not task.observations:
        yield "task.observations=[] leaves nothing to see; name observations, or set it to null"
    if task.goals is not None and has_critic and task.n_step != 1:
        yield (
            f"task.n_step={task.n_step} does not fit task.goals={task.goals}, whose rewards are those of one step; set "
            f"task.n_step=1"
        )
    if task.goals is not None and has_critic and task.discount == 1:
        yield (
            "task.discount=1: goals of an agent with a critic are drawn at distances that the discount decides; set it "
            "below 1"
        )
    if task.random_goals and (task.goals is None or not has_critic):
        why = "task.goals is null" if task.goals is None else f"agent={agent.name} has no critic to say how"
        yield f"task.random_goals={task.random_goals:g} lets the policy reach any frame, and {why}; set it to 0"
    if task.text_encoder != TaskConfig.text_encoder and task.instructions != "text":
        yield (
            f"task.text_encoder={task.text_encoder} encodes the texts of tasks, and task.instructions="
            f"{task.instructions or 'null'} shows none; set task.instructions=text, or leave task.text_encoder out"
        )
    if encoder.gradient == "critic" and not has_critic:
        yield (
            f"encoder.gradient=critic: agent={agent.name} has no critic, so the encoder would never be trained; set it "
            f"to both"
        )
    if encoder.unfreeze_step >= training.steps:
        yield (
            f"encoder.unfreeze_step={encoder.unfreeze_step} must be below training.steps={training.steps}, or the "
            f"backbone is never trained; lower it, or set encoder.tuning=frozen"
        )
    pretrain = getattr(agent.improvement, "pretrain_steps", None)
    if pretrain is not None and not 0 < pretrain < training.steps:
        yield (
            f"{IMPROVEMENT}.pretrain_steps={pretrain} must lie between 0 and training.steps={training.steps}: a "
            f"behaviour is cloned first and aligned then"
        )
    if agent.clone_steps >= training.steps:
        yield (
            f"agent.clone_steps={agent.clone_steps} must be below training.steps={training.steps}, or the policy is "
            f"never improved; lower it, or take an agent that clones, e.g. agent=gtp_bc"
        )
    if agent.critic.chunk and task.n_step != agent.action_chunk:
        yield (
            f"agent.critic.chunk=true values whole chunks: task.n_step={task.n_step} must be "
            f"agent.action_chunk={agent.action_chunk}"
        )
    yield from _of_online(config)


def _of_online(config: Config) -> Iterator[str]:
    online, training = config.online, config.training
    if not online.steps:
        return
    if config.task.env is None:
        yield (
            f"online.steps={online.steps} collects in the task's simulator, and task.env is null; set task.env, or "
            f"online.steps=0"
        )
    if config.agent.critic.backup == "none":
        yield (
            f"online.steps={online.steps} learns from rewards, and agent={config.agent.name} has no critic; take one "
            f"that has, e.g. agent=gtp_ql"
        )
    if online.start > online.steps:
        yield f"online.start={online.start} must be at most online.steps={online.steps}, of which it is a part"
    if training.seeds > 1:
        yield (
            f"training.seeds={training.seeds}: seeds side by side share their data, and each would collect its own "
            f"with online.steps; train them one by one: -m seed=0,1"
        )
    if training.placement == "device":
        yield (
            "training.placement=device copies the data to the device once, and with online.steps they grow; set "
            "training.placement=mapped"
        )
