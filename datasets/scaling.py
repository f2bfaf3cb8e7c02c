"""Scaling of actions: a policy's -1 and 1 are numbers in the units of the file, one pair for each dimension.

Readers return actions in the file's units. A store is *scaled* if it has the attributes `action_low` and `action_high`:
its actions then lie in [-1, 1], and low + (action + 1) / 2 (high - low) is the file's, whoever acts: an evaluation, an
artifact, its graphs, a robot. `action_space`, which a reader may add, holds the bounds that the recorder declares.

    mode      -1 and 1 are
    minmax    least and largest action
    quantile  quantiles 1 % and 99 %; of fewer than 100 rows, and of a dimension that rests in 98 % of them, as minmax
    meanstd   mean - 3 deviations, mean + 3 deviations
    auto      what the file is scaled to, or declares; nothing is changed within [-1, 1]; else `quantile`
    none      -1 and 1: the actions stay as they are

In every mode a dimension of two values (a gripper) has these at -1 and 1, a constant one is its constant, and no range
is below a thousandth of the magnitude, so that the noise of an idle motor is not enlarged. What lies beyond is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.units import to_policy
from gtp_vision.datasets.statistics import array_statistics
from gtp_vision.datasets.store import ACTION_BOUNDS, Store

MODES = ("auto", "none", "minmax", "quantile", "meanstd")
"""Of `task.action_scaling`."""
SPACE, SCALING = "action_space", "action_scaling"
"""Attributes: the bounds that the recorder declares, [low, high]; how the actions were scaled, and how many clipped."""
ROUNDING = 1e-5
"""By which rounding may move actions out of their bounds."""
_ROWS = 1 << 14  # scaled together, which fit the cache of the processor
_DEVIATIONS = 3  # of `meanstd`: 99.7 % of a normal distribution lie within
_SPREAD = 1e-6  # relative to the magnitude: quantiles that differ by less are one value
_FLOOR = 1e-3  # of the magnitude: the least range
_SHOWN = 8  # dimensions that a sentence lists
_OTHER_UNITS = 20.0  # ratio of ranges: degrees are 57 times radians, millimeters 1000 times meters

Bounds = tuple[np.ndarray, np.ndarray]
"""What -1 and 1 are of each dimension, float64 (A,)."""


def scaled(
    stores: Sequence[Store],
    mode: str = "auto",
    known: Mapping[str, Any] | None = None,
    reaches: Mapping[tuple[int, int], float] | None = None,
    held_out: Sequence[Store] = (),
    *,
    rescales: bool = False,
) -> list[Store]:
    """Return data sets of one kind with actions in [-1, 1] of common bounds, which are attributes of each.

    Actions that cannot be scaled (not finite, of several widths, in unknown units) are returned as they are:
    `validation.validate` and `store.mix` refuse them.

    Args:
        stores: data sets, of which the bounds are fitted on all rows that hold an action.
        mode: of `MODES`.
        known: attributes with the bounds of the run that continues; its data in the file's units are scaled by them.
        reaches: columns (start, stop) to a magnitude that their bounds include: rotations, which clipping would turn.
        held_out: more data sets, scaled alike and returned behind the others, on which no bounds are fitted.
        rescales: scale data by `known`, too, that their file has in [-1, 1] by other bounds.

    Raises:
        GtpVisionError: data sets in other units.
    """
    fits_on, stores = stores, [*stores, *held_out]
    widths = {store.actions.shape[1:] for store in stores}
    if mode == "none" or len(widths) > 1 or not all(map(_is_sound, stores)):
        return list(stores)
    own, spaces = [bounds_of(store) for store in stores], [_space(store) for store in stores]
    is_raw = [bounds is None for bounds in own]
    found = None if known is None else pair_of(known, stores[0].action_dim)
    is_other = any(one is not None and not np.array_equal(one, found) for one in own) if found else False
    if found is not None and (all(is_raw) or (rescales and is_other)):
        return [_apply(store, found, fitted_by(known or {}) or "the bounds of the run") for store in stores]
    if mode == "auto":
        if all(is_raw) and spaces[0] is not None and _agree(spaces):
            return [_apply(store, spaces[0], "the recorder's action space") for store in stores]
        leaves = [raw and _reach(store) > 1 + ROUNDING for store, raw in zip(stores, is_raw, strict=True)]
        has_unknown = not all(is_raw) and any(raw > left for raw, left in zip(is_raw, leaves, strict=True))
        if has_unknown or (not any(leaves) and _agree(own)):
            return list(stores)
        mode = "quantile"
        _check_units(stores)
    low, high = fitted(np.concatenate([in_file_units(store, ~store.final_observations) for store in fits_on]), mode)
    for (start, stop), reach in (reaches or {}).items():
        low[start:stop], high[start:stop] = low[start:stop].clip(max=-reach), high[start:stop].clip(min=reach)
    return [_apply(store, (low, high), mode) for store in stores]


def recorded_bounds(actions: np.ndarray) -> dict[str, list[float]]:
    """Return the attributes of a reader's actions (N, A) within [-1, 1], which are the robot's as recorded; else {}."""
    if np.abs(actions).max(initial=0) > 1 + ROUNDING:
        return {}
    return {bound: [one] * actions.shape[1] for bound, one in zip(ACTION_BOUNDS, (-1.0, 1.0), strict=True)}


def bounds_of(store: Store) -> Bounds | None:
    """Return what -1 and 1 of a scaled store's actions are; None of other stores.

    Raises:
        GtpVisionError: the attributes do not fit the actions.
    """
    if not has_bounds(store):
        return None
    found = pair_of(store.attributes, store.action_dim)
    if found is None:
        raise GtpVisionError(
            f"{store.path or 'the data set'}: the attributes {' and '.join(ACTION_BOUNDS)} do not fit "
            f"{store.action_dim} actions; correct or remove them"
        )
    return found


def pair_of(attributes: Mapping[str, Any], actions: int) -> Bounds | None:
    """Return the bounds in attributes; None unless they are finite numbers for each of so many actions."""
    try:
        low, high = (np.asarray(attributes[bound], np.float64) for bound in ACTION_BOUNDS)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    fits = low.shape == high.shape == (actions,) and np.isfinite([low, high]).all() and bool(np.all(low <= high))
    return (low, high) if fits else None


def has_bounds(store: Store) -> bool:
    """Whether a store's attributes say what -1 and 1 of its actions are, right or wrong."""
    return any(store.attributes.get(bound) is not None for bound in ACTION_BOUNDS)


