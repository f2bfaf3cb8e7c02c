"""EfficientNets under the names of `efficientnet_pytorch` (Melas-Kyriazi, 2019), as many are published.

efficientnet_pytorch     timm
_conv_stem, _bn0         conv_stem, bn1
_blocks.<i>.             blocks.<stage>.<place>.  (it numbers the blocks through all stages)
  _expand_conv, _bn0       conv_pw, bn1           (absent where a block does not expand)
  _depthwise_conv, _bn1    conv_dw, bn2           (bn1 where it does not)
  _se_reduce, _se_expand   se.conv_reduce, se.conv_expand
  _project_conv, _bn2      conv_pwl, bn3          (conv_pw, bn2 where it does not)
_conv_head, _bn1         conv_head, bn2
_fc                      classifier
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

_AROUND = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDING = _SQUEEZE | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = _SQUEEZE | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def translated(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors under timm's names, if they have efficientnet_pytorch's; else as they are.

    Args:
        state: name to tensor.
        model: timm's EfficientNet, whose stages say where a block belongs.
    """
    stages = getattr(model, "blocks", None)
    if "_conv_stem.weight" not in state or not isinstance(stages, nn.Sequential):
        return dict(state)
    places = [
        f"blocks.{s}.{i}" for s, stage in enumerate(stages.children()) for i in range(len(list(stage.children())))
    ]
    found = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if first == "_blocks" and len(rest) > 1 and rest[0].isdigit() and int(rest[0]) < len(places):
            table = _EXPANDING if f"_blocks.{rest[0]}._expand_conv.weight" in state else _PLAIN
            found[".".join([places[int(rest[0])], table.get(rest[1], rest[1]), *rest[2:]])] = value
        else:
            found[".".join([_AROUND.get(first, first), *rest])] = value
    return found
