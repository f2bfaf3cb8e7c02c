"""Settings of encoders; the presets and their reasons stand in configs/encoder/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STACKS = ("channels", "frames")
POOLINGS = ("auto", "spatial_softmax", "attention", "average", "class_token", "flatten")
BATCH_NORMS = ("auto", "frozen", "train", "group")
GRADIENTS = ("both", "actor", "critic")
FUSIONS = ("concat", "transformer")
TUNINGS = ("full", "partial", "frozen", "lora", "layerwise")


@dataclass
class CameraConfig:
    """How one camera is looked at.

    Attributes:
        crop: height and width in pixels that are cut out, anywhere in training and in the middle when acting; null for
            the whole frame.
        size: height and width that the (cropped) frames are resized to; null leaves them.
    """

    crop: list[int] | None = None
    size: list[int] | None = None


@dataclass
class AugmentationConfig:
    """Random changes of camera frames in training, the same for all frames of a stack and for its next observation.

    Attributes:
        shift: largest random shift in pixels; 0 for none.
        shift_probability: of shifting a sample.
        brightness: largest relative change; 0 for none.
        contrast: largest relative change; 0 for none.
        saturation: largest relative change; 0 for none.
        hue: largest turn of the hue, as a share of the circle, at most 0.5.
        color_probability: of changing a sample's colours.
        blur: largest deviation of a Gaussian blur, in pixels; 0 for none.
        blur_probability: of blurring a sample.
        erase: largest share of a frame that one rectangle blackens; 0 for none.
        erase_probability: of erasing in a sample.
        same_for_cameras: all cameras of a sample are changed alike, instead of each in its own way.
        warmup_steps: training steps in which the strength of all but crop and shift grows from 0 to 1.
    """

    shift: int = 3
    shift_probability: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    color_probability: float = 1.0
    blur: float = 0.0
    blur_probability: float = 0.5
    erase: float = 0.0
    erase_probability: float = 0.5
    same_for_cameras: bool = False
    warmup_steps: int = 0


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al., 2022) beside the frozen layers of a backbone, for `tuning=lora`.

    Attributes:
        rank: of each adapter.
        alpha: an adapter's output is scaled by alpha / rank.
        targets: last parts of the names of the layers that get one; null for all linear and convolutional layers.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: list[str] | None = None


@dataclass
class EncoderConfig:
    """From named observations to features.

    Attributes:
        name: the backbone of the cameras, see `backbones.known`; `state` for none.
        weights: null starts from random weights; a file (.safetensors, .pth), a run's folder or `hub` (timm's own) from
            trained ones.
        stack: how the T frames of a stack enter: as `channels` of the first layer, or one after another as `frames`.
        level: ends a model of timm's at an earlier, finer map, counted from 0; null for the last. `auto` averages it.
        pooling: how a map of features becomes a vector; auto is the backbone's usual way.
        keypoints: of spatial_softmax, which alone looks at it; 0 takes every channel as one.
        batch_norm: of backbones that have it: `frozen` statistics, statistics in `train`ing, or replaced by `group`
            normalisation; auto is frozen for trained weights, group for random ones.
        features: width of the features of an image encoder.
        share: one encoder for actor and critic instead of one each.
        gradient: whose losses train a shared encoder: both, actor or critic.
        share_cameras: one backbone looks through all cameras instead of one each.
        cameras: camera name to how it is looked at, a `CameraConfig` each (Hydra cannot add keys to a table of them).
        fusion: how cameras and states are joined: concat, or a small transformer over one token of each.
        fusion_layers: of the transformer.
        fusion_heads: of its attention.
        state_hidden: widths of an MLP that the states go through; empty leaves them as they are.
        standardize: bring states to mean 0 and deviation 1 of the data set; near-constant dimensions are only centred.
        tuning: what is trained of the backbone: full, partial (its last blocks), frozen, lora, layerwise (learning
            rates that fall towards the input).
        blocks: how many of its last blocks `partial` trains.
        decay: factor on the learning rate from each block to the one before it, for `layerwise`.
        learning_rate_scale: of the backbone's learning rate, relative to `training.learning_rate`.
        unfreeze_step: training step before which the backbone rests.
        lora: the adapters of `tuning=lora`.
        cache: compute the features of a frozen backbone once, before training.
        views: how often each frame is computed for the cache: once as it is, the others augmented.
        augmentation: of the frames in training.
    """

    name: str = "impala_small"
    weights: str | None = None
    stack: str = "channels"
    level: int | None = None
    pooling: str = "auto"
    keypoints: int = 32
    batch_norm: str = "auto"
    features: int = 512
    share: bool = False
    gradient: str = "both"
    share_cameras: bool = False
    cameras: dict[str, Any] = field(default_factory=dict)
    fusion: str = "concat"
    fusion_layers: int = 2
    fusion_heads: int = 4
    state_hidden: list[int] = field(default_factory=list)
    standardize: bool = True
    tuning: str = "full"
    blocks: int = 1
    decay: float = 0.75
    learning_rate_scale: float = 1.0
    unfreeze_step: int = 0
    lora: LoraSettings = field(default_factory=LoraSettings)
    cache: bool = True
    views: int = 1
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
