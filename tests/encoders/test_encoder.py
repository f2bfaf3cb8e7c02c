from collections.abc import Callable, Mapping

import pytest
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import CameraConfig, Encoder, EncoderConfig
from gtp_vision.encoders.impala import SIZES, Impala

IMAGES = list(SIZES)


def observation(shapes: Mapping[str, tuple[int, ...]], batch: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        name: torch.randint(256, (batch, *shape), dtype=torch.uint8) if len(shape) == 4 else torch.randn(batch, *shape)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [(16, 16), (20, 12)])
def test_images_become_features_of_the_asked_width(name: str, size: tuple[int, int]) -> None:
    shapes = {"front": (2, 3, *size)}
    encoder = Encoder(shapes, EncoderConfig(name=name, features=24))
    features = encoder(observation(shapes, batch=3))
    assert encoder.width == 24
    assert features.shape == (3, 24)
    assert features.dtype == torch.float32
    assert bool(features.isfinite().all())
    assert float(features.detach().std()) > 0


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_an_odd_size_are_seen_or_refused_when_the_encoder_is_made(name: str) -> None:
    shapes = {"front": (1, 3, 15, 9)}
    try:
        encoder = Encoder(shapes, EncoderConfig(name=name, features=8))
    except GtpVisionError as error:
        told = str(error)
        assert all(word in told for word in (name, "front", "15", "9"))
        return
    assert encoder(observation(shapes)).shape == (2, 8)


def test_the_sizes_differ_as_their_names_say() -> None:
    shapes, names = {"front": (3, 3, 64, 64)}, ["impala_small", "impala", "impala_large"]
    weights = [sum(p.numel() for p in Encoder(shapes, EncoderConfig(name=name)).parameters()) for name in names]
    assert weights == sorted(weights)
    assert len(set(weights)) == 3


def test_states_alone_pass_as_they_are() -> None:
    shapes = {"state": (2, 3), "goal": (1, 4)}
    encoder = Encoder(shapes, EncoderConfig(name="state"))
    given = observation(shapes)
    assert encoder.width == 10
    assert list(encoder.parameters()) == []
    expected = torch.cat([given["state"].flatten(1), given["goal"].flatten(1)], dim=1)
    assert torch.equal(encoder(given), expected)


def test_states_are_appended_to_what_the_cameras_see() -> None:
    shapes = {"front": (1, 3, 16, 16), "state": (2, 3)}
    encoder = Encoder(shapes, EncoderConfig(features=8))
    given = observation(shapes)
    features = encoder(given)
    assert encoder.width == 8 + 6
    moved = encoder(given | {"state": given["state"] + 1})
    changed = (moved != features).any(0)
    assert int(changed.sum()) == 6, "six features are the states, and no other depends on them"
    kept = features[:, changed]
    assert torch.equal(kept.sort(1).values, given["state"].flatten(1).sort(1).values)


def test_every_camera_and_every_frame_is_seen() -> None:
    shapes = {"front": (2, 3, 16, 16), "wrist": (2, 1, 12, 12)}
    encoder = Encoder(shapes, EncoderConfig(features=16))
    given = observation(shapes)
    features = encoder(given)
    for name in shapes:
        for frame in range(2):
            for channel in range(shapes[name][1]):
                other = {key: value.clone() for key, value in given.items()}
                other[name][:, frame, channel] = 255 - other[name][:, frame, channel]
                assert not torch.allclose(encoder(other), features), (name, frame, channel)


def test_each_camera_has_a_tower_of_its_own() -> None:
    shapes = {"left": (1, 3, 16, 16), "right": (1, 3, 16, 16)}
    encoder = Encoder(shapes, EncoderConfig())
    left, right = (dict(part.named_parameters()) for part in encoder.modules() if isinstance(part, Impala))
    assert all(left[name] is not right[name] for name in left)


@pytest.mark.parametrize("name", IMAGES)
def test_bytes_are_scaled_to_one_by_255(name: str) -> None:
    encoder = Encoder({"front": (1, 3, 16, 16)}, EncoderConfig(name=name))
    seen: list[torch.Tensor] = []
    first = next(module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    image = observation({"front": (1, 3, 16, 16)})["front"]
    encoder({"front": image})
    scaled = (image.float() / 255).flatten(1)
    assert torch.equal(seen[0].flatten(1).sort(1).values, scaled.sort(1).values), "pixels may change places only"
    encoder({"front": torch.full_like(image, 255)})
    assert torch.equal(seen[1], torch.ones_like(seen[1]))


def test_the_mean_frame_is_subtracted_from_every_frame_of_its_camera_and_saved() -> None:
    shapes = {"left": (2, 3, 16, 16), "right": (2, 3, 16, 16)}
    encoder = Encoder(shapes, EncoderConfig(features=8))
    given = observation(shapes)
    raw = encoder(given)
    means = {name: torch.rand(3, 16, 16) * 255 for name in shapes}
    encoder.centre(means)
    seen: list[torch.Tensor] = []
    for tower in encoder.towers:
        tower.layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    centred = encoder(given)
    for name, x in zip(shapes, seen, strict=True):
        assert torch.allclose(x, ((given[name] - means[name]) / 255).flatten(1, 2))
    assert not torch.allclose(centred, raw)
    other = Encoder(shapes, EncoderConfig(features=8))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(given), centred)


