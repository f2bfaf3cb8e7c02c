"""Freeze, train or replace batch normalization, whose statistics are poor on few and correlated frames."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.settings import EncoderConfig
from gtp_vision.encoders.weights import of_run

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that torchvision's weights were trained with."""


def has_trained_constants(config: EncoderConfig) -> bool:
    """Whether frames are normalized as trained weights were made with; a run's weights keep what the run used."""
    return bool(config.weights) and not of_run(config.weights)


def configure_batch_norm(backbone: Backbone, config: EncoderConfig) -> None:
    """Freeze, train or replace a backbone's batch normalization in place, as `encoder.batch_norm` says.

    Raises:
        GtpVisionError: the backbone has none and the setting is not `auto`; `train` with several processes.
    """
    mode = config.batch_norm
    if not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        if mode != "auto":
            raise GtpVisionError(
                f"encoder.batch_norm={mode}: encoder.name={config.name} has no batch normalization; set it to auto"
            )
        return
    if mode == "auto":
        mode = "frozen" if has_trained_constants(config) else "group"
    if mode == "group":
        _replace(backbone)
    elif mode == "frozen":
        backbone.freeze_statistics()
    elif (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise GtpVisionError(
            "encoder.batch_norm=train computes statistics of each process's share of a batch, so that several "
            "processes would not learn the same as one; set it to frozen or group"
        )


def _replace(module: nn.Module) -> None:
    """Replace batch by group normalization of at least 16 channels a group, as diffusion_policy does."""
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            _replace(child)
            continue
        channels = child.num_features
        groups = max(g for g in range(1, max(1, channels // 16) + 1) if channels % g == 0)
        group: nn.Module = nn.GroupNorm(groups, channels, child.eps, child.affine)
        if child.affine:
            group.load_state_dict({"weight": child.weight, "bias": child.bias})  # some begin at 0 on purpose
        if hasattr(child, "act"):  # timm's batch norms may include the layers that follow
            group = nn.Sequential(group, child.get_submodule("drop"), child.get_submodule("act"))
        setattr(module, name, group)
