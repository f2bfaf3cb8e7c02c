import re
from typing import Any

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import AugmentationConfig, EncoderConfig, LoraSettings, check_encoder

WARMUP = AugmentationConfig(hue=0.1, warmup_steps=9)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"pooling": "average"}, "encoder.pooling=average"),
        ({"name": "resnet18", "pooling": "class_token"}, "encoder.pooling=class_token"),
        ({"name": "resnet18", "weights": "hub"}, "set encoder.name=timm/resnet18"),
        ({"name": "impala", "weights": "hub"}, "set encoder.name=timm/<model>"),
        ({"name": "resnet18", "weights": "a.pth", "batch_norm": "group"}, "encoder.batch_norm=group"),
        ({"name": "drq", "level": 1}, "encoder.level=1"),
        ({"name": "timm/test_vit", "level": 1, "pooling": "class_token"}, "encoder.level ends it earlier"),
        ({"weights": ""}, "encoder.weights"),
        ({"gradient": "actor"}, "encoder.gradient=actor"),
        ({"views": 2}, "encoder.views=2"),
        ({"fusion_heads": 2}, "encoder.fusion_heads"),
        ({"state_hidden": [8, 0]}, "encoder.state_hidden"),
        ({"name": "state", "weights": "a.pth"}, "encoder.weights"),
        ({"name": "state", "share_cameras": True}, "encoder.share_cameras"),
        ({"name": "state", "augmentation": AugmentationConfig(shift=0, erase=0.1)}, "encoder.augmentation.erase"),
        ({"blocks": 2}, "encoder.blocks"),
        ({"tuning": "lora", "decay": 0.5}, "encoder.decay"),
        ({"lora": LoraSettings(rank=2)}, "encoder.lora"),
        ({"tuning": "frozen", "learning_rate_scale": 0.1}, "encoder.learning_rate_scale"),
        ({"tuning": "lora", "unfreeze_step": 9}, "encoder.unfreeze_step"),
        ({"tuning": "lora", "lora": LoraSettings(targets=[])}, "encoder.lora.targets"),
        ({"name": "resnet18", "tuning": "frozen", "batch_norm": "train"}, "encoder.batch_norm=train"),
        ({"name": "resnet18", "tuning": "lora", "pooling": "attention"}, "encoder.pooling=attention"),
        ({"augmentation": AugmentationConfig(warmup_steps=100)}, "encoder.augmentation.warmup_steps=100"),
        ({"tuning": "frozen", "augmentation": AugmentationConfig(hue=0.1)}, "encoder.augmentation.hue"),
        ({"tuning": "frozen", "views": 4, "augmentation": WARMUP}, "encoder.augmentation.warmup_steps=9"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(GtpVisionError, match=re.escape(key)):
        check_encoder(EncoderConfig(**settings))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("impla_small", "'impala_small'"),
        ("robomimic/ResNet18", "'robomimic/ResNet18Conv'"),
        ("vit_small_patch16_224", "'timm/vit_small_patch16_224'"),
        ("timm/resnet18.nobodys", "'timm/resnet18'"),
        ("timm/", "known:"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(GtpVisionError, match=f"{re.escape(name)}.*{near}"):
        check_encoder(EncoderConfig(name=name))


@pytest.mark.parametrize(
    ("camera", "key"),
    [
        (3, "front=3"),
        ({"crop": [9]}, "front.crop=[9]"),
        ({"size": [0, 8]}, "front.size=[0, 8]"),
        ({"sise": 8}, "front.sise"),
    ],
)
def test_invalid_settings_of_a_camera_are_refused(camera: Any, key: str) -> None:
    with pytest.raises(GtpVisionError, match=re.escape(f"encoder.cameras.{key}")):
        check_encoder(EncoderConfig(cameras={"front": camera}))
