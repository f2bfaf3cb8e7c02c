"""How an action is generated: families of policies, all with the same two methods, `loss` and `sample`.

What else a family can do (integrate given noise, follow an energy, renoise, tell densities) its class says:
`abilities.py`.

Diffusion uses only phi(., t, t) and integrates it; a consistency model only jumps to level 0; flow matching walks
straight paths; GTP jumps from any level to any other.
"""

from __future__ import annotations

from gtp_vision.core.registry import Registry
from gtp_vision.models.abilities import Answering, Density, Guidable, Integrable, Pull, Renoisable
from gtp_vision.models.gtp import GTPPolicy
from gtp_vision.models.policy import Policy, PolicyConfig, effective_sample_size, without_bounds

FAMILIES: Registry[type[Policy]] = Registry(__name__, "gtp_vision.models", Policy, key="family")
"""The classes of this package and of plug-ins by their `family`."""


def create(features: int, actions: int, config: PolicyConfig) -> Policy:
    """The policy that `config.family` names; arguments as `Policy`, ValueError for an unknown family."""
    if config.family not in FAMILIES:
        raise ValueError(f"unknown family '{config.family}': one of {', '.join(FAMILIES)}")
    return FAMILIES[config.family](features, actions, config)


__all__ = [
    "FAMILIES",
    "Answering",
    "Density",
    "GTPPolicy",
    "Guidable",
    "Integrable",
    "Policy",
    "PolicyConfig",
    "Pull",
    "Renoisable",
    "create",
    "effective_sample_size",
    "without_bounds",
]
