"""Networks without pixels: MLPs, ensembles of them, time embeddings.

Axes in names: B batch, E ensemble member, F features, A action dimensions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from gtp_vision.core.errors import propose

M = TypeVar("M", bound=nn.Module)


class Mish(nn.Module):
    """x tanh(log(1 + e^x)) (Misra, 2020), in compiled code with one exponential instead of three functions.

    With u = e^-x, tanh(log(1 + e^x)) = ((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1) = (1 + 2u) / (1 + 2u + 2u^2): in u, and
    not in e^x, its gradient too keeps its precision where x is large. A compiler makes one loop of it; step by step,
    PyTorch's own kernel is faster.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape to the same."""
        return _mish(x) if torch.compiler.is_compiling() else nn.functional.mish(x)


def _mish(x: torch.Tensor) -> torch.Tensor:
    u = x.clamp_min(-40).neg().exp()  # at -40 the result is 0 but for 1e-16; u^2 stays finite
    n = 1 + 2 * u
    return x * (n / (n + 2 * u * u))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "mish": Mish,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),  # Flax's
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """A new activation module by its name. Raises ValueError: unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation '{name}': {propose(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


_FLAX_EPS = 1e-6  # of LayerNorm, where PyTorch's is 1e-5


class MLP(nn.Sequential):
    """Linear layers with an activation between them, and optionally a LayerNorm before or after each activation.

    The output is linear; `bias` is the output's.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        act: str = "mish",
        layer_norm: bool = False,
        bias: bool = True,
        norm_after: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(nn.Linear(inputs, width))
            if layer_norm and not norm_after:
                layers.append(nn.LayerNorm(width))
            layers.append(activation(act))
            if layer_norm and norm_after:
                layers.append(nn.LayerNorm(width, _FLAX_EPS))
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, outputs, bias=bias))


class ResidualBlock(nn.Module):
    """x + Linear(act(Linear(LayerNorm(x)))), four times as wide inside: (..., width) to the same."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), activation(act), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) to the same."""
        return x + self.change(x)


class LNResNet(nn.Sequential):
    """Residual blocks, an activation and a linear output: the actor of IDQL (Hansen-Estruch et al., 2023).

    Without their dropout: randomness here is a function of seed and step, and that of `nn.Dropout` is not. `width` is
    that of the input and of every block, `bias` the output's.
    """

    def __init__(self, width: int, blocks: int, outputs: int, act: str, bias: bool = True) -> None:
        residual = (ResidualBlock(width, act) for _ in range(blocks))
        super().__init__(*residual, activation(act), nn.Linear(width, outputs, bias=bias))


ARCHITECTURES = ("mlp", "ln_resnet")


def after_first_layer(
    architecture: str, hidden: Sequence[int], outputs: int, act: str, bias: bool = True
) -> nn.Sequential:
    """The network behind a first linear layer of width `hidden[0]`, which the caller keeps apart.

    `ln_resnet` has a block for each hidden layer. Raises ValueError: unknown architecture, or several widths for
    ln_resnet.
    """
    width, *deeper = hidden
    if architecture == "mlp":
        return nn.Sequential(activation(act), MLP(width, deeper, outputs, act, bias=bias))
    if architecture != "ln_resnet":
        raise ValueError(f"unknown architecture '{architecture}': {propose(architecture, ARCHITECTURES)}")
    if set(deeper) - {width}:
        raise ValueError(f"hidden={list(hidden)}: the blocks of ln_resnet have one width")
    return LNResNet(width, len(hidden), outputs, act, bias)