def in_file_units(store: Store, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Return the actions of some rows in the units of the file, float32 (N, A)."""
    actions, bounds = np.asarray(store.actions[rows], np.float32), bounds_of(store)
    if bounds is None:
        return actions
    low, high = bounds
    return np.where((low == -1) & (high == 1), actions, low + (actions + 1.0) / 2 * (high - low)).astype(np.float32)


def fitted_by(attributes: Mapping[str, Any]) -> str | None:
    """Return what scaled the actions of a data set with these attributes: a mode, or words; None if nothing did."""
    made = attributes.get(SCALING)
    return str(made.get("by")) if isinstance(made, dict) else None


def sentence(store: Store) -> str:
    """Return what was done to a store's actions, for whoever starts a training; empty if nothing was."""
    made, bounds = store.attributes.get(SCALING), bounds_of(store)
    if not isinstance(made, dict) or bounds is None:
        return ""
    ranges = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in list(zip(*bounds, strict=True))[:_SHOWN])
    more = ", ..." if store.action_dim > _SHOWN else ""
    share = made.get("clipped")
    clipped = f"; {share:.2%} of the rows leave it and are clipped (task.action_scaling=minmax keeps them)"
    return f"actions: [-1, 1] stands for {ranges}{more} (by {made.get('by')}){clipped if share else ''}"


