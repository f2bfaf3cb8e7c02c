import itertools
from collections.abc import Mapping

import pytest
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import CameraConfig, Encoder, EncoderConfig, present_names
from gtp_vision.encoders.impala import SIZES


def observation(shapes: Mapping[str, tuple[int, ...]], batch: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        name: torch.randint(256, (batch, *shape), dtype=torch.uint8) if len(shape) == 4 else torch.randn(batch, *shape)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("name", "size"), [*((name, (16, 16)) for name in SIZES), ("impala_small", (15, 9))])
def test_images_become_features_of_the_configured_width(name: str, size: tuple[int, int]) -> None:
    encoder = Encoder({"front": (2, 3, *size)}, EncoderConfig(name=name, features=24))
    given = observation({"front": (2, 3, *size)}, batch=3)
    features = encoder(given)
    assert features.shape == (3, encoder.width) == (3, 24)
    assert float(features.detach().std()) > 0
    torch.testing.assert_close(encoder({"front": given["front"].float() / 255}), features, rtol=0, atol=1e-5)


def test_every_camera_frame_and_channel_has_an_effect() -> None:
    shapes = {"observation.images.top": (2, 3, 16, 16), "keys": (2, 1, 12, 12)}  # invalid as names of modules
    encoder, given = Encoder(shapes, EncoderConfig(features=16)), observation(shapes)
    features = encoder(given)
    for name, shape in shapes.items():
        for frame, channel in itertools.product(range(2), range(shape[1])):
            other = given[name].clone()
            other[:, frame, channel] = 255 - other[:, frame, channel]
            assert not torch.allclose(encoder(given | {name: other}), features), (name, frame, channel)


