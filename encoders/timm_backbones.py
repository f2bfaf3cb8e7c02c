"""Any backbone of timm (Wightman, 2019), convolutional or ViT, as `timm/<model>`.

timm is imported only where it is needed: its import takes longer than torch's.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from einops import rearrange
from torch import nn

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.settings import choices_of
from gtp_vision.encoders import pooling
from gtp_vision.encoders.backbone import Backbone, Block, Named, Normalization, UnfitError, probe
from gtp_vision.encoders.normalization import has_trained_constants
from gtp_vision.encoders.settings import EncoderConfig

PREFIX = "timm/"


def known() -> list[str]:
    """All names, as `timm/resnet18`."""
    import timm

    return [PREFIX + name for name in timm.list_models()]


def is_known(name: str) -> bool:
    """Whether timm has the model, and its tag (`timm/resnet18.a1_in1k`) if one is given."""
    import timm

    model = name.removeprefix(PREFIX)
    return timm.is_model(model) and ("." not in model or model in timm.list_pretrained())


def normalization_of(name: str) -> Normalization:
    """The constants that timm's weights of this model were trained with."""
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix(PREFIX)) or timm.models.PretrainedCfg()
    return tuple(config.mean), tuple(config.std)


def make(name: str, inputs: int, size: tuple[int, int], *, classes: int = 0, hub: bool = False) -> nn.Module:
    """Create the model `timm/<model>` of timm's, of `inputs` channels and frames of `size` (for those that need it).

    `classes` 0 is without a classifier; `hub` loads timm's own weights, from the Hugging Face hub or its cache.
    """
    import timm

    model = name.removeprefix(PREFIX)
    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": inputs}

    def create(pretrained: bool) -> nn.Module:
        try:
            return timm.create_model(model, pretrained=pretrained, img_size=size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(model, pretrained=pretrained, **arguments)

    try:
        created = create(False)
    except Exception as error:  # architectures raise anything for sizes that they cannot take
        raise UnfitError(
            f"encoder.name={name} (timm {version('timm')}) cannot be built for {inputs} channels of "
            f"{size[0]}x{size[1]} pixels ({first_line(error)})"
        ) from error
    _check_patches(name, created, size)
    if not hub:
        return created
    try:
        return create(True)
    except Exception as error:  # network, cache, or a model without weights: many classes of exceptions
        raise GtpVisionError(
            f"encoder.weights=hub: the weights of {name} could not be downloaded ({first_line(error)}); "
            f"download them on another machine and set encoder.weights to the file"
        ) from error


class Timm(Backbone):
    """A model of timm's without its classifier; `hub` loads timm's own weights."""

    def __init__(
        self, shape: tuple[int, ...], config: EncoderConfig, normalization: Normalization | None, hub: bool = False
    ) -> None:
        super().__init__(shape, normalization, config.stack)
        height, width = shape[2:]
        self.model: Any = make(config.name, self.in_channels, (height, width), hub=hub)
        _disable_dropout(self.model)
        self.layout = _layout(self.model)
        self.to(memory_format=self.layout)  # type: ignore[call-overload]  # missing in torch's stubs
        self.pooling_kind = config.pooling
        self.classifiers = _configured(self.model, "classifier")
        self.removed: set[str] = set()  # tensors of the layers behind `level`
        self.first_layers = _first_layers(self.model, self.in_channels)
        self.level = config.level
        if self.level is not None:
            self.pooling_kind = "average" if config.pooling == "auto" else config.pooling
            self.removed = _end_at(self.model, config.name, self.level)
        elif config.pooling != "auto":
            self.classifiers += _remove_pooling(self.model)
        kind = self.pooling_kind
        called = f"{config.name} (timm {version('timm')})"
        features = probe(_Function(self.features, self.model), (self.in_channels, height, width), called)
        if not isinstance(features, torch.Tensor) or features.ndim not in ((2,) if kind == "auto" else (3, 4)):
            raise GtpVisionError(
                f"encoder.pooling={kind} does not fit encoder.name={config.name}; "
                f"set it to {'average' if kind == 'auto' else 'auto'}"
            )
        if self.level is not None:
            self.unused = self._found_unused()
        if kind == "class_token" and (getattr(self.model, "cls_token", None) is None or features.ndim != 3):
            raise GtpVisionError(
                f"encoder.pooling=class_token: encoder.name={config.name} has no class token; choose average, "
                f"attention or spatial_softmax"
            )
        self.pooling: nn.Module | None = None
        width = features.shape[-1]
        if kind not in ("auto", "class_token"):
            shape = tuple(self._as_map(features).shape[1:])
            self.pooling, width = pooling.create(kind, shape, config.keypoints)
        self.width = self.passes * width

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized float (N, K, H, W) to (N, W)."""
        x = self.features(x.contiguous(memory_format=self.layout))
        if self.pooling is not None:
            return self.pooling(self._as_map(x))
        return x[:, 0] if self.pooling_kind == "class_token" else x

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The model's output, or its map at `level`, before our pooling."""
        if self.level is None:
            return self.model(x)
        return self.model.forward_intermediates(x, indices=[self.level], stop_early=True, intermediates_only=True)[0]

    def _found_unused(self) -> frozenset[str]:
        """Parameters without a gradient: timm leaves some of the layers behind `level`."""
        names, parameters = zip(*self.model.named_parameters(prefix="model"), strict=True)
        self.model.eval()  # a single frame has no batch statistics
        found = self.features(torch.zeros(1, self.in_channels, *self.shape[2:]))
        self.model.train()
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
        return frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)

    def _as_map(self, x: torch.Tensor) -> torch.Tensor:
        """Unpooled features, of tokens or channels last, to (N, C, h, w)."""
        if self.level is not None:
            return x  # timm's intermediate maps already are
        if x.ndim == 4:
            return rearrange(x, "n h w c -> n c h w") if getattr(self.model, "output_fmt", "") == "NHWC" else x
        prefix = int(getattr(self.model, "cls_token", None) is not None)
        tokens = x[:, getattr(self.model, "num_prefix_tokens", prefix) :]
        height, width = self.shape[2:]
        rows = max(1, round((tokens.shape[1] * height / width) ** 0.5))
        if tokens.shape[1] == 0 or tokens.shape[1] % rows:
            raise GtpVisionError(
                f"encoder.pooling={self.pooling_kind}: the {tokens.shape[1]} tokens of frames of {height}x{width} "
                f"pixels do not form a rectangle; set encoder.pooling=auto, or use square frames with "
                f"encoder.cameras.<name>.size"
            )
        return rearrange(tokens, "n (h w) c -> n c h w", h=rows)

    def blocks(self) -> list[nn.Module]:
        """Timm's own groups of layers; layers after the last group, and the pooling, belong to the last."""
        from timm.models._manipulate import group_with_matcher

        end = "~.~"  # no pattern of timm's matches this name, so it is grouped with the layers after the last block
        names = [name for name, _ in self.model.named_parameters()]
        block_of = group_with_matcher(((name, None) for name in [*names, end]), _matcher(self.model), reverse=True)
        blocks: list[list[str]] = [[] for _ in range(max(1, block_of[end]))]
        for name in names:
            blocks[min(block_of[name], len(blocks) - 1)].append(f"model.{name}")
        blocks[-1] += [name for name, _ in self.named_parameters() if name.startswith("pooling.")]
        return [Block(self, block) for block in blocks if block]

    def weights_module(self) -> nn.Module:
        """Timm's model."""
        return self.model

    def convert_weights(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert names and sizes by `convert_weights`; drops classifiers and the model's own pooling."""
        own = self.model.state_dict().keys()
        # Blocks behind `level` have no stage here, so they cannot be renamed.
        unused = (*self.classifiers, *(["_blocks"] if self.level is not None else []))
        return {
            name: value
            for name, value in convert_weights(self.model, state).items()
            if name in own or not (name in self.removed or any(f"{name}.".startswith(f"{part}.") for part in unused))
        }


def convert_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a file's tensors to a timm model's names, and position embeddings and patches to its size, by timm."""
    state = _from_efficientnet_pytorch(state, model)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's name for it
    if convert is None:
        return state
    more = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(convert).parameters else {}
    try:
        return dict(convert(dict(state), model, **more))
    except (RuntimeError, KeyError, AttributeError, ValueError, TypeError, AssertionError, IndexError):
        return state  # of another architecture: `weights.fill` reports the differences


def _first_layers(model: Any, inputs: int) -> tuple[str, ...]:
    """The convolutions that see the channels in the order in which they are stacked."""
    layers = {name: model.get_submodule(name) for name in _configured(model, "first_conv")}
    return tuple(n for n, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.in_channels == inputs)


def _configured(model: Any, key: str) -> tuple[str, ...]:
    """The layers that timm's configuration of a model names, one or several."""
    names = model.pretrained_cfg.get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _matcher(model: Any) -> Any:
    """Patterns or function from a parameter's name to its block: the model's own, or by the layers that it lists."""
    if hasattr(model, "group_matcher"):
        return model.group_matcher(coarse=False)
    parts: list[str] = []
    for name, child in model.named_children():
        if not name.startswith(("norm", "head", "fc", "classifier")):
            listed = isinstance(child, nn.Sequential | nn.ModuleList)
            parts += [f"{name}.{inner}." for inner, _ in child.named_children()] if listed else [f"{name}."]

    def block(name: str) -> int:
        if "." not in name:
            return 0  # class tokens and position embeddings
        return next((place for place, part in enumerate(parts) if name.startswith(part)), len(parts))

    return block


class _Function(nn.Module):
    """A function as a module that contains the model which the function calls."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The function's result."""
        return self.function(x)


def _end_at(model: Any, name: str, level: int) -> set[str]:
    """Remove the layers behind a level of a model's maps, and return the names of their tensors."""
    levels = len(getattr(model, "feature_info", ())) if hasattr(model, "forward_intermediates") else 0
    if level >= levels:
        raise GtpVisionError(
            f"encoder.level={level}: encoder.name={name} has {levels} levels of maps, counted from 0; "
            f"{f'set it below {levels}' if levels else 'set it to null'}"
        )
    before = set(model.state_dict())
    model.prune_intermediate_layers([level], prune_norm=True, prune_head=True)
    return before - set(model.state_dict())


def _remove_pooling(model: Any) -> tuple[str, ...]:
    """Remove the model's own pooling, if possible, and return the names of the modules that it removed."""
    before = dict(model.named_modules())
    with contextlib.suppress(AssertionError):
        model.reset_classifier(0, "")
    return tuple(before.keys() - dict(model.named_modules()).keys())


def _disable_dropout(model: nn.Module) -> None:
    """Disable dropout, which draws from torch's global generator, so that a resumed run would differ."""
    from timm.layers import DropPath

    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif "drop_rate" in vars(module):  # modules that call dropout as a function
            vars(module)["drop_rate"] = 0.0


def _layout(model: nn.Module) -> torch.memory_format:
    """Channels last, which is faster, except for models that would overwrite memory and end the process.

    On a CPU, torch 2.13 does so in the gradient of a strided 1x1 convolution of fewer than 16 channels, the stem of
    FastViT, RepVGG and MobileOne.
    """
    narrow = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels < 16)
    is_fragile = any(layer.kernel_size == (1, 1) and layer.stride != (1, 1) for layer in narrow)
    return torch.contiguous_format if is_fragile else torch.channels_last


