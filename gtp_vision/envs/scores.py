"""D4RL's normalized scores: 0 is the return of random actions, 100 that of an expert."""

from __future__ import annotations

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import d4rl

# Returns of random actions and of an expert, from D4RL's own table. They serve all versions and kinds of data.
REFERENCE: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
}


def has_reference(name: str) -> bool:
    """Whether a data set has reference returns: D4RL's have, with or without their version."""
    return _reference(name) is not None


def normalised(name: str, value: float) -> float:
    """100 (R - min) / (max - min) of a return R (Fu et al., 2020); GtpVisionError for a name without references."""
    found = _reference(name)
    if found is None:
        raise GtpVisionError(f"{name} has no reference returns; report the return itself")
    low, high = found
    return 100 * (value - low) / (high - low)


def _reference(name: str) -> tuple[float, float] | None:
    body = d4rl.find(name)
    if body is None:
        return None
    return REFERENCE[body] if body in REFERENCE else REFERENCE[body.split("-")[0]]
