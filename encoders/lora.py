"""Low-rank adapters beside the frozen layers of a backbone (LoRA, Hu et al., 2022), by peft."""

from __future__ import annotations

import re

from torch import nn

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.encoders.backbone import Backbone, probe
from gtp_vision.encoders.settings import LoraSettings

# By name, because timm is imported where it is asked for only. Classes made from these compute something else from
# their weights (standardise them, append coordinates), and peft would build the adapters of the same class.
_ADAPTED = {"Linear", "Conv2d", "Conv2dSame"}


def inject(backbone: Backbone, settings: LoraSettings) -> None:
    """Freeze the backbone and set B A x alpha / rank beside its layers; B is 0 at first, so that nothing changes.

    A layer W x takes one if it is linear, or convolutional without groups or dilation, and if the backbone calls it:
    some attention of timm's uses the weight of a layer and would pass its adapter by.

    Args:
        backbone: changed in place; what stood at `name` stands at `name.base_layer`.
        settings: see `LoraSettings`.

    Raises:
        GtpVisionError: peft is not installed, or a target matches no layer that takes an adapter.
    """
    try:
        import peft  # takes 3 s, and is an extra
    except ImportError as error:
        raise GtpVisionError(
            "encoder.tuning=lora needs peft, which is missing; pip install gtp-vision[lora]"
        ) from error
    able = _able(backbone)
    targets = able if settings.targets is None else _matched(settings.targets, able)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules="|".join(map(re.escape, targets)),  # whole names; in a list they would match as endings
    )
    peft.inject_adapter_in_model(config, backbone)


def _matched(targets: list[str], able: list[str]) -> list[str]:
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in able):
            near = propose(target, {name.rpartition(".")[2] for name in able})
            raise GtpVisionError(
                f"encoder.lora.targets={list(targets)}: '{target}' ends the name of no layer that takes an adapter: "
                f"{near}"
            )
    return [name for name in able if any(f".{name}".endswith(f".{target}") for target in targets)]


def _able(backbone: Backbone) -> list[str]:
    """The names of the layers that take an adapter, found by showing the backbone a black frame."""
    called: set[nn.Module] = set()
    plain = {name: layer for name, layer in backbone.named_modules() if _is_plain(layer)}
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in plain.values()]
    probe(backbone, backbone.shape, type(backbone).__name__)
    for hook in hooks:
        hook.remove()
    return [name for name, layer in plain.items() if layer in called]


def _is_plain(layer: nn.Module) -> bool:
    if type(layer).__name__ not in _ADAPTED:
        return False
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
    )