def inputs_of(encoder: Encoder, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the backbones' first layers see."""
    inputs: list[torch.Tensor] = []
    for tower in encoder.towers.values():
        tower.layers[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    encoder(given)
    return inputs


def test_the_mean_frame_is_subtracted_from_every_frame_of_its_camera_and_saved() -> None:
    shapes = {"left": (2, 3, 16, 16), "right": (2, 3, 16, 16)}
    encoder, given = Encoder(shapes, EncoderConfig(features=8)), observation(shapes)
    means = {name: torch.rand(3, 16, 16) * 255 for name in shapes}
    encoder.centre(means)
    for name, x in zip(shapes, inputs_of(encoder, given), strict=True):
        assert torch.allclose(x, ((given[name] - means[name]) / 255).flatten(1, 2))
    other = Encoder(shapes, EncoderConfig(features=8))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(given), encoder(given))


def test_frames_and_their_mean_are_center_cropped_and_resized() -> None:
    camera = CameraConfig(crop=[24, 24], size=[16, 16])
    shapes = {"front": (2, 3, 32, 40)}
    encoder = Encoder(shapes, EncoderConfig(features=8, cameras={"front": camera}))
    assert encoder.tower("front").shape == (2, 3, 16, 16)
    given = observation(shapes)["front"]
    features, border = encoder({"front": given}), given.clone()
    border[..., :4, :], border[..., :8] = 0, 0
    assert torch.equal(encoder({"front": border}), features), "pixels outside the crop have no effect"
    cropped = {"front": given[..., 4:28, 8:32]}
    assert torch.equal(encoder(cropped), features), "a frame that was cropped in training is taken as it is"
    encoder.centre({"front": given[0, 0].float()})
    (x,) = inputs_of(encoder, {"front": given[:1, :1].expand(-1, 2, -1, -1, -1)})
    assert float(x.abs().max()) < 1.1 / 255, "resized frames are rounded to bytes, means are not"


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ({"frnt": CameraConfig()}, r"encoder.cameras.frnt.*'front'"),
        ({"front": CameraConfig(crop=[33, 8])}, r"front.crop=\[33, 8\] .*32x32"),
    ],
)
def test_invalid_preprocessing_is_refused(cameras: dict[str, CameraConfig], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        Encoder({"front": (1, 3, 32, 32)}, EncoderConfig(cameras=cameras))


def test_cameras_can_share_one_backbone() -> None:
    shapes = {"left": (1, 3, 16, 16), "right": (1, 3, 24, 24), "state": (1, 2)}
    same = {"right": CameraConfig(size=[16, 16])}
    encoder, given = Encoder(shapes, EncoderConfig(features=8, share_cameras=True, cameras=same)), observation(shapes)
    assert encoder.tower("left") is encoder.tower("right")
    features = encoder(given)
    assert not any(torch.equal(encoder(given | {name: 255 - given[name]}), features) for name in ("left", "right"))
    with pytest.raises(GtpVisionError, match=r"'right' and 'left' share a backbone.*encoder.cameras.<name>.size"):
        Encoder(shapes, EncoderConfig(share_cameras=True))


def test_goals_share_backbone_and_scale_with_their_observations() -> None:
    shapes = {"front": (1, 3, 16, 16), "state": (1, 2), "goal/front": (1, 3, 16, 16), "goal/state": (1, 2)}
    encoder, given = Encoder(shapes, EncoderConfig(features=8)), observation(shapes)
    assert encoder.tower("goal/front") is encoder.tower("front")
    mean, deviation = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    encoder.standardize({"state": (mean, deviation)})
    features = encoder(given)
    assert torch.allclose(features[:, 2:4], (given["goal/state"][:, 0] - mean) / deviation)
    assert not torch.equal(encoder(given | {"goal/front": 255 - given["goal/front"]}), features)


def test_features_of_a_backbone_can_replace_its_frames() -> None:
    shapes = {"front": (2, 3, 16, 16), "wrist": (2, 3, 16, 16), "state": (2, 3)}
    encoder, given = Encoder(shapes, EncoderConfig(features=8)), observation(shapes)
    cached = {name: encoder.camera_features(name, given[name]).detach()[:, None] for name in ("front", "wrist")}
    assert torch.equal(encoder(cached | {"state": given["state"].reshape(2, 1, 6)}), encoder(given))


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ([1], "'front' is a list"),
        (torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), r"'front' .*\(2, 3, 16, 16\).*\(1, 3, 16, 16\)"),
        (torch.full((1, 1, 3, 16, 16), -0.5), r"'front' .*torch.float32 within \[-0.5"),
        (torch.full((1, 1, 3, 16, 16), torch.nan), r"'front' .*torch.float32 within"),
        (torch.zeros(1, 1, 3, 16, 16, dtype=torch.int32), r"'front' .*torch.int32"),
    ],
)
def test_invalid_observations_are_refused(front: object, message: str) -> None:
    encoder = Encoder({"front": (1, 3, 16, 16), "state": (1, 2)}, EncoderConfig(features=8))
    with pytest.raises(GtpVisionError, match=message):
        encoder({"state": torch.zeros(1, 1, 2), "front": front})  # type: ignore[dict-item]


def test_missing_observations_and_unused_cameras_are_refused() -> None:
    encoder = Encoder({"front": (1, 3, 16, 16), "state": (1, 2)}, EncoderConfig(features=8))
    with pytest.raises(GtpVisionError, match=r"'front' is missing.*'state'"):
        encoder({"state": torch.zeros(1, 1, 2)})
    with pytest.raises(GtpVisionError, match=r"'front'.*encoder=impala_small"):
        Encoder({"front": (1, 3, 16, 16)}, EncoderConfig(name="state"))


def test_parts_are_named_after_cameras_and_states_and_numbers_of_earlier_versions_are_known() -> None:
    shapes = {"b.left": (1, 3, 16, 16), "a": (1, 3, 16, 16), "0": (1, 2)}
    encoder = Encoder(shapes, EncoderConfig(name="impala_tiny", features=8))
    names = set(encoder.state_dict())
    assert {name.split(".")[1] for name in names if name.startswith("towers.")} == {"camera_b%2Eleft", "camera_a"}
    assert {"mean_0", "scale_0"} <= names
    numbered = {
        name.replace("camera_b%2Eleft", "0").replace("camera_a", "1").replace("mean_0", "state_mean_0")
        for name in names
    }
    assert set(present_names(encoder, numbered).values()) == names
    assert present_names(encoder, names) == {name: name for name in names}
