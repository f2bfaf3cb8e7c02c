"""From a command line, or the folder of a run, to a checked `Config`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gtp_vision.agents import IMPROVEMENTS, acting_in, check_agent, improvement_settings, label, read_agent
from gtp_vision.config.presets import options, register
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.safe_yaml import plain_yaml
from gtp_vision.core.settings import check_settings, settings_of
from gtp_vision.encoders import CameraConfig, check_encoder

GROUPS = ("task", "agent", "improvement", "acting", "encoder", "training", "tuned")
COMMAND_LINE = "command line"
SEGMENTS = "segments"  # in config.yaml
_IMPROVEMENT = "agent.improvement"
_CAMERAS = "encoder.cameras"  # the only table whose keys the user chooses

# Untyped, since the settings of an improvement depend on its name; types are checked once all is merged.
ConfigStore.instance().store(name="schema", node=OmegaConf.to_container(OmegaConf.structured(Config)))
register()
OmegaConf.register_new_resolver("flat", lambda name: name.replace("/", "-"), replace=True)
OmegaConf.register_new_resolver("label", label, replace=True)


class Layer(NamedTuple):
    """Settings from one source (a file, preset or `command line`), without the keys that it does not set."""

    source: str
    values: dict[str, Any]

    def improvement(self) -> dict[str, Any]:
        """What the source sets of `agent.improvement`."""
        return dict(self.values.get("agent", {}).get("improvement", {}))


def from_command_line(overrides: Sequence[str]) -> Config:
    """Compose configs/config.yaml with Hydra's `key=value` overrides.

    Raises:
        GtpVisionError: a mistyped key or value (with the nearest right one), a missing task, a value out of range.
    """
    return copy.deepcopy(_composed(tuple(overrides)))


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    values: dict[str, Any] = {}
    for layer in layers(overrides):
        values = _merged(values, layer.values)
    try:
        return checked(_typed(values))
    except OmegaConfBaseException as error:
        raise GtpVisionError(_one_line(error)) from error


def layers(overrides: Sequence[str]) -> list[Layer]:
    """What sets which values, in the order in which they override each other: defaults, presets, command line.

    A layer that names another improvement replaces the settings of the one before.

    Raises:
        GtpVisionError: a mistyped key or choice, a missing task, a value that is not understood.
    """
    check_overrides(overrides)
    choices = tuple(override for override in overrides if override.partition("=")[0].lstrip("+") in GROUPS)
    try:
        found = copy.deepcopy(_presets(choices))
        parsed = _parser().parse_overrides([override for override in overrides if override not in choices])
    except (HydraException, OmegaConfBaseException) as error:
        raise GtpVisionError(_one_line(error)) from error
    # The name of an improvement comes first: it would replace the settings before it.
    for override in sorted(parsed, key=lambda override: override.key_or_group != f"{_IMPROVEMENT}.name"):
        if override.is_hydra_override() or override.is_sweep_override():
            raise GtpVisionError(f"'{override.input_line}' is for sweeps: add -m, or leave it out")
        found.append(Layer(COMMAND_LINE, _nested(_path(override.key_or_group), override.value())))
    improvement, first = "", 0
    for position, layer in enumerate(found):
        name = layer.improvement().get("name", improvement)
        if name != improvement:
            improvement, first = name, position
    for layer in found[:first]:
        layer.values.get("agent", {}).pop("improvement", None)
    for layer in found[first:]:
        if layer.source == COMMAND_LINE:
            _check_improvement(improvement, layer.improvement())
    return found


@cache
def _presets(choices: tuple[str, ...]) -> list[Layer]:
    """The presets that `group=option` overrides choose."""
    of_sweep = GlobalHydra.instance().hydra  # in a job of a sweep Hydra runs already
    GlobalHydra.instance().clear()
    with initialize_config_module("gtp_vision.configs", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    GlobalHydra.instance().hydra = of_sweep
    found = []
    for default in loader.compute_defaults_list("config", list(choices), RunMode.RUN).defaults:
        path, package = default.config_path, default.package
        if path.startswith("hydra/"):
            continue
        source = next(source for source in loader.get_sources() if source.is_config(path))
        content = OmegaConf.to_container(source.load_config(path).config)
        assert isinstance(content, dict)
        values = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
        name = f"{path}.yaml"
        if source.scheme() != "pkg":  # generated
            folder, _, option = path.partition("/")
            name = "default" if path == "schema" else f"{path} (generated)"
            name = f"published/{option.partition('/')[0]}.yaml" if folder == "tuned" else name
        found.append(Layer(name, _nested(package.split(".") if package else [], values)))
    return found


_parser = cache(OverridesParser.create)


def _nested(path: list[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(values[name], other) if isinstance(other, dict) and isinstance(values.get(name), dict) else other
        for name, other in others.items()
    }
    return {**values, **both}


def _check_improvement(name: str, keys: Mapping[str, Any]) -> None:
    known = [declared.name for declared in fields(improvement_settings(name))]
    for key, value in keys.items():
        if key not in known:
            raise GtpVisionError(
                f"{_IMPROVEMENT}.{key}={value}: improvement={name} has no setting '{key}': {propose(key, known)}"
            )


def _typed(stored: Any) -> Config:
    """A configuration from plain values; OmegaConfBaseException, ValueError or GtpVisionError if they are not one."""
    if not isinstance(stored, Mapping):
        raise ValueError("it holds no settings")
    agent, kept = read_agent(stored.get("agent"))
    own = stored if kept is None else {**stored, "agent": kept}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config(agent=agent)), own))
    assert isinstance(config, Config)
    return config


def from_run(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run folder, with `key=value` overrides of single settings.

    Raises:
        GtpVisionError: not a run folder, a configuration of another version, or an override that is refused.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise GtpVisionError(f"{folder} is not a run folder (it has no config.yaml); check the path")
    try:
        return checked(from_values(plain_yaml(path), path, overrides))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise _unfit(path, error) from error


def from_values(stored: Any, path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the untrusted plain values of the file `path`, not `checked`; else as `from_run`."""
    try:
        if isinstance(stored, dict):
            stored = {name: value for name, value in stored.items() if name != SEGMENTS}
            training = stored.get("training")
            if isinstance(training, dict) and training.get("precision") == "no":  # an earlier name
                stored["training"] = {**training, "precision": "float32"}
            for values in _single_settings(overrides):
                stored = _merged(stored, values)
        return _typed(stored)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise _unfit(path, error) from error


