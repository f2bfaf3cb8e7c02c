"""What may be wrong with recordings beside a policy's training data, each as the correction that would undo it.

A fault is named by the correction after which the data look as those of training (cameras, states), or after which
the policy's actions and the recorded ones agree (actions). The corrected values are compared, never the raw fault.

Axes in names: F frames of a stack, C channels, N rows, T steps, D numbers of a state, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

UNITS = {
    180 / np.pi: "degrees, in training radians",
    np.pi / 180: "radians, in training degrees",
    1000.0: "millimeters, in training meters",
    0.001: "meters, in training millimeters",
    100.0: "a hundredth of the unit of training",
    0.01: "hundreds of the unit of training",
}
"""Factor by which numbers are larger than in training, to what they are."""
_NEAR_UNIT = 1.35  # a ratio of two spreads is that of two units within this factor
_RESCALED = 1.5  # a smaller ratio is what other episodes bring
_EXTREME = 8.0  # a larger one, of most dimensions, needs no policy to be another unit
_LATE, _EARLY = (0.97, 0.5), (0.85, 0.75)  # what a lag may leave of the distance, and the share of groups that agree
_CLOSER = 0.01  # by how much the correlation at a lag must be larger
FOLLOWS = 0.4
"""Correlation of recorded and predicted actions from which the policy is taken to know a dimension."""
_LEVELS = np.linspace(0.05, 0.95, 7)  # quantiles by which distributions are compared
_MOST_PAIRED = 8  # numbers of a state of which every two are exchanged
_LAGS = range(-3, 4)


@dataclass(frozen=True)
class Correction:
    """A fault by its undoing.

    Attributes:
        kind: one word for programs, e.g. `mirrored`.
        what: continues the sentence "camera 'front' ..." or "actions ...".
        cure: the setting or command, an imperative.
    """

    kind: str
    what: str
    cure: str


Frames = Callable[[torch.Tensor], torch.Tensor]


_GAINS = (0.4, 0.6, 0.8, 1.25, 1.6, 2.5)
_FINE_GAINS = tuple(float(gain) for gain in np.geomspace(0.25, 4, 31) if abs(np.log(gain)) > 0.1)
_EXPOSURE = "set the camera's exposure and gain as when recording, or train with encoder.augmentation.brightness=0.3"
_CAMERA: tuple[tuple[Correction, Frames], ...] = (
    (Correction("mirrored", "is mirrored left to right", "send frame[:, ::-1]"), lambda x: x.flip(-1)),
    (Correction("upside_down", "is mirrored top to bottom", "send frame[::-1]"), lambda x: x.flip(-2)),
    (Correction("rotated", "is rotated by 180 degrees", "send frame[::-1, ::-1]"), lambda x: x.flip(-1, -2)),
    (Correction("rotated", "is rotated by 90 degrees", "send np.rot90(frame)"), lambda x: x.rot90(1, (-2, -1))),
    (Correction("rotated", "is rotated by 270 degrees", "send np.rot90(frame, -1)"), lambda x: x.rot90(-1, (-2, -1))),
    (Correction("colors", "has blue and red exchanged (BGR)", "send frame[..., ::-1]"), lambda x: x.flip(-3)),
)


def of_camera(frames: torch.Tensor) -> Iterator[tuple[Correction, torch.Tensor]]:
    """Frames turned, or of other colors, (..., C, H, W) each; what needs three channels or a square is left out."""
    channels, height, width = frames.shape[-3:]
    for correction, undo in _CAMERA:
        fits = channels == 3 if correction.kind == "colors" else height == width or "90" not in correction.cure
        if fits:
            yield correction, undo(frames)


def of_brightness(frames: torch.Tensor) -> Iterator[tuple[Correction, torch.Tensor]]:
    """Stacks of a camera of color (N, F, C, H, W), uint8, made brighter and darker; saturated pixels stay wrong."""
    for gain in _GAINS if frames.shape[-3] == 3 else ():
        yield _brightness(gain), (frames.float() / gain).round().clamp(max=255).to(torch.uint8)


def as_bright(known: torch.Tensor) -> Iterator[tuple[Correction, torch.Tensor]]:
    """Training's mean frame (C, H, W), float, as a brighter or darker camera would show it, with its saturation."""
    for gain in _FINE_GAINS if known.shape[-3] == 3 else ():
        yield _brightness(gain), (known * gain).clamp(max=255)


def _brightness(gain: float) -> Correction:
    return Correction("brightness", f"is about {gain:.1f} times as bright as in training", _EXPOSURE)


