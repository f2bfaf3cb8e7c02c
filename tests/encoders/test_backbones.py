import copy
from pathlib import Path

import pytest
import torch
from robomimic.models.obs_core import VisualCore
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import EncoderConfig, backbones, timm_backbones
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.normalization import IMAGENET

SHAPE, ONE = (2, 3, 64, 64), (1, 3, 64, 64)
VIT, CONV, SWIN = "timm/test_vit", "timm/test_efficientnet", "timm/swin_tiny_patch4_window7_224"
MAMBA = "timm/test_mambaout"
SPELLED = [name for name in backbones.known() if name != "state"]
TIMM = [VIT, CONV, "timm/test_convnext", MAMBA]
LARGE = ("impala", "impala_large", "resnet34", "resnet50")  # only other sizes
EACH = pytest.mark.parametrize("name", [*(name for name in SPELLED if name not in LARGE), *TIMM])
EACH_TIMM = pytest.mark.parametrize("name", [VIT, CONV, "timm/test_convnext", SWIN])


def made(name: str, shape: tuple[int, ...] = SHAPE, **settings: object) -> Backbone:
    torch.manual_seed(0)
    return backbones.create(shape, EncoderConfig(name=name, **settings))  # type: ignore[arg-type]


def frames(shape: tuple[int, ...] = SHAPE, rows: int = 2) -> torch.Tensor:
    return torch.randint(256, (rows, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def norms(backbone: nn.Module) -> list[_BatchNorm]:
    return [module for module in backbone.modules() if isinstance(module, _BatchNorm)]


@EACH
def test_stacks_become_vectors_of_the_stated_width(name: str) -> None:
    backbone, images = made(name), frames()
    assert norms(backbone) == [], "untrained backbones have no batch statistics"
    found = backbone(images).detach()
    assert found.shape == (2, backbone.width)
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(backbone(images[1:].float()).detach(), found[1:], rtol=1e-3, atol=1e-4)


@EACH
def test_plans_take_no_memory(name: str) -> None:
    """Runs and artifacts make the networks so before they make them."""
    with torch.device("meta"):
        assert {x.device.type for x in made(name).state_dict().values()} == {"meta"}


@EACH
def test_blocks_contain_every_parameter_once_in_order_at_any_size(name: str) -> None:
    shape = (2, 3, 48, 80)
    backbone = made(name, shape)
    blocks, first = backbone.blocks(), next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert len(blocks) > 1
    assert sorted(id(p) for block in blocks for p in block.parameters()) == sorted(map(id, backbone.parameters()))
    assert any(p is list(backbone.parameters())[-1] for p in blocks[-1].parameters())
    assert any(p is first.weight for p in blocks[0].parameters())
    assert backbone(frames(shape)).shape == (2, backbone.width)


@EACH
def test_copies_and_files_are_bit_equal(name: str, tmp_path: Path) -> None:
    backbone, images = made(name), frames()
    assert backbone.uses_mean_frame
    backbone.mean.fill_(51)
    torch.testing.assert_close(backbone.normalized(images), (images.float() - 51) / 255)
    save_file({key: value.contiguous() for key, value in backbone.state_dict().items()}, tmp_path / "all.safetensors")
    other = made(name)
    other.load_state_dict(load_file(tmp_path / "all.safetensors"))
    assert torch.equal(other(images), backbone(images))
    assert torch.equal(copy.deepcopy(backbone)(images), backbone(images))


@EACH
def test_training_uses_every_parameter_and_not_the_global_generator(name: str) -> None:
    backbone, same = made(name), made(name)
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), same.parameters(), strict=True))
    state = torch.get_rng_state()
    backbone(frames()).square().sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@EACH
def test_separate_frames_are_concatenated_in_order(name: str) -> None:
    stacked, single = made(name, stack="frames"), made(name, (1, *SHAPE[1:]))
    single.load_state_dict(stacked.state_dict())
    images = frames()
    apart = [single(images[:, frame : frame + 1]) for frame in range(2)]
    assert stacked.width == 2 * single.width
    torch.testing.assert_close(stacked(images), torch.cat(apart, 1), rtol=1e-3, atol=1e-4)