def test_with_the_mean_frame_gone_untrained_features_tell_observations_apart() -> None:
    """A scene that hardly changes: without its mean nearly all of a feature is the same for all observations."""
    torch.manual_seed(0)
    scene = torch.randint(60, 200, (1, 1, 3, 32, 32)).expand(64, 1, 3, 32, 32).clone()
    for row in range(64):
        y, x = divmod(row, 8)
        scene[row, :, :, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3] = 255
    given = {"front": scene.to(torch.uint8)}
    encoder = Encoder({"front": (1, 3, 32, 32)}, EncoderConfig())

    def varying() -> float:
        features = encoder(given).detach()
        return float(features.var(0).mean() / features.square().mean())

    before = varying()
    encoder.centre({"front": given["front"].float().mean((0, 1))})
    assert before < 0.1 < 0.2 < varying()


@pytest.mark.parametrize("camera", ["observation.images.top", "camera left", "keys"])
def test_a_camera_may_have_any_name(camera: str) -> None:
    shapes = {camera: (1, 3, 16, 16)}
    assert Encoder(shapes, EncoderConfig(features=8))(observation(shapes)).shape == (2, 8)


def test_a_missing_observation_is_named_with_those_given() -> None:
    encoder = Encoder({"front": (1, 3, 16, 16), "wrist": (1, 3, 16, 16)}, EncoderConfig())
    given = observation({"front": (1, 3, 16, 16), "state": (1, 3)})
    with pytest.raises(GtpVisionError, match=r"'wrist' is missing.*'front', 'state'"):
        encoder(given)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 1, 16, 16), (1, 3, 8, 16), (1, 16, 16, 3), (16, 16)])
def test_another_shape_is_named_with_the_right_one(shape: tuple[int, ...]) -> None:
    encoder = Encoder({"front": (1, 3, 16, 16)}, EncoderConfig())
    with pytest.raises(GtpVisionError) as told:
        encoder(observation({"front": shape}))
    assert all(word in str(told.value) for word in ("'front'", str(shape), "(1, 3, 16, 16)"))


def test_an_unknown_encoder_is_refused_with_the_nearest() -> None:
    with pytest.raises(GtpVisionError, match=r"impla_small.*did you mean 'impala_small'"):
        Encoder({"front": (1, 3, 16, 16)}, EncoderConfig(name="impla_small"))


def test_the_state_encoder_refuses_cameras_and_proposes_one_that_sees() -> None:
    with pytest.raises(GtpVisionError, match=r"cannot see.*'front'.*encoder=impala_small"):
        Encoder({"front": (1, 3, 16, 16), "state": (1, 3)}, EncoderConfig(name="state"))


# Cameras looked at in their own ways ------------------------------------------------------------------------------


def test_the_middle_of_a_frame_is_cut_out_and_resized() -> None:
    shapes = {"front": (2, 3, 32, 40)}
    look = CameraConfig(crop=[24, 24], size=[16, 16])
    encoder = Encoder(shapes, EncoderConfig(features=8, cameras={"front": look}))
    assert encoder.tower("front").shape == (2, 3, 16, 16)
    given = observation(shapes)["front"]
    features = encoder({"front": given})
    border = given.clone()
    border[..., :4, :], border[..., :8] = 0, 0
    assert torch.equal(encoder({"front": border}), features), "what lies outside the crop is not seen"
    cut = given[..., 4:28, 8:32]
    assert torch.equal(encoder({"front": cut}), features), "a frame that was cropped in training is taken as it is"