def _unfit(path: Path, error: BaseException) -> GtpVisionError:
    return GtpVisionError(
        f"{path} does not fit this version's configuration: {_one_line(error)}; train the run again, or use the "
        f"version that wrote it"
    )


def _single_settings(overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of overrides for a run that exists, whose presets were chosen when it was made."""
    for text in overrides:
        _check_override(text)
        if text.partition("=")[0].lstrip("+") in (*GROUPS, "run_dir"):
            raise GtpVisionError(
                f"'{text}' cannot change the run that is resumed; give single settings, e.g. training.steps=1000"
            )
    try:
        parsed = _parser().parse_overrides(list(overrides))
    except HydraException as error:
        raise GtpVisionError(_one_line(error)) from error
    for override in parsed:
        if override.is_hydra_override() or override.is_sweep_override():
            raise GtpVisionError(f"'{override.input_line}' is for sweeps; leave it out")
        yield _nested(_path(override.key_or_group), override.value())


def plain_values(config: Config) -> dict[str, Any]:
    """The whole configuration as nested plain values, which `from_values` reads."""
    values: Any = OmegaConf.to_container(OmegaConf.structured(config))
    return dict(values)


def to_yaml(config: Config, segments: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole configuration as YAML, which `from_run` reads, and the settings of earlier segments of the run.

    `segments` is a list of `start` (the steps before the segment) and `settings`, those that have changed, by key.
    """
    earlier = yaml.safe_dump({SEGMENTS: [*map(dict, segments)]}, sort_keys=False) if segments else ""
    return OmegaConf.to_yaml(OmegaConf.structured(config)) + earlier


def segments_in(folder: Path) -> list[dict[str, Any]]:
    """The segments in config.yaml of a run, see `to_yaml`; none if it is missing or damaged, or was never changed."""
    try:
        stored = plain_yaml(folder / "config.yaml")
    except (OSError, yaml.YAMLError, ValueError, RecursionError, GtpVisionError):
        return []
    found = stored.get(SEGMENTS) if isinstance(stored, dict) else None
    segments = [segment for segment in found if isinstance(segment, dict)] if isinstance(found, list) else []
    return [segment for segment in segments if isinstance(segment.get("settings"), dict)]


def checked(config: Config) -> Config:
    """The configuration as it is run. Raises GtpVisionError: the first value that is not allowed or does not fit."""
    check_settings(config)
    tuned_agent = (config.tuned or config.agent.name).partition("/")[0]
    if tuned_agent != config.agent.name:
        raise GtpVisionError(
            f"tuned={config.tuned} holds what was published for {tuned_agent}, and the agent is {config.agent.name}; "
            f"set agent={tuned_agent}, or tuned=none"
        )
    config = replace(config, encoder=check_encoder(config.encoder))
    if config.task.env is None:
        config = replace(config, training=replace(config.training, eval_episodes=0))
    check_agent(config.agent)
    if config.training.eval_steps is not None:
        check_agent(acting_in(config.agent, config.training.eval_steps), steps_key="training.eval_steps")
    for candidates in config.training.eval_candidates or ():
        try:
            check_agent(replace(config.agent, acting=replace(config.agent.acting, candidates=candidates)))
        except GtpVisionError as error:
            raise GtpVisionError(f"training.eval_candidates=[{candidates}] do not fit: {error}") from error
    for misfit in _misfits(config):
        raise GtpVisionError(misfit)
    return config


def _misfits(config: Config) -> Iterator[str]:
    task, agent, encoder, training = config.task, config.agent, config.encoder, config.training
    has_critic = agent.critic.backup != "none"
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
            f"{_IMPROVEMENT}.pretrain_steps={pretrain} must lie between 0 and training.steps={training.steps}: a "
            f"behaviour is cloned first and aligned then"
        )
    if agent.critic.chunk and task.n_step != agent.action_chunk:
        yield (
            f"agent.critic.chunk=true values whole chunks: task.n_step={task.n_step} must be "
            f"agent.action_chunk={agent.action_chunk}"
        )


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse a mistyped key or choice with the nearest right one, before Hydra sees it."""
    for override in overrides:
        _check_override(override)
    if not any(override.partition("=")[0].lstrip("+") == "task" for override in overrides):
        raise GtpVisionError(f"no task is given; add task=..., {propose('', options('task'))}")


def addable(override: str) -> str:
    """The override for Hydra's own sweeps, which refuse a key that no preset holds unless it begins with `++`."""
    is_open = override.lstrip("+").startswith((f"{_IMPROVEMENT}.", f"{_CAMERAS}."))
    return f"++{override.lstrip('+')}" if is_open else override