def test_drq_is_four_convolutions() -> None:
    backbone = made("drq", (3, 3, 84, 84))
    layers = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in layers]
    assert shapes == [(9, 32, 3, 2), *[(32, 32, 3, 1)] * 3]
    assert backbone.width == 32 * 35 * 35  # DrQ-v2's repr_dim
    assert made("drq", (1, 3, 15, 15)).width == 32


def test_a_robomimic_core_is_robomimics() -> None:
    backbone = made("robomimic/ShallowConv", keypoints=8)
    core = VisualCore((6, 64, 64), backbone_class="ShallowConv", pool_kwargs={"num_kp": 8})
    core.nets.load_state_dict(backbone.nets.state_dict())  # type: ignore[union-attr,operator]
    images = frames()
    assert torch.equal(backbone(images), core(backbone.normalized(images).flatten(1, 2)))


@EACH_TIMM
def test_a_timm_backbone_is_timms(name: str) -> None:
    import timm

    size = {} if name in (CONV, "timm/test_convnext") else {"img_size": (64, 64)}
    theirs = timm.create_model(name.removeprefix("timm/"), num_classes=0, in_chans=6, **size).eval()
    backbone = made(name, batch_norm="train" if norms(theirs) else "auto").eval()
    theirs.load_state_dict(backbone.weights_module().state_dict())
    images = frames()
    torch.testing.assert_close(
        backbone(images), theirs(backbone.normalized(images).flatten(1, 2)), rtol=1e-4, atol=1e-5
    )


POOLED = [(name, "average") for name in TIMM] + [(VIT, how) for how in ("attention", "flatten", "class_token")]


