"""Which parameters of a backbone are trained, and at which learning rate.

full       all parameters
partial    its last blocks
frozen     none, including its pooling
lora       low-rank adapters beside its layers (`gtp_vision.encoders.lora`)
layerwise  all parameters, each block at a lower rate than the next (Howard & Ruder, 2018; Clark et al., 2020)

Parameters that are not trained have `requires_grad=False`, so that neither Adam nor the gradient reduction includes
them. Fusion, policy and critic are always trained at the full rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import lora
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.settings import EncoderConfig


def prepare(backbone: Backbone, config: EncoderConfig) -> Backbone:
    """Freeze the parameters that `config.tuning` does not train, in place."""
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
        if any(isinstance(module, nn.GroupNorm) for module in backbone.modules()):
            # On a CPU, torch 2.13 ends the process in the gradient of one of a map that has none, channels last.
            backbone.layout = torch.contiguous_format
            backbone.to(memory_format=backbone.layout)  # type: ignore[call-overload]  # missing in torch's stubs
    if config.tuning == "lora":
        lora.inject(backbone, config.lora)
    for name, parameter in backbone.named_parameters():
        if name in backbone.unused:
            parameter.requires_grad_(False)
    return backbone


def parameter_groups(agent: nn.Module, config: EncoderConfig, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups of an agent's trained parameters for an optimizer; one if all have the same learning rate and decay.

    Dictionaries of `params`, `scale`, `after` and `weight_decay`, the full rate first. In training step k (from 0) a
    group's learning rate is `scale` times the step's, and 0 while k < `after`. Gradients are computed meanwhile, so
    that Adam's moments are ready when a backbone starts to learn at `unfreeze_step`. `weight_decay` is that of matrices
    and kernels; biases, norms, embeddings and tokens have none.
    """
    backbones = (module for module in agent.modules() if isinstance(module, Backbone))
    scales = {parameter: scale for backbone in backbones for parameter, scale in _scales(backbone, config)}
    decaying = set(_matrices(agent)) if weight_decay else set()
    groups: dict[tuple[float, int, float], list[nn.Parameter]] = {(1.0, 0, weight_decay): []}
    for parameter in agent.parameters():
        if parameter.requires_grad:
            schedule = (scales[parameter], config.unfreeze_step) if parameter in scales else (1.0, 0)
            decay = weight_decay if parameter in decaying else 0.0
            groups.setdefault((*schedule, decay), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "after": after, "weight_decay": decay}
        for (scale, after, decay), parameters in groups.items()
        if parameters
    ]


def _matrices(agent: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of linear layers and convolutions, adapters included."""
    for module in agent.modules():
        if not isinstance(module, nn.Embedding):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("weight") and parameter.ndim > 1:
                    yield parameter


def _scales(backbone: Backbone, config: EncoderConfig) -> list[tuple[nn.Parameter, float]]:
    """Factors on the learning rate; for `layerwise`, decay^d at d blocks from the end."""
    if config.tuning != "layerwise":
        return [(parameter, config.learning_rate_scale) for parameter in backbone.parameters()]
    return [
        (parameter, config.learning_rate_scale * config.decay**depth)
        for depth, block in enumerate(reversed(backbone.blocks()))
        for parameter in block.parameters()
    ]
