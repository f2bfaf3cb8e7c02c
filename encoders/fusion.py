"""Fusion of the vectors of cameras and states to one feature vector.

Axes in names: B batch, D dimensions of all states, W width of an input, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import pack, rearrange, repeat
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.settings import EncoderConfig


def normalized_layers(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear, LayerNorm, ReLU for each width: (B, inputs) to (B, widths[-1])."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


class Fusion(nn.Module):
    """Joins the vectors of the cameras and the states, of the given widths, to `width` features.

    `concat` projects all cameras together to F features and appends the states; `transformer` attends over a token of
    each camera, one of the states and a readout token, whose output it returns. States pass an MLP first if
    `state_hidden` is set.
    """

    def __init__(self, cameras: Sequence[int], states: int, config: EncoderConfig) -> None:
        super().__init__()
        self.states = states
        self.felt: nn.Module = nn.Identity()  # the states' MLP, under its name in checkpoints
        if states and config.state_hidden:
            self.felt = normalized_layers(states, config.state_hidden)
            states = config.state_hidden[-1]
        self.transformer: Transformer | None = None
        if config.fusion == "transformer":
            if not cameras:
                raise GtpVisionError(
                    "encoder.fusion=transformer needs cameras, and there are none; set encoder.fusion=concat"
                )
            self.transformer = Transformer([*cameras, *([states] if states else [])], config)
            self.width = config.features
            return
        self.project: nn.Module | None = normalized_layers(sum(cameras), [config.features]) if cameras else None
        self.width = states + (config.features if cameras else 0)

    def forward(self, cameras: Sequence[torch.Tensor], states: torch.Tensor | None) -> torch.Tensor:
        """Each camera's (B, W), and the states (B, D) or None, to (B, width)."""
        vectors = [] if states is None else [self.felt(states)]
        if self.transformer is not None:
            return self.transformer([*cameras, *vectors])
        if self.project is not None:
            vectors.append(self.project(pack(list(cameras), "b *")[0]))
        return pack(vectors, "b *")[0] if len(vectors) > 1 else vectors[0]


class Transformer(nn.Module):
    """Attention over one token for each input and a readout token (pre-norm, no dropout).

    `widths` are those of the inputs; the tokens have width `config.features`.
    """

    def __init__(self, widths: Sequence[int], config: EncoderConfig) -> None:
        super().__init__()
        width, heads = config.features, config.fusion_heads
        if width % heads:
            raise GtpVisionError(
                f"encoder.features={width} is not divisible by encoder.fusion_heads={heads}; set it to a multiple"
            )
        self.tokens = nn.ModuleList(nn.Linear(inputs, width) for inputs in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in widths)
        self.places = nn.Parameter(0.02 * torch.randn(len(widths), width))
        self.read = nn.Parameter(0.02 * torch.randn(1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, config.fusion_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        for layer in self.layers.layers:  # the copies start with equal weights
            nn.init.xavier_uniform_(layer.self_attn.in_proj_weight)

    def forward(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Each input's (B, W) to (B, F)."""
        layers = zip(self.tokens, self.norms, vectors, strict=True)
        tokens = rearrange([norm(token(x)) for token, norm, x in layers], "n b f -> b n f") + self.places
        read = repeat(self.read, "one f -> b one f", b=len(tokens))
        return self.layers(pack([read, tokens], "b * f")[0])[:, 0]
