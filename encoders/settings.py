"""The settings of encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gtp_vision.core.settings import setting


@dataclass
class CameraConfig:
    """What the frames of one camera are, and how they are cropped and resized."""

    crop: list[int] | None = setting(
        None, "height and width in pixels that are cut out, anywhere in training, in the middle when acting; null: all"
    )
    size: list[int] | None = setting(None, "height and width to which (cropped) frames are resized; null: as they are")
    depth: bool = setting(False, "frames are distances of 16 bits in two bytes, which the data's farthest one scales")


@dataclass
class AugmentationConfig:
    """Random changes of camera frames in training, the same for all frames of a stack and for its next observation."""

    shift: int = setting(3, "largest random shift in pixels; 0: off", low=0)  # FQL's, on frames of 64 pixels
    shift_probability: float = setting(0.5, "probability of shifting a sample", low=0, high=1)  # FQL's p_aug
    brightness: float = setting(0.0, "largest relative change of the brightness; 0: off", low=0, high=1)
    contrast: float = setting(0.0, "largest relative change of the contrast; 0: off", low=0, high=1)
    saturation: float = setting(0.0, "largest relative change of the saturation; 0: off", low=0, high=1)
    hue: float = setting(0.0, "largest rotation of the hue, as a share of the circle; 0: off", low=0, high=0.5)
    color_probability: float = setting(1.0, "probability of changing a sample's colors", low=0, high=1)
    blur: float = setting(0.0, "largest deviation of a Gaussian blur in pixels; 0: off", low=0)
    blur_probability: float = setting(0.5, "probability of blurring a sample", low=0, high=1)
    erase: float = setting(0.0, "largest share of a frame that one rectangle blackens; 0: off", low=0, high=1)
    erase_probability: float = setting(0.5, "probability of erasing in a sample", low=0, high=1)
    same_for_cameras: bool = setting(False, "change all cameras of a sample alike, instead of each in its own way")
    warmup_steps: int = setting(0, "training steps in which all but crop and shift grow to full strength", low=0)


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al., 2022) beside the frozen layers of a backbone, for `tuning=lora`."""

    rank: int = setting(8, "rank of each adapter", low=1)
    alpha: float = setting(16.0, "scale: an adapter's output is multiplied by alpha / rank", above=0)
    targets: list[str] | None = setting(
        None, "last parts of the names of the adapted layers; null: all linear and convolutional ones"
    )


@dataclass
class EncoderConfig:
    """Settings of the way from named observations to features."""

    name: str = setting("impala_small", "backbone of the cameras, see `backbones.known`; state: none")
    weights: str | None = setting(
        None, "file of trained weights, a run or checkpoint whose encoder to take, or hub for timm's; null: none"
    )
    stack: str = setting("channels", "how a backbone takes stacked frames", choices=("channels", "frames"))
    level: int | None = setting(
        None, "end a timm model at this earlier, finer feature map, counted from 0; null: the last", low=0
    )
    pooling: str = setting(
        "auto",
        "how a feature map becomes a vector; auto: the backbone's usual way",
        choices=("auto", "spatial_softmax", "attention", "average", "class_token", "flatten"),
    )
    keypoints: int = setting(32, "keypoints of spatial_softmax; 0: one for each channel", low=0)
    batch_norm: str = setting(
        "auto",
        "statistics of batch norm, or group norm instead; auto: frozen for trained weights, group for random ones",
        choices=("auto", "frozen", "train", "group"),
    )
    features: int = setting(512, "width of the features of an image encoder", low=1)
    share: bool = setting(False, "one encoder for actor and critic instead of one each")
    gradient: str = setting("both", "whose losses train a shared encoder", choices=("both", "actor", "critic"))
    share_cameras: bool = setting(False, "one backbone for all cameras instead of one each")
    recompute: int | None = setting(
        None, "frames whose activations are held at a time; each part is computed again for its gradients", low=1
    )
    cameras: dict[str, Any] = setting({}, "settings of each camera by its name: crop, size, depth")  # `CameraConfig`s
    fusion: str = setting(
        "concat",
        "how cameras and states are joined; transformer: over one token of each",
        choices=("concat", "transformer"),
    )
    fusion_layers: int = setting(2, "layers of the fusion transformer", low=1)
    fusion_heads: int = setting(4, "attention heads of the fusion transformer", low=1)
    conditioning: str = setting(
        "concatenate",
        "how an instruction enters: as a state, or by scales and shifts of the cameras' features (FiLM)",
        choices=("concatenate", "film"),
    )
    state_hidden: list[int] = setting([], "widths of an MLP for the states; empty: none", low=1)
    standardize: str = setting(
        "meanstd",
        "bring states to mean 0 and deviation 1 of the data set, or its extremes or quantiles to -1 and 1",
        choices=("meanstd", "minmax", "quantile", "none"),
    )
    tuning: str = setting(
        "full",
        "what is trained of the backbone: all, its last blocks (partial), nothing, adapters, or layerwise rates",
        choices=("full", "partial", "frozen", "lora", "layerwise"),
    )
    blocks: int = setting(1, "last blocks that tuning=partial trains", low=1)
    decay: float = setting(
        0.75, "factor on the learning rate from each block to the one before it, for tuning=layerwise", above=0, high=1
    )
    learning_rate_scale: float = setting(1.0, "learning rate of the backbone over training.learning_rate", above=0)
    unfreeze_step: int = setting(0, "training step from which the backbone is trained", low=0)
    lora: LoraSettings = setting(LoraSettings, "adapters of tuning=lora")
    cache: bool = setting(True, "compute the features of a frozen backbone once, before training")
    views: int = setting(1, "versions of each frame in that cache: the frame itself, and augmented ones", low=1)
    augmentation: AugmentationConfig = setting(AugmentationConfig, "random changes of the frames in training")

    def __post_init__(self) -> None:
        """Read `standardize` as earlier versions wrote it, true or false."""
        self.standardize = {"true": "meanstd", "false": "none"}.get(str(self.standardize).lower(), self.standardize)
