import pytest
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import EncoderConfig
from gtp_vision.encoders.fusion import Fusion


def parts(rows: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(rows, 6), torch.randn(rows, 10)], torch.randn(rows, 4)


def fused(states: int = 4, **settings: object) -> Fusion:
    torch.manual_seed(0)
    return Fusion([6, 10], states, EncoderConfig(features=16, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({}, 20),
        ({"state_hidden": [8, 5]}, 21),
        ({"fusion": "transformer"}, 16),
        ({"fusion": "transformer", "state_hidden": [8], "fusion_layers": 1, "fusion_heads": 2}, 16),
    ],
)
def test_every_part_reaches_its_own_row_and_every_parameter_is_trained(settings: dict[str, object], width: int) -> None:
    fusion = fused(**settings)
    cameras, states = parts()
    features = fusion(cameras, states)
    assert features.shape == (3, fusion.width) == (3, width)
    for part in (*cameras, states):
        before = part.clone()
        part[1] += 1
        assert (fusion(cameras, states) != features).any(1).tolist() == [False, True, False]
        part.copy_(before)
    fusion(cameras, states).square().sum().backward()
    assert [name for name, p in fusion.named_parameters() if p.grad is None] == []


def test_concatenation_is_the_states_beside_the_projected_cameras() -> None:
    fusion = fused()
    cameras, states = parts()
    assert torch.equal(fusion(cameras, states)[:, :4], states)
    assert fusion.project is not None
    assert torch.equal(fusion(cameras, states)[:, 4:], fusion.project(torch.cat(cameras, 1)))


def test_a_transformer_tells_its_parts_apart() -> None:
    """Exchanged vectors are other features: without places, tokens of equal layers could be exchanged."""
    fusion = Fusion([6, 6], 0, EncoderConfig(features=16, fusion="transformer"))
    assert fusion.transformer is not None
    for layers in (fusion.transformer.tokens, fusion.transformer.norms):
        layers[1].load_state_dict(layers[0].state_dict())
    left, right = torch.randn(2, 6), torch.randn(2, 6)
    assert not torch.allclose(fusion([left, right], None), fusion([right, left], None), atol=1e-4)


def test_a_transformer_without_cameras_or_with_other_heads_is_refused() -> None:
    with pytest.raises(GtpVisionError, match=r"fusion=transformer needs cameras"):
        Fusion([], 4, EncoderConfig(name="state", fusion="transformer"))
    with pytest.raises(GtpVisionError, match=r"features=18 .*encoder.fusion_heads=4"):
        Fusion([6], 4, EncoderConfig(features=18, fusion="transformer"))
