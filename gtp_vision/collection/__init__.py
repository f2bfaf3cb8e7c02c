"""Collection of demonstrations: seeded, in parallel processes, resumable, the recipe recorded in the file.

Five kinds: single tasks of OGBench solved by oracles (`single_task`), OGBench's data sets by its own recipes
(`ogbench`), robosuite's Lift by a scripted policy (`lift`), Meta-World's tasks by those of its package (`metaworld`),
and Gymnasium's tasks by SAC (`sac`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gtp_vision.collection import lift, metaworld, ogbench, oracles, sac, single_task
from gtp_vision.collection.ogbench_recipes import RECIPES
from gtp_vision.collection.recording import Execution
from gtp_vision.core.errors import GtpVisionError, propose

_RENDERING = {"shadow_size", "multisamples"}


def collect(
    env: str,
    out: Path,
    options: Mapping[str, Any],
    *,
    processes: int,
    command: str,
    progress: bool = True,
    overwrite: bool = False,
) -> str:
    """Collect a data set from OGBench, robosuite, Meta-World or Gymnasium, and return a summary of one sentence.

    `options` are those that were given, by the names of the keywords of each kind's `collect`.

    Raises:
        GtpVisionError: an environment that cannot be collected; an option that does not apply to it; see the kinds.
    """
    title, function, name = _kind(env)
    known = set(inspect.signature(function).parameters) - {"env", "out", "execution"}
    if not name.startswith("visual-") and (function is not metaworld.collect or options.get("states_only")):
        if known & _RENDERING & options.keys():
            title = f"states ({name})"
        known -= _RENDERING
    for option in options:
        if option not in known:
            raise GtpVisionError(
                f"--{option.replace('_', '-')} does not apply to {title}: leave it out; known are "
                f"{', '.join('--' + key.replace('_', '-') for key in sorted(known))}"
            )
    return function(name, out, **options, execution=Execution(processes, command, progress, overwrite))


def _kind(env: str) -> tuple[str, Callable[..., str], str]:
    """Title and function of the kind that collects an environment, and the environment's name in it."""
    if env.startswith("robosuite/"):
        return "robosuite", lift.collect, env.removeprefix("robosuite/")
    if env.startswith("metaworld/"):
        return "Meta-World", metaworld.collect, env.removeprefix("metaworld/")
    if env.startswith("gymnasium/"):
        return "Gymnasium's tasks by SAC", sac.collect, env.removeprefix("gymnasium/")
    name = env.removeprefix("ogbench/")
    if "singletask" in name.split("-"):
        return "single tasks", single_task.collect, name
    if name.removesuffix("-v0") in RECIPES:
        return "OGBench's own recipes", ogbench.collect, name
    raise GtpVisionError(
        f"'{env}' cannot be collected: {propose(name.removesuffix('-v0'), [*RECIPES, 'robosuite/Lift'])} Known are "
        f"OGBench's data sets by its recipes, {' and '.join(oracles.DEMONSTRATORS)} with a single task "
        f"(visual-puzzle-3x3-play-singletask-task1), robosuite/Lift, Meta-World's tasks "
        f"(metaworld/reach-v3), and Gymnasium's by SAC (gymnasium/Hopper-v4)"
    )


__all__ = ["collect"]
