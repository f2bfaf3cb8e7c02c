from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engines_of import engine_of
from small_runs import PIXELS, small_run

from gtp_vision.config.schema import Config, TrainingConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import Encoder, EncoderConfig
from gtp_vision.training import trainer
from gtp_vision.training.build import build, set_products
from gtp_vision.training.evaluate import restore
from gtp_vision.training.ranks import accelerator_of, with_launcher

SHAPES = {"front": (2, 3, 48, 48), "state": (2, 3)}


@pytest.fixture
def half(pixels: Path, tmp_path: Path) -> Config:
    return small_run(pixels, tmp_path / "run", *PIXELS, "training.precision=bf16", "training.steps=1")


@pytest.mark.parametrize("name", ["impala_tiny", "drq", "resnet18"])
def test_backbones_compute_in_bfloat16_and_return_float32(name: str) -> None:
    noise = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, *SHAPES["front"]), generator=noise, dtype=torch.uint8)
    observation = {"front": frames, "state": torch.randn(4, *SHAPES["state"], generator=noise)}
    encoders = []
    for _ in range(2):
        torch.manual_seed(0)
        encoders.append(Encoder(SHAPES, EncoderConfig(name=name, features=8)))
    whole, half = encoders
    half.use_bf16()
    inside: list[torch.dtype] = []
    conv = next(module for module in half.modules() if isinstance(module, torch.nn.Conv2d))
    conv.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    full, rough = whole(observation), half(observation)
    assert inside == [torch.bfloat16]
    assert full.dtype == rough.dtype == torch.float32
    assert 0 < float((full - rough).detach().abs().max()) < 0.05 * float(full.detach().abs().max())
    rough.square().sum().backward()
    gradients = [parameter.grad for parameter in half.parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_only_backbones_compute_in_half_precision(half: Config) -> None:
    parts = build(half)
    types: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for name, module in parts.agent.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, __, made, is_tower=".towers." in name: types[is_tower].add(made.dtype)
            )
    engine = engine_of("eager", half, [parts])
    (metrics,) = engine.step(0, engine.source.fetch(0))
    assert types == {True: {torch.bfloat16}, False: {torch.float32}}
    assert all(value.dtype in (torch.float32, torch.float64) for value in metrics.values())


@pytest.mark.trains
def test_a_run_acts_in_the_precision_of_its_training(half: Config) -> None:
    trainer.train(half, progress=False)
    _, parts = restore(Path(half.run_dir))
    assert parts.agent.actor_encoder.bf16
    assert parts.agent.actor_encoder_target.bf16


def test_what_accelerate_launch_is_given_is_a_setting(half: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    states = replace(half, training=replace(half.training, precision="float32"))
    mixed, parts = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    monkeypatch.setenv(mixed, "no")
    monkeypatch.setenv(parts, "1")
    assert with_launcher(states) is states
    monkeypatch.setenv(mixed, "bf16")
    monkeypatch.setenv(parts, "4")
    found = with_launcher(states).training
    assert (found.precision, found.accumulate) == ("bf16", 4)
    with pytest.raises(GtpVisionError, match="accumulate=2 contradicts"):
        with_launcher(replace(states, training=replace(states.training, accumulate=2)))
    with pytest.raises(GtpVisionError, match="precision=tf32 contradicts"):
        with_launcher(replace(states, training=replace(states.training, precision="tf32")))
    monkeypatch.setenv(mixed, "fp16")
    with pytest.raises(GtpVisionError, match="--mixed_precision fp16 is not supported"):
        with_launcher(states)


def test_gpus_multiply_exactly_unless_set_otherwise() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for precision, is_rough in (("tf32", True), ("bf16", True), ("float32", False)):
            set_products(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is is_rough
            assert torch.backends.cudnn.allow_tf32 is is_rough
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_an_apple_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(GtpVisionError, match=r"torch finds no GPU of Apple's here .*; set training.device=auto"):
        accelerator_of(TrainingConfig(device="mps"))
