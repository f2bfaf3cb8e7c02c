"""Encoders: camera frames and states in, features out."""

from gtp_vision.encoders.augmentation import Augmentation
from gtp_vision.encoders.checks import check_encoder
from gtp_vision.encoders.distortions import RandomShift
from gtp_vision.encoders.encoder import Encoder, GoalEncoder, present_names
from gtp_vision.encoders.settings import AugmentationConfig, CameraConfig, EncoderConfig, LoraSettings

__all__ = [
    "Augmentation",
    "AugmentationConfig",
    "CameraConfig",
    "Encoder",
    "EncoderConfig",
    "GoalEncoder",
    "LoraSettings",
    "RandomShift",
    "check_encoder",
    "present_names",
]
