"""Named observations in, one feature vector out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import pack, rearrange
from torch import nn
from torchvision.transforms.v2 import functional as pixels

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import GOAL
from gtp_vision.encoders import backbones, tuning
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.fusion import Fusion
from gtp_vision.encoders.settings import CameraConfig, EncoderConfig


class Encoder(nn.Module):
    """Named observations to one feature vector.

    Every camera has a backbone, of its own or shared; `Fusion` joins their vectors and the states, which are scaled as
    `standardize` says. In place of a camera's frames its backbone's vectors may be given, computed earlier.

    Args:
        shapes: observation name to the shape of one stacked observation: (T, C, H, W) or (T, D).
        config: see `EncoderConfig`.
        pretrained: read `config.weights`; False for what a checkpoint will fill.

    Attributes:
        shapes: as given.
        width: of the feature vector.
        bf16: whether backbones compute in bfloat16; their vectors, and all that follows, are float32.
        towers: the backbones, by position: a camera may have a name that a module may not.

    Raises:
        GtpVisionError: unknown encoder, or one that does not fit the observations.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig, *, pretrained: bool = True
    ) -> None:
        super().__init__()
        backbones.check_name(config.name)
        self.shapes, self.config, self.bf16 = dict(shapes), config, False
        self.cameras = [name for name, shape in shapes.items() if len(shape) == 4]
        self.states = [name for name, shape in shapes.items() if len(shape) == 2]
        if config.name == "state" and self.cameras:
            raise GtpVisionError(f"encoder=state cannot see the cameras {self.cameras}; choose encoder=impala_small")
        self.looks = {name: _look(name, config, shapes) for name in self.cameras}
        self._tower_of: dict[str, int] = {}
        self.towers = nn.ModuleList()
        for name in self.cameras:
            self._tower_of[name] = self._find_or_make_tower(name, pretrained)
        for index, name in enumerate(self.states):
            self.register_buffer(f"state_mean_{index}", torch.zeros(shapes[name][1]))
            self.register_buffer(f"state_scale_{index}", torch.ones(shapes[name][1]))
        states = sum(shapes[name][0] * shapes[name][1] for name in self.states)
        self.fusion = Fusion([self.tower(name).width for name in self.cameras], states, config)
        self.fusion.apply(backbones.initialise)
        self.width = self.fusion.width

    def tower(self, camera: str) -> Backbone:
        """The backbone that looks through a camera."""
        tower = self.towers[self._tower_of[camera]]
        assert isinstance(tower, Backbone)
        return tower

    def _find_or_make_tower(self, name: str, pretrained: bool) -> int:
        frames, channels, *_ = self.shapes[name]
        shape = (frames, channels, *_seen_size(self.shapes[name], self.looks[name]))
        config, earlier = self.config, name.removeprefix(GOAL) if name.startswith(GOAL) else None
        if earlier is None and config.share_cameras and self._tower_of:
            earlier = next(iter(self._tower_of))
        if earlier is None:
            try:
                tower = backbones.create(shape, config, pretrained=pretrained, place=len(self.towers))
            except GtpVisionError as error:
                raise GtpVisionError(f"camera '{name}': {error}") from error
            self.towers.append(tuning.prepare(tower, config))
            return len(self.towers) - 1
        if earlier not in self._tower_of or self.tower(earlier).shape != shape:
            has = self.tower(earlier).shape if earlier in self._tower_of else "none"
            raise GtpVisionError(
                f"the cameras '{name}' and '{earlier}' share a backbone, but one shows {shape} and the other {has}; "
                f"give both the same encoder.cameras.<name>.size, or set encoder.share_cameras=false"
            )
        return self._tower_of[earlier]

    @torch.no_grad()
    def centre(self, means: Mapping[str, torch.Tensor]) -> None:
        """Subtract each camera's mean frame from what it sees, from now on; saved with the parameters.

        Most of a frame is the same in all of them. Without its mean, untrained features differ by half a percent of
        their variance between observations, and whatever learns first pushes them all one way. Backbones with trained
        weights keep the constants that those were made with. Cameras that share a backbone share the mean of theirs.

        Args:
            means: camera name to float32 (C, H, W) in [0, 255].
        """
        for index, tower in enumerate(self.towers):
            names = [name for name, of in self._tower_of.items() if of == index and name in means]
            assert isinstance(tower, Backbone)
            if tower.centred and names:
                seen = [self._looked_at(name, rearrange(means[name], "c h w -> 1 1 c h w"))[0, 0] for name in names]
                tower.mean.copy_(torch.stack(seen).mean(0))

    @torch.no_grad()
    def standardize(self, scales: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Subtract each state's mean and divide by its scale, from now on; saved with the parameters.

        Args:
            scales: state name to float32 (D,) mean and (D,) scale.
        """
        for index, name in enumerate(self.states):
            mean, scale = scales[name.removeprefix(GOAL)]
            self.get_buffer(f"state_mean_{index}").copy_(mean)
            self.get_buffer(f"state_scale_{index}").copy_(scale)

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Name to uint8 (B, T, C, H, W), cropped or not, or float (B, T, D), to float (B, width).

        Float frames are taken to lie in [0, 1]; a camera may also be given as its `camera_features`, (B, 1, width).

        Raises:
            GtpVisionError: an observation is missing or has another shape than the encoder was built for.
        """
        for name in self.shapes:
            if name not in observation:
                raise GtpVisionError(f"the observation '{name}' is missing; given: {sorted(observation)}")
            if not isinstance(observation[name], torch.Tensor):
                raise GtpVisionError(f"the observation '{name}' is a {type(observation[name]).__name__}; give a tensor")
        seen = [self.camera_features(name, observation[name]) for name in self.cameras]
        felt = [self._scaled(index, observation[name]) for index, name in enumerate(self.states)]
        return self.fusion(seen, pack(felt, "b *")[0] if felt else None)

    def camera_features(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """What a camera's backbone makes of its frames, before anything is joined.

        Args:
            name: of the camera.
            images: (B, T, C, H, W) as in `forward`, or (B, 1, W), this method's result at an earlier time.

        Returns:
            float (B, W).
        """
        tower = self.tower(name)
        if images.ndim == 3 and images.shape[1:] == (1, tower.width):
            return images[:, 0].float()
        seen = self._looked_at(name, self._checked(name, images))
        # Without its cache of cast weights: that would outlive a step that is transformed or captured.
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            return tower(seen).float()

    def _looked_at(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Frames (B, T, C, H, W) as the backbone wants them: the middle cut out, resized."""
        look, whole = self.looks[name], tuple(self.shapes[name][2:])
        if look.crop is not None and tuple(images.shape[3:]) == whole:
            images = pixels.center_crop(images, look.crop)
        if look.size is not None:
            images = pixels.resize(images, look.size, antialias=True)
        return images

    def _checked(self, name: str, images: torch.Tensor) -> torch.Tensor:
        shape, look = self.shapes[name], self.looks[name]
        given = tuple(images.shape[1:])
        cropped = None if look.crop is None else (*shape[:2], *look.crop)
        if given != shape and given != cropped:
            raise GtpVisionError(f"the observation '{name}' has shape {given}, the encoder was made for {shape}")
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
            raise GtpVisionError(
                f"the camera '{name}' is given as {images.dtype} within [{images.min():.4g}, {images.max():.4g}]; give "
                f"uint8 frames, or float ones within [0, 1]"
            )
        return images * 255

    def _scaled(self, index: int, state: torch.Tensor) -> torch.Tensor:
        name = self.states[index]
        frames, width = self.shapes[name]
        if state[0].numel() != frames * width:
            raise GtpVisionError(
                f"the observation '{name}' has shape {tuple(state.shape[1:])}, the encoder was made for "
                f"{(frames, width)}"
            )
        mean, scale = (self.get_buffer(f"state_{what}_{index}") for what in ("mean", "scale"))
        return rearrange((state.reshape(len(state), frames, width) - mean) / scale, "b t d -> b (t d)")


def _look(name: str, config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> CameraConfig:
    """How a camera is looked at, checked.

    Raises:
        GtpVisionError: settings for a camera that there is not, or a size that is no height and width.
    """
    cameras = [camera for camera, shape in shapes.items() if len(shape) == 4]
    for camera in config.cameras:
        if camera not in cameras:
            raise GtpVisionError(f"encoder.cameras.{camera}: there is no such camera: {propose(camera, cameras)}")
    look = config.cameras.get(name.removeprefix(GOAL), CameraConfig())
    height, width = shapes[name][2:]
    for key, size in (("crop", look.crop), ("size", look.size)):
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise GtpVisionError(f"encoder.cameras.{name}.{key}={size} must be a height and a width of at least 1")
    if look.crop is not None and (look.crop[0] > height or look.crop[1] > width):
        raise GtpVisionError(
            f"encoder.cameras.{name}.crop={look.crop} is larger than the camera's {height}x{width} pixels"
        )
    return look


def _seen_size(shape: tuple[int, ...], look: CameraConfig) -> tuple[int, int]:
    height, width = look.size or look.crop or shape[2:]
    return height, width
