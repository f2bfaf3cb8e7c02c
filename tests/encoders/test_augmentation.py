from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from commands import ended

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.encoders import Augmentation, AugmentationConfig, CameraConfig, EncoderConfig, RandomShift

FRAMES = {"front": (2, 3, 16, 16), "wrist": (2, 3, 12, 20)}
EVERYTHING = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2, "blur": 1.0, "erase": 0.4}


def make(
    shapes: Mapping[str, tuple[int, ...]] = FRAMES, crops: Mapping[str, list[int]] | None = None, **settings: Any
) -> Augmentation:
    cameras = {name: CameraConfig(crop=crop) for name, crop in (crops or {}).items()}
    return Augmentation(EncoderConfig(cameras=cameras, augmentation=AugmentationConfig(**settings)), shapes)


def images(rows: int = 6, shapes: Mapping[str, tuple[int, ...]] = FRAMES, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = RandomStream(seed, 1)
    return {name: noise.integers(256, rows, *shape).byte() for name, shape in shapes.items()}


def noise(step: int = 0) -> RandomStream:
    return RandomStream(0, step)


@pytest.mark.parametrize("used", [{"shift": 3}, {"blur": 1.0}, EVERYTHING])
def test_all_frames_of_a_sample_are_changed_alike(used: dict[str, Any]) -> None:
    augment = make(**{"shift": 0} | used)
    still = {name: x[:, :1].expand(x.shape) for name, x in images(32).items()}
    draws = augment.draw(32, noise())
    changed = augment(still | {f"goal/{name}": x for name, x in still.items()}, draws)
    for name, next_frames in augment(still, draws).items():
        assert changed[name].dtype == torch.uint8
        assert torch.equal(changed[name], next_frames)
        assert torch.equal(changed[name], changed[f"goal/{name}"])
        assert torch.equal(changed[name][:, 0], changed[name][:, 1]), "the frames of a stack"
    assert not torch.equal(changed["wrist"], still["wrist"])


@pytest.mark.parametrize("key", [f.name for f in fields(AugmentationConfig)])
def test_every_setting_changes_something(key: str) -> None:
    other = {"shift": 1, "same_for_cameras": True, "warmup_steps": 10, "hue": 0.3}
    other |= dict.fromkeys(("shift_probability", "color_probability", "blur_probability", "erase_probability"), 0.1)
    settings = {"shift": 3, **EVERYTHING}
    observation = images(64)
    before, after = make(**settings), make(**settings | {key: other.get(key, settings.get(key, 0) / 2)})
    seen = [augment(observation, augment.draw(64, noise(), 5)) for augment in (before, after)]
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in FRAMES)


def test_settings_at_zero_change_nothing_and_draw_only_the_shift() -> None:
    augment, observation = make(shift=0), images()
    stream, usual = noise(), noise()
    unchanged = augment(observation, augment.draw(6, stream))
    assert all(unchanged[name] is observation[name] for name in FRAMES)
    assert not augment.active
    for _ in FRAMES:
        RandomShift(0, 0.5).draw(6, usual)
    assert torch.equal(stream.uniform(3), usual.uniform(3))


@pytest.mark.parametrize("same", [False, True])
def test_cameras_are_changed_separately_or_alike(same: bool) -> None:
    shapes = {"left": (1, 3, 16, 16), "right": (1, 3, 16, 16)}
    augment = make(shapes, {"left": [9, 9], "right": [9, 9]}, same_for_cameras=same, **EVERYTHING)
    shown = images(32, {"left": shapes["left"]})["left"]
    seen = augment({"left": shown, "right": shown}, augment.draw(32, noise()))
    alike = (seen["left"] == seen["right"]).flatten(1).all(1)
    assert bool(alike.all()) if same else not bool(alike.any())


def test_cameras_of_other_sizes_are_changed_alike_in_shares_of_their_frame() -> None:
    augment = make(crops={"front": [8, 8]}, shift=0, erase=0.5, erase_probability=1.0, same_for_cameras=True)
    white = {name: torch.full((8, *shape), 255, dtype=torch.uint8) for name, shape in FRAMES.items()}
    seen = augment(white, augment.draw(8, noise()))
    assert seen["front"].shape == (8, 2, 3, 8, 8)
    assert seen["wrist"].shape == (8, *FRAMES["wrist"])
    shares = [(x == 0).float().mean((1, 2, 3, 4)) for x in seen.values()]
    assert float((shares[0] - shares[1]).abs().max()) < 0.2


def test_a_crop_is_a_slice_at_the_drawn_place_and_reaches_every_place() -> None:
    augment, front = make(crops={"front": [10, 13]}, shift=0), images(500)["front"]
    draws = augment.draw(500, noise())
    cropped, place = augment({"front": front}, draws)["front"], draws["front"].crop
    assert place is not None
    corners = (place * torch.tensor([7, 4])).long()
    assert len(corners.unique(dim=0)) == 7 * 4
    for sample, (top, left) in enumerate(corners[:20].tolist()):
        assert torch.equal(cropped[sample], front[sample, :, :, top : top + 10, left : left + 13])


