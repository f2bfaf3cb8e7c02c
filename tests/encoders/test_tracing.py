from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad

from gtp_vision.core.random import RandomStream
from gtp_vision.encoders import Augmentation, AugmentationConfig, CameraConfig, Encoder, EncoderConfig

pytestmark = pytest.mark.compiles
SHAPES = {"front": (2, 3, 32, 32), "state": (2, 3)}
TWO = {"front": (2, 3, 32, 32), "hand": (2, 3, 32, 32), "state": (2, 3)}
Shapes = dict[str, tuple[int, ...]]
SETTINGS: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "impala_small in bf16": (SHAPES, {"name": "impala_small"}),
    "timm": (SHAPES, {"name": "timm/test_efficientnet"}),
    "transformer": (TWO, {"name": "impala_tiny", "fusion": "transformer", "fusion_layers": 1}),
    "resized": (SHAPES, {"name": "impala_tiny", "cameras": {"front": CameraConfig([28, 28], [24, 24])}}),
    "states": ({"state": (2, 3)}, {"name": "state", "state_hidden": [4]}),
}
CHANGES: dict[str, dict[str, float]] = {
    "shift": {"shift": 3},
    "color": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    "blur": {"blur": 1.0},
    "erase": {"erase": 0.3, "erase_probability": 1.0},
}


def seen(shapes: Shapes) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    images = {name: torch.randint(256, (3, *shape), generator=noise).byte() for name, shape in shapes.items()}
    return {name: x if x.ndim == 5 else x / 255 for name, x in images.items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_of_an_encoder_compiles_to_one_graph(setting: str) -> None:
    shapes, settings = SETTINGS[setting]
    uses_bf16 = setting.endswith("bf16")
    torch.manual_seed(0)
    encoder, observation = Encoder(shapes, EncoderConfig(features=8, **settings)), seen(shapes)
    encoder.use_bf16(uses_bf16)
    trained = {name: parameter.detach() for name, parameter in encoder.named_parameters()}

    def gradient(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        held = dict(encoder.named_buffers())
        return grad(lambda own: functional_call(encoder, own | held, (observation,)).square().mean())(parameters)

    torch.compiler.reset()
    found, plain = torch.compile(gradient, backend="eager", fullgraph=True)(trained), gradient(trained)
    assert trained
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    if not uses_bf16:  # in which `grad`, that takes norms apart, rounds at other places than autograd
        encoder(observation).square().mean().backward()
        own = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_augmentation_compiles_to_one_graph(change: str) -> None:
    settings = AugmentationConfig(**{"shift": 0, **CHANGES[change]})  # type: ignore[arg-type]
    augment = Augmentation(EncoderConfig(augmentation=settings), SHAPES)
    drawn = augment.draw(3, RandomStream(0, 0, device=torch.device("cpu")))["front"]
    tensors = {name: tensor for name, tensor in vars(drawn).items() if tensor is not None}

    def changed(observation: dict[str, torch.Tensor], drawn_tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return augment(observation, {"front": replace(drawn, **drawn_tensors)})["front"]

    torch.compiler.reset()
    observation = seen(SHAPES)
    found = torch.compile(changed, backend="eager", fullgraph=True)(observation, tensors)
    assert torch.equal(found, changed(observation, tensors))
    assert not torch.equal(found, observation["front"])
