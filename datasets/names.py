"""Names chosen by the user (`task.features`): which array of a file is read under which name.

The names of rewards, actions and the like (`ROLES`) are looked up where a reader lists or opens members of a file, so
that a file with other names is recognized, too; names of observations are changed in the layout that a reader returns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.framing import FRAMES

Names = Mapping[str, str]
ROLES = frozenset(
    (
        *("action", "actions", "reward", "rewards", "terminals", "timeouts", "terminations", "truncations", "dones"),
        *("observations", "next_observations", "obs", "next_obs", "episode_ends", "success", "is_success"),
        *("next.reward", "next.done", "next.truncated", "next.success", "next.is_success"),
    )
)
"""What readers call arrays that are not one observation."""

_chosen: ContextVar[Names] = ContextVar("names", default={})  # noqa: B039 (never changed in place)


@contextmanager
def reading(features: Names | None) -> Iterator[None]:
    """Read files in the block with chosen names: name in the store to name in the file."""
    token = _chosen.set(features or {})
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> Names:
    """Return all chosen names: name in the store to name in the file."""
    return _chosen.get()


def source(name: str) -> str:
    """Return the name in the file, or the path below a group, of what a reader calls `name`."""
    return chosen().get(name, name) if name in ROLES else name


def listed(members: Iterable[str]) -> list[str]:
    """Return what a reader finds in a group: its members, of which some have chosen names."""
    members = list(members)
    held = {name: member for name, member in chosen().items() if name in ROLES and member.split("/")[0] in members}
    return [*held, *(member for member in members if member not in {*held, *held.values()})]


def key() -> list[str]:
    """Return what the key of a result in the cache needs beside others: nothing if no names are chosen."""
    return [repr(sorted(chosen().items()))] if chosen() else []


def missing(name: str, path: Path | str, members: Collection[str]) -> GtpVisionError:
    """Return the error about a chosen array that a file, or a group of it, does not have."""
    return GtpVisionError(
        f"{path} has no '{chosen()[name]}', which task.features reads as '{name}': {propose(chosen()[name], members)}"
    )


def renamed(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a layout with the chosen names of observations.

    In the file, an observation may have a longer name: `obs/front`, `observation.images.front`.

    Raises:
        GtpVisionError: a chosen observation is missing, or its name cannot be one.
    """
    prefix, arrays = "observations/", found["arrays"]
    held = {name.removeprefix(prefix) for name in arrays if name.startswith(prefix)}
    wanted = {}
    for name, member in chosen().items():
        if name in ROLES:
            continue
        if not name or "/" in name or not name.isprintable() or name in (".", ".."):
            raise GtpVisionError(f"task.features reads '{member}' as '{name}', which cannot be a name; choose another")
        whole = f"/{member}".replace(".", "/")
        ends = sorted((end for end in held if whole.endswith(f"/{end}".replace(".", "/"))), key=len)
        if not ends:
            raise missing(name, path, held)
        wanted[prefix + ends[-1]] = prefix + name
    kept = {name: entry for name, entry in arrays.items() if name in wanted or name not in wanted.values()}
    listed = [wanted.get(prefix + name, prefix + name) for name in depth.cameras(found["attributes"])]
    attributes = found["attributes"] | depth.attribute(name.removeprefix(prefix) for name in listed)
    if FRAMES in attributes:
        frames = attributes[FRAMES]
        attributes[FRAMES] = frames | {
            kind: {wanted.get(prefix + name, prefix + name).removeprefix(prefix): x for name, x in frames[kind].items()}
            for kind in ("recorded", "sizes")
        }
    renamed_arrays = {wanted.get(name, name): entry for name, entry in kept.items()}
    return found | {"arrays": renamed_arrays, "attributes": attributes}
