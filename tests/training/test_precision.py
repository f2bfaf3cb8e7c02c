"""Half precision is the backbones' own: what follows them is float32, and hardly differs."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from gtp_vision.config.schema import from_command_line, from_run
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import Encoder, EncoderConfig
from gtp_vision.training import trainer
from gtp_vision.training.build import build, set_products
from gtp_vision.training.evaluate import restore

SHAPES = {"front": (2, 3, 48, 48), "state": (2, 3)}
TINY = [
    *("task=demo", "training=demo", "agent=gtp_demo", "encoder=demo", "training.batch_size=8", "encoder.features=16"),
    *("training.eval_episodes=0", "agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "training.steps=2"),
]


def encoder(name: str = "impala_tiny") -> Encoder:
    torch.manual_seed(0)
    return Encoder(SHAPES, EncoderConfig(name=name, features=8))


def seen(rows: int = 6) -> Mapping[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (rows, *SHAPES["front"]), generator=noise, dtype=torch.uint8)
    return {"front": frames, "state": torch.randn(rows, *SHAPES["state"], generator=noise)}


@pytest.mark.parametrize("name", ["impala_tiny", "drq", "resnet18"])
def test_backbones_compute_in_bfloat16_and_their_vectors_are_float32(name: str) -> None:
    whole, half = encoder(name), encoder(name)
    half.bf16 = True
    inside: list[torch.dtype] = []
    conv = next(module for module in half.modules() if isinstance(module, torch.nn.Conv2d))
    conv.register_forward_hook(lambda module, given, made: inside.append(made.dtype))
    full, rough = whole(seen()), half(seen())
    assert inside == [torch.bfloat16]
    assert full.dtype == rough.dtype == torch.float32
    assert 0 < float((full - rough).detach().abs().max()) < 0.05 * float(full.detach().abs().max())
    rough.square().sum().backward()
    gradients = [parameter.grad for parameter in half.parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_nothing_but_backbones_is_half(tmp_path: Path) -> None:
    parts = build(from_command_line([*TINY, f"run_dir={tmp_path}", "training.precision=bf16"]))
    kinds: dict[str, set[torch.dtype]] = {"towers": set(), "rest": set()}

    def note(name: str) -> None:
        where = "towers" if ".towers." in name else "rest"
        module = parts.agent.get_submodule(name)
        module.register_forward_hook(lambda _, __, made: kinds[where].add(made.dtype))

    for name, module in parts.agent.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            note(name)
    loss, metrics = parts.module(parts.sampler.batch(0), parts.stream(0))
    assert kinds == {"towers": {torch.bfloat16}, "rest": {torch.float32}}
    assert loss.dtype == torch.float32
    assert all(value.dtype in (torch.float32, torch.float64) for value in metrics.values())


def test_a_run_acts_in_the_precision_that_it_was_trained_in(tmp_path: Path) -> None:
    trainer.train(from_command_line([*TINY, f"run_dir={tmp_path}", "training.precision=bf16"]), progress=False)
    _, parts = restore(tmp_path)
    assert parts.agent.actor_encoder.bf16
    assert parts.agent.actor_encoder_target.bf16


def test_the_precision_of_older_runs_is_read_and_fp16_is_refused(tmp_path: Path) -> None:
    config = from_command_line([*TINY, f"run_dir={tmp_path}"])
    trainer.prepare_folder(tmp_path, config, empty=False)
    stored = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(stored.replace("precision: float32", "precision: 'no'"))
    assert "precision: 'no'" in (tmp_path / "config.yaml").read_text()
    assert from_run(tmp_path).training.precision == "float32"
    with pytest.raises(GtpVisionError, match=r"training\.precision=fp16 is unknown: .*'bf16'"):
        from_command_line([*TINY, f"run_dir={tmp_path}", "training.precision=fp16"])


def test_gpus_multiply_exactly_unless_they_are_asked_not_to() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for precision, rough in (("tf32", True), ("bf16", True), ("float32", False)):
            set_products(precision)
            assert torch.backends.cuda.matmul.allow_tf32 is rough
            assert torch.backends.cudnn.allow_tf32 is rough
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
