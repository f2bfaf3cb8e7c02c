import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from gtp_vision.core.random import RandomStream
from gtp_vision.encoders import AugmentationConfig, RandomShift
from gtp_vision.encoders.distortions import BLUR_REACH, ERASED_ASPECT, Blur, Color, Erasing, window


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth colors, float in [0, 1]: noise would hide what a blur does at the edge."""
    coarse = RandomStream(seed, 0).uniform(shape[0] * shape[1], shape[2], 4, 4)
    return F.interpolate(coarse, shape[3:], mode="bilinear").view(shape)


def changed(key: str, image: torch.Tensor, value: float) -> torch.Tensor:
    column = ("brightness", "contrast", "saturation", "hue").index(key)
    drawn = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    drawn[0, column] = 2 * math.pi * value if key == "hue" else value
    return Color(AugmentationConfig(**{key: 0.5}))(image[None, None], drawn)[0, 0]


@pytest.mark.parametrize(
    ("key", "channels", "value"),
    [
        *[("brightness", 3, 1.4), ("brightness", 1, 0.5), ("contrast", 3, 0.5), ("contrast", 1, 1.4)],
        *[("saturation", 3, 0.5), ("saturation", 3, 1.4), ("hue", 3, -0.2), ("hue", 3, 0.4)],
    ],
)
def test_colors_change_as_in_torchvision(key: str, channels: int, value: float) -> None:
    image = frames(1, 1, channels, 12, 10)[0, 0]
    expected = getattr(tv, f"adjust_{key}")(image, value)
    torch.testing.assert_close(changed(key, image, value), expected, atol=2e-4, rtol=0)


def test_changes_are_uniform_within_their_bounds_for_the_share_that_changes() -> None:
    config = AugmentationConfig(brightness=0.2, contrast=0.4, saturation=0.6, hue=0.1, color_probability=0.3, blur=2.0)
    colors = Color(config).draw(20_000, RandomStream(0, 0), 1.0) - torch.tensor([1, 1, 1, 0])
    blurs = Blur(config).draw(20_000, RandomStream(0, 0), 1.0) - 1.0
    for drawn, bound in zip((*colors.T, blurs[blurs > -1]), (0.2, 0.4, 0.6, 0.2 * math.pi, 1.0), strict=True):
        assert 0.99 * bound < float(drawn.abs().max()) <= bound * (1 + 1e-5)
        assert float(drawn.mean()) == pytest.approx(0, abs=0.02 * bound)
    assert ((colors != 0).float().mean(0) - 0.3).abs().max() < 0.01
    assert torch.equal(colors[:, 0] != 0, colors[:, 1] != 0), "a sample's colors change together or not at all"
    assert float((blurs > -1).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_each_sample_has_its_own_blur_which_equals_torchvisions() -> None:
    images, sigmas = frames(3, 2, 3, 16, 12), torch.tensor([[0.0], [0.3], [1.5]])
    side = 2 * math.ceil(BLUR_REACH * 1.5) + 1
    expected = [tv.gaussian_blur(images[row], [side, side], [float(sigmas[row])] * 2) for row in (1, 2)]
    blurred = Blur(AugmentationConfig(blur=1.5))(images, sigmas)
    assert torch.equal(blurred[0], images[0])
    torch.testing.assert_close(blurred[1:], torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("erase", "size"), [(0.05, (32, 32)), (0.3, (20, 64)), (1.0, (32, 32))])
def test_erased_rectangles_stay_within_their_share_and_shape(erase: float, size: tuple[int, int]) -> None:
    rows = 2000
    erasing = Erasing(AugmentationConfig(erase=erase, erase_probability=1.0))
    drawn = erasing.draw(rows, RandomStream(0, 0), 1.0)
    black = erasing(torch.full((rows, 1, 1, *size), 255, dtype=torch.uint8), drawn)[:, 0, 0] == 0
    assert float(black.float().mean((1, 2)).max()) <= erase
    assert float((drawn[:, 0] * drawn[:, 1]).mean()) == pytest.approx(erase / 2, rel=0.05), "uniform up to the bound"
    aspect = (drawn[:, 0] / drawn[:, 1]).log().abs()
    assert float(aspect.max()) <= -math.log(ERASED_ASPECT) + 1e-3
    heights, widths = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(black.sum((1, 2)), heights * widths), "one whole rectangle"
    assert all(black.any(0)[edge].any() and black.any(0)[:, edge].any() for edge in (0, -1)), "to the edge"


def test_half_the_strength_halves_the_change() -> None:
    config = AugmentationConfig(brightness=0.4, contrast=0.2, saturation=0.3, hue=0.1, blur=2.0, erase=0.4)
    for kind, usual in ((Color, torch.tensor([1.0, 1.0, 1.0, 0.0])), (Blur, torch.zeros(1))):
        whole, half = (kind(config).draw(500, RandomStream(0, 0), strength) for strength in (1.0, 0.5))
        torch.testing.assert_close(half - usual, (whole - usual) / 2, atol=1e-6, rtol=0)
    whole, half = (Erasing(config).draw(500, RandomStream(0, 0), strength) for strength in (1.0, 0.5))
    torch.testing.assert_close(half[:, 0] * half[:, 1], whole[:, 0] * whole[:, 1] / 2)
    assert torch.equal(half[:, 2:], whole[:, 2:])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(channels=st.sampled_from([1, 3]), height=st.integers(2, 9), width=st.integers(2, 9), pad=st.integers(1, 4))
def test_a_shift_is_padding_and_cropping(channels: int, height: int, width: int, pad: int) -> None:
    noise = RandomStream(0, 0)
    images = noise.integers(256, 3, 2, channels, height, width).byte()
    shift = RandomShift(pad, 1.0)
    offsets = shift.draw(3, noise)
    shifted = shift(images, offsets)
    for sample, (dy, dx) in enumerate(offsets.tolist()):
        padded = F.pad(images[sample].float(), (pad, pad, pad, pad), mode="replicate").byte()
        expected = padded[..., pad + dy : pad + dy + height, pad + dx : pad + dx + width]
        assert torch.equal(shifted[sample], expected), "DrQ's augmentation as published"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(3, 9), columns=st.integers(3, 9), height=st.integers(1, 3), width=st.integers(1, 3))
def test_shift_and_crop_commute(rows: int, columns: int, height: int, width: int) -> None:
    noise, pad = RandomStream(0, 0), 3
    images = noise.integers(256, 2, 2, 3, rows, columns).byte()
    offsets = noise.integers(2 * pad + 1, 2, 2) - pad
    corner = torch.stack([noise.integers(rows - height + 1, 2), noise.integers(columns - width + 1, 2)], 1)
    both = window(images, offsets + corner, height, width)
    shifted = window(images, offsets, rows, columns)
    for sample, (top, left) in enumerate(corner.tolist()):
        assert torch.equal(both[sample], shifted[sample, :, :, top : top + height, left : left + width])


def test_offsets_are_uniform_for_the_share_that_moves() -> None:
    offsets = RandomShift(2, 0.25).draw(40_000, RandomStream(3, 0))
    assert set(offsets.unique().tolist()) == {-2, -1, 0, 1, 2}
    assert float((offsets != 0).any(1).float().mean()) == pytest.approx(0.25 * 24 / 25, abs=0.01)
    for value in (-2, -1, 1, 2):
        assert (offsets == value).float().mean(0).tolist() == pytest.approx([0.05, 0.05], abs=0.006)
    both = (offsets[:, 0] != 0) == (offsets[:, 1] != 0)
    assert float(both.float().mean()) > 0.9, "a sample moves along both axes or not at all"


@pytest.mark.parametrize(("pad", "probability"), [(-1, 0.5), (3, 1.5), (3, -0.1)])
def test_settings_out_of_range_are_refused(pad: int, probability: float) -> None:
    with pytest.raises(ValueError, match=f"pad={pad} .*probability={probability}"):
        RandomShift(pad, probability)
