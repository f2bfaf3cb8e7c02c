import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.encoders import (
    Augmentation,
    AugmentationConfig,
    CameraConfig,
    Encoder,
    EncoderConfig,
    RandomShift,
    check_encoder,
)

FRAMES = {"front": (2, 3, 16, 16), "wrist": (2, 3, 12, 20)}
OFF = {"shift": 0}
EVERYTHING = {
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.2,
    "blur": 1.0,
    "erase": 0.4,
}


def make(
    shapes: Mapping[str, tuple[int, ...]] = FRAMES, crops: Mapping[str, list[int]] | None = None, **settings: Any
) -> Augmentation:
    """What the settings ask for, with the cameras of `FRAMES`."""
    cameras = {name: CameraConfig(crop=crop) for name, crop in (crops or {}).items()}
    return Augmentation(EncoderConfig(cameras=cameras, augmentation=AugmentationConfig(**settings)), shapes)


def images(rows: int = 6, shapes: Mapping[str, tuple[int, ...]] = FRAMES, seed: int = 0) -> dict[str, torch.Tensor]:
    """uint8 noise of the cameras."""
    noise = RandomStream(seed, 1)
    return {name: noise.integers(256, rows, *shape).byte() for name, shape in shapes.items()}


def noise(step: int = 0) -> RandomStream:
    return RandomStream(0, step)


@pytest.mark.parametrize("used", [{"shift": 3}, *({key: EVERYTHING[key]} for key in EVERYTHING), EVERYTHING])
def test_frames_and_observations_of_a_sample_are_changed_alike(used: dict[str, Any]) -> None:
    augment = make(crops={"front": [10, 12]}, **OFF | used)
    still = {name: x[:, :1].expand(x.shape) for name, x in images(32).items()}
    goals = {f"goal/{name}": x for name, x in still.items()}
    draws = augment.draw(32, noise())
    once, again = augment({**still, **goals}, draws), augment(still, draws)
    for name in still:
        assert once[name].dtype == torch.uint8
        assert torch.equal(once[name], again[name]), "the next observation"
        assert torch.equal(once[name], once[f"goal/{name}"])
        assert torch.equal(once[name][:, 0], once[name][:, 1]), "the frames of a stack"
        if name == "wrist":
            assert not torch.equal(once[name], still[name])


@pytest.mark.parametrize("key", [f.name for f in fields(AugmentationConfig)])
def test_every_setting_changes_something(key: str) -> None:
    other = {"shift": 1, "same_for_cameras": True, "warmup_steps": 10, "hue": 0.3}
    probabilities = {"shift_probability": 0.9, "color_probability": 0.2, "blur_probability": 0.1}
    other |= probabilities | {"erase_probability": 0.1}
    settings = {"shift": 3, **EVERYTHING}
    value = other.get(key, settings.get(key, 0) / 2)
    observation = images(64)
    before, after = make(**settings), make(**settings | {key: value})
    seen = [augment(observation, augment.draw(64, noise(), 5)) for augment in (before, after)]
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in FRAMES)


def test_settings_at_zero_are_the_identity_and_draw_nothing_but_the_shift() -> None:
    augment, observation = make(shift=0), images()
    stream, usual = noise(), noise()
    unchanged = augment(observation, augment.draw(6, stream))
    assert all(unchanged[name] is observation[name] for name in FRAMES)
    assert not augment.active
    for _ in FRAMES:
        RandomShift(0, 0.5).draw(6, usual)
    assert torch.equal(stream.uniform(3), usual.uniform(3))


def test_a_sample_that_no_probability_takes_is_left_alone_bit_for_bit() -> None:
    settings = {f"{key}_probability": 0.4 for key in ("color", "blur", "erase")}
    augment, observation = make(shift=0, **EVERYTHING, **settings), images(200)
    draws = augment.draw(200, noise())
    for name, x in augment(observation, draws).items():
        change = draws[name]
        assert change.color is not None
        assert change.blur is not None
        assert change.erased is not None
        taken = (change.color[:, 3] != 0) | (change.blur[:, 0] > 0) | (change.erased[:, 0] > 0)
        assert 20 < int((~taken).sum()) < 80
        assert torch.equal(x[~taken], observation[name][~taken])
        assert (x[taken] != observation[name][taken]).flatten(1).any(1).float().mean() > 0.9, (
            "some too little for uint8"
        )