def of_state(name: str, values: np.ndarray, known: np.ndarray) -> Iterator[tuple[Correction, np.ndarray]]:
    """Corrected values (N, D) of a state, by the training data's (M, D): units, signs, order of the numbers."""
    unit = np.maximum(known.std(0), 1e-6 * np.abs(known).max(0, initial=0) + 1e-12)
    factors = np.array([_factor(mine, theirs) for mine, theirs in zip(_reach(values), _reach(known), strict=True)])
    for factor in np.unique(factors[factors != 1]):
        for own in {tuple(factors == factor), (True,) * len(factors)}:  # a number about 0 does not show its unit
            numbers = np.flatnonzero(own)
            cure = f"multiply {_of(numbers)} by {1 / factor:.4g} before sending '{name}'"
            correction = Correction("units", f"has {_of(numbers)} in {_unit(factor)}", cure)
            yield correction, values / np.where(own, factor, 1)
    width = values.shape[1]
    for number in range(width):
        signs = np.where(np.arange(width) == number, -1, 1)
        what = f"has the sign of number {number} inverted"
        yield Correction("sign", what, f"negate number {number} before sending '{name}'"), values * signs
    mine, theirs = (np.quantile(rows, _LEVELS, axis=0) for rows in (values, known))
    _, best = linear_sum_assignment(np.abs((theirs[:, :, None] - mine[:, None]) / unit[:, None]).mean(0))
    pairs = combinations(range(width), 2) if width <= _MOST_PAIRED else ()
    for order in {tuple(best), *(_exchanged(width, *pair) for pair in pairs)} - {tuple(range(width))}:
        what = f"has its numbers in another order, as training's [{_list(order)}]"
        yield Correction("order", what, f"send '{name}'[[{_list(order)}]]"), values[:, list(order)]


def of_actions(
    recorded: np.ndarray,
    predicted: np.ndarray,
    spread: np.ndarray,
    episodes: np.ndarray,
    is_better: Callable[[np.ndarray], np.ndarray],
) -> Iterator[tuple[Correction, np.ndarray, np.ndarray]]:
    """Corrected recorded actions (T, A), and the dimensions (A,) to judge them by: units, signs, order, changes.

    Args:
        recorded: (T, A), of the robot, in its units.
        predicted: (T, A), of the policy for the same observations.
        spread: (A,), the deviation of training's actions.
        episodes: (T,), number of each step's episode.
        is_better: corrected actions (T, A) to the dimensions (A,) that clearly agree better with the policy's.
    """
    ratio = recorded.std(0) / spread
    rescaled = (ratio > 1e-6) & (np.abs(np.log(ratio.clip(1e-9))) > np.log(_RESCALED))
    corrected = recorded / np.where(rescaled, ratio, 1)
    if (dims := rescaled & is_better(corrected)).any():
        yield _units(dims, ratio), corrected, dims
    middle = np.where(_is_switch(recorded), recorded.max(0) + recorded.min(0), 0)
    if (dims := is_better(middle - recorded)).any():
        is_gripper = bool(_is_switch(recorded)[dims].all())
        what = f"{_dims(dims)} {_are(dims)} inverted" + (" (a gripper: open is closed)" if is_gripper else "")
        kind = "gripper" if is_gripper else "sign"
        cure = f"negate {_dims(dims)} of the answer, or train with the robot's convention"
        yield Correction(kind, what, cure), np.where(dims, middle - recorded, recorded), dims
    yield from _order(recorded, predicted, spread)
    differences = recorded - _shifted(recorded, -1, episodes)
    what, cure = (
        "are absolute, the policy's are changes",
        "add the answer to the robot's position, or train on positions",
    )
    known = np.isfinite(differences).all(1)
    moved = differences * spread / np.maximum(differences[known].std(0) if known.any() else 0, 1e-12)
    yield Correction("absolute", what, cure), moved, ~_is_switch(recorded)


def units_of(recorded: np.ndarray, spread: np.ndarray) -> Correction | None:
    """The unit of recorded actions (T, A) of which most dimensions are as many times as large as in training.

    It needs no policy that follows them.
    """
    ratio = recorded.std(0) / spread
    moves = ratio > 1e-6
    if not moves.any():
        return None
    logs = np.log(ratio, where=moves, out=np.zeros(len(ratio)))
    dims = moves & (np.abs(logs) > np.log(_EXTREME)) & (np.abs(logs - np.median(logs[moves])) < np.log(2))
    return _units(dims, ratio) if dims.sum() > moves.sum() / 2 else None


def _units(dims: np.ndarray, ratio: np.ndarray) -> Correction:
    factor = float(np.median(ratio[dims]))
    factor = _factor(factor, 1.0) if _factor(factor, 1.0) != 1 else factor
    cure = f"multiply the answer by {factor:.4g} for the robot, or train on its units"
    return Correction("units", f"{_dims(dims)} {_are(dims)} in {_unit(factor)}", cure)


