"""Likely mistakes in a data set that is valid: constant sensors, terminals at time limits, stuck cameras, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import psutil

from gtp_vision.core.names import ANSWERS
from gtp_vision.core.units import in_units
from gtp_vision.datasets import time_stamps
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.scaling import Bounds, bounds_of
from gtp_vision.datasets.statistics import ArrayStatistics
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import SCALE, location

_TIME = re.compile(r"(.*_)?(time|times|time_?stamps?|stamps?|secs|seconds)")  # names of states that are times
_ROWS = 1 << 18  # read together, so that a mapped file is streamed
_CAMERA_BYTES = 1 << 25  # read of each camera for one check
_PAIRS = (16, 512)  # least and most neighboring frames that are compared
_IDENTICAL = 0.1  # share of identical neighbors above which a camera is reported as stuck
_NOISE_SIDE = 16  # pixels
_NOISE_STEP = 16  # mean step between neighboring pixels, below which a frame is rather dark than noise
_UNRELATED = 0.5  # correlation; of colors in photographs and renderings it is higher
_AT_LIMIT = 0.999  # magnitude from which an action counts as clipped
_SATURATED = 0.5  # share of clipped actions above which it is reported
_FEW_VALUES = 3  # of a dimension that is a switch (a gripper): its limits are its values
_TINY = 0.1  # magnitude below which actions use a tenth of their range
_WIDE = 3072  # numbers in a 32x32 image: a state so wide is an image
_BATCH, _STACK = 256, 3  # training's defaults
_SHORT = 0.1  # of the median length


def pitfalls(store: Store, statistics: Mapping[str, ArrayStatistics], *, rewarded: bool = True) -> list[str]:
    """Return each kind of likely mistake in a valid store as a sentence: array, place and what to do.

    States without statistics (`observations/<name>`) are not checked, and rewards only if `rewarded`.
    """
    found = [*(_rewards(store) if rewarded else ()), *_terminals(store), *_short_episodes(store)]
    for name, numbers in statistics.items():
        found += _constant(name, numbers, bounds_of(store) if name == "actions" else None)
    found += _actions(store, statistics["actions"])
    for name, array in store.observations.items():
        found += _camera(name, array, store) if array.ndim == 4 else _wide(name, array)
    of_stores = (_same_cameras, _time_stamps, _unseen_ends, _left_out, _missing, _batch)
    return [*found, *(said for report in of_stores for said in report(store))]


def last_outcomes(store: Store) -> np.ndarray:
    """Return int64 (<= E,), the last row with an outcome of each episode that has one."""
    return store.last_outcomes[store.last_outcomes >= store.episode_starts]


def _rewards(store: Store) -> Iterator[str]:
    rewards, sampled = np.asarray(store.rewards), np.asarray(store.rewards[store.transitions])
    first = float(sampled[0])
    if not rewards.any():
        advice = "train by imitation (agent=gtp_bc)"
        if store.attributes.get("suite") == "ogbench":
            advice += " or name a task with --env NAME-singletask-v0"
        yield f"rewards are 0 everywhere, so there is nothing to reinforce; {advice}"
    elif not sampled.any():
        row = int(np.flatnonzero(rewards)[0])
        yield (
            f"only rows whose action has no outcome have rewards other than 0, first at {location(store, row)}, and "
            f"these rows are never sampled; mark them as terminals if the task ended there, or move all rewards up by "
            f"one row if each belongs to the action of the row before"
        )
    elif (sampled == first).all() and not np.any(store.terminals):
        yield (
            f"rewards are {first:g} everywhere and no row is a terminal, so no action is better than another; mark "
            f"successes and failures, or train by imitation (agent=gtp_bc)"
        )


def _terminals(store: Store) -> Iterator[str]:
    terminals = np.asarray(store.terminals, bool)
    share = float(terminals.mean())
    if share > 0.5:
        yield (
            f"terminals are set in {share:.0%} of the rows, first at {location(store, int(np.argmax(terminals)))}; a "
            f"terminal is 1 where the MDP ended: check that it is not the mask, which is 1 where it did not"
        )
        return
    lengths = np.diff(store.episode_ends, prepend=0)
    if store.episodes < 2 or not terminals[last_outcomes(store)].all():
        return
    if lengths[0] > 1 and (lengths == lengths[0]).all():
        yield (
            f"all {store.episodes} episodes end in a terminal after {lengths[0]} frames; if that is a time limit, mark "
            f"the ends as timeouts, or the value of what follows is learned as 0"
        )
        return
    rewards = np.asarray(store.rewards)
    if rewards[terminals].min() <= rewards[~terminals].max(initial=-np.inf):  # else the rewards mark successes
        yield (
            f"all {store.episodes} episodes end in a terminal and none in a timeout; where only the recording stopped, "
            f"mark the end as a timeout, or the value of what follows is learned as 0"
        )


def _short_episodes(store: Store) -> Iterator[str]:
    lengths = np.diff(store.episode_ends, prepend=0)
    empty = np.flatnonzero((lengths == 1) & ~store.has_outcome[store.episode_starts])
    if len(empty):
        yield (
            f"{len(empty)} of {store.episodes} episodes have one frame and no outcome, first episode {empty[0]}; "
            f"nothing is sampled from them: leave them out"
        )
    limit = _SHORT * float(np.median(lengths))
    short = np.setdiff1d(np.flatnonzero(lengths < limit), empty)
    if len(short):
        yield (
            f"{len(short)} of {store.episodes} episodes are shorter than a tenth of the median, first episode "
            f"{short[0]} with {lengths[short[0]]} frames; leave them out if the recorder was interrupted"
        )


def _constant(name: str, numbers: ArrayStatistics, bounds: Bounds | None) -> Iterator[str]:
    """Report near-constant dimensions, with their values in the units of the file, whose `bounds` are -1 and 1."""
    if not numbers.constant:
        return
    medians = np.asarray(numbers.quantiles["0.5"])
    medians = medians if bounds is None else in_units(medians, *bounds)
    values = ", ".join(f"{medians[dimension]:.4g}" for dimension in numbers.constant[:4])
    more = ", ..." if len(numbers.constant) > 4 else ""
    advice = (
        "a policy learns these values and no motion: record it moving if it has to move"
        if name == "actions"
        else "check that the sensor was recorded"
    )
    yield f"{name}: nearly constant in {_dimensions(numbers.constant)} (about {values}{more}); {advice}"


def _actions(store: Store, numbers: ArrayStatistics) -> Iterator[str]:
    extent = np.maximum(np.abs(numbers.min), np.abs(numbers.max))
    tiny = np.setdiff1d(np.flatnonzero(extent < _TINY), numbers.constant).tolist()
    if tiny:
        yield (
            f"actions stay within {extent[tiny].max():.2g} of 0 in {_dimensions(tiny)}, far below the policy's noise "
            f"of size 1; {SCALE}"
        )
    if ANSWERS in store.attributes:  # a policy's actions end at -1 and 1
        return
    at_limit = np.zeros(store.action_dim)
    for start in range(0, len(store), _ROWS):
        at_limit += (np.abs(np.asarray(store.actions[start : start + _ROWS])) >= _AT_LIMIT).sum(0)
    often = np.setdiff1d(np.flatnonzero(at_limit > _SATURATED * len(store)), numbers.constant)
    clipped = [dimension for dimension in often.tolist() if _distinct_values(store, dimension) > _FEW_VALUES]
    if clipped:
        share = at_limit[clipped].max() / len(store)
        yield (
            f"actions are at -1 or 1 in {share:.0%} of the rows in {_dimensions(clipped)}; check that they were not "
            f"clipped when they were recorded; if they were, record them again in their own units, and {SCALE}"
        )


def _distinct_values(store: Store, dimension: int) -> int:
    """Count the distinct values of a sample of the actions in a dimension."""
    rows = np.linspace(0, len(store) - 1, min(len(store), 4096)).astype(np.int64)
    return len(np.unique(np.asarray(store.actions[rows])[:, dimension]))


def _wide(name: str, array: Array) -> Iterator[str]:
    if array.shape[1] >= _WIDE:
        yield (
            f"observations/{name} is a state of {array.shape[1]} numbers; if it is an image, store it as uint8 "
            f"(H, W, C), or no encoder is used for it"
        )


def _camera(name: str, frames: Array, store: Store) -> Iterator[str]:
    """Check a sample of a camera's frames for blank frames, for frames never drawn, and for a camera that is stuck."""
    shape = frames.shape[1:]
    size = max(1, int(np.prod(shape, dtype=np.int64)))
    count = int(np.clip(_CAMERA_BYTES // (2 * size), *_PAIRS))
    rows = np.linspace(0, len(store) - 1, min(len(store), count)).astype(np.int64)
    blank, black = [], True
    for row in rows:
        frame = frames[row]
        if frame.min() == frame.max():
            blank.append(int(row))
            black &= not frame.max()
    if blank:
        yield (
            f"observations/{name} is blank in {len(blank)} of {len(rows)} sampled frames, first at "
            f"{location(store, blank[0])} (all {'black' if black else 'one color'}); check the camera and leave those "
            f"episodes out"
        )
    rows = np.setdiff1d(rows, [*blank, *(store.episode_ends - 1)])
    stuck, noise = [], []
    for row in rows.tolist():
        frame, following = np.asarray(frames[row]), np.asarray(frames[row + 1])
        if np.array_equal(frame, following):
            stuck.append(row)
        elif _is_noise(frame, following):
            noise.append(row)
    if noise:
        yield (
            f"observations/{name} is noise in {len(noise)} of {len(rows)} sampled frames, first at "
            f"{location(store, noise[0])}, as where a renderer lost its OpenGL context and drew nothing; record those "
            f"episodes again"
        )
    if len(stuck) > _IDENTICAL * len(rows):
        yield (
            f"observations/{name} is the same as in the next frame in {len(stuck)} of {len(rows)} sampled frames, "
            f"first at {location(store, stuck[0])}; check that the camera is not stuck or slower than the actions"
        )
        return
    static = list(_static_episodes(frames, store, max(1, count // 3)))
    if static:
        yield (
            f"observations/{name} is the same in the first, middle and last frame of {len(static)} sampled episodes, "
            f"the first is episode {static[0]}; leave them out if the camera was stuck"
        )


def _is_noise(frame: np.ndarray, following: np.ndarray) -> bool:
    """Whether a frame's neighboring pixels, its colors and the frame after it have hardly anything in common.

    A frame of uninitialized memory is such. Textures like grass or gravel are not: their colors go together, and they
    stay where the camera does. Frames (H, W, C) of fewer than three colors or 16 pixels a side are not judged.
    """
    height, width, colors = frame.shape
    if colors < 3 or min(height, width) < _NOISE_SIDE:
        return False
    pixels = frame.astype(np.float32)
    if np.abs(np.diff(pixels, axis=1)).mean() < _NOISE_STEP:
        return False
    later = following.astype(np.float32)
    pixels -= pixels.mean((0, 1))
    pixels /= np.maximum(pixels.std((0, 1)), 1)
    pairs = (
        (pixels[:, 1:], pixels[:, :-1]),
        (pixels[1:], pixels[:-1]),
        (pixels[..., 1:], pixels[..., :-1]),
        (pixels, later - later.mean((0, 1))),
    )
    return all(abs(_correlation(a, b)) < _UNRELATED for a, b in pairs)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).mean() / max(np.sqrt((a * a).mean() * (b * b).mean()), 1e-6))


def _static_episodes(frames: Array, store: Store, count: int) -> Iterator[int]:
    """Yield those of `count` episodes (three frames or more) whose first, middle and last frame are the same."""
    long = np.flatnonzero(np.diff(store.episode_ends, prepend=0) >= 3)
    for episode in long[np.linspace(0, len(long) - 1, min(len(long), count)).astype(np.int64)].tolist():
        first, last = int(store.episode_starts[episode]), int(store.episode_ends[episode]) - 1
        rows = (first, (first + last) // 2, last)
        if all(np.array_equal(frames[a], frames[b]) for a, b in pairwise(rows)) and np.ptp(frames[first]):
            yield episode


def _same_cameras(store: Store) -> Iterator[str]:
    """Report cameras with the same images: one camera was recorded under two names."""
    rows = np.linspace(0, len(store) - 1, min(len(store), 4)).astype(np.int64)
    names: dict[bytes, str] = {}
    for name, frames in store.observations.items():
        if frames.ndim != 4:
            continue
        sample = np.asarray(frames[rows])
        other = names.setdefault(sample.tobytes(), name) if np.ptp(sample) else name
        if other != name:
            yield (
                f"observations/{name} has the same images as observations/{other}; check which one was recorded twice"
            )


def _time_stamps(store: Store) -> Iterator[str]:
    """Report time stamps that do not fit: those that the reader found, and states that are named as times."""
    notes = store.attributes.get("time_stamps")
    yield from (str(note) for note in notes) if isinstance(notes, list) else ()
    for name, array in store.observations.items():
        if array.ndim == 2 and array.shape[1] == 1 and _TIME.fullmatch(name.lower()):
            found = time_stamps.misfit(np.asarray(array)[:, 0], store.episode_starts)
            if found:
                yield (
                    f"observations/{name}: {found[0]}, if these are time stamps; check that no rows were lost or "
                    f"recorded twice: a policy takes each row for one step"
                )


def _unseen_ends(store: Store) -> Iterator[str]:
    """Report a D4RL file whose only sign of an episode's end is the terminals."""
    if store.attributes.get("suite") == "d4rl" and store.attributes.get("episode_ends") == "terminals":
        yield (
            "without timeouts and next_observations only terminals end episodes, so interruptions of the recording "
            "cannot be found and transitions may cross them; add 'timeouts', or name the environment with --env if it "
            "has a time limit"
        )


def _left_out(store: Store) -> Iterator[str]:
    """Report observations that the reader left out."""
    names = store.attributes.get("left_out")
    if isinstance(names, list) and names:
        listed = ", ".join(str(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")
        yield (
            f"not read: {listed}, which are text, sound, images not of uint8, or numbers that may not be states; write "
            f"images as uint8, and name LeRobot's numbers in task.features (--features NAME=NAME_IN_FILE)"
        )


def _batch(store: Store) -> Iterator[str]:
    """Report cameras of which a batch, as floats, takes more than half of the memory."""
    pixels = sum(int(np.prod(array.shape[1:])) for array in store.observations.values() if array.ndim == 4)
    needed, memory = 4 * 2 * _BATCH * _STACK * pixels, psutil.virtual_memory().total
    if needed > memory / 2:
        yield (
            f"{_BATCH} rows of {_STACK} stacked frames with their next ones take {needed / 1e9:.3g} GB as floats, of "
            f"{memory / 1e9:.3g} GB of memory; set task.image_size to smaller frames, e.g. task.image_size=96x128, or "
            f"training.batch_size and task.frame_stack to less"
        )


def _missing(store: Store) -> Iterator[str]:
    """Report arrays of which parts are not in the file."""
    found = store.attributes.get("missing_chunks")
    for name, said in found.items() if isinstance(found, dict) else ():
        yield f"{name}: {said}; if they held other values, the copy is not complete: copy the data set again"


def _dimensions(numbers: Sequence[int]) -> str:
    """Return `dimension 3` or `dimensions 3 and 5`, with at most twelve numbers."""
    named = [str(number) for number in numbers[:12]]
    if len(numbers) > 12:
        return f"dimensions {', '.join(named)} and {len(numbers) - 12} more"
    return f"dimension {named[0]}" if len(named) == 1 else f"dimensions {', '.join(named[:-1])} and {named[-1]}"
