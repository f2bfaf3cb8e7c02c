"""Checks of an encoder's settings: those that do not fit each other are refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.settings import check_settings
from gtp_vision.encoders import backbones, timm_backbones, weights
from gtp_vision.encoders.resnet import RESNETS
from gtp_vision.encoders.settings import CameraConfig, EncoderConfig


def check_encoder(config: EncoderConfig) -> EncoderConfig:
    """Check each setting, and that none would be ignored or contradicts another.

    Returns the settings with those of each camera as a `CameraConfig`; a GtpVisionError says what to set instead.
    """
    check_settings(config, "encoder.")
    backbones.check_name(config.name)
    config = replace(config, cameras={name: _camera(name, camera) for name, camera in config.cameras.items()})
    for misfit in _misfits(config):
        raise GtpVisionError(misfit)
    return config


def _camera(name: str, settings: Any) -> CameraConfig:
    """The settings of a camera from an untrusted mapping of a file or the command line."""
    key = f"encoder.cameras.{name}"
    if isinstance(settings, CameraConfig):
        settings = asdict(settings)
    if not isinstance(settings, Mapping):
        raise GtpVisionError(f"{key}={settings} must hold settings, e.g. {key}.size=[96,96]")
    known = [declared.name for declared in fields(CameraConfig)]
    for setting, size in settings.items():
        if setting not in known:
            raise GtpVisionError(f"the configuration has no setting '{key}.{setting}': {propose(setting, known)}")
        if setting == "depth":
            if not isinstance(size, bool):
                raise GtpVisionError(f"{key}.depth={size} must be true or false")
            continue
        is_size = isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n >= 1 for n in size)
        if size is not None and not is_size:
            raise GtpVisionError(f"{key}.{setting}={size} must be a height and a width of at least 1")
    return CameraConfig(**settings)


def _changed(config: EncoderConfig, *names: str) -> list[str]:
    """Those of the settings that differ from their defaults."""
    defaults = EncoderConfig()
    return [name for name in names if getattr(config, name) != getattr(defaults, name)]


def _misfits(config: EncoderConfig) -> Iterator[str]:
    if config.gradient != "both" and not config.share:
        yield (
            f"encoder.gradient={config.gradient} chooses whose losses train a shared encoder, and actor and critic "
            f"have one each; set encoder.share=true"
        )
    if config.name == "state":
        yield from _without_cameras(config)
    yield from _backbone(config)
    yield from _tuning(config)
    yield from _augmentation(config)
    if config.views > 1 and not (config.tuning == "frozen" and config.cache):
        yield (
            f"encoder.views={config.views} is how often the features of a frozen backbone are computed; set "
            f"encoder.tuning=frozen and encoder.cache=true, or encoder.views=1"
        )
    if config.fusion == "concat":
        for name in _changed(config, "fusion_layers", "fusion_heads"):
            yield f"encoder.{name} is of encoder.fusion=transformer, and it is concat; change the fusion"


def _without_cameras(config: EncoderConfig) -> Iterator[str]:
    """Settings that encoder=state would ignore."""
    of_backbones = ("weights", "stack", "pooling", "batch_norm", "tuning", *_TUNINGS_WITH)
    for name in _changed(config, *of_backbones):
        yield f"encoder.{name} is about a camera's backbone, and encoder=state has none; leave it out"
    if config.share_cameras:
        yield "encoder.share_cameras is about cameras, and encoder=state has none; leave it out"
    for name in _strengths(config):
        yield (
            f"encoder.augmentation.{name} changes frames, and encoder=state sees none; set it to 0, or choose another "
            f"encoder"
        )


def _backbone(config: EncoderConfig) -> Iterator[str]:
    """Settings that the backbone does not have, or that would lose its weights."""
    is_timm = config.name.startswith(timm_backbones.PREFIX)
    if config.weights == "":
        yield "encoder.weights is empty; name a file or a run, or set it to null"
    if config.level is not None and config.pooling == "class_token":
        yield "encoder.pooling=class_token needs the end of a ViT, and encoder.level ends it earlier; choose another"
    if config.level is not None and not is_timm:
        yield f"encoder.level={config.level} is for models of timm, and encoder.name={config.name}; leave it out"
    known = backbones.poolings(config.name)
    if config.pooling not in known:
        yield f"encoder.pooling={config.pooling}: encoder.name={config.name} takes {', '.join(known)} only"
    if config.weights == weights.HUB and not is_timm:
        near = f"{timm_backbones.PREFIX}{config.name}" if config.name in RESNETS else f"{timm_backbones.PREFIX}<model>"
        yield f"encoder.weights=hub fetches timm's weights; set encoder.name={near}, or give a file"
    if config.batch_norm == "group" and config.weights is not None and not weights.of_run(config.weights):
        yield (
            "encoder.batch_norm=group would throw away the statistics that encoder.weights were trained with; set it "
            "to frozen or train"
        )


# The values of `tuning` that use a setting; the others would ignore it.
_TUNINGS_WITH = {
    "blocks": ("partial",),
    "decay": ("layerwise",),
    "lora": ("lora",),
    "learning_rate_scale": ("full", "partial", "lora", "layerwise"),
    "unfreeze_step": ("full", "partial", "layerwise"),  # adapters start as the identity and need no delay
}


def _tuning(config: EncoderConfig) -> Iterator[str]:
    """Settings of the tuning that would have no effect."""
    for name in _changed(config, *_TUNINGS_WITH):
        if config.tuning not in _TUNINGS_WITH[name]:
            yield (
                f"encoder.{name} has no meaning for encoder.tuning={config.tuning}, only for "
                f"{', '.join(_TUNINGS_WITH[name])}; leave it out, or change the tuning"
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


def _strengths(config: EncoderConfig) -> list[str]:
    """The augmentations that are on, besides shifts."""
    names = ("brightness", "contrast", "saturation", "hue", "blur", "erase")
    return [name for name in names if getattr(config.augmentation, name)]


def _augmentation(config: EncoderConfig) -> Iterator[str]:
    """Settings of the augmentation that would have no effect."""
    key, warmup, active = "encoder.augmentation", config.augmentation.warmup_steps, _strengths(config)
    if warmup and not active:
        yield (
            f"{key}.warmup_steps={warmup} is for colour, blur and erasing, and all are off; set one of them, e.g. "
            f"{key}.brightness=0.3, or warmup_steps=0"
        )
    if config.tuning == "frozen" and config.cache and config.name != "state":
        if active and config.views == 1:
            yield (
                f"{key}.{active[0]} would change no frame, since the features are computed once before training; set "
                f"encoder.views to 2 or more, or encoder.cache=false"
            )
        if warmup:
            yield (
                f"{key}.warmup_steps={warmup} has no steps to count where the features are computed once before "
                f"training; set it to 0, or encoder.cache=false"
            )