def test_a_whole_frame_of_one_colour_keeps_it_when_resized() -> None:
    encoder = Encoder({"front": (1, 3, 32, 32)}, EncoderConfig(cameras={"front": CameraConfig(size=[16, 16])}))
    frame = torch.tensor([10, 128, 250], dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(1, 1, 3, 32, 32)
    seen: list[torch.Tensor] = []
    encoder.tower("front").register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    encoder({"front": frame})
    assert torch.equal(seen[0], frame[..., :16, :16])


def test_the_mean_frame_is_looked_at_as_the_frames_are() -> None:
    shapes = {"front": (1, 3, 32, 32)}
    look = CameraConfig(crop=[24, 24], size=[16, 16])
    encoder = Encoder(shapes, EncoderConfig(features=8, cameras={"front": look}))
    frame = observation(shapes)["front"]
    encoder.centre({"front": frame[0, 0].float()})
    seen: list[torch.Tensor] = []
    encoder.tower("front").layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))  # type: ignore[union-attr,operator,index]
    encoder({"front": frame[:1]})
    assert float(seen[0].detach().abs().max()) < 1.1 / 255, "resized frames are rounded to bytes, means are not"


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ({"frnt": CameraConfig()}, r"encoder.cameras.frnt: there is no such camera.*'front'"),
        ({"front": CameraConfig(crop=[33, 8])}, r"crop=\[33, 8\] is larger than the camera's 32x32"),
        ({"front": CameraConfig(crop=[8])}, r"crop=\[8\] must be a height and a width"),
        ({"front": CameraConfig(size=[0, 8])}, r"size=\[0, 8\] must be a height and a width"),
    ],
)
def test_a_look_that_does_not_fit_is_refused(looks: dict[str, CameraConfig], told: str) -> None:
    with pytest.raises(GtpVisionError, match=told):
        Encoder({"front": (1, 3, 32, 32)}, EncoderConfig(cameras=looks))


def test_cameras_can_share_one_backbone() -> None:
    shapes = {"left": (1, 3, 16, 16), "right": (1, 3, 24, 24), "state": (1, 2)}
    same = {"right": CameraConfig(size=[16, 16])}
    encoder = Encoder(shapes, EncoderConfig(features=8, share_cameras=True, cameras=same))
    assert len(encoder.towers) == 1
    assert encoder.tower("left") is encoder.tower("right")
    given = observation(shapes)
    features = encoder(given)
    for camera in ("left", "right"):
        assert not torch.equal(encoder(given | {camera: 255 - given[camera]}), features)
    with pytest.raises(GtpVisionError, match=r"'right' and 'left' share a backbone.*encoder.cameras.<name>.size"):
        Encoder(shapes, EncoderConfig(share_cameras=True))


def test_a_goal_is_seen_and_scaled_as_what_it_is_a_goal_of() -> None:
    shapes = {"front": (1, 3, 16, 16), "state": (1, 2), "goal/front": (1, 3, 16, 16), "goal/state": (1, 2)}
    encoder = Encoder(shapes, EncoderConfig(features=8))
    assert encoder.tower("goal/front") is encoder.tower("front")
    encoder.standardize({"state": (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))})
    encoder.centre({"front": torch.full((3, 16, 16), 9.0)})
    given = observation(shapes)
    features = encoder(given)
    assert torch.allclose(
        features[:, 2:4], (given["goal/state"][:, 0] - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0])
    )
    assert not torch.equal(encoder(given | {"goal/front": 255 - given["goal/front"]}), features)


def test_float_frames_within_one_are_seen_as_bytes_are() -> None:
    encoder = Encoder({"front": (2, 3, 16, 16)}, EncoderConfig(features=8))
    given = observation({"front": (2, 3, 16, 16)})["front"]
    assert torch.allclose(encoder({"front": given.float() / 255}), encoder({"front": given}), atol=1e-5)


def test_frames_in_any_order_of_memory_are_seen_alike() -> None:
    encoder = Encoder({"front": (2, 3, 16, 16)}, EncoderConfig(features=8))
    given = observation({"front": (2, 3, 16, 16)})["front"]
    strided = given.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert not strided.is_contiguous()
    assert torch.equal(encoder({"front": strided}), encoder({"front": given}))


@pytest.mark.parametrize(
    "bad", [lambda x: x.float(), lambda x: x.float() / 255 - 0.5, lambda x: x.int(), lambda x: x * float("nan")]
)
def test_frames_that_are_neither_bytes_nor_within_one_are_refused(bad: Callable[[torch.Tensor], torch.Tensor]) -> None:
    encoder = Encoder({"front": (1, 3, 16, 16)}, EncoderConfig(features=8))
    with pytest.raises(GtpVisionError, match=r"camera 'front' is given as torch\.\w+ within .*uint8 frames, or float"):
        encoder({"front": bad(observation({"front": (1, 3, 16, 16)})["front"])})


def test_what_a_backbone_made_of_frames_stands_in_for_them() -> None:
    shapes = {"front": (2, 3, 16, 16), "wrist": (2, 3, 16, 16), "state": (2, 3)}
    encoder = Encoder(shapes, EncoderConfig(features=8))
    given = observation(shapes)
    earlier = {name: encoder.camera_features(name, given[name]).detach()[:, None] for name in ("front", "wrist")}
    stacked = {"state": given["state"].reshape(2, 1, 6)}
    assert torch.equal(encoder(earlier | stacked), encoder(given))
