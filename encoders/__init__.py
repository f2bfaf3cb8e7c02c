"""Pixels (and states) in, features out: one interface over all encoders."""

from gtp_vision.encoders.augmentation import Augmentation
from gtp_vision.encoders.checks import check_encoder
from gtp_vision.encoders.encoder import Encoder
from gtp_vision.encoders.settings import AugmentationConfig, CameraConfig, EncoderConfig, LoraSettings
from gtp_vision.encoders.shift import RandomShift

__all__ = [
    "Augmentation",
    "AugmentationConfig",
    "CameraConfig",
    "Encoder",
    "EncoderConfig",
    "LoraSettings",
    "RandomShift",
    "check_encoder",
]