def test_one_camera_draws_the_numbers_of_a_plain_shift_first() -> None:
    shapes = {"front": FRAMES["front"]}
    for settings in ({}, EVERYTHING):
        draws = make(shapes, **settings).draw(64, noise())
        assert torch.equal(draws["front"].shift, RandomShift(3, 0.5).draw(64, noise()))  # type: ignore[arg-type]


@pytest.mark.parametrize("same", [False, True])
def test_cameras_are_changed_each_in_its_own_way_or_alike(same: bool) -> None:
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
    augment, observation = make(crops={"front": [10, 13]}, shift=0), images(500)
    draws = augment.draw(500, noise())
    seen, place = augment(observation, draws), draws["front"].crop
    assert place is not None
    assert seen["front"].shape == (500, 2, 3, 10, 13)
    corners = {(int(y * 7), int(x * 4)) for y, x in place.tolist()}
    assert corners == {(y, x) for y in range(7) for x in range(4)}
    for sample in range(20):
        top, left = int(place[sample, 0] * 7), int(place[sample, 1] * 4)
        expected = observation["front"][sample, :, :, top : top + 10, left : left + 13]
        assert torch.equal(seen["front"][sample], expected)


def test_a_shifted_crop_shows_what_lies_beyond_the_crop() -> None:
    shapes = {"front": (1, 1, 16, 16)}
    augment = make(shapes, {"front": [10, 10]}, shift=3, shift_probability=1.0)
    observation = images(50, shapes)
    draws = augment.draw(50, noise())
    shift, place = draws["front"].shift, draws["front"].crop
    assert shift is not None
    assert place is not None
    seen = augment(observation, draws)["front"]
    whole = RandomShift(3, 1.0)(observation["front"], shift)
    for sample in range(50):
        top, left = (place[sample] * 7).long().tolist()
        assert torch.equal(seen[sample], whole[sample, :, :, top : top + 10, left : left + 10])


def test_the_encoder_takes_cropped_frames_in_training_and_whole_ones_when_acting() -> None:
    config = EncoderConfig(features=8, cameras={"front": CameraConfig(crop=[12, 12])})
    shapes = {"front": FRAMES["front"]}
    encoder, augment, observation = Encoder(shapes, config), Augmentation(config, shapes), images(4, shapes)
    middle = replace(augment.draw(4, noise())["front"], shift=None, crop=torch.full((4, 2), 0.5))
    cropped = augment(observation, {"front": middle})
    assert torch.equal(encoder(cropped), encoder(observation))


def test_processes_together_change_frames_as_one() -> None:
    augment, observation = make(crops={"wrist": [9, 9]}, **EVERYTHING), images(12)
    one = augment(observation, augment.draw(12, RandomStream(0, 5)))
    for rank in range(3):
        own = {name: x[4 * rank : 4 * rank + 4] for name, x in observation.items()}
        part = augment(own, augment.draw(4, RandomStream(0, 5, rank=rank, world_size=3)))
        for name in FRAMES:
            assert torch.equal(part[name], one[name][4 * rank : 4 * rank + 4])


def test_warming_up_grows_from_nothing_but_shift_and_crop_to_the_whole() -> None:
    settings = {"shift": 3, **EVERYTHING}
    crops = {"front": [9, 9]}
    augment, plain, observation = make(crops=crops, warmup_steps=10, **settings), make(crops=crops), images(64)
    one_camera = {"front": observation["front"]}

    def differences(step: int | None) -> float:
        seen = augment(one_camera, augment.draw(64, noise(), step))["front"]
        return float((seen.float() - first.float()).abs().mean())

    first = plain(one_camera, plain.draw(64, noise(), 0))["front"]
    assert differences(0) == 0, "shift and crop need no warm-up"
    assert 0 < differences(2) < differences(5) < differences(10)
    assert differences(10) == differences(11) == differences(None)
    streams = [noise(), noise()]
    for stream, step in zip(streams, (0, 10), strict=True):
        augment.draw(64, stream, step)
    assert torch.equal(streams[0].uniform(3), streams[1].uniform(3)), "the schedule changes no later number"


def test_half_precision_leaves_alone_what_is_not_taken() -> None:
    augment = make(shift=0, blur=1.0, blur_probability=0.0001, color_probability=0.0001, brightness=0.5)
    observation = images(16)
    draws = augment.draw(16, noise())
    with torch.autocast("cpu", torch.bfloat16):
        seen = augment(observation, draws)
    assert all(torch.equal(seen[name], observation[name]) for name in FRAMES)