def test_several_processes_change_frames_as_one_does() -> None:
    augment, observation = make(crops={"wrist": [9, 9]}, **EVERYTHING), images(12)
    whole = augment(observation, augment.draw(12, RandomStream(0, 5)))
    for rank in range(3):
        rows = slice(4 * rank, 4 * rank + 4)
        draws = augment.draw(4, RandomStream(0, 5, rank=rank, world_size=3))
        part = augment({name: x[rows] for name, x in observation.items()}, draws)
        assert all(torch.equal(part[name], whole[name][rows]) for name in FRAMES)


def test_warmup_grows_from_shift_and_crop_to_full_strength() -> None:
    crops = {"front": [9, 9]}
    augment, plain = make(crops=crops, warmup_steps=10, shift=3, **EVERYTHING), make(crops=crops)
    front = {"front": images(64)["front"]}

    def differences(step: int | None) -> float:
        changed = augment(front, augment.draw(64, noise(), step))["front"]
        return float((changed.float() - first.float()).abs().mean())

    first = plain(front, plain.draw(64, noise(), 0))["front"]
    assert differences(0) == 0, "shift and crop have no warmup"
    assert 0 < differences(2) < differences(5) < differences(10)
    assert differences(10) == differences(11) == differences(None)


def test_samples_that_are_not_drawn_stay_bit_equal_also_in_half_precision() -> None:
    probabilities = {f"{key}_probability": 0.4 for key in ("color", "blur", "erase")}
    augment, observation = make(shift=0, **EVERYTHING, **probabilities), images(100)
    draws = augment.draw(100, noise())
    with torch.autocast("cpu", torch.bfloat16):
        changed = augment(observation, draws)
    for name, change in draws.items():
        assert change.color is not None
        assert change.blur is not None
        assert change.erased is not None
        is_drawn = (change.color[:, 3] != 0) | (change.blur[:, 0] > 0) | (change.erased[:, 0] > 0)
        is_changed = (changed[name] != observation[name]).flatten(1).any(1)
        assert not (is_changed & ~is_drawn).any()
        assert float(is_changed[is_drawn].float().mean()) > 0.9, "some changes are below the precision of uint8"


def test_states_and_features_are_not_changed() -> None:
    augment = make(**EVERYTHING)
    observation = {"front": torch.rand(6, 1, 8), "wrist": torch.rand(6, 1, 4), "arm": torch.rand(6, 2, 3)}
    passed = augment(observation, augment.draw(6, noise()))
    assert all(passed[name] is x for name, x in observation.items())
    assert make({"arm": (2, 3)}, **EVERYTHING).draw(6, noise()) == {}


@pytest.mark.parametrize(
    ("channels", "settings", "message"),
    [
        (1, {"hue": 0.1}, "encoder.augmentation.hue=0.1 .*'depth'.*16x16"),
        (1, {"saturation": 0.5}, "encoder.augmentation.saturation=0.5 .*1 channel"),
        (4, {"brightness": 0.5}, "encoder.augmentation.brightness=0.5 .*4 channel"),
        (2, {"contrast": 0.5}, "encoder.augmentation.contrast=0.5 .*2 channel"),
        (3, {"shift": 16}, "encoder.augmentation.shift=16 .*below 16"),
        (3, {"blur": 5.1}, "encoder.augmentation.blur=5.1 .*16x16"),
    ],
)
def test_settings_that_frames_do_not_allow_are_refused(channels: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        make({"depth": (1, channels, 16, 16)}, **settings)


@pytest.mark.processes
def test_a_shift_needs_no_import_of_kornia() -> None:
    code = (
        "import sys, torch\n"
        "from gtp_vision.core.random import RandomStream\n"
        "from gtp_vision.encoders import Augmentation, AugmentationConfig, EncoderConfig\n"
        "augment = Augmentation(EncoderConfig(augmentation=AugmentationConfig(shift=2)), {'front': (1, 3, 8, 8)})\n"
        "augment({'front': torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)}, augment.draw(2, RandomStream(0, 0)))\n"
        "assert 'kornia' not in sys.modules\n"
    )
    ended("-c", code)


def test_a_gray_camera_beside_one_of_colors_keeps_its_hue_and_changes_its_brightness() -> None:
    shapes = {"front": (1, 3, 8, 8), "depth": (1, 1, 6, 6)}
    seen = images(shapes=shapes)
    for settings, changes_gray in (({"saturation": 0.5, "hue": 0.2}, False), ({"hue": 0.2, "brightness": 0.5}, True)):
        augment = make(shapes, shift=0, color_probability=1.0, **settings)
        changed = augment(seen, augment.draw(6, noise()))
        assert not torch.equal(changed["front"], seen["front"])
        assert torch.equal(changed["depth"], seen["depth"]) != changes_gray
