"""From a command line, or the folder of a run, to a checked `Config`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gtp_vision.agents import ActingConfig, AgentConfig, acting_in, check_agent, improvement_settings, label, read_agent
from gtp_vision.config.contradictions import contradictions
from gtp_vision.config.overrides import GROUPS, IMPROVEMENT, check_override, check_overrides, parsed
from gtp_vision.config.presets import register
from gtp_vision.config.schema import Config, OnlineConfig
from gtp_vision.core.errors import GtpVisionError, causes, propose
from gtp_vision.core.safe_yaml import plain_yaml
from gtp_vision.core.settings import check_settings
from gtp_vision.encoders import check_encoder
from gtp_vision.encoders.weights import HUB

COMMAND_LINE = "command line"
SEGMENTS = "segments"  # in config.yaml
_KEPT = ("steps", "noise", "execute", "ensemble")  # settings of acting that do not choose among actions

# Untyped, since the settings of an improvement depend on its name; types are checked once all is merged.
ConfigStore.instance().store(name="schema", node=OmegaConf.to_container(OmegaConf.structured(Config)))
for _group in ("agent", "family", "improvement", "encoder"):
    register(_group)
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
    except (HydraException, OmegaConfBaseException) as error:
        raise GtpVisionError(_one_line(error)) from error
    # The name of an improvement comes first: it would replace the settings before it.
    single = parsed([override for override in overrides if override not in choices])
    for path, value in sorted(single, key=lambda setting: setting[0] != [*IMPROVEMENT.split("."), "name"]):
        found.append(Layer(COMMAND_LINE, _nested(path, value)))
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
                f"{IMPROVEMENT}.{key}={value}: improvement={name} has no setting '{key}': {propose(key, known)}"
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
            task = stored.get("task")
            if isinstance(task, dict) and "validation" not in task:  # an earlier version trained on all episodes
                stored["task"] = {**task, "validation": 0.0}
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


def derived(config: Config, path: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a new run with the settings of `config`, of the file or folder `path`, and overrides.

    An override `task.dataset` or `task.datasets` replaces the other one, and labels, which are of the data before.

    Raises:
        GtpVisionError: an override that is refused, or does not fit.
    """
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    for override in overrides:
        if override.partition("=")[0].lstrip("+") in GROUPS:
            raise GtpVisionError(
                f"'{override}' chooses a preset, and --init takes the settings of {path}; give single settings, or a "
                f"whole command with init.source={path} instead of --init"
            )
    values = plain_values(config)
    if "task.dataset" in keys:
        values["task"] |= {"datasets": None, "shares": None, "labels": None}
    elif "task.datasets" in keys:
        values["task"] |= {"dataset": None, "shares": None, "labels": None}
    try:
        for override in overrides:
            check_override(override)
        for names, value in parsed(overrides):
            values = _merged(values, _nested(names, value))
        return _typed(values)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise _unfit(path, error) from error


