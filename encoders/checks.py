"""Refusals of encoder settings that do not fit each other, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from gtp_vision.encoders import backbones
from gtp_vision.encoders.settings import EncoderConfig
from gtp_vision.errors import GtpVisionError


def check_encoder(config: EncoderConfig) -> None:
    """Refuse an unknown backbone, and settings that would be ignored or cannot work together.

    Raises:
        GtpVisionError: the first fault, and the mend.
    """
    backbones.check_name(config.name)
    for misfit in _misfits(config):
        raise GtpVisionError(misfit)


def _misfits(config: EncoderConfig) -> Iterator[str]:
    if config.gradient != "both" and not config.share:
        yield (
            f"encoder.gradient={config.gradient} says whose losses train a shared encoder, and each has its own; set "
            f"encoder.share=true"
        )
    if min(config.state_hidden, default=1) < 1:
        yield f"encoder.state_hidden={list(config.state_hidden)} must hold widths of at least 1"