def lag_of(
    recorded: np.ndarray, predicted: np.ndarray, spread: np.ndarray, episodes: np.ndarray, groups: np.ndarray
) -> tuple[Correction, float] | None:
    """How many steps the recorded actions (T, A) come after the policy's, and what share of their distance that leaves.

    The distance is that of actions which the policy predicts at some lag, absolute, on the steps that have all lags.
    Actions that come earlier, as where frames are late, need stronger evidence: a policy lags on its own. At the lag
    they must also follow the policy's better: of one that was trained for a short time, whose actions are too small,
    every action of a motion that ends is nearer to the smaller ones after it.
    """
    shifted = [_shifted(recorded, lag, episodes) for lag in _LAGS]
    follows = np.array([correlation(actions, predicted) for actions in shifted])
    dims = follows.max(0) > FOLLOWS
    errors = np.stack([np.abs((x - predicted) / spread)[:, dims].sum(1) for x in shifted])
    known = np.isfinite(errors).all(0)
    if not (dims.any() and known.any()):
        return None
    by_group = np.stack([errors[:, known & (groups == group)].sum(1) for group in np.unique(groups[known])])
    total, now = by_group.sum(0), _LAGS.index(0)
    best = int(total.argmin())
    lag, left = _LAGS[best], float(total[best] / total[now])
    most, agreeing = _LATE if lag > 0 else _EARLY
    is_better = follows[best, dims].mean() > follows[now, dims].mean() + _CLOSER
    if lag == 0 or not is_better or left > most or (by_group[:, best] < by_group[:, now]).mean() < agreeing:
        return None
    when = f"{abs(lag)} step{'s' * (abs(lag) > 1)} {'later' if lag > 0 else 'earlier'}"
    cure = "pair each observation with the action that was computed from it, or train on data with this delay"
    return Correction("lag", f"come {when} than the policy's for the same observations", cure), left


def _order(
    recorded: np.ndarray, predicted: np.ndarray, spread: np.ndarray
) -> Iterator[tuple[Correction, np.ndarray, np.ndarray]]:
    """The actions in the order in which they agree best with the policy's."""
    errors = np.abs((predicted[:, :, None] - recorded[:, None]) / spread[:, None]).mean(0)
    _, order = linear_sum_assignment(errors)
    if (moved := order != np.arange(len(order))).any():
        cure = f"the robot must take answer[[{_list(np.argsort(order))}]]"
        yield (
            Correction("order", f"are in another order: training's are [{_list(order)}]", cure),
            recorded[:, order],
            moved,
        )


def _shifted(actions: np.ndarray, lag: int, episodes: np.ndarray) -> np.ndarray:
    """Row t + lag in place of row t, NaN where it is of another episode."""
    rows = np.arange(len(actions)) + lag
    inside = (rows >= 0) & (rows < len(actions))
    rows = rows.clip(0, len(actions) - 1)
    return np.where((inside & (episodes[rows] == episodes))[:, None], actions[rows], np.nan)


def _reach(rows: np.ndarray) -> np.ndarray:
    """How far numbers (N, D) reach from 0, (D,), without the outermost ones."""
    return np.quantile(np.abs(rows), 0.9, axis=0)


def _factor(mine: float, theirs: float) -> float:
    """The factor between two units that explains the ratio of two spreads; 1 if none does."""
    if min(mine, theirs) <= 0:
        return 1.0
    return next((f for f in UNITS if 1 / _NEAR_UNIT < mine / theirs / f < _NEAR_UNIT), 1.0)


def _unit(factor: float) -> str:
    return UNITS.get(factor, f"{factor:.3g} times the unit of training")


def _is_switch(actions: np.ndarray) -> np.ndarray:
    """The dimensions (A,) of two values, as of a gripper."""
    low, high = actions.min(0), actions.max(0)
    return ((actions == low) | (actions == high)).all(0) & (high > low)


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the columns of two arrays (T, A), on rows where the first is known: (A,), 0 of a column that does not vary."""
    known = np.isfinite(one).all(1)
    one, other = (rows[known] - rows[known].mean(0) for rows in (one, other))
    scale = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return (one * other).sum(0) / np.where(scale > 0, scale, np.inf)


def _exchanged(width: int, one: int, other: int) -> tuple[int, ...]:
    order = list(range(width))
    order[one], order[other] = other, one
    return tuple(order)


def _of(numbers: Sequence[int] | np.ndarray) -> str:
    return f"number{'s' * (len(numbers) > 1)} {_list(numbers)}"


def _dims(dims: np.ndarray) -> str:
    found = np.flatnonzero(dims)
    return f"dimension{'s' * (len(found) > 1)} {_list(found)}"


def _are(dims: np.ndarray) -> str:
    return "are" if dims.sum() > 1 else "is"


def _list(numbers: Sequence[int] | np.ndarray) -> str:
    return ", ".join(str(int(number)) for number in numbers)
