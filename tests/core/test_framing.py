"""Frames are cropped and resized alike when data are imported and when a policy acts."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as pixels

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import ALL, Framing, size_of


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("crop", "size"), [(None, (24, 32)), ((40, 30), (20, 15)), ((31, 33), None), (None, (96, 90))])
def test_frames_are_cropped_and_resized_as_torchvision_does(channels: int, crop: object, size: object) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, channels), np.uint8)
    framing = Framing({} if size is None else {ALL: size}, crop)  # type: ignore[arg-type, dict-item]
    found = framing("front", frames)
    assert found.shape[1:] == framing.shape("front", (48, 64, channels))
    wanted = torch.from_numpy(frames).permute(0, 3, 1, 2)
    wanted = wanted if crop is None else pixels.center_crop(wanted, list(crop))  # type: ignore[call-overload]
    wanted = wanted if size is None else pixels.resize(wanted, list(size), antialias=True)  # type: ignore[call-overload]
    assert np.abs(found.astype(int) - wanted.permute(0, 2, 3, 1).numpy()).max() <= (0 if size is None else 1)
    np.testing.assert_array_equal(framing("front", frames[0]), found[0])


def test_cameras_have_sizes_of_their_own_and_are_not_enlarged_by_auto() -> None:
    framing = Framing({"front": (32, 32)}, shrinks=True)
    assert framing.shape("front", (48, 64, 3)) == (32, 32, 3)
    assert framing.shape("front", (16, 16, 3)) == (16, 16, 3)
    assert framing.shape("wrist", (48, 64, 3)) == (48, 64, 3)
    assert Framing({"front": (32, 32)}).shape("front", (16, 16, 3)) == (32, 32, 3)


def test_a_framing_survives_its_record() -> None:
    framing = Framing({ALL: (3, 4)}, (5, 6), True, {"front": (7, 8, 1)})
    assert Framing.of(framing.record()) == framing
    assert Framing.of(None) is None
    for damage in ({}, [1], {**framing.record(), "crop": [0, 4]}, {**framing.record(), "sizes": {"*": [1 << 20, 4]}}):
        with pytest.raises(GtpVisionError, match="'frames' is invalid"):
            Framing.of(damage)


@pytest.mark.parametrize(("text", "size"), [("96", (96, 96)), ("96x128", (96, 128)), ("x", None), ("0", None)])
def test_sizes_are_read_or_refused(text: str, size: tuple[int, int] | None) -> None:
    if size:
        assert size_of(text, "task.image_size") == size
    else:
        with pytest.raises(GtpVisionError, match=f"task.image_size={text} is not a height and width"):
            size_of(text, "task.image_size")


def test_a_crop_larger_than_the_frames_is_refused() -> None:
    with pytest.raises(GtpVisionError, match="crop 60x20 is larger than the frames of camera 'front', 48x64"):
        Framing(crop=(60, 20)).shape("front", (48, 64, 3))


def test_distances_stay_those_of_a_pixel() -> None:
    """Of two bytes, a mean of each would be another distance."""
    millimeters = np.random.default_rng(0).integers(0, 1 << 16, (48, 64), np.uint16)
    frames = millimeters.astype(">u2")[..., None].view(np.uint8)
    found = Framing({ALL: (24, 20)})("depth", frames)
    assert np.isin(found.view(">u2"), millimeters).all()
