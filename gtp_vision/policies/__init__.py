"""How an action is generated: families of policies, all with the same two methods, `loss` and `sample`.

Diffusion uses only phi(., t, t) and integrates it; a consistency model only jumps to level 0; flow matching walks
straight paths; GTP jumps from any level to any other.
"""

from __future__ import annotations

from collections.abc import Callable

from gtp_vision.policies.base import Policy, PolicyConfig, WeightsError, effective_sample_size
from gtp_vision.policies.consistency import ConsistencyPolicy
from gtp_vision.policies.diffusion import DiffusionPolicy, VPDiffusionPolicy
from gtp_vision.policies.flow_matching import FlowMatchingPolicy, MeanFlowPolicy, ShortcutPolicy
from gtp_vision.policies.gtp import GTPPolicy

FAMILIES: dict[str, Callable[[int, int, PolicyConfig], Policy]] = {
    "gtp": GTPPolicy,
    "diffusion": DiffusionPolicy,
    "vp_diffusion": VPDiffusionPolicy,
    "consistency": ConsistencyPolicy,
    "flow_matching": FlowMatchingPolicy,
    "shortcut": ShortcutPolicy,
    "meanflow": MeanFlowPolicy,
}


def create(features: int, actions: int, config: PolicyConfig) -> Policy:
    """The policy that `config.family` names; arguments as `Policy`.

    Raises:
        ValueError: an unknown family, or settings out of range.
    """
    if config.family not in FAMILIES:
        raise ValueError(f"unknown family '{config.family}': one of {', '.join(FAMILIES)}")
    return FAMILIES[config.family](features, actions, config)


__all__ = ["FAMILIES", "GTPPolicy", "Policy", "PolicyConfig", "WeightsError", "create", "effective_sample_size"]
