"""Families of timm that are unlike others: frames of few sizes, unused layers, and layers that end torch on a CPU."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import EncoderConfig, backbones, tuning


@pytest.mark.trains
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("convit_tiny", (1, 3, 64, 96)),  # square frames only
        ("levit_128s", (1, 3, 75, 101)),
        ("coat_lite_tiny", (1, 3, 75, 101)),  # would ignore the last rows
        ("csatv2", (2, 3, 64, 96)),  # three channels only
        ("inception_v3", (1, 3, 16, 16)),
    ],
)
def test_the_advice_for_frames_that_do_not_fit_works(name: str, shape: tuple[int, ...]) -> None:
    config = EncoderConfig(name=f"timm/{name}")
    with pytest.raises(GtpVisionError, match=rf"timm/{name} ") as error:
        backbones.create(shape, config)
    advice = str(error.value).rpartition("; set ")[2]
    if advice == "encoder.stack=frames":
        backbones.create(shape, replace(config, stack="frames"))
    else:
        size = re.fullmatch(r"encoder\.cameras\.<name>\.size=\[(\d+),(\d+)\]", advice)
        assert size is not None, advice
        backbones.create((*shape[:2], *map(int, size.groups())), config)


@pytest.mark.trains
def test_a_model_that_fits_no_frames_is_refused_by_its_name_and_timms_version() -> None:
    with pytest.raises(GtpVisionError, match=r"timm/csatv2 \(timm \d+\..*1 channels.*; set encoder.name to another"):
        backbones.create((1, 1, 64, 64), EncoderConfig(name="timm/csatv2"))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("timm/fastvit_t8", ""),
        ("timm/repvgg_a0", ""),
        ("timm/densenet121", "tuning='partial'"),
        ("resnet18", "tuning='partial'"),
    ],
)
def test_a_gradient_does_not_end_the_process(name: str, settings: str) -> None:
    lines = [
        "import torch; from gtp_vision.encoders import EncoderConfig, backbones, tuning",
        f"config = EncoderConfig(name={name!r}, {settings})",
        "backbone = tuning.prepare(backbones.create((2, 3, 64, 96), config), config)",
        "for rows in (2, 3, 4): backbone(torch.zeros(rows, 2, 3, 64, 96)).square().sum().backward()",
    ]
    subprocess.run([sys.executable, "-P", "-c", "\n".join(lines)], check=True)


@pytest.mark.trains
@pytest.mark.parametrize("how", ["full", "partial"])
def test_layers_behind_a_level_are_not_trained(how: str) -> None:
    config = EncoderConfig(name="timm/hrnet_w18_small", level=1, tuning=how)
    backbone = tuning.prepare(backbones.create((1, 3, 32, 64), config), config)
    backbone(torch.zeros(2, 1, 3, 32, 64)).sum().backward()
    trained = [(name, x) for name, x in backbone.named_parameters() if x.requires_grad]
    assert backbone.unused
    assert trained
    assert [name for name, x in trained if x.grad is None] == []