def test_states_and_features_pass_as_they_are() -> None:
    augment = make(**EVERYTHING)
    observation = {"front": torch.rand(6, 1, 8), "wrist": torch.rand(6, 1, 4), "arm": torch.rand(6, 2, 3)}
    passed = augment(observation, augment.draw(6, noise()))
    assert all(passed[name] is x for name, x in observation.items())
    assert make({"arm": (2, 3)}, **EVERYTHING).draw(6, noise()) == {}


@pytest.mark.parametrize(
    ("channels", "settings", "said"),
    [
        (1, {"hue": 0.1}, "encoder.augmentation.hue=0.1 is for RGB frames, and the camera 'depth' shows 16x16 pixels"),
        (1, {"saturation": 0.5}, "of 1 channel.*set encoder.augmentation.saturation=0"),
        (4, {"brightness": 0.5}, "brightness=0.5 is for frames that are RGB or grey"),
        (2, {"contrast": 0.5}, "encoder.augmentation.contrast=0.5 .* of 2 channel"),
        (3, {"shift": 16}, "encoder.augmentation.shift=16 moves everything out of sight.*less than 16"),
        (3, {"blur": 5.1}, "encoder.augmentation.blur=5.1 reaches 16 pixels far.*16x16.*take a smaller one"),
    ],
)
def test_settings_that_a_camera_does_not_allow_are_refused(channels: int, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(GtpVisionError, match=said):
        make({"depth": (1, channels, 16, 16)}, **settings)


def test_the_largest_shift_and_blur_and_grey_frames_are_allowed() -> None:
    augment = make({"depth": (1, 1, 16, 16)}, shift=15, blur=5.0, brightness=0.5, contrast=0.5, erase=1.0)
    seen = augment(images(4, {"depth": (1, 1, 16, 16)}), augment.draw(4, noise()))
    assert seen["depth"].shape == (4, 1, 1, 16, 16)
    with pytest.raises(GtpVisionError, match=r"shift=15 .* 15x16 pixels"):
        make({"depth": (1, 1, 16, 16)}, {"depth": [15, 16]}, shift=15)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            EncoderConfig(augmentation=AugmentationConfig(warmup_steps=100)),
            "warmup_steps=100 is for colour, blur and erasing, and all are off",
        ),
        (
            EncoderConfig(name="state", augmentation=AugmentationConfig(shift=0, erase=0.1)),
            "encoder.augmentation.erase changes frames, and encoder=state sees none",
        ),
        (
            EncoderConfig(tuning="frozen", augmentation=AugmentationConfig(hue=0.1)),
            "encoder.augmentation.hue would change no frame.*encoder.views to 2 or more, or encoder.cache=false",
        ),
        (
            EncoderConfig(tuning="frozen", views=4, augmentation=AugmentationConfig(hue=0.1, warmup_steps=9)),
            "encoder.augmentation.warmup_steps=9 .*set it to 0, or encoder.cache=false",
        ),
    ],
)
def test_settings_that_would_change_nothing_are_refused(config: EncoderConfig, said: str) -> None:
    with pytest.raises(GtpVisionError, match=said):
        check_encoder(config)


def test_a_plain_shift_does_without_kornia() -> None:
    code = (
        "import sys, torch\n"
        "from gtp_vision.core.random import RandomStream\n"
        "from gtp_vision.encoders import Augmentation, AugmentationConfig, EncoderConfig\n"
        "config = EncoderConfig(augmentation=AugmentationConfig(erase=0.5))\n"
        "augment = Augmentation(config, {'front': (1, 3, 8, 8)})\n"
        "augment({'front': torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)}, augment.draw(2, RandomStream(0, 0)))\n"
        "assert 'kornia' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


class Operations(TorchDispatchMode):
    """The names of what torch computes meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_plain_shift_computes_nothing_for_all_that_is_off() -> None:
    shapes = {"front": (3, 3, 64, 64)}
    observation, plain, augment = images(32, shapes), RandomShift(3, 0.5), make(shapes)
    with Operations() as shifted:
        plain(observation["front"], plain.draw(32, noise()))
    with Operations() as augmented:
        augment(observation, augment.draw(32, noise()))
    assert augmented.names == shifted.names
    assert "aten.gather.default" in shifted.names
