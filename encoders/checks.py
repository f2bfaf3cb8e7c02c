"""Refusals of encoder settings that do not fit each other, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.encoders import backbones, timm_backbones, weights
from gtp_vision.encoders.resnet import RESNETS
from gtp_vision.encoders.settings import CameraConfig, EncoderConfig


def check_encoder(config: EncoderConfig) -> None:
    """Refuse an unknown backbone, and settings that would be ignored or cannot work together.

    Settings of cameras become `CameraConfig`s.

    Raises:
        GtpVisionError: the first fault, and the mend.
    """
    backbones.check_name(config.name)
    config.cameras = {name: _camera(name, look) for name, look in config.cameras.items()}
    for misfit in _misfits(config):
        raise GtpVisionError(misfit)


def _camera(name: str, look: Any) -> CameraConfig:
    """A camera's settings out of the plain table that a file or the command line gives.

    Raises:
        GtpVisionError: no table, an unknown setting, or a size that is no height and width.
    """
    if isinstance(look, CameraConfig):
        look = asdict(look)
    if not isinstance(look, Mapping):
        raise GtpVisionError(
            f"encoder.cameras.{name}={look} must be settings, e.g. encoder.cameras.{name}.size=[96,96]"
        )
    known = [setting.name for setting in fields(CameraConfig)]
    for key, size in look.items():
        if key not in known:
            raise GtpVisionError(f"there is no setting 'encoder.cameras.{name}.{key}': {propose(key, known)}")
        whole = isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n >= 1 for n in size)
        if size is not None and not whole:
            raise GtpVisionError(f"encoder.cameras.{name}.{key}={size} must be a height and a width of at least 1")
    return CameraConfig(**look)


def _misfits(config: EncoderConfig) -> Iterator[str]:
    if config.gradient != "both" and not config.share:
        yield (
            f"encoder.gradient={config.gradient} says whose losses train a shared encoder, and each has its own; set "
            f"encoder.share=true"
        )
    yield from _unfit(config)
    yield from _untuned(config)
    yield from _unaugmented(config)
    if config.views > 1 and not (config.tuning == "frozen" and config.cache):
        yield (
            f"encoder.views={config.views} is how often the features of a frozen backbone are computed; set "
            f"encoder.tuning=frozen and encoder.cache=true, or encoder.views=1"
        )
    for key in ("fusion_layers", "fusion_heads"):
        if config.fusion == "concat" and getattr(config, key) != getattr(EncoderConfig(), key):
            yield f"encoder.{key} is of encoder.fusion=transformer, and it is concat; change the fusion"
    if config.name == "state" and config.share_cameras:
        yield "encoder.share_cameras is about cameras, and encoder=state has none; leave it away"
    if min(config.state_hidden, default=1) < 1:
        yield f"encoder.state_hidden={list(config.state_hidden)} must hold widths of at least 1"


def _unfit(config: EncoderConfig) -> Iterator[str]:
    """Settings of the backbone that it does not have, or that would lose its weights."""
    usual = EncoderConfig()
    changed = [
        key for key in ("weights", "stack", "pooling", "batch_norm") if getattr(config, key) != getattr(usual, key)
    ]
    if config.name == "state" and changed:
        yield f"encoder.{changed[0]} is about a camera's backbone, and encoder=state has none; leave it away"
    if config.weights == "":
        yield "encoder.weights is empty; name a file or a run, or set it to null"
    if config.level is not None and config.pooling == "class_token":
        yield "encoder.pooling=class_token is of a ViT's end, and encoder.level ends it earlier; choose another pooling"
    if config.level is not None and not config.name.startswith(timm_backbones.PREFIX):
        yield f"encoder.level={config.level} is of timm's models, and encoder.name={config.name} is none; leave it away"
    known = backbones.poolings(config.name)
    if config.pooling not in known:
        yield f"encoder.pooling={config.pooling}: encoder.name={config.name} takes {', '.join(known)} only"
    if config.weights == weights.HUB and not config.name.startswith(timm_backbones.PREFIX):
        near = f"{timm_backbones.PREFIX}{config.name}" if config.name in RESNETS else f"{timm_backbones.PREFIX}<model>"
        yield f"encoder.weights=hub fetches timm's weights; set encoder.name={near}, or give a file"
    if config.batch_norm == "group" and config.weights is not None and not weights.of_run(config.weights):
        yield (
            "encoder.batch_norm=group would throw away the statistics that encoder.weights were trained with; set it "
            "to frozen or train"
        )


# The tunings that look at a setting; the others would ignore it.
_LOOKED_AT = {
    "blocks": ("partial",),
    "decay": ("layerwise",),
    "lora": ("lora",),
    "learning_rate_scale": ("full", "partial", "lora", "layerwise"),
    "unfreeze_step": ("full", "partial", "layerwise"),  # adapters start from nothing and need no rest
}


def _untuned(config: EncoderConfig) -> Iterator[str]:
    """Settings of the tuning that would do nothing."""
    usual = EncoderConfig()
    changed = [name for name in ("tuning", *_LOOKED_AT) if getattr(config, name) != getattr(usual, name)]
    if config.name == "state" and changed:
        yield f"encoder.{changed[0]} is about a camera's backbone, and encoder=state has none; leave it away"
    for name, tunings in _LOOKED_AT.items():
        if name in changed and config.tuning not in tunings:
            yield (
                f"encoder.{name} has no meaning for encoder.tuning={config.tuning}, only for {', '.join(tunings)}; "
                f"leave it away, or change the tuning"
            )
    if config.lora.targets is not None and not config.lora.targets:
        yield "encoder.lora.targets=[] leaves nothing to train; name layers, or set it to null for all"
    if config.pooling == "attention" and config.tuning in ("frozen", "lora"):
        yield (
            f"encoder.pooling=attention learns where to look, and encoder.tuning={config.tuning} never trains it; "
            f"choose another pooling"
        )
    if config.batch_norm == "train" and config.tuning == "frozen":
        yield "encoder.batch_norm=train moves statistics, and encoder.tuning=frozen moves nothing; set it to frozen"


def _unaugmented(config: EncoderConfig) -> Iterator[str]:
    """Settings of the augmentation that would change nothing."""
    place, c = "encoder.augmentation", config.augmentation
    warmed = [key for key in ("brightness", "contrast", "saturation", "hue", "blur", "erase") if getattr(c, key)]
    if config.name == "state" and warmed:
        yield f"{place}.{warmed[0]} changes frames, and encoder=state sees none; set it to 0, or choose another encoder"
    if c.warmup_steps and not warmed:
        yield (
            f"{place}.warmup_steps={c.warmup_steps} is for colour, blur and erasing, and all are off; set one of them, "
            f"e.g. {place}.brightness=0.3, or warmup_steps=0"
        )
    if config.tuning == "frozen" and config.cache and config.name != "state":
        if warmed and config.views == 1:
            yield (
                f"{place}.{warmed[0]} would change no frame, since the features are computed once before training; set "
                f"encoder.views to 2 or more, or encoder.cache=false"
            )
        if c.warmup_steps:
            yield (
                f"{place}.warmup_steps={c.warmup_steps} knows no step where the features are computed once before "
                f"training; set it to 0, or encoder.cache=false"
            )
