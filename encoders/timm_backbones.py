"""Any backbone of timm (Wightman, 2019), convolutional or ViT, as `timm/<model>`.

timm is imported when one is asked for: it takes longer than torch.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import efficientnet_names, pooling
from gtp_vision.encoders.backbone import Backbone, Block, Named, Normalization, first_line, probe
from gtp_vision.encoders.normalization import has_trained_constants
from gtp_vision.encoders.settings import POOLINGS, EncoderConfig

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
    """What timm's weights of this model were trained with."""
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix(PREFIX)) or timm.models.PretrainedCfg()
    return tuple(config.mean), tuple(config.std)


def make(name: str, inputs: int, size: tuple[int, int], *, classes: int = 0, hub: bool = False) -> nn.Module:
    """A model of timm's.

    Args:
        name: `timm/<model>`.
        inputs: channels of the first layer.
        size: height and width of the frames; models that must know it are made for it.
        classes: of its classifier; 0 for none.
        hub: fill it with timm's own weights, from the Hugging Face hub or its cache.

    Raises:
        GtpVisionError: patches that do not divide the frames, other frames than it can be made for, or no download.
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
        made = create(False)
    except Exception as error:  # whatever an architecture makes of sizes that it cannot take
        raise GtpVisionError(
            f"encoder.name={name} cannot be made for {inputs} channels of {size[0]}x{size[1]} pixels "
            f"({first_line(error)}); give it another encoder.cameras.<name>.size, or set encoder.stack=frames"
        ) from error
    _check_patches(name, made, size)
    if not hub:
        return made
    try:
        return create(True)
    except Exception as error:  # of the network, its cache, or a model without weights: many classes of exceptions
        raise GtpVisionError(
            f"encoder.weights=hub: the weights of {name} could not be fetched ({first_line(error)}); "
            f"fetch them on another machine and give the file as encoder.weights"
        ) from error


class Timm(Backbone):
    """A model of timm's without its classifier.

    Args:
        shape: (T, C, H, W) of a stack.
        config: `name` is `timm/<model>`.
        normalization: see `Backbone`.
        hub: read timm's own weights.

    Raises:
        GtpVisionError: frames, pooling or weights that the model cannot take.
    """

    def __init__(
        self, shape: tuple[int, ...], config: EncoderConfig, normalization: Normalization | None, hub: bool = False
    ) -> None:
        super().__init__(shape, normalization, config.stack)
        height, width = shape[2:]
        self.model: Any = make(config.name, self.inputs, (height, width), hub=hub)
        _drop_nothing(self.model)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.how = config.pooling
        self.classifiers = _classifiers(self.model)
        self.cut: set[str] = set()  # tensors of the layers behind `level`
        self.first_layers = _first_layers(self.model, self.inputs)
        self.level = config.level
        if self.level is not None:
            self.how = "average" if self.how == "auto" else self.how
            self.cut = _end_at(self.model, config.name, self.level)
        elif self.how != "auto":
            self.classifiers += _unpool(self.model)
        seen = probe(_Called(self.features, self.model), (self.inputs, height, width), config.name)
        if not isinstance(seen, torch.Tensor) or seen.ndim not in ((2,) if self.how == "auto" else (3, 4)):
            raise GtpVisionError(
                f"encoder.pooling={self.how}: encoder.name={config.name} cannot be pooled so; "
                f"set it to {'average' if self.how == 'auto' else 'auto'}"
            )
        self.pooling: nn.Module | None = None
        if self.how == "auto":
            self.width = self.passes * seen.shape[-1]
        elif self.how == "class_token":
            if getattr(self.model, "cls_token", None) is None or seen.ndim != 3:
                raise GtpVisionError(
                    f"encoder.pooling=class_token: encoder.name={config.name} has no class token; choose average, "
                    f"attention or spatial_softmax"
                )
            self.width = self.passes * seen.shape[-1]
        else:
            shown = tuple(self._as_map(seen).shape[1:])
            made = pooling.create(self.how, shown, config.keypoints)
            self.pooling, self.width = made, self.passes * made.width

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled float (N, K, H, W) to (N, W)."""
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        if self.pooling is not None:
            return self.pooling(self._as_map(x))
        return x[:, 0] if self.how == "class_token" else x

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the model makes of its input, up to `level`, before our pooling."""
        if self.level is None:
            return self.model(x)
        return self.model.forward_intermediates(x, indices=[self.level], stop_early=True, intermediates_only=True)[0]

    def _as_map(self, x: torch.Tensor) -> torch.Tensor:
        """Unpooled features, of tokens or channels last, to (N, C, h, w)."""
        if self.level is not None:
            return x  # timm's intermediate maps are so already
        if x.ndim == 4:
            return rearrange(x, "n h w c -> n c h w") if getattr(self.model, "output_fmt", "") == "NHWC" else x
        before = int(getattr(self.model, "cls_token", None) is not None)  # places, unless the model knows better
        tokens = x[:, getattr(self.model, "num_prefix_tokens", before) :]
        height, width = self.shape[2:]
        rows = max(1, round((tokens.shape[1] * height / width) ** 0.5))
        if tokens.shape[1] == 0 or tokens.shape[1] % rows:
            raise GtpVisionError(
                f"encoder.pooling={self.how}: the {tokens.shape[1]} tokens of frames of {height}x{width} pixels make "
                f"no rectangle; set encoder.pooling=auto, or give square frames by encoder.cameras.<name>.size"
            )
        return rearrange(tokens, "n (h w) c -> n c h w", h=rows)

    def blocks(self) -> list[nn.Module]:
        """By timm's own grouping of layers; what it leaves over at the end, and the pooling, belong to the last."""
        from timm.models._manipulate import group_with_matcher

        end = "~.~"  # a name that no pattern of timm's matches: it falls among the layers after the last block
        names = [name for name, _ in self.model.named_parameters()]
        found = group_with_matcher(((name, None) for name in [*names, end]), _matcher(self.model), reverse=True)
        blocks: list[list[str]] = [[] for _ in range(max(1, found[end]))]
        for name in names:
            blocks[min(found[name], len(blocks) - 1)].append(f"model.{name}")
        blocks[-1] += [name for name, _ in self.named_parameters() if name.startswith("pooling.")]
        return [Block(self, held) for held in blocks if held]

    def described(self) -> nn.Module:
        """The model of timm's."""
        return self.model

    def translated(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `translated`, and without classifiers and the model's own pooling."""
        present = self.model.state_dict().keys()
        # Blocks behind `level` have no stage here, by which they would be renamed.
        unused = (*self.classifiers, *(["_blocks"] if self.level is not None else []))
        return {
            name: value
            for name, value in translated(self.model, state).items()
            if name in present or not (name in self.cut or any(f"{name}.".startswith(f"{part}.") for part in unused))
        }


def translated(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's tensors under a timm model's names, position embeddings and patches resampled to its size, by timm."""
    state = efficientnet_names.translated(state, model)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's name for it
    if convert is None:
        return state
    more = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(convert).parameters else {}
    try:
        return dict(convert(dict(state), model, **more))
    except (RuntimeError, KeyError, AttributeError, ValueError, TypeError, AssertionError, IndexError):
        return state  # of another architecture: whoever compares the names can say what does not fit


def _first_layers(model: Any, inputs: int) -> tuple[str, ...]:
    """The convolutions that see the channels in the order in which they are stacked."""
    named = model.pretrained_cfg.get("first_conv") or ()
    layers = {name: model.get_submodule(name) for name in ([named] if isinstance(named, str) else named)}
    return tuple(n for n, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.in_channels == inputs)


def _classifiers(model: Any) -> tuple[str, ...]:
    named = model.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _matcher(model: Any) -> Any:
    """What tells timm the block of a parameter by its name: the model's own patterns, or the parts that it lists."""
    if hasattr(model, "group_matcher"):
        return model.group_matcher(coarse=False)
    parts: list[str] = []
    for name, child in model.named_children():
        if not name.startswith(("norm", "head", "fc", "classifier")):
            listed = isinstance(child, nn.Sequential | nn.ModuleList)
            parts += [f"{name}.{inner}." for inner, _ in child.named_children()] if listed else [f"{name}."]

    def block(name: str) -> int:
        if "." not in name:
            return 0  # class tokens and position embeddings stand alone
        return next((place for place, part in enumerate(parts) if name.startswith(part)), len(parts))

    return block


class _Called(nn.Module):
    """A function as a module, which holds those that the function calls."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the function makes of it."""
        return self.function(x)


def _end_at(model: Any, name: str, level: int) -> set[str]:
    """Remove the layers behind a level of a model's maps, and tell the names of their tensors.

    Raises:
        GtpVisionError: the model has no levels, or not so many.
    """
    levels = len(getattr(model, "feature_info", ())) if hasattr(model, "forward_intermediates") else 0
    if level >= levels:
        raise GtpVisionError(
            f"encoder.level={level}: encoder.name={name} has {levels} levels of maps, counted from 0; "
            f"{f'set it below {levels}' if levels else 'set it to null'}"
        )
    held = set(model.state_dict())
    model.prune_intermediate_layers([level], prune_norm=True, prune_head=True)
    return held - set(model.state_dict())


def _unpool(model: Any) -> tuple[str, ...]:
    """Switch its own pooling off, if it can be, and tell the modules that went with it."""
    held = dict(model.named_modules())
    with contextlib.suppress(AssertionError):
        model.reset_classifier(0, "")
    return tuple(held.keys() - dict(model.named_modules()).keys())


def _drop_nothing(model: nn.Module) -> None:
    """No dropped layers in training: they are drawn by torch's global generator, and a resumed run would differ."""
    from timm.layers import DropPath

    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif "drop_rate" in vars(module):  # of those that call dropout as a function
            vars(module)["drop_rate"] = 0.0


def _check_patches(name: str, model: Any, size: tuple[int, int]) -> None:
    """A patch embedding would leave the last rows and columns out, without a word.

    Raises:
        GtpVisionError: patches that do not divide the frames.
    """
    from timm.layers import PatchEmbed

    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed):
        return
    down, across = embed.patch_size
    if size[0] % down or size[1] % across:
        near = [max(patch, round(side / patch) * patch) for side, patch in zip(size, (down, across), strict=True)]
        raise GtpVisionError(
            f"encoder.name={name} reads patches of {down}x{across} pixels, which do not divide frames of "
            f"{size[0]}x{size[1]}; set encoder.cameras.<name>.size=[{near[0]},{near[1]}]"
        )


def _make(shape: tuple[int, ...], config: EncoderConfig, hub: bool = False) -> Timm:
    return Timm(shape, config, normalization_of(config.name) if has_trained_constants(config) else None, hub)


TIMM = Named(PREFIX, _make, POOLINGS, is_initialized=True, fetch=partial(_make, hub=True), has=is_known, names=known)
