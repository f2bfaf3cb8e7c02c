"""Environments of the user: `gymnasium/MODULE:ID`, where importing MODULE registers ID with Gymnasium."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from dataclasses import replace

import gymnasium

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs import d4rl
from gtp_vision.envs.simulator import EnvSpec, Simulator

_NAME = re.compile(r"gymnasium/(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<id>.+)")
_PREFIX = "gymnasium/"


def make(spec: EnvSpec) -> gymnasium.Env:
    """Import the module, then make the environment as one of Gymnasium's own.

    Importing runs the module's code, so it must be trusted, like any code that is installed.

    Args:
        spec: of a dict observation only the entries in `shown` are taken; without `max_episode_steps`, the limit is the
            registered one.

    Raises:
        GtpVisionError: the module is missing or fails, the ID is not registered or has no time limit, or see
            `d4rl.make`.
    """
    name = spec.name
    wanted = _NAME.fullmatch(name)
    if wanted is None:
        raise GtpVisionError(f"task.env={name} must be gymnasium/MODULE:ID, e.g. gymnasium/my_robot:Reach-v0")
    _load(wanted["module"], name)
    if wanted["id"] not in gymnasium.registry:
        raise GtpVisionError(
            f"task.env={name}: importing {wanted['module']} registers no '{wanted['id']}': "
            f"{propose(wanted['id'], _registered(wanted['module']) or gymnasium.registry)}"
        )
    if spec.max_episode_steps is None and gymnasium.spec(wanted["id"]).max_episode_steps is None:
        raise GtpVisionError(
            f"task.env={name} is registered without max_episode_steps, so an episode may never end; register it "
            f"with one, or set task.max_episode_steps"
        )
    return _filter(d4rl.make(replace(spec, name=_PREFIX + wanted["id"])), spec.shown)


def _load(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise GtpVisionError(
                f"task.env={name}: the module '{error.name}' is missing; install its package, or set PYTHONPATH to its "
                f"folder"
            ) from error
        raise GtpVisionError(f"task.env={name}: importing {module} needs '{error.name}'; install it") from error
    except Exception as error:  # code that is not ours may raise anything
        message = (str(error).strip().splitlines() or [""])[0]
        raise GtpVisionError(
            f"task.env={name}: importing {module} raised {type(error).__name__} ({message}); fix it so that "
            f"python -c 'import {module}' works"
        ) from error


def _registered(module: str) -> list[str]:
    """The environments of a module's package."""
    package = module.partition(".")[0]
    modules = {
        name: spec.entry_point if isinstance(spec.entry_point, str) else getattr(spec.entry_point, "__module__", "")
        for name, spec in gymnasium.registry.items()
    }
    return [name for name, where in modules.items() if re.split(r"[.:]", where)[0] == package]


def _filter(env: gymnasium.Env, shown: Collection[str] | None) -> gymnasium.Env:
    space = env.observation_space
    if not isinstance(space, gymnasium.spaces.Dict) or not shown or not set(shown) < set(space):
        return env
    return gymnasium.wrappers.FilterObservation(env, sorted(shown))


OWN = Simulator("own", make, is_own=lambda name: name.startswith(_PREFIX) and ":" in name, packages=("gymnasium",))
