import math

import pytest
import torch
from robomimic.models.base_nets import SpatialSoftmax as Robomimics

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import pooling

SHAPE = (6, 3, 5)


def test_a_keypoint_is_where_its_channel_is_high() -> None:
    pool = pooling.create("spatial_softmax", SHAPE, 0)
    x = torch.zeros(1, *SHAPE)
    for channel in range(6):
        x[0, channel, channel % 3, channel % 5] = 100.0
    found = pool(x).view(6, 2)
    for channel, (horizontal, vertical) in enumerate(found.tolist()):
        assert horizontal == pytest.approx(-1 + 2 * (channel % 5) / 4)
        assert vertical == pytest.approx(-1 + 2 * (channel % 3) / 2)


def test_a_keypoint_between_two_equal_places_is_halfway() -> None:
    x = torch.full((1, 1, 1, 3), -100.0)
    x[0, 0, 0, 1], x[0, 0, 0, 2] = math.log(3), 0.0
    found = pooling.create("spatial_softmax", (1, 1, 3), 0)(x)
    assert found.tolist() == [[pytest.approx(0.75 * 0 + 0.25 * 1), -1.0]]


@pytest.mark.parametrize("keypoints", [0, 4])
def test_spatial_softmax_is_robomimics(keypoints: int) -> None:
    torch.manual_seed(0)
    ours = pooling.create("spatial_softmax", SHAPE, keypoints)
    theirs = Robomimics(SHAPE, num_kp=keypoints or None)
    if keypoints:
        theirs.nets.load_state_dict(ours.keypoints.state_dict())  # type: ignore[union-attr]
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(ours(x), theirs(x).flatten(1))


def test_attention_begins_as_the_mean_and_learns_where_to_look() -> None:
    torch.manual_seed(0)
    pool, x = pooling.create("attention", SHAPE, 32), torch.randn(4, *SHAPE)
    torch.testing.assert_close(pool(x), x.mean((2, 3)))
    wanted = x[:, :, 1, 2]
    for _ in range(3):
        loss = (pool(x) - wanted).square().mean()
        (slope,) = torch.autograd.grad(loss, [pool.query])  # type: ignore[union-attr]
        assert float(slope.abs().max()) > 0
        with torch.no_grad():
            pool.query -= 0.5 * slope  # type: ignore[union-attr,operator]
    assert float((pool(x).detach() - wanted).square().mean()) < float((x.mean((2, 3)) - wanted).square().mean())


def test_attention_is_the_softmax_of_the_query_with_normalized_features() -> None:
    torch.manual_seed(0)
    pool, x = pooling.create("attention", (2, 1, 2), 0), torch.tensor([3.0, 1.0, -5.0, 7.0]).view(1, 2, 1, 2)
    with torch.no_grad():
        pool.query.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[union-attr]
    # The places' features are (3, -5) and (1, 7), layer-normalized (1, -1) and (-1, 1); scores +-1 / sqrt(2).
    first = 1 / (1 + math.exp(-math.sqrt(2)))
    expected = [3 * first + 1 * (1 - first), -5 * first + 7 * (1 - first)]
    torch.testing.assert_close(pool(x), torch.tensor([expected]), atol=1e-4, rtol=1e-4)


def test_averages_and_flat_maps_are_what_they_are_called() -> None:
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(pooling.create("average", SHAPE, 32)(x), x.mean((2, 3)))
    assert torch.equal(pooling.create("flatten", SHAPE, 32)(x), x.flatten(1))


@pytest.mark.parametrize(("name", "width"), [("spatial_softmax", 8), ("attention", 6), ("average", 6), ("flatten", 90)])
def test_the_width_is_told_and_nothing_but_parameters_is_saved(name: str, width: int) -> None:
    pool = pooling.create(name, SHAPE, 4)
    assert pool.width == width
    assert pool(torch.zeros(1, *SHAPE)).shape == (1, width)
    assert set(pool.state_dict()) == {name for name, _ in pool.named_parameters()}


def test_keypoints_of_a_single_place_are_refused() -> None:
    with pytest.raises(GtpVisionError, match=r"spatial_softmax.*single place.*encoder.cameras.<name>.size"):
        pooling.create("spatial_softmax", (4, 1, 1), 2)
