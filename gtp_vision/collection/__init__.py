"""Collecting demonstrations: seeded, in parallel processes, resumable, the recipe recorded in the file.

Four kinds: single tasks of OGBench solved by a wandering oracle (`single_task`), OGBench's data sets by its own
recipes (`official`), robosuite's Lift by a scripted policy (`lift`), and Gymnasium's tasks by SAC (`sac`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_vision.collection import lift, ogbench, oracles, sac, single_task
from gtp_vision.collection.ogbench_recipes import RECIPES
from gtp_vision.core.errors import GtpVisionError, propose

_RENDERING = frozenset({"shadow_size", "multisamples"})


@dataclass(frozen=True)
class _Kind:
    """A way of collecting: what people call it, what does it, and the options that it knows."""

    title: str
    collect: Callable[..., str]
    options: frozenset[str]


_SINGLE_TASK = _Kind(
    "single tasks",
    single_task.collect,
    frozenset({"episodes", "seed", "expert", "noise", "wander", "limit", "compress"}),
)
_OFFICIAL = _Kind("OGBench's own recipes", ogbench.collect, frozenset({"episodes", "seed", "limit"}))
_LIFT = _Kind(
    "robosuite", lift.collect, frozenset({"episodes", "seed", "noise", "limit", "cameras", "size", "states_only"})
)

_SAC = _Kind("Gymnasium's tasks by SAC", sac.collect, frozenset({"policy", "steps", "medium_steps", "sets", "seed"}))


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
    """Collect a data set.

    Args:
        env: `ogbench/NAME` or `NAME`, a single-task environment or a data set of OGBench; `robosuite/Lift`; or
            `gymnasium/NAME`.
        out: the file to be, or the folder of OGBench's and Gymnasium's.
        options: those that were given, by the names of the keywords of the kinds' own `collect`.
        processes: worker processes.
        command: the command line, recorded in the file.
        progress: show a bar.
        overwrite: replace what stands there already.

    Returns:
        What was recorded, a sentence.

    Raises:
        GtpVisionError: nothing demonstrates this environment; an option that does not apply to it; see the kinds.
    """
    kind, name = _kind_of(env)
    known = kind.options
    if kind not in (_LIFT, _SAC) and name.startswith("visual-"):
        known |= _RENDERING
    for option in options:
        if option not in known:
            states = option in _RENDERING and kind not in (_LIFT, _SAC)
            raise GtpVisionError(
                f"--{option.replace('_', '-')} does not apply to {f'states ({name})' if states else kind.title}: "
                f"leave it out; known are {', '.join('--' + each.replace('_', '-') for each in sorted(known))}"
            )
    return kind.collect(
        name, out, **options, processes=processes, command=command, progress=progress, overwrite=overwrite
    )


def _kind_of(env: str) -> tuple[_Kind, str]:
    if env.startswith("robosuite/"):
        return _LIFT, env.removeprefix("robosuite/")
    if env.startswith("gymnasium/"):
        return _SAC, env.removeprefix("gymnasium/")
    name = env.removeprefix("ogbench/")
    if "singletask" in name.split("-"):
        return _SINGLE_TASK, name
    if name.removesuffix("-v0") in RECIPES:
        return _OFFICIAL, name
    raise GtpVisionError(
        f"'{env}' cannot be collected: {propose(name.removesuffix('-v0'), [*RECIPES, 'robosuite/Lift'])} Known are "
        f"OGBench's data sets by its recipes, {' and '.join(oracles.DEMONSTRATORS)} with a single task "
        f"(visual-puzzle-3x3-play-singletask-task1), robosuite/Lift, and Gymnasium's tasks by SAC (gymnasium/Hopper-v4)"
    )


__all__ = ["collect"]
