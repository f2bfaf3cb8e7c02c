"""What is wrong with recorded time stamps, in words."""

from __future__ import annotations

import numpy as np

from gtp_vision.datasets.validation import place

_OTHER_RATE = 0.01  # relative difference of two rates that is named


def misfit(
    stamps: np.ndarray, starts: np.ndarray, period: float | None = None, tolerance: float | None = None
) -> tuple[str, float] | None:
    """Describe which time stamps do not fit, with their shares of the rows; None if all fit.

    Args:
        stamps: (N,), seconds, of all episodes; NaN where one is missing.
        starts: int (E,), first row of each episode.
        period: seconds from a row to the next, counted from 0 at each episode's start; None is the median step,
            counted from the row before.
        tolerance: seconds by which a stamp may be off; None is half a period.

    Returns:
        The description, and the seconds from a row to the next in the mean of an episode, of which the median.
    """
    stamps = np.asarray(stamps, np.float64)
    inside = np.ones(len(stamps), bool)
    inside[starts] = False
    steps = np.where(inside, np.diff(stamps, prepend=np.nan), np.nan)
    advancing = steps[steps > 0]
    median = float(np.median(advancing)) if len(advancing) else np.nan
    frame = np.arange(len(stamps)) - np.maximum.accumulate(np.where(inside, 0, np.arange(len(stamps))))
    error = np.abs(steps - median if period is None else stamps - frame * period)
    error[~np.isfinite(error)] = 0
    kinds = {
        "missing": ~np.isfinite(stamps),
        "earlier than the one before": steps < 0,
        "equal to the one before": steps == 0,
    }
    known = np.logical_or.reduce(list(kinds.values()))
    limit = (period or median) / 2 if tolerance is None else tolerance
    off = ~known & (error > limit + np.spacing(np.abs(stamps).astype(np.float32)))
    kinds[f"off by up to {error[off].max(initial=0):.3g} s"] = off
    wrong = known | off
    if not wrong.any():
        return None
    shares = [f"{share(rows)} are {kind}" for kind, rows in kinds.items() if rows.any()]
    first = int(np.argmax(wrong))
    episode = int(np.searchsorted(starts, first, side="right")) - 1
    ends = np.append(starts[1:], len(stamps)) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (stamps[ends] - stamps[starts]) / (ends - starts)
    step = float(np.median(mean[np.isfinite(mean)])) if np.isfinite(mean).any() else np.nan
    return f"{', '.join(shares)}, first at {place(episode, first - int(starts[episode]))}", step


def other_rate(step: float, fps: float) -> str:
    """Return in words the rate of a step in seconds, if it is not `fps`; else empty."""
    if not step > 0 or abs(step * fps - 1) <= _OTHER_RATE:
        return ""
    return f"; a step takes {step:.4g} s, as at {1 / step:.4g} frames per second"


def share(rows: np.ndarray) -> str:
    """Return the share of marked rows in percent, to three digits, so that few are not none and most are not all."""
    return f"{100 * float(np.mean(rows)):.3g}%"
