"""The rate of recordings: frames, and actions, a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gtp_vision.core.errors import GtpVisionError


def known_rate(attributes: Mapping[str, Any]) -> float | None:
    """Return frames a second by a data set's attributes `fps`, else `env_args`; None if they do not say them.

    Raises:
        GtpVisionError: the attribute is not a rate.
    """
    fps = attributes.get("fps", _control_rate(attributes.get("env_args")))
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e5):
        raise GtpVisionError(f"the attribute 'fps' is {str(fps)[:80]!r}; set it to the number of frames per second")
    return fps


def _control_rate(env_args: Any) -> Any:
    """Return the rate in settings of robosuite, ManiSkill or Isaac Lab; None if they do not say it."""

    def inside(settings: Any, *keys: str) -> Any:
        for key in keys:
            settings = settings.get(key) if isinstance(settings, dict) else None
        return settings

    step, steps = inside(env_args, "sim_args", "dt"), inside(env_args, "sim_args", "decimation")
    if isinstance(step, float) and isinstance(steps, int) and step * steps > 0:
        rate = round(1 / (step * steps), 6)
        return int(rate) if rate.is_integer() else rate
    rate = inside(env_args, "env_kwargs", "control_freq")
    return rate if rate is not None else inside(env_args, "env_kwargs", "sim_config", "control_freq")
