"""Faults of cameras and sensors, as they would change what a policy observes: doubt is measured on them.

brightness    half as bright, or half as bright again
occlusion     a rectangle of half of each side, of one color, where it happens to be
frozen        from the sixth frame on, every frame is the sixth
mirrored      left and right exchanged
swapped       each camera has the next one's frames; of two or more cameras
states        every number of a state is off by the range that the training data have
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gtp_vision.serving.reference import Reference

Observation = Mapping[str, np.ndarray]
Shift = Callable[[Observation], tuple[dict[str, np.ndarray], bool]]
"""An observation of an episode, frames uint8 (H, W, C) and states (D,), to the shifted one, and whether it differs.

Called with an episode's observations in their order.
"""
MakeShift = Callable[[Reference, np.random.Generator], Shift]
_SIDE = 0.5  # of a frame that a rectangle covers
_FREEZES = 6  # frames until a camera stands still


def _each(change: Callable[[np.ndarray], np.ndarray], names: Mapping[str, object]) -> Shift:
    """The shift that changes some observations, each for itself."""
    return lambda seen: ({name: change(x) if name in names else x for name, x in seen.items()}, True)


def _brightness(reference: Reference, rng: np.random.Generator) -> Shift:
    factor = rng.choice((0.5, 1.5))
    return _each(lambda frame: (frame * factor).clip(0, 255).astype(np.uint8), reference.features)


def _occlusion(reference: Reference, rng: np.random.Generator) -> Shift:
    place, color = rng.random(2), int(rng.integers(256))

    def occluded(frame: np.ndarray) -> np.ndarray:
        (y, x), (h, w) = (place * (1 - _SIDE) * frame.shape[:2]).astype(int), (np.array(frame.shape[:2]) * _SIDE)
        made = frame.copy()
        made[y : y + int(h), x : x + int(w)] = color
        return made

    return _each(occluded, reference.features)


def _frozen(reference: Reference, rng: np.random.Generator) -> Shift:
    held, count = dict[str, np.ndarray](), 0

    def freeze(seen: Observation) -> tuple[dict[str, np.ndarray], bool]:
        nonlocal count
        count += 1
        if count <= _FREEZES:
            held.update({name: seen[name].copy() for name in reference.features})
        return {**seen, **held}, count > _FREEZES

    return freeze


def _mirrored(reference: Reference, rng: np.random.Generator) -> Shift:
    return _each(lambda frame: frame[:, ::-1], reference.features)


def _swapped(reference: Reference, rng: np.random.Generator) -> Shift:
    names = list(reference.features)

    def swap(seen: Observation) -> tuple[dict[str, np.ndarray], bool]:
        pairs = zip(names, [*names[1:], names[0]], strict=True)
        return {**seen, **{name: _resized(seen[other], seen[name].shape) for name, other in pairs}}, True

    return swap


def _resized(frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The nearest pixels of a frame (H, W, C) in another size and number of channels."""
    rows, columns, channels = (np.arange(n) * m // n for n, m in zip(shape, frame.shape, strict=True))
    return frame[np.ix_(rows, columns, channels)]


def _states(reference: Reference, rng: np.random.Generator) -> Shift:
    ranges = {name: (rows.amax(0) - rows.amin(0)).cpu().numpy() for name, rows in reference.states.items()}
    offsets = {name: rng.choice((-1.0, 1.0), len(span)) * span for name, span in ranges.items()}
    return lambda seen: (
        {name: (x + offsets[name]).astype(x.dtype) if name in offsets else x for name, x in seen.items()},
        True,
    )


_OF_CAMERAS: dict[str, MakeShift] = {
    **{"brightness": _brightness, "occlusion": _occlusion, "frozen": _frozen, "mirrored": _mirrored},
}


def shifts_of(reference: Reference) -> dict[str, MakeShift]:
    """The shifts that a policy's cameras and states can have."""
    found = dict(_OF_CAMERAS) if reference.features else {}
    if len(reference.features) > 1:
        found["swapped"] = _swapped
    if reference.states:
        found["states"] = _states
    return found
