"""What of a backbone is trained, and how fast."""

from __future__ import annotations

from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.settings import EncoderConfig


def prepare(backbone: Backbone, config: EncoderConfig) -> Backbone:
    """The backbone with what `config.tuning` leaves alone frozen."""
    return backbone
