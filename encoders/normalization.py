"""What becomes of a backbone's batch normalisation, whose statistics few and correlated frames would spoil."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.settings import EncoderConfig
from gtp_vision.encoders.weights import of_run

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation that torchvision's weights were trained with."""


def has_trained_constants(config: EncoderConfig) -> bool:
    """Whether frames are normalized as trained weights were made with; a run's weights keep what the run used."""
    return bool(config.weights) and not of_run(config.weights)


def settle(backbone: Backbone, config: EncoderConfig) -> None:
    """Freeze, keep or replace its batch normalisation, as `encoder.batch_norm` says, in place.

    Raises:
        GtpVisionError: it has none and the setting is not `auto`; `train` on several processes.
    """
    how = config.batch_norm
    if not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        if how != "auto":
            raise GtpVisionError(
                f"encoder.batch_norm={how}: encoder.name={config.name} has no batch normalisation; set it to auto"
            )
        return
    if how == "auto":
        how = "frozen" if has_trained_constants(config) else "group"
    if how == "group":
        _replace(backbone)
    elif how == "frozen":
        backbone.statistics_frozen = True
        backbone.train(backbone.training)
    elif _several_processes():
        raise GtpVisionError(
            "encoder.batch_norm=train takes the statistics of each process's share of a batch, so that several "
            "processes would not learn what one does; set it to frozen or group"
        )


def _several_processes() -> bool:
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def _replace(module: nn.Module) -> None:
    """Group normalisation of at least 16 channels a group, as diffusion_policy, with the learned scale and shift."""
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            _replace(child)
            continue
        channels = child.num_features
        groups = max(g for g in range(1, max(1, channels // 16) + 1) if channels % g == 0)
        group: nn.Module = nn.GroupNorm(groups, channels, child.eps, child.affine)
        if child.affine:
            group.load_state_dict({"weight": child.weight, "bias": child.bias})  # some begin at 0, on purpose
        if hasattr(child, "act"):  # timm's batch norms may hold what follows them
            group = nn.Sequential(group, child.get_submodule("drop"), child.get_submodule("act"))
        setattr(module, name, group)
