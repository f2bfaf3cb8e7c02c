"""The backbones by name, behind one interface (`backbone.Backbone`)."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.registry import Registry
from gtp_vision.encoders import normalization, weights
from gtp_vision.encoders.backbone import Backbone, Named, UnfitError
from gtp_vision.encoders.settings import EncoderConfig

BACKBONES: Registry[Named] = Registry("gtp_vision.encoders", "gtp_vision.backbones", Named)
"""By name or prefix; `state`, which uses no camera, is not one."""


def known() -> list[str]:
    """All complete names; more begin with a prefix such as `timm/`."""
    return [*(name for name in BACKBONES if not name.endswith("/")), "state"]


def find(name: str) -> Named | None:
    """The backbone of a value of `encoder.name`; None if it is unknown, or `state`."""
    backbone = BACKBONES.get(name) or BACKBONES.get(name.partition("/")[0] + "/")
    return backbone if backbone and not name.endswith("/") and backbone.has(name) else None


def check_name(name: str) -> None:
    """Refuse an unknown name, and propose near ones."""
    if name != "state" and find(name) is None:
        names = [*known(), *(full for backbone in BACKBONES.values() for full in backbone.names())]
        raise GtpVisionError(f"encoder.name={name} is unknown: {propose(name, names)}")


def poolings(name: str) -> tuple[str, ...]:
    """The values of `encoder.pooling` that a backbone takes (a class token: if the model of timm's has one)."""
    backbone = find(name)
    return backbone.poolings if backbone else ("auto", "flatten")


def create(
    shape: tuple[int, ...], config: EncoderConfig, *, pretrained: bool = True, camera: str = "", index: int = 0
) -> Backbone:
    """The backbone of a camera.

    Untrained backbones of torchvision, timm and robomimic are initialized by those libraries, all others by
    `initialise`. Trained ones normalize frames as their weights were made with, or as the run of the weights did.

    Args:
        shape: (T, C, H, W) of a stack, cropped and resized.
        config: see `EncoderConfig`.
        pretrained: load `config.weights`; False where a checkpoint will be loaded.
        camera: its name, and
        index: its number among the backbones of the encoder, see `weights.load`.

    Raises:
        GtpVisionError: an unknown name, frames that the backbone cannot take, or weights that do not fit it.
    """
    check_name(config.name)
    named = find(config.name)
    if named is None:
        raise GtpVisionError("encoder.name=state makes no backbone; leave out the cameras in task.observations")
    is_fetched = pretrained and config.weights == weights.HUB
    try:
        backbone = (named.fetch if named.fetch and is_fetched else named.make)(shape, config)
    except UnfitError as error:
        raise GtpVisionError(f"{error}; {_fitting(named, shape, config)}") from error
    if not named.is_initialized:
        backbone.apply(initialise)
    normalization.configure_batch_norm(backbone, config)
    if pretrained and config.weights and config.weights != weights.HUB:
        weights.load(backbone, config.weights, config.name, camera=camera, index=index)
    return backbone


def _fitting(named: Named, shape: tuple[int, ...], config: EncoderConfig) -> str:
    """What to set instead of settings that fit no frames of this shape: the first change that was tried and fits."""
    frames, channels, *size = shape
    near = [[max(step, round(side / step) * step) for side in size] for step in (4, 8, 14, 16, 28, 32, 64)]
    near.sort(key=lambda sides: sum(abs(side - own) for side, own in zip(sides, size, strict=True)))
    square = -(-max(size) // 32) * 32
    sizes = [sides for sides in (*near, [square, square], [224, 224], [240, 240], [256, 256]) if sides != size]
    changes: dict[str, tuple[tuple[int, ...], EncoderConfig]]
    changes = {f"encoder.cameras.<name>.size=[{h},{w}]": ((frames, channels, h, w), config) for h, w in sizes}
    if frames > 1 and config.stack == "channels":  # it may need three channels
        changes = {"encoder.stack=frames": (shape, replace(config, stack="frames"))} | changes
    for change, (changed, settings) in changes.items():
        with contextlib.suppress(GtpVisionError), torch.device("meta"):  # takes no memory
            named.make(changed, settings)
            return f"set {change}"
    return "set encoder.name to another, since no other size was found to work"


def initialise(module: nn.Module) -> None:
    """Set Xavier's uniform weights and zero biases, as FQL's encoders do."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
