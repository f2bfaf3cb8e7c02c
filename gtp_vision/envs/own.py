"""Environments of the user's own: `gymnasium/MODULE:ID`, whose module registers the ID with Gymnasium when imported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping

import gymnasium

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.envs import d4rl

_NAME = re.compile(r"gymnasium/(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<id>.+)")
_PREFIX = "gymnasium/"


def knows(name: str) -> bool:
    """Whether an environment's name says which module registers it, or tries to."""
    return name.startswith(_PREFIX) and ":" in name


def make(
    name: str,
    shown: Mapping[str, tuple[int, ...]] | None,
    *,
    max_episode_steps: int | None = None,
    goals: bool = False,
) -> gymnasium.Env:
    """Import the module, then make the environment as those of Gymnasium's own: actions are brought to [-1, 1].

    Importing runs the module's code, so it must be the user's own or one that is trusted, like any that is installed.

    Args:
        name: `gymnasium/MODULE:ID`, e.g. `gymnasium/my_robot:Reach-v0`.
        shown: names of what the data set holds; of an environment that shows more by name, only these are taken. None
            takes all.
        max_episode_steps: time limit; None takes the one that it was registered with.
        goals: refused, as for all of Gymnasium's.

    Raises:
        GtpVisionError: a module that is not there or fails, an ID that it does not register, no time limit, or what
            `d4rl.make` refuses.
    """
    wanted = _NAME.fullmatch(name)
    if wanted is None:
        raise GtpVisionError(f"task.env={name} must be gymnasium/MODULE:ID, e.g. gymnasium/my_robot:Reach-v0")
    _load(wanted["module"], name)
    if wanted["id"] not in gymnasium.registry:
        raise GtpVisionError(
            f"task.env={name}: importing {wanted['module']} registers no '{wanted['id']}': "
            f"{propose(wanted['id'], _registered(wanted['module']) or gymnasium.registry)}"
        )
    if max_episode_steps is None and gymnasium.spec(wanted["id"]).max_episode_steps is None:
        raise GtpVisionError(
            f"task.env={name} is registered without max_episode_steps, and an episode might never end; register it "
            f"with one, or set task.max_episode_steps"
        )
    env = d4rl.make(_PREFIX + wanted["id"], max_episode_steps=max_episode_steps, goals=goals)
    return _showing(env, shown)


def _load(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise GtpVisionError(
                f"task.env={name}: there is no module '{error.name}'; install its package, or set PYTHONPATH to the "
                f"folder that it lies in"
            ) from error
        raise GtpVisionError(f"task.env={name}: importing {module} needs '{error.name}'; install it") from error
    except Exception as error:  # anything may go wrong in code that is not ours
        told = (str(error).strip().splitlines() or [""])[0]
        raise GtpVisionError(
            f"task.env={name}: importing {module} raised {type(error).__name__} ({told}); mend it so that "
            f"python -c 'import {module}' works"
        ) from error


def _registered(module: str) -> list[str]:
    """The environments of a module's package."""
    package = module.partition(".")[0]
    places = {
        name: spec.entry_point if isinstance(spec.entry_point, str) else getattr(spec.entry_point, "__module__", "")
        for name, spec in gymnasium.registry.items()
    }
    return [name for name, place in places.items() if re.split(r"[.:]", place)[0] == package]


def _showing(env: gymnasium.Env, shown: Collection[str] | None) -> gymnasium.Env:
    space = env.observation_space
    if not isinstance(space, gymnasium.spaces.Dict) or not shown or not set(shown) < set(space):
        return env
    return gymnasium.wrappers.FilterObservation(env, sorted(shown))