class EnsembleLinear(nn.Module):
    """E linear layers as one batched product: (E, B, in) to (E, B, out), initialised like `nn.Linear`."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(E, B, in) to (E, B, out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """A LayerNorm whose scale and shift are each member's own: (E, B, width) to the same."""

    def __init__(self, members: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(E, B, width) to (E, B, width)."""
        return torch.addcmul(self.shift, nn.functional.layer_norm(x, x.shape[-1:], eps=self.eps), self.scale)


class EnsembleMLP(nn.Module):
    """E independent MLPs over the same input: (B, in) to (E, B, out)."""

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        act: str,
        layer_norm: bool,
        norm_after: bool = False,
    ) -> None:
        super().__init__()
        self.members = members
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(EnsembleLinear(members, inputs, width))
            if layer_norm and not norm_after:
                layers.append(EnsembleLayerNorm(members, width))
            layers.append(activation(act))
            if layer_norm and norm_after:
                layers.append(EnsembleLayerNorm(members, width, _FLAX_EPS))
            inputs = width
        self.layers = nn.Sequential(*layers, EnsembleLinear(members, inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in) to (E, B, out)."""
        return self.layers(x.expand(self.members, *x.shape))


class LogTimeEmbedding(nn.Module):
    """Noise levels to smooth features, evenly spaced in log time and defined at 0.

    c(t) = log(1 + t / sigma_min) / log(1 + sigma_max / sigma_min) lies in [0, 1]; the features are c and its
    sines and cosines of a few low frequencies. High frequencies hurt the map along t.
    """

    def __init__(self, sigma_min: float, sigma_max: float, frequencies: int = 4) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        self.scale = 1 / math.log1p(sigma_max / sigma_min)
        self.omega: torch.Tensor
        self.register_buffer("omega", math.pi * torch.arange(1, frequencies + 1), persistent=False)
        self.width = 1 + 2 * frequencies

    def forward(self, t_b: torch.Tensor) -> torch.Tensor:
        """(B,) to (B, width)."""
        return self.at(torch.log1p(t_b / self.sigma_min)[:, None] * self.scale)

    def at(self, c: torch.Tensor) -> torch.Tensor:
        """The features of places c, which no level has outside [0, 1]: (B, 1) to (B, width)."""
        phase = c * self.omega
        return torch.cat([c, phase.sin(), phase.cos()], dim=1)


class UnitTimeEmbedding(nn.Module):
    """Times in [0, 1] to smooth features: the time, and its sines and cosines of a few low frequencies."""

    def __init__(self, frequencies: int = 4) -> None:
        super().__init__()
        self.omega: torch.Tensor
        self.register_buffer("omega", math.pi * torch.arange(1, frequencies + 1), persistent=False)
        self.width = 1 + 2 * frequencies

    def forward(self, t_b: torch.Tensor) -> torch.Tensor:
        """(B,) to (B, width)."""
        phase = t_b[:, None] * self.omega
        return torch.cat([t_b[:, None], phase.sin(), phase.cos()], dim=1)


def frozen_copy(module: M) -> M:
    """A copy for targets and teachers: same parameters, no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Of a slow tensor and the one that it follows."""


def followed(target: nn.Module, source: nn.Module) -> tuple[Pairs, Pairs]:
    """The parameters of `target` that are averages of those of `source`, and the buffers that are copies.

    Parameters that are not trained stand still in both and are left out. Statistics of BatchNorm that move in
    training are averages already, and are copied.
    """
    pairs = zip(target.parameters(), source.parameters(), strict=True)
    averaged: Pairs = [(slow, fast) for slow, fast in pairs if fast.requires_grad]
    copied: Pairs = []
    for slow_module, fast_module in zip(target.modules(), source.modules(), strict=True):
        if isinstance(fast_module, nn.modules.batchnorm._BatchNorm) and fast_module.training:
            copied += zip(slow_module.buffers(), fast_module.buffers(), strict=True)
    return averaged, copied


@torch.no_grad()
def polyak_(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the parameters of `target` towards those of `source`: p' = p' + rate (p - p'), in place; see `followed`."""
    averaged, copied = followed(target, source)
    if averaged:  # a state encoder has none
        torch._foreach_lerp_([slow for slow, _ in averaged], [fast for _, fast in averaged], rate)
    for slow, fast in copied:
        slow.copy_(fast)
