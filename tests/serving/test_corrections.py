"""Faults of recordings that are planted in numbers: each is undone by one correction, and sound ones by none."""

import numpy as np
import pytest
import torch

from gtp_vision.serving.corrections import as_bright, lag_of, of_brightness, of_camera, of_state

EPISODES = np.repeat(np.arange(8), 40)


def walk(width: int, seed: int = 0) -> np.ndarray:
    """Smooth motions of 8 episodes, (320, width), each dimension about a place and of a size of its own."""
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 6, (8, 1, width)) + np.arange(40)[:, None] * random.uniform(0.3, 0.5, (8, 1, width))
    noise = 0.1 * random.normal(size=(320, width))
    return (np.arange(1, width + 1) * (np.sin(phase).reshape(320, width) + noise) + np.arange(width)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("units", lambda x: x * (180 / np.pi), "degrees"),
        ("units", lambda x: x * np.array([1, 1000, 1]), "number 1 in millimeters"),
        ("sign", lambda x: x * np.array([1, 1, -1]), "number 2 inverted"),
        ("order", lambda x: x[:, [2, 1, 0]], "[2, 1, 0]"),
    ],
)
def test_a_correction_gives_back_the_state_as_it_was(kind: str, change: object, says: str) -> None:
    known, values = walk(3), walk(3, 1)
    assert callable(change)
    undone = [
        correction for correction, x in of_state("arm", change(values), known) if np.allclose(x, values, atol=1e-3)
    ]
    assert kind in {correction.kind for correction in undone}
    assert any(says in correction.what and "arm" in correction.cure for correction in undone)


def test_units_of_a_sound_state_are_not_doubted() -> None:
    assert "units" not in {correction.kind for correction, _ in of_state("arm", walk(3, 1), walk(3))}


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 12, 3), (8, 8, 2)])
def test_corrections_of_a_camera_keep_the_frames_shape(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    frames = torch.randint(0, 256, (2, 3, channels, height, width), dtype=torch.uint8)
    found = dict(of_camera(frames))
    assert all(x.shape == frames.shape and x.dtype == torch.uint8 for x in found.values())
    kinds = {correction.kind for correction in found}
    assert {"mirrored", "upside_down", "rotated"} <= kinds
    assert ("colors" in kinds) is bool(list(of_brightness(frames))) is (channels == 3)
    (mirrored,) = (x for correction, x in found.items() if correction.kind == "mirrored")
    assert torch.equal(mirrored.flip(-1), frames)


@pytest.mark.parametrize("gain", [0.5, 0.8, 1.6, 3.0])
def test_the_brightness_of_a_saturated_camera_is_found_by_the_mean_frame(gain: float) -> None:
    known = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    shown = (known * gain).clamp(max=255)
    best = min(as_bright(known), key=lambda found: float((found[1] - shown).abs().mean()))[0]
    assert float(best.what.split()[2]) == pytest.approx(gain, rel=0.1)


def test_actions_that_are_too_small_are_no_lag() -> None:
    """A policy of few steps answers half of what it should, and every motion comes to rest."""
    random, count, steps = np.random.default_rng(0), 20, 30
    starts = random.choice([-1, 1], (count, 1, 2)) * random.uniform(0.5, 1, (count, 1, 2))
    recorded = starts * np.exp(-np.arange(steps) / 10)[:, None]
    predicted = 0.5 * recorded + 0.02 * random.normal(size=recorded.shape)
    episodes = np.repeat(np.arange(count), steps)
    rows, answers = recorded.reshape(-1, 2), predicted.reshape(-1, 2)
    assert lag_of(rows, answers, rows.std(0), episodes, episodes) is None


@pytest.mark.parametrize("lag", [0, 1, 2, -1])
def test_a_lag_is_found_and_none_where_there_is_none(lag: int) -> None:
    whole = walk(2, 2).reshape(8, 40, 2)
    recorded = np.roll(whole, lag, 1)[:, 5:35].reshape(-1, 2)
    predicted = whole[:, 5:35].reshape(-1, 2) + 0.2 * np.random.default_rng(3).normal(size=(240, 2))
    episodes = np.repeat(np.arange(8), 30)
    found = lag_of(recorded, predicted, recorded.std(0), episodes, episodes)
    if lag == 0:
        assert found is None
    else:
        assert found is not None
        assert f"{abs(lag)} step" in found[0].what
        assert ("later" if lag > 0 else "earlier") in found[0].what
        assert found[1] < 0.9
