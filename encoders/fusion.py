"""How the vectors of cameras and states become one feature vector.

Axes in names: B batch, W width of a part, F features.
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
    """Joins what was seen and what was felt.

    `concat` projects all cameras together to F features and appends the states; `transformer` makes a token of each
    camera and one of the states, lets them attend to each other, and reads a token of its own. States go through an
    MLP first if `state_hidden` says so.

    Args:
        cameras: width of each camera's vector.
        states: width of all states together; 0 for none.
        config: see `EncoderConfig`.

    Attributes:
        width: of the features.

    Raises:
        GtpVisionError: a transformer without cameras, or heads that do not divide the features.
    """

    def __init__(self, cameras: Sequence[int], states: int, config: EncoderConfig) -> None:
        super().__init__()
        self.states = states
        self.felt: nn.Module = nn.Identity()
        if states and config.state_hidden:
            self.felt = normalized_layers(states, config.state_hidden)
            states = config.state_hidden[-1]
        self.transformer: Transformer | None = None
        if config.fusion == "transformer":
            if not cameras:
                raise GtpVisionError("encoder.fusion=transformer joins cameras, and there are none; set it to concat")
            self.transformer = Transformer([*cameras, *([states] if states else [])], config)
            self.width = config.features
            return
        self.project: nn.Module | None = normalized_layers(sum(cameras), [config.features]) if cameras else None
        self.width = states + (config.features if cameras else 0)

    def forward(self, seen: Sequence[torch.Tensor], felt: torch.Tensor | None) -> torch.Tensor:
        """Each camera's (B, W), and the states (B, D) or None, to (B, width)."""
        parts = [] if felt is None else [self.felt(felt)]
        if self.transformer is not None:
            return self.transformer([*seen, *parts])
        if self.project is not None:
            parts.append(self.project(pack(list(seen), "b *")[0]))
        return pack(parts, "b *")[0] if len(parts) > 1 else parts[0]


class Transformer(nn.Module):
    """Attention over one token for each part, read by a token of its own (pre-norm, no dropout).

    Args:
        widths: of the parts.
        config: `features` is the width of the tokens.
    """

    def __init__(self, widths: Sequence[int], config: EncoderConfig) -> None:
        super().__init__()
        width, heads = config.features, config.fusion_heads
        if width % heads:
            raise GtpVisionError(
                f"encoder.features={width} cannot be divided over encoder.fusion_heads={heads}; make it a multiple"
            )
        self.tokens = nn.ModuleList(nn.Linear(part, width) for part in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in widths)
        self.places = nn.Parameter(0.02 * torch.randn(len(widths), width))
        self.read = nn.Parameter(0.02 * torch.randn(1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, config.fusion_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        for copied in self.layers.layers:  # or all of them would begin alike
            nn.init.xavier_uniform_(copied.self_attn.in_proj_weight)

    def forward(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Each part's (B, W) to (B, F)."""
        made = zip(self.tokens, self.norms, parts, strict=True)
        tokens = rearrange([norm(token(part)) for token, norm, part in made], "n b f -> b n f") + self.places
        read = repeat(self.read, "one f -> b one f", b=len(tokens))
        return self.layers(pack([read, tokens], "b * f")[0])[:, 0]