@pytest.mark.parametrize(("name", "how"), POOLED)
def test_timm_backbones_are_pooled(name: str, how: str) -> None:
    backbone, images = made(name, (2, 3, 64, 96), pooling=how, keypoints=5), frames((2, 3, 64, 96))
    unpooled = backbone.weights_module()(backbone.normalized(images).flatten(1, 2)).detach()
    if how == "class_token":
        expected = unpooled[:, 0]
    elif unpooled.ndim == 3:  # tokens, of which the first may be no places
        unpooled = unpooled[:, -4 * 6 :].transpose(1, 2).unflatten(2, (4, 6))
    elif name == MAMBA:  # channels last
        unpooled = unpooled.permute(0, 3, 1, 2)
    if how == "flatten":
        expected = unpooled.flatten(1)
    elif how in ("average", "attention"):  # which starts as the average
        expected = unpooled.mean((2, 3))
    torch.testing.assert_close(backbone(images).detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_names_of_timm_may_carry_a_tag() -> None:
    assert made("timm/test_vit.r160_in1k").width == 64
    assert timm_backbones.normalization_of("timm/test_vit.r160_in1k") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert timm_backbones.normalization_of("timm/resnet18") == IMAGENET


BATCH_NORMED = pytest.mark.parametrize("name", ["resnet18", "robomimic/ResNet18Conv", CONV])


def statistics(backbone: Backbone) -> list[torch.Tensor]:
    return [norm.running_mean.clone() for norm in norms(backbone) if norm.running_mean is not None]


@BATCH_NORMED
def test_frozen_statistics_stay_constant_while_scale_and_shift_learn(name: str) -> None:
    backbone = made(name, batch_norm="frozen")
    nn.ModuleList([backbone]).train()  # also if its parent is set to training
    before, images = statistics(backbone), frames()
    found = backbone(images)
    found.square().sum().backward()
    assert before
    assert all(map(torch.equal, statistics(backbone), before))
    assert torch.equal(backbone.eval()(images), found)
    assert all(norm.weight.grad is not None for norm in norms(backbone))


@BATCH_NORMED
def test_group_normalization_keeps_the_scale_and_the_activations_of_batch_norm(name: str) -> None:
    frozen, grouped = made(name, batch_norm="frozen"), made(name, batch_norm="group")
    groups = [module for module in grouped.modules() if isinstance(module, nn.GroupNorm)]
    pairs = list(zip(groups, norms(frozen), strict=True))
    assert all(torch.equal(group.weight, norm.weight) for group, norm in pairs)

    def activations(backbone: Backbone) -> list[str]:
        kinds = nn.SiLU | nn.ReLU | nn.ReLU6 | nn.GELU | nn.Hardswish
        return sorted(type(module).__name__ for module in backbone.modules() if isinstance(module, kinds))

    assert activations(grouped) == activations(frozen), "timm's batch norms carry activations"


@pytest.mark.parametrize(
    ("name", "shape", "settings", "message"),
    [
        (VIT, (2, 3, 84, 84), {}, r"16x16 .*84x84; set encoder.cameras.<name>.size=\[80,80\]"),
        ("drq", (1, 3, 14, 64), {}, "15x15 .*14x64"),
        ("impala_tiny", (1, 3, 15, 16), {}, "2x2 .*15x16"),
        ("resnet18", (1, 3, 32, 32), {}, "encoder.pooling=average"),
        ("timm/inception_v3", SHAPE, {}, "timm/inception_v3 .*6 channels of 64x64"),
        ("timm/efficientvit_b0", SHAPE, {"pooling": "average"}, "pooling=average .*timm/efficientvit_b0.*to auto"),
        ("timm/pit_ti_224", SHAPE, {"pooling": "average"}, "pooling=average: the 0 tokens"),
        (CONV, SHAPE, {"pooling": "class_token"}, f"class_token: encoder.name={CONV}"),
        ("timm/test_resnet", SHAPE, {"level": 9}, r"encoder.level=9: encoder.name=timm/test_resnet has \d levels"),
        ("drq", SHAPE, {"batch_norm": "frozen"}, "encoder.batch_norm=frozen: encoder.name=drq"),
        (VIT, SHAPE, {"batch_norm": "frozen"}, f"encoder.batch_norm=frozen: encoder.name={VIT}"),
    ],
)
def test_what_a_backbone_cannot_take_is_refused(
    name: str, shape: tuple[int, ...], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(GtpVisionError, match=message):
        made(name, shape, **settings)


SETTINGS = [(name, how) for name in [*SPELLED, VIT] if name not in LARGE for how in backbones.poolings(name)]


@pytest.mark.parametrize(("name", "how"), SETTINGS)
def test_every_pooling_that_is_not_refused_works(name: str, how: str) -> None:
    backbone = made(name, pooling=how)
    assert backbone(frames()).shape == (2, backbone.width)


@pytest.mark.parametrize(
    ("name", "level", "shape"), [("timm/test_resnet", 1, (32, 16, 16)), ("timm/test_vit", 1, (64, 4, 4))]
)
def test_a_level_equals_that_of_the_whole_model(name: str, level: int, shape: tuple[int, ...]) -> None:
    cut, whole = made(name, ONE, level=level, pooling="flatten").eval(), made(name, ONE).eval()
    assert isinstance(cut, timm_backbones.Timm)
    assert isinstance(whole, timm_backbones.Timm)
    x = torch.randn(2, 3, 64, 64)
    shown = whole.model.forward_intermediates(x, indices=[level], intermediates_only=True)[0]
    assert shown.shape[1:] == shape
    assert torch.allclose(cut.encode(x), shown.flatten(1), atol=1e-5)


def test_trained_weights_fill_a_cut_model(tmp_path: Path) -> None:
    whole = made("timm/test_resnet", ONE, batch_norm="frozen").weights_module().state_dict()
    save_file({key: value.contiguous() for key, value in whole.items()}, tmp_path / "w.safetensors")
    cut = made("timm/test_resnet", ONE, level=1, weights=str(tmp_path / "w.safetensors")).weights_module().state_dict()
    assert set(cut) < set(whole)
    assert all(torch.equal(value, whole[name]) for name, value in cut.items())