def _apply(store: Store, bounds: Bounds, how: str) -> Store:
    """Return the store with actions in [-1, 1], and with the attributes that invert it; `how` is for messages."""
    low, high = bounds
    is_same = (low == -1) & (high == 1)
    actions, beyond = np.empty(store.actions.shape, np.float32), 0
    for start, stop in _ranges(store):
        given = in_file_units(store, slice(start, stop))
        made = np.where(is_same, given, to_policy(given, low, high))
        made[store.final_observations[start:stop]] = 0  # they hold no action
        beyond += int(np.count_nonzero((np.abs(made) > 1 + ROUNDING).any(1)))
        actions[start:stop] = np.clip(made, -1, 1)
    is_declared = (space := _space(store)) is not None and np.array_equal(space, bounds)
    attributes = {name: value for name, value in store.attributes.items() if name != "action_bounds"}
    attributes |= {"action_low": low.tolist(), "action_high": high.tolist()}
    attributes |= {"action_bounds": "declared"} if is_declared else {}
    attributes |= {} if is_same.all() and not beyond else {SCALING: {"by": how, "clipped": beyond / len(store)}}
    return replace(store, actions=actions, attributes=attributes)


def fitted(actions: np.ndarray, mode: str) -> Bounds:
    """Return the bounds of a mode for actions (N, A) in the file's units."""
    found = array_statistics(actions)
    least, most, mean, std = (np.asarray(x) for x in (found.min, found.max, found.mean, found.std))
    magnitude = np.maximum(np.abs(mean), 1e-2)
    if mode == "minmax":
        low, high = least, most
    elif mode == "quantile":
        # Of fewer than 100 rows the extremes, of which none is an outlier.
        low, high = np.quantile(actions, 0.01, 0, method="lower"), np.quantile(actions, 0.99, 0, method="higher")
        rests = high - low <= _SPREAD * magnitude
        low, high = np.where(rests, least, low), np.where(rests, most, high)
    else:
        low, high = mean - _DEVIATIONS * std, mean + _DEVIATIONS * std
    is_switch = np.all((actions == least) | (actions == most), axis=0)
    low, high = np.where(is_switch, least, low), np.where(is_switch, most, high)
    missing = np.maximum(_FLOOR * magnitude - (high - low), 0) / 2
    low, high = low - missing, high + missing
    value = np.asarray(found.quantiles["0.5"])
    return np.where(found.fixed(), value, low), np.where(found.fixed(), value, high)


def _check_units(stores: Sequence[Store]) -> None:
    """Refuse data sets of a mixture whose actions have ranges of other orders in all dimensions."""
    spans = [np.ptp(in_file_units(store, ~store.final_observations).astype(np.float64), axis=0) for store in stores]
    for store, span in zip(stores[1:], spans[1:], strict=True):
        moves = (span > 0) & (spans[0] > 0)
        ratio = span[moves] / spans[0][moves]
        if moves.any() and (ratio.min() > _OTHER_UNITS or ratio.max() < 1 / _OTHER_UNITS):
            typical = float(np.median(ratio))
            raise GtpVisionError(
                f"the actions of {store.path or 'a data set'} span {typical:.3g} times those of "
                f"{stores[0].path or 'the first'} in every dimension, as degrees do those of radians: convert one of "
                f"them, or set task.action_scaling=minmax if both are in the same units"
            )


def _is_sound(store: Store) -> bool:
    """Whether a store has rows with actions (N, A) to fit, all finite, and bounds that fit them, if any."""
    from gtp_vision.datasets.validation import shape_errors  # which imports this module

    if shape_errors(store) or not len(store.transitions):
        return False
    if has_bounds(store) and pair_of(store.attributes, store.action_dim) is None:
        return False
    return all(np.isfinite(np.asarray(store.actions[start:stop])).all() for start, stop in _ranges(store))


def _reach(store: Store) -> float:
    """Return the largest magnitude of an action."""
    return float(max(np.abs(np.asarray(store.actions[start:stop])).max() for start, stop in _ranges(store)))


def _ranges(store: Store) -> Iterator[tuple[int, int]]:
    for start in range(0, len(store), _ROWS):
        yield start, min(start + _ROWS, len(store))


def _space(store: Store) -> Bounds | None:
    """Return the bounds in the attribute `action_space`, if it holds such."""
    space = store.attributes.get(SPACE)
    if not isinstance(space, list) or len(space) != len(ACTION_BOUNDS):
        return None
    return pair_of(dict(zip(ACTION_BOUNDS, space, strict=True)), store.action_dim)


def _agree(bounds: Sequence[Bounds | None]) -> bool:
    """Whether all are the same, and there are any; None equals None."""
    first = bounds[0]
    if first is None:
        return all(other is None for other in bounds)
    return all(other is not None and np.array_equal(first, other) for other in bounds)
