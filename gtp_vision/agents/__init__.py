"""How a policy improves: one algorithm a file, in the order of its paper."""

from __future__ import annotations

from collections.abc import Mapping

from gtp_vision.agents.gtp import GTP, GTPBC, AgentConfig
from gtp_vision.encoders import EncoderConfig
from gtp_vision.errors import GtpVisionError, propose

AGENTS: dict[str, type[GTPBC]] = {"gtp": GTP, "gtp_bc": GTPBC}


def create(shapes: Mapping[str, tuple[int, ...]], actions: int, config: AgentConfig, encoder: EncoderConfig) -> GTPBC:
    """The agent that `config.name` asks for.

    Raises:
        GtpVisionError: unknown agent, or settings that fit no network.
    """
    if config.name not in AGENTS:
        raise GtpVisionError(f"unknown agent '{config.name}': {propose(config.name, AGENTS)}")
    try:
        return AGENTS[config.name](shapes, actions, config, encoder)
    except ValueError as error:
        raise GtpVisionError(f"agent={config.name} cannot be built: {error}") from error


__all__ = ["AGENTS", "GTP", "GTPBC", "AgentConfig", "create"]
