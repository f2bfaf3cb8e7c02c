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
    `state_hidden` is set. An `instruction` of that many numbers, if there is one, scales and shifts the features of the
    cameras (FiLM; Perez et al., 2018), at first by 1 and 0.
    """

    def __init__(self, cameras: Sequence[int], states: int, config: EncoderConfig, instruction: int = 0) -> None:
        super().__init__()
        self.film: nn.Linear | None = None
        if instruction:
            if not cameras or config.fusion == "transformer":
                raise GtpVisionError(
                    "encoder.conditioning=film changes the features of cameras that encoder.fusion=concat joins; set "
                    "encoder.conditioning=concatenate"
                )
            self.film = nn.Linear(instruction, 2 * config.features)
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

    def forward(
        self, cameras: Sequence[torch.Tensor], states: torch.Tensor | None, instruction: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Each camera's (B, W), and the states (B, D) and the instruction (B, I) or None, to (B, width)."""
        vectors = [] if states is None else [self.felt(states)]
        if self.transformer is not None:
            return self.transformer([*cameras, *vectors])
        if self.project is not None:
            features = self.project(pack(list(cameras), "b *")[0])
            if self.film is not None and instruction is not None:
                scale, shift = self.film(instruction).chunk(2, -1)
                features = features * (1 + scale) + shift
            vectors.append(features)
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
