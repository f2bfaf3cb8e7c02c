"""What of a backbone is trained, and how fast.

full       all of it
partial    its last blocks
frozen     nothing, its pooling included
lora       low-rank adapters beside its layers (`gtp_vision.encoders.lora`)
layerwise  all of it, each block more slowly than the one after it (Howard & Ruder, 2018; Clark et al., 2020)

What is not trained has `requires_grad=False`: neither Adam nor other processes hear of it. What stands behind the
backbones (fusion, policy, critic) is always trained at the full rate.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import lora
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.settings import EncoderConfig


def prepare(backbone: Backbone, config: EncoderConfig) -> Backbone:
    """The backbone with what `config.tuning` leaves alone frozen, changed in place.

    Raises:
        GtpVisionError: more blocks than it has, or adapters that do not fit it.
    """
    if config.tuning in ("frozen", "partial"):
        backbone.requires_grad_(False)
    if config.tuning == "partial":
        blocks = backbone.blocks()
        if config.blocks > len(blocks):
            raise GtpVisionError(
                f"encoder.blocks={config.blocks}, but {config.name} has {len(blocks)}; lower it, or train all of it "
                f"with encoder.tuning=full"
            )
        for block in blocks[-config.blocks :]:
            block.requires_grad_(True)
    if config.tuning == "lora":
        lora.inject(backbone, config.lora)
    return backbone


def parameter_groups(agent: nn.Module, config: EncoderConfig) -> list[dict[str, Any]]:
    """An optimiser's groups of all trained parameters; one group if they all learn alike.

    In training step k (from 0) a group's learning rate is `scale` times the step's, and 0 while k < `after`. It is
    computed with a gradient all the same, so Adam's moments of a backbone that rests until `unfreeze_step` have
    gathered when it starts.

    Args:
        agent: any module; the backbones in it are found.
        config: what they were made with.

    Returns:
        Dictionaries of `params`, `scale` and `after`, the full rate first; parameters in the agent's order.
    """
    scales = {parameter: scale for backbone in _backbones(agent) for parameter, scale in _scales(backbone, config)}
    groups: dict[tuple[float, int], list[nn.Parameter]] = {(1.0, 0): []}
    for parameter in agent.parameters():
        if parameter.requires_grad:
            pace = (scales[parameter], config.unfreeze_step) if parameter in scales else (1.0, 0)
            groups.setdefault(pace, []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "after": after}
        for (scale, after), parameters in groups.items()
        if parameters
    ]


def _backbones(agent: nn.Module) -> list[Backbone]:
    return [module for module in agent.modules() if isinstance(module, Backbone)]


def _scales(backbone: Backbone, config: EncoderConfig) -> list[tuple[nn.Parameter, float]]:
    """What the learning rate is multiplied by: decay^d at d blocks from the end, for `layerwise`."""
    if config.tuning != "layerwise":
        return [(parameter, config.learning_rate_scale) for parameter in backbone.parameters()]
    return [
        (parameter, config.learning_rate_scale * config.decay**depth)
        for depth, block in enumerate(reversed(backbone.blocks()))
        for parameter in block.parameters()
    ]