def _check_override(override: str) -> None:
    key, equals, value = override.partition("=")
    key = key.lstrip("+")
    if not equals:
        raise GtpVisionError(f"'{override}' is not a setting; write key=value, e.g. training.steps=1000")
    if key in GROUPS:
        for choice in value.strip("'\"").split(","):  # several in a sweep
            if choice not in options(key):
                raise GtpVisionError(f"there is no {key} '{choice}': {propose(choice, options(key))}")
        return
    known = ".".join("*" if under == 2 and key.startswith(f"{_CAMERAS}.") else n for under, n in enumerate(_path(key)))
    if known in _keys() or key.startswith(("hydra.", "hydra/launcher", "hydra/sweeper")):
        return
    name = key.rpartition(".")[2]
    moved = [known for known in _keys() if known.rpartition(".")[2] == name]  # agent.eta for agent.improvement.eta
    near = f"did you mean '{moved[0]}'?" if len(moved) == 1 else propose(key, _keys() | set(GROUPS))
    raise GtpVisionError(f"the configuration has no setting '{key}': {near}")


def _path(key: str) -> list[str]:
    """The names that lead to a setting; that of a camera may hold dots."""
    if not key.startswith(f"{_CAMERAS}."):
        return key.split(".")
    camera = key.removeprefix(f"{_CAMERAS}.")
    return [*_CAMERAS.split("."), *(camera.rsplit(".", 1))]


@cache
def _keys() -> frozenset[str]:
    """All settings; those of cameras with a star for the camera's name."""
    keys = {key for key, _, _ in settings_of(Config())}
    for improvement in IMPROVEMENTS.values():
        keys |= {key for key, _, _ in settings_of(improvement.Settings(), f"{_IMPROVEMENT}.")}
    return frozenset(keys | {f"{_CAMERAS}.*", *(f"{_CAMERAS}.*.{declared.name}" for declared in fields(CameraConfig))})


def _one_line(error: BaseException) -> str:
    """The first cause of a configuration error as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if "is not a ListConfig" in text:
        text = "this is a list; write it in brackets, key=[one,two]"
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {text}" if key and key not in text else text
