import math

import pytest
import torch
from robomimic.models.base_nets import SpatialSoftmax as Robomimics
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import pooling

SHAPE = (6, 3, 5)


def create(name: str, shape: tuple[int, ...] = SHAPE, keypoints: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return pooling.create(name, shape, keypoints)[0]


def test_a_keypoint_is_the_mean_position_under_the_softmax() -> None:
    x = torch.tensor([-100.0, math.log(3), 0.0]).view(1, 1, 1, 3)
    assert create("spatial_softmax", (1, 1, 3))(x).tolist() == [[pytest.approx(0.75 * 0 + 0.25 * 1), -1.0]]


@pytest.mark.parametrize("keypoints", [0, 4])
def test_spatial_softmax_equals_robomimics(keypoints: int) -> None:
    ours, theirs = create("spatial_softmax", keypoints=keypoints), Robomimics(SHAPE, num_kp=keypoints or None)
    if keypoints:
        theirs.nets.load_state_dict(ours.keypoints.state_dict())  # type: ignore[union-attr]
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(ours(x), theirs(x).flatten(1))


def test_attention_is_the_softmax_of_the_query_with_normalized_features() -> None:
    pool, x = create("attention", (2, 1, 2)), torch.tensor([3.0, 1.0, -5.0, 7.0]).view(1, 2, 1, 2)
    with torch.no_grad():
        pool.query.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[union-attr,operator]
    # The positions' features are (3, -5) and (1, 7), layer-normalized (1, -1) and (-1, 1); scores +-1 / sqrt(2).
    first = 1 / (1 + math.exp(-math.sqrt(2)))
    expected = [3 * first + 1 * (1 - first), -5 * first + 7 * (1 - first)]
    torch.testing.assert_close(pool(x), torch.tensor([expected]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "width"), [("spatial_softmax", 8), ("attention", 6), ("average", 6), ("flatten", 90)])
def test_widths_are_returned_and_only_parameters_are_saved(name: str, width: int) -> None:
    pool, pooled_width = pooling.create(name, SHAPE, 4)
    x = torch.randn(1, *SHAPE)
    assert pool(x).shape == (1, pooled_width) == (1, width)
    assert set(pool.state_dict()) == {name for name, _ in pool.named_parameters()}
    if name in ("average", "attention"):  # which starts as the average
        torch.testing.assert_close(pool(x), x.mean((2, 3)))


def test_keypoints_of_a_single_position_are_refused() -> None:
    with pytest.raises(GtpVisionError, match=r"spatial_softmax.*encoder.cameras.<name>.size"):
        create("spatial_softmax", (4, 1, 1))