def _single_settings(overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of overrides for a run that exists, whose presets were chosen when it was made."""
    for override in overrides:
        check_override(override)
        key = override.partition("=")[0].lstrip("+")
        if key in (*GROUPS, "run_dir") or key.startswith("init."):
            raise GtpVisionError(
                f"'{override}' cannot change the run that is resumed; give single settings, e.g. training.steps=1000"
            )
    for path, value in parsed(overrides):
        yield _nested(path, value)


def acting_of(acting: ActingConfig, overrides: Sequence[str]) -> ActingConfig:
    """Settings of acting with overrides `acting=OPTION` and `agent.acting.KEY=VALUE`, later ones winning.

    An option replaces how an action is chosen, and keeps steps, the execution of chunks, and noise, but for options
    that choose among several actions: these set it to 1, since without noise all are the same.

    Raises:
        GtpVisionError: other overrides; an unknown option, key or value.
    """
    values = asdict(acting)
    for override in overrides:
        check_override(override)
        key, option = override.partition("=")[0], override.partition("=")[2].strip("'\"")
        if key == "acting":
            if option != "own":
                values = asdict(ActingConfig()) | {name: values[name] for name in _KEPT}
            for layer in _presets(("task=demo", override)):
                values |= layer.values["agent"]["acting"] if layer.source == f"acting/{option}.yaml" else {}
        elif key.startswith("agent.acting."):
            values |= {path[-1]: value for path, value in parsed([override])}
        else:
            raise GtpVisionError(f"'{override}' does not say how to act; give acting=... or agent.acting.KEY=...")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ActingConfig), values))
    except OmegaConfBaseException as error:
        raise GtpVisionError(f"{' '.join(overrides)}: {_one_line(error)}") from error
    assert isinstance(made, ActingConfig)
    return made


def best_of(candidates: int) -> list[str]:
    """The overrides for `acting_of` that choose the best of so many actions by Q."""
    return ["acting=best_of_n", f"agent.acting.candidates={candidates}"]


def acting_while_collecting(acting: ActingConfig, online: OnlineConfig) -> ActingConfig:
    """How the policy acts in the simulator: with noise also where evaluations take none, since its noise explores."""
    acting = acting_of(acting, [f"acting={online.acting}"]) if online.acting else acting
    return replace(acting, noise=online.noise)


def acting_with(config: AgentConfig, overrides: Sequence[str], *, steps: int | None = None) -> AgentConfig:
    """A trained agent that acts as `acting_of` says, in K = `steps` by the option --steps unless None.

    Raises:
        GtpVisionError: as `acting_of`, or an agent that cannot act so.
    """
    config = replace(config, acting=acting_of(config.acting, overrides))
    if steps is None:
        check_agent(config)
        return config
    check_agent(acting_in(config, steps), steps_key="--steps")
    return acting_in(config, steps)


def plain_values(config: Config) -> dict[str, Any]:
    """The whole configuration as nested plain values, which `from_values` reads."""
    return asdict(config)


def to_yaml(config: Config, segments: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole configuration as YAML, which `from_run` reads, and the settings of earlier segments of the run.

    `segments` is a list of `start` (the steps before the segment) and `settings`, those that have changed, by key.
    """
    earlier = yaml.safe_dump({SEGMENTS: [*map(dict, segments)]}, sort_keys=False) if segments else ""
    return OmegaConf.to_yaml(OmegaConf.create(plain_values(config))) + earlier


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
    config = _located(replace(config, encoder=check_encoder(config.encoder)))
    if config.task.env is None:
        config = replace(config, training=replace(config.training, eval_episodes=0))
    if config.online.steps:
        config = replace(config, training=replace(config.training, steps=config.online.gradient_steps))
    check_agent(config.agent)
    if config.training.eval_steps is not None:
        check_agent(acting_in(config.agent, config.training.eval_steps), steps_key="training.eval_steps")
    for candidates in config.training.eval_candidates or ():
        try:
            acting_with(config.agent, best_of(candidates))
        except GtpVisionError as error:
            raise GtpVisionError(f"training.eval_candidates=[{candidates}] do not fit: {error}") from error
    for option in config.training.eval_acting or ():
        try:
            acting_with(config.agent, [f"acting={option}"])
        except GtpVisionError as error:
            raise GtpVisionError(f"training.eval_acting=[{option}] does not fit: {error}") from error
    if config.online.steps or config.online.acting is not None:
        collecting = replace(config.agent, acting=acting_while_collecting(config.agent.acting, config.online))
        try:
            check_agent(collecting, noise_key="online.noise")
        except GtpVisionError as error:
            chosen = f"acting={config.online.acting}" if config.online.acting else f"noise={config.online.noise:g}"
            raise GtpVisionError(f"online.{chosen} does not fit: {error}") from error
    for sentence in contradictions(config):
        raise GtpVisionError(sentence)
    return config


def _located(config: Config) -> Config:
    """The configuration with paths that mean the same in every working folder; `~` is kept for other machines."""

    def located(path: str) -> str:
        is_kept = path == "demo" or os.path.expanduser(path) != path
        return path if is_kept else str(Path.cwd() / path)

    task, weights, init = config.task, config.encoder.weights, config.init
    return replace(
        config,
        init=replace(init, source=located(init.source) if init.source else init.source),
        run_dir=os.path.expanduser(config.run_dir),
        data_dir=located(config.data_dir),
        task=replace(
            task,
            dataset=located(task.dataset) if task.dataset else task.dataset,
            datasets=[located(name) for name in task.datasets] if task.datasets else task.datasets,
            labels=located(task.labels) if task.labels else task.labels,
        ),
        encoder=replace(config.encoder, weights=weights if weights in (None, HUB) else located(str(weights))),
    )


def _one_line(error: BaseException) -> str:
    """The first cause of a configuration error as one line."""
    chain = causes(error, implied=False)  # of omegaconf's own causes, which it shows to debuggers, the last is whole
    first = next((cause for cause in chain if isinstance(cause, OmegaConfBaseException)), chain[-1])
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    text = lines[0] if lines else type(first).__name__
    if "is not a ListConfig" in text:
        text = "this is a list; write it in brackets, key=[one,two]"
    if text.startswith("Interpolation key"):
        text += "; ${oc.env:NAME} is a variable of the environment"
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key:")), "")
    return f"{key}: {text}" if key and key not in text else text