def _check_patches(name: str, model: Any, size: tuple[int, int]) -> None:
    """Refuse frames of which a patch embedding would silently ignore the last rows and columns."""
    from timm.layers import PatchEmbed

    embed = next((module for module in model.modules() if isinstance(module, PatchEmbed)), None)
    if embed is None:
        return
    down, across = embed.patch_size
    if size[0] % down or size[1] % across:
        raise UnfitError(
            f"encoder.name={name} reads patches of {down}x{across} pixels, which do not divide frames of "
            f"{size[0]}x{size[1]}"
        )


# Names of `efficientnet_pytorch` (Melas-Kyriazi, 2019), under which many EfficientNets are published, to timm's.
# A block that does not expand its channels lacks the first convolution, so that the others count differently.
_OUTSIDE = {
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


def _from_efficientnet_pytorch(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename tensors of efficientnet_pytorch, which numbers blocks through all stages, to timm's names."""
    stages = getattr(model, "blocks", None)
    if "_conv_stem.weight" not in state or not isinstance(stages, nn.Sequential):
        return dict(state)
    blocks = [f"blocks.{s}.{i}" for s, stage in enumerate(stages.children()) for i, _ in enumerate(stage.children())]
    converted = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if first == "_blocks" and len(rest) > 1 and rest[0].isdigit() and int(rest[0]) < len(blocks):
            table = _EXPANDING if f"_blocks.{rest[0]}._expand_conv.weight" in state else _PLAIN
            converted[".".join([blocks[int(rest[0])], table.get(rest[1], rest[1]), *rest[2:]])] = value
        else:
            converted[".".join([_OUTSIDE.get(first, first), *rest])] = value
    return converted


def _make(shape: tuple[int, ...], config: EncoderConfig, hub: bool = False) -> Timm:
    return Timm(shape, config, normalization_of(config.name) if has_trained_constants(config) else None, hub)


_POOLINGS = choices_of(EncoderConfig, "pooling")
TIMM = Named(PREFIX, _make, _POOLINGS, is_initialized=True, fetch=partial(_make, hub=True), has=is_known, names=known)
