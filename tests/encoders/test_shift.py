import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gtp_vision.core.random import RandomStream
from gtp_vision.encoders import RandomShift
from gtp_vision.encoders.shift import window


def padded_and_cropped(image: torch.Tensor, pad: int, dy: int, dx: int) -> torch.Tensor:
    """DrQ's augmentation as it is published: repeat the edge, then cut a window. uint8 (C, H, W) to the same."""
    height, width = image.shape[1:]
    padded = F.pad(image[None].float(), (pad, pad, pad, pad), mode="replicate")[0].byte()
    return padded[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    pad=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_shift_is_padding_and_cropping(
    batch: int, frames: int, channels: int, height: int, width: int, pad: int, seed: int
) -> None:
    noise = RandomStream(seed, 0)
    images = noise.integers(256, batch, frames, channels, height, width).byte()
    shift = RandomShift(pad, 1.0)
    offsets = shift.draw(batch, noise)
    shifted = shift(images, offsets)
    assert shifted.dtype == torch.uint8
    for sample in range(batch):
        for frame in range(frames):
            expected = padded_and_cropped(images[sample, frame], pad, *offsets[sample].tolist())
            assert torch.equal(shifted[sample, frame], expected)


def test_offset_zero_is_the_identity() -> None:
    images = RandomStream(0, 0).integers(256, 2, 3, 3, 8, 7).byte()
    assert torch.equal(RandomShift(3, 1.0)(images, torch.zeros(2, 2, dtype=torch.int64)), images)


def test_pixel_y_x_of_the_result_is_y_plus_dy_x_plus_dx_of_the_input() -> None:
    image = torch.arange(20, dtype=torch.uint8).view(1, 1, 1, 4, 5)
    shifted = RandomShift(2, 1.0)(image, torch.tensor([[1, -2]]))[0, 0, 0]
    assert int(shifted[0, 2]) == int(image[0, 0, 0, 1, 0])
    assert int(shifted[0, 0]) == int(image[0, 0, 0, 1, 0]), "beyond the edge the edge is repeated"
    assert int(shifted[3, 4]) == int(image[0, 0, 0, 3, 2])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(3, 9),
    columns=st.integers(3, 9),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    pad=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_shift_and_crop_commute(rows: int, columns: int, height: int, width: int, pad: int, seed: int) -> None:
    noise = RandomStream(seed, 0)
    images = noise.integers(256, 2, 2, 3, rows, columns).byte()
    offsets = noise.integers(2 * pad + 1, 2, 2) - pad
    corner = torch.stack([noise.integers(rows - height + 1, 2), noise.integers(columns - width + 1, 2)], 1)
    both = window(images, offsets + corner, height, width)
    shifted = window(images, offsets, rows, columns)
    for sample, (top, left) in enumerate(corner.tolist()):
        assert torch.equal(both[sample], shifted[sample, :, :, top : top + height, left : left + width])


def test_all_frames_of_a_stack_move_together() -> None:
    noise = RandomStream(0, 0)
    still = noise.integers(256, 8, 1, 3, 8, 8).byte().expand(8, 4, 3, 8, 8)
    shift = RandomShift(3, 1.0)
    shifted = shift(still, shift.draw(8, noise))
    assert not torch.equal(shifted, still)
    assert all(torch.equal(shifted[:, frame], shifted[:, 0]) for frame in range(4))


def test_the_input_is_left_alone() -> None:
    images = RandomStream(0, 0).integers(256, 2, 1, 3, 8, 8).byte()
    before = images.clone()
    RandomShift(2, 1.0)(images, torch.full((2, 2), 2))
    assert torch.equal(images, before)


def test_offsets_are_uniform_for_the_share_that_moves() -> None:
    offsets = RandomShift(2, 0.25).draw(40_000, RandomStream(3, 0))
    assert offsets.dtype == torch.int64
    assert set(offsets.unique().tolist()) == {-2, -1, 0, 1, 2}
    moved = (offsets != 0).any(1).float().mean()
    assert float(moved) == pytest.approx(0.25 * 24 / 25, abs=0.01)
    for axis in range(2):
        for value in (-2, -1, 1, 2):
            assert float((offsets[:, axis] == value).float().mean()) == pytest.approx(0.05, abs=0.006)
    both = (offsets[:, 0] != 0) == (offsets[:, 1] != 0)
    assert float(both.float().mean()) > 0.9, "a sample moves along both axes or not at all"


@pytest.mark.parametrize(("pad", "probability"), [(0, 1.0), (4, 0.0)])
def test_a_shift_that_is_off_moves_nothing(pad: int, probability: float) -> None:
    noise = RandomStream(0, 0)
    images = noise.integers(256, 4, 2, 3, 6, 6).byte()
    shift = RandomShift(pad, probability)
    assert torch.equal(shift(images, shift.draw(4, noise)), images)


def test_processes_together_shift_as_one() -> None:
    shift = RandomShift(3, 0.5)
    parts = [shift.draw(4, RandomStream(0, 5, rank=rank, world_size=3)) for rank in range(3)]
    assert torch.equal(torch.cat(parts), shift.draw(12, RandomStream(0, 5)))


@pytest.mark.parametrize(("pad", "probability"), [(-1, 0.5), (3, 1.5), (3, -0.1)])
def test_settings_out_of_range_are_refused(pad: int, probability: float) -> None:
    with pytest.raises(ValueError, match=f"pad={pad} .*probability={probability}"):
        RandomShift(pad, probability)
