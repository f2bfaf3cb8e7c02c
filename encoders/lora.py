"""Low-rank adapters beside the frozen layers of a backbone (LoRA, Hu et al., 2022), by peft."""

from __future__ import annotations

import re

from torch import nn

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.extras import importing
from gtp_vision.encoders.backbone import Backbone, probe
from gtp_vision.encoders.settings import LoraSettings

# By name, so that timm is not imported here. Subclasses of these are excluded: they transform their weights
# (standardize them, append coordinates), and peft would build the adapters of the same class.
_ADAPTABLE = {"Linear", "Conv2d", "Conv2dSame"}


def inject(backbone: Backbone, settings: LoraSettings) -> None:
    """Freeze the backbone and add B A x alpha / rank to its layers, in place; B starts at 0, so that nothing changes.

    The layer `name` becomes `name.base_layer`. Adapters fit linear layers, and convolutions without groups or dilation,
    that the backbone calls: some of timm's attention uses the weight of a layer without calling it, which would skip
    the adapter.

    Raises:
        GtpVisionError: peft is not installed, or a target matches no layer that an adapter fits.
    """
    with importing("lora", "encoder.tuning=lora"):
        import peft  # takes 3 s
    layers = _adaptable_layers(backbone)
    targets = layers if settings.targets is None else _matched(settings.targets, layers)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # floats work as well
        target_modules="|".join(map(re.escape, targets)),  # whole names; a list would match endings
    )
    peft.inject_adapter_in_model(config, backbone)
    for layer in backbone.modules():
        base = getattr(layer, "base_layer", None)
        if isinstance(base, nn.Conv2d):  # DaViT and others ask their convolutions for the kernel's size
            vars(layer).update({name: getattr(base, name) for name in base.__constants__ if not hasattr(layer, name)})


def _matched(targets: list[str], layers: list[str]) -> list[str]:
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            near = propose(target, {name.rpartition(".")[2] for name in layers})
            raise GtpVisionError(
                f"encoder.lora.targets={list(targets)}: no layer that an adapter fits has a name that ends in "
                f"'{target}': {near}"
            )
    return [name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets)]


def _adaptable_layers(backbone: Backbone) -> list[str]:
    """Names of the layers that an adapter fits, found by running the backbone on a black frame."""
    called: set[nn.Module] = set()
    plain = {name: layer for name, layer in backbone.named_modules() if _is_plain(layer)}
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in plain.values()]
    probe(backbone, backbone.shape, type(backbone).__name__)
    for hook in hooks:
        hook.remove()
    return [name for name, layer in plain.items() if layer in called]


def _is_plain(layer: nn.Module) -> bool:
    if type(layer).__name__ not in _ADAPTABLE:
        return False
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
    )
