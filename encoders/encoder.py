"""The encoder: named observations in, one feature vector out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from einops import pack, rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import GOAL, INSTRUCTION
from gtp_vision.encoders import backbones, tuning, vision
from gtp_vision.encoders.backbone import SHARED, Backbone, part_name, tower_name
from gtp_vision.encoders.fusion import Fusion
from gtp_vision.encoders.settings import CameraConfig, EncoderConfig


class Encoder(nn.Module):
    """Named observations to one feature vector.

    Every camera has a backbone, its own or a shared one; `Fusion` joins their vectors and the standardized states.
    A camera may be given as the vectors of its backbone, computed in advance, instead of its frames.

    Args:
        shapes: observation name to the shape of one stacked observation: (T, C, H, W) or (T, D).
        config: see `EncoderConfig`.
        pretrained: load `config.weights`; False where a checkpoint will be loaded.

    Attributes:
        shapes: as given.
        width: of the feature vector.
        bf16: whether backbones compute in bfloat16, see `use_bf16`.
        preprocessing: camera name to how its frames are cropped and resized.
        towers: the backbones, each by its camera's name (see `tower_name`); one that all cameras share is `shared`.

    Raises:
        GtpVisionError: an unknown encoder, or one that does not fit the observations.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig, *, pretrained: bool = True
    ) -> None:
        super().__init__()
        backbones.check_name(config.name)
        self.shapes, self.config, self.bf16 = dict(shapes), config, False
        self.cameras = [name for name, shape in shapes.items() if len(shape) == 4]
        self.instruction = config.conditioning == "film"  # else it is one of the states
        if self.instruction and INSTRUCTION not in shapes:
            raise GtpVisionError(
                "encoder.conditioning=film needs an instruction, and there is none; set task.instructions=id or text, "
                "or encoder.conditioning=concatenate"
            )
        self.states = [
            name for name, shape in shapes.items() if len(shape) == 2 and not (self.instruction and name == INSTRUCTION)
        ]
        if config.name == "state" and self.cameras:
            raise GtpVisionError(f"encoder=state cannot see the cameras {self.cameras}; choose encoder=impala_small")
        self.preprocessing = {name: _preprocessing(name, config, shapes) for name in self.cameras}
        if any(settings.crop or settings.size for settings in self.preprocessing.values()):
            vision.load()
        self._tower_of: dict[str, str] = {}  # camera to key
        self.towers = nn.ModuleDict()
        for name in self.cameras:
            self._tower_of[name] = self._find_or_create_tower(name, pretrained)
        for name in self.states:
            self.register_buffer(part_name("mean", name), torch.zeros(shapes[name][1]))
            self.register_buffer(part_name("scale", name), torch.ones(shapes[name][1]))
        for name in (name for name in self.cameras if self.preprocessing[name].depth):
            self.register_buffer(part_name("farthest", name), torch.tensor(float(2**16 - 1)))
        states = sum(shapes[name][0] * shapes[name][1] for name in self.states)
        instruction = shapes[INSTRUCTION][1] if self.instruction else 0
        self.fusion = Fusion([self.tower(name).width for name in self.cameras], states, config, instruction)
        self.fusion.apply(backbones.initialise)
        if self.fusion.film is not None:
            nn.init.zeros_(self.fusion.film.weight)
        self.width = self.fusion.width

    def tower(self, camera: str) -> Backbone:
        """The backbone of a camera."""
        tower = self.towers[self._tower_of[camera]]
        assert isinstance(tower, Backbone)
        return tower

    def use_bf16(self, enabled: bool = True) -> None:
        """Let the backbones compute in bfloat16; their vectors, and all layers that follow, stay float32."""
        self.bf16 = enabled

    def _find_or_create_tower(self, name: str, pretrained: bool) -> str:
        frames, channels, *size = self.shapes[name]
        settings = self.preprocessing[name]
        if settings.depth and channels != 2:
            raise GtpVisionError(
                f"encoder.cameras.{name}.depth=true needs frames of two bytes a pixel, and the camera's have "
                f"{channels}; set it to false"
            )
        shape = (frames, 1 if settings.depth else channels, *(settings.size or settings.crop or size))
        config, shared = self.config, name.removeprefix(GOAL) if name.startswith(GOAL) else None
        if shared is None and config.share_cameras and self._tower_of:
            shared = next(iter(self._tower_of))
        if shared is None:
            try:
                tower = backbones.create(shape, config, pretrained=pretrained, camera=name, index=len(self.towers))
            except GtpVisionError as error:
                raise GtpVisionError(f"camera '{name}': {error}") from error
            key = SHARED if config.share_cameras else tower_name(name)
            self.towers[key] = tuning.prepare(tower, config)
            return key
        if shared not in self._tower_of or self.tower(shared).shape != shape:
            other = self.tower(shared).shape if shared in self._tower_of else "none"
            raise GtpVisionError(
                f"the cameras '{name}' and '{shared}' share a backbone, but their frames differ: {shape} and {other}; "
                f"set the same encoder.cameras.<name>.size for both, or encoder.share_cameras=false"
            )
        return self._tower_of[shared]

    @torch.no_grad()
    def centre(self, means: Mapping[str, torch.Tensor]) -> None:
        """Subtract each camera's mean frame from its frames from now on; saved with the parameters.

        Otherwise untrained features differ by half a percent of their variance between observations, and the first
        gradients move them all in one direction. Backbones with trained weights keep the constants that those were
        made with. Cameras that share a backbone share the mean of their means.

        Args:
            means: camera name to float32 (C, H, W) in [0, 255].
        """
        for key, tower in self.towers.items():
            names = [name for name, own in self._tower_of.items() if own == key and name in means]
            assert isinstance(tower, Backbone)
            if tower.uses_mean_frame and names:
                frames = [self._preprocessed(name, rearrange(means[name], "c h w -> 1 1 c h w")) for name in names]
                tower.mean.copy_(torch.stack([frame[0, 0] for frame in frames]).mean(0))

    @torch.no_grad()
    def standardize(self, scales: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Subtract each state's mean and divide by its scale, float32 (D,), from now on; saved with the parameters."""
        for name in (name for name in self.states if name.removeprefix(GOAL) in scales):  # instructions have none
            for kind, values in zip(("mean", "scale"), scales[name.removeprefix(GOAL)], strict=True):
                self.get_buffer(part_name(kind, name)).copy_(values)

    @torch.no_grad()
    def scale_distances(self, farthest: Mapping[str, float]) -> None:
        """Scale each depth camera by its farthest distance in millimeters from now on; saved with the parameters."""
        for name in (name for name in self.cameras if self.preprocessing[name].depth):
            self.get_buffer(part_name("farthest", name)).fill_(farthest[name.removeprefix(GOAL)])

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Name to uint8 (B, T, C, H, W), cropped or not, or float (B, T, D), to float (B, width).

        Float frames must be in [0, 1]; a camera may also be given as its `camera_features`, (B, 1, width).

        Raises:
            GtpVisionError: an observation is missing, or has another shape than the encoder was built for.
        """
        for name in self.shapes:
            if name not in observation:
                raise GtpVisionError(f"the observation '{name}' is missing; given: {sorted(observation)}")
            if not isinstance(observation[name], torch.Tensor):
                raise GtpVisionError(f"the observation '{name}' is a {type(observation[name]).__name__}; give a tensor")
        cameras = [self.camera_features(name, observation[name]) for name in self.cameras]
        states = [self._standardized(name, observation[name]) for name in self.states]
        instruction = None
        if self.instruction:  # the newest of a stack, whose frames have the same
            frames = observation[INSTRUCTION]
            instruction = frames.reshape(len(frames), -1)[:, -self.shapes[INSTRUCTION][1] :].float()
        return self.fusion(cameras, pack(states, "b *")[0] if states else None, instruction)

    def camera_features(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Vectors (B, W) of a camera's backbone before fusion, of frames as in `forward` or of vectors (B, 1, W)."""
        tower = self.tower(name)
        if images.ndim == 3 and images.shape[1:] == (1, tower.width):
            return images[:, 0].float()
        images = self._preprocessed(name, self._checked(name, images))
        # Without the cache of cast weights, which would outlive a step that is transformed or captured.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            few = self.config.recompute
            if few is None or not torch.is_grad_enabled():
                return tower(images).float()
            parts = [checkpoint(tower, part, use_reentrant=False) for part in images.split(few)]
            return torch.cat(parts).float()

    def _preprocessed(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Frames (B, T, C, H, W), center-cropped unless they are already, and resized; distances as (B, T, 1, H, W)."""
        settings = self.preprocessing[name]
        if settings.crop is not None or settings.size is not None:
            from torchvision.transforms.v2 import functional as pixels
        if settings.crop is not None and tuple(images.shape[3:]) == tuple(self.shapes[name][2:]):
            images = pixels.center_crop(images, settings.crop)
        if settings.depth:
            farthest = self.get_buffer(part_name("farthest", name))
            distances = 256.0 * images[:, :, :1] + images[:, :, 1:]  # millimeters, see `core.depth`
            images = (distances * (255 / farthest)).clamp(max=255)
        if settings.size is not None:
            images = pixels.resize(images, settings.size, antialias=True)
        return images

    def _checked(self, name: str, images: torch.Tensor) -> torch.Tensor:
        shape, crop, given = self.shapes[name], self.preprocessing[name].crop, tuple(images.shape[1:])
        if given != shape and (crop is None or given != (*shape[:2], *crop)):
            raise GtpVisionError(f"the observation '{name}' has shape {given}, the encoder was built for {shape}")
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
            raise GtpVisionError(
                f"the frames of camera '{name}' are {images.dtype} within [{images.min():.4g}, {images.max():.4g}]; "
                f"give uint8, or float within [0, 1]"
            )
        return images * 255

    def _standardized(self, name: str, state: torch.Tensor) -> torch.Tensor:
        frames, width = self.shapes[name]
        if state[0].numel() != frames * width:
            raise GtpVisionError(
                f"the observation '{name}' has shape {tuple(state.shape[1:])}, the encoder was built for "
                f"{(frames, width)}"
            )
        mean, scale = (self.get_buffer(part_name(kind, name)) for kind in ("mean", "scale"))
        return rearrange((state.reshape(len(state), frames, width) - mean) / scale, "b t d -> b (t d)")


class GoalEncoder(Encoder):
    """Observation and goal by the same network, apart: the features are those of the one, then those of the other.

    Arguments as `Encoder`; `shapes` holds each observation and its `goal/<name>`. What has no goal, as an instruction,
    belongs to both.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig, *, pretrained: bool = True
    ) -> None:
        own = {name: shape for name, shape in shapes.items() if not name.startswith(GOAL)}
        super().__init__(own, config, pretrained=pretrained)
        self.width *= 2
        self._goals = {name: GOAL + name if GOAL + name in shapes else name for name in own}

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Observations and goals, as in `Encoder.forward`, to float (B, width): of the one, then of the other."""
        if missing := [shown for shown in self._goals.values() if shown not in observation]:
            raise GtpVisionError(f"the observation '{missing[0]}' is missing; given: {sorted(observation)}")
        goal = {name: observation[shown] for name, shown in self._goals.items()}
        return torch.cat([super().forward(observation), super().forward(goal)], 1)


def present_names(module: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Names of stored tensors, to those of the same tensors in `module`, whose encoders once numbered their parts."""
    parts: dict[str, str] = {}
    for path, encoder in module.named_modules():
        if isinstance(encoder, Encoder):
            prefix = f"{path}." if path else ""
            parts |= {f"{prefix}towers.{i}.": f"{prefix}towers.{key}." for i, key in enumerate(encoder.towers)}
            for i, name in enumerate(encoder.states):
                for kind in ("mean", "scale"):
                    parts[f"{prefix}state_{kind}_{i}"] = prefix + part_name(kind, name)
    towers = {old: new for old, new in parts.items() if old.endswith(".")}
    found = {}
    for name in stored:
        old = next((old for old in towers if name.startswith(old)), name)
        found[name] = parts.get(old, old) + name.removeprefix(old)
    return found


def _preprocessing(name: str, config: EncoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> CameraConfig:
    """The checked crop and size of a camera."""
    cameras = [camera for camera, shape in shapes.items() if len(shape) == 4]
    for camera in config.cameras:
        if camera not in cameras:
            raise GtpVisionError(f"encoder.cameras.{camera}: unknown camera: {propose(camera, cameras)}")
    settings = config.cameras.get(name.removeprefix(GOAL), CameraConfig())
    height, width = shapes[name][2:]
    for key, size in (("crop", settings.crop), ("size", settings.size)):
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise GtpVisionError(f"encoder.cameras.{name}.{key}={size} must be a height and a width of at least 1")
    if settings.crop is not None and (settings.crop[0] > height or settings.crop[1] > width):
        raise GtpVisionError(
            f"encoder.cameras.{name}.crop={settings.crop} is larger than the camera's {height}x{width} pixels"
        )
    return settings
