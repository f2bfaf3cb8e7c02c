"""Depth cameras: in files of several formats, in a batch of a training step, and as pictures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from refusals import assert_same, entry, open_here, refused, table
from samples import DATA, FRONT, INFO, TOP, VIDEO, WRIST, Copied, encoded, minari_folder, mp4, robomimic_file
from small_runs import PIXELS, STATES, small
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core import depth
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets import pictures
from gtp_vision.datasets.differences import differences
from gtp_vision.datasets.formats import lerobot_writer, native
from gtp_vision.datasets.statistics import farthest
from gtp_vision.encoders import Augmentation, AugmentationConfig, CameraConfig, Encoder, EncoderConfig
from gtp_vision.serving.artifact import load_policy

pytestmark = pytest.mark.usefixtures("cache")


@given(arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=4)))
def test_every_distance_of_16_bits_is_kept(distances: np.ndarray) -> None:
    frames = depth.to_bytes(distances)
    assert (frames.dtype, frames.shape) == (np.uint8, (*distances.shape, 2))
    np.testing.assert_array_equal(depth.millimeters(frames), distances)


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_floats_are_meters(meters: np.ndarray) -> None:
    finite = np.where(np.isfinite(meters), meters, 0).astype(np.float64)
    wanted = np.clip(np.rint(1000 * finite), 0, 65535)
    np.testing.assert_array_equal(depth.millimeters(depth.to_bytes(meters)), wanted)


@pytest.mark.parametrize("is_logarithmic", [True, False])
def test_codes_are_those_of_lerobots_dequantize_depth(is_logarithmic: bool) -> None:
    """Its formula, written out: log(near + shift) + code / 4095 (log(far + shift) - log(near + shift))."""
    near, far, shift, code = 0.01, 10.0, 3.5, np.arange(4096)
    low, high = (math.log(end + shift) if is_logarithmic else end for end in (near, far))
    meters = low + code * (high - low) / 4095
    meters = np.clip(np.exp(meters) - shift if is_logarithmic else meters, near, far)
    found = depth.unquantized(12, near, far, shift, is_logarithmic=is_logarithmic)
    np.testing.assert_array_equal(found, np.rint(1000 * meters))


@pytest.mark.parametrize("shape", [(40, 48), (40, 48, 1), (1, 40, 48)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["wrist_depth", "depth/wrist"])
def test_robomimics_depth_is_a_camera(tmp_path: Path, shape: tuple[int, ...], dtype: type, name: str) -> None:
    path, _ = robomimic_file(tmp_path / "lift.hdf5", (4, 3), later=False)
    millimeters = np.random.default_rng(0).integers(0, 5000, (7, *shape))
    values = (millimeters if np.issubdtype(dtype, np.integer) else millimeters / 1000).astype(dtype)
    with h5py.File(path, "r+") as file:
        for demo, rows in (("demo_0", slice(0, 4)), ("demo_1", slice(4, 7))):
            file[f"data/{demo}/obs/{name}"] = values[rows]
            file[f"data/{demo}/obs/depth_segmentation"] = values[rows]
    store = open_here(path)
    assert store.attributes["depth"] == [name.replace("/", "_")]
    assert store.attributes["left_out"] == ["depth_segmentation"]
    np.testing.assert_array_equal(
        depth.millimeters(np.asarray(store.observations[name.replace("/", "_")])), millimeters.reshape(7, 40, 48)
    )
    copy = open_here(native.write(tmp_path / "copy.h5", store))
    assert_same(copy, store)


def test_minaris_depth_is_a_camera(tmp_path: Path) -> None:
    space = spaces.Dict({"depth": spaces.Box(0, 4000, (33, 34, 1), np.uint16), "arm": spaces.Box(-1, 1, (3,))})
    path, contents = minari_folder(tmp_path, space, spaces.Box(-1, 1, (2,), np.float32), (3, 2), "walker/depth-v0")
    wanted = np.concatenate([episode["observations"]["depth"] for episode in contents])
    store = open_here(path)
    np.testing.assert_array_equal(depth.millimeters(np.asarray(store.observations["depth"])), wanted[..., 0])


HEVC = ["-c:v", "libx265", "-x265-params", "lossless=1:log-level=none", "-pix_fmt", "gray12le", "-tag:v", "hvc1"]
FFV1 = ["-c:v", "ffv1", "-pix_fmt", "gray16le", "-strict", "-2"]
CODES = (100 + 300 * np.arange(12))[:, None, None] + np.arange(24 * 24).reshape(24, 24)


def depth_video(folder: Path, codec: Sequence[str] = HEVC, key: str = "info", **info: Any) -> None:
    """Make the camera `top` of the published sample one of depth, whose numbers are `CODES`."""
    with_unused = np.concatenate([CODES[:1], CODES[:1], CODES]).astype("<u2")  # two frames of no episode
    mp4(folder / VIDEO.format(TOP, 0), with_unused, more=codec, pixels="gray16le" if codec is FFV1 else "gray12le")
    feature = {"dtype": "video", "shape": [24, 24, 1], "names": ["height", "width", "channels"]}
    shape = {"shape": info.pop("shape", [24, 24, 1])}
    names = {"names": ["channels", "height", "width"]} if shape["shape"][0] == 1 else {}
    entry(INFO, "features", TOP, value=feature | shape | names | {key: {"is_depth_map": True} | info})(folder)


def linear(near: float, far: float) -> np.ndarray:
    return depth.unquantized(12, near, far, 0, is_logarithmic=False)


def logarithmic(near: float, far: float, shift: float) -> np.ndarray:
    return depth.unquantized(12, near, far, shift, is_logarithmic=True)


@pytest.mark.parametrize(
    ("options", "millimeters"),
    [
        ({}, logarithmic(0.01, 10, 3.5)),
        ({"key": "video_info"}, logarithmic(0.01, 10, 3.5)),
        ({"video.pix_fmt": "gray12le", "depth_unit": "m"}, logarithmic(0.01, 10, 3.5)),
        ({"video.depth_min": 0.1, "video.depth_max": 4.0, "video.shift": 1.0}, logarithmic(0.1, 4, 1)),
        ({"depth_max": 2, "shift": 0}, logarithmic(0.01, 2, 0)),
        ({"video.depth_min": 0.5, "video.use_log": False}, linear(0.5, 10)),
        ({"depth_min": 0, "depth_max": 4.095, "use_log": False}, np.arange(4096)),
        ({"depth_max": 100.0, "use_log": False}, linear(0.01, 100)),
        ({"shape": [1, 24, 24]}, logarithmic(0.01, 10, 3.5)),
        ({"codec": FFV1, "video.pix_fmt": "gray16le", "video.channels": 1}, np.arange(4096)),
        ({"codec": FFV1, "pix_fmt": "gray16be", "depth_max": 3.0, "shape": [1, 24, 24]}, np.arange(4096)),
    ],
    ids=str,
)
def test_lerobots_depth_video_is_read_in_millimeters(
    copied: Copied, options: dict[str, Any], millimeters: np.ndarray
) -> None:
    depth_video(folder := copied("published"), **options)
    store = open_here(folder)
    np.testing.assert_array_equal(depth.millimeters(np.asarray(store.observations["top"])), millimeters[CODES])
    assert store.attributes["depth"] == ["top"]
    assert store.observations["front"].shape[1:] == (32, 48, 3)


def test_pictures_of_distances_are_a_camera_of_colors(copied: Copied) -> None:
    """A video of three channels that is marked as a depth map, as LeRobot v2 records whatever it is given."""
    before = open_here(folder := copied("published"))
    entry(INFO, "features", TOP, "info", value={"video.is_depth_map": True, "video.pix_fmt": "yuv420p"})(folder)
    assert_same(open_here(folder), before)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"depth_min": "x"}, "depth_min"),
        ({"depth_max": 0}, "depth_max"),
        ({"depth_min": 0, "shift": 0}, "logarithm"),
        ({"video.pix_fmt": "yuv420p"}, "are 'yuv420p', wanted 12 bits"),
    ],
)
def test_depth_without_a_range(copied: Copied, info: dict[str, Any], words: str) -> None:
    folder = copied("published")
    depth_video(folder, **info)
    refused(folder, TOP, words)


@pytest.mark.parametrize(
    ("version", "farthest", "step", "shape"),
    [
        ("v3.0", 0, 1, (16, 16)),
        ("v3.0", 4095, 1, (17, 40)),
        ("v2.1", 9000, 3, (16, 24)),
        ("v3.0", 65535, 17, (16, 16)),
    ],
)
def test_depth_is_written_as_lerobot_writes_it(
    tmp_path: Path, version: str, farthest: int, step: int, shape: tuple[int, int]
) -> None:
    """Without loss up to 4.095 m; codes of `step` millimeters beyond."""
    store = make_store((5, 7), attributes={"depth": ["depth"]}, cameras={"depth": (*shape, 2)})
    distances = np.random.default_rng(0).integers(0, farthest + 1, (12, *shape)).astype(np.uint16)
    distances[3, 0, 0] = farthest
    store.observations["depth"][:] = depth.to_bytes(distances)
    root = lerobot_writer.write(tmp_path / "set", store, version=version)
    found = depth.millimeters(np.asarray(open_here(root).observations["depth"])).astype(int)
    assert np.abs(found - distances).max() <= step // 2
    said = [line for line in differences(store, open_here(root)) if "'depth'" in line]
    assert bool(said) == (step > 1)
    assert all(line.startswith("distances of the camera 'depth' differ by") and f"{step // 2} at most" in line
               for line in said)  # fmt: skip
    feature = json.loads((root / INFO).read_text())["features"]["observation.images.depth"]
    assert feature["shape"] == [*shape, 1]
    wanted = {"is_depth_map": True, "depth_unit": "mm", "video.pix_fmt": "gray12le", "video.use_log": False}
    wanted |= {"video.depth_min": 0, "video.depth_max": step * 4.095}
    assert feature["info"] == pytest.approx(feature["info"] | wanted)
    stats = json.loads((root / "meta/stats.json").read_text())["observation.images.depth"]
    assert np.shape(stats["q99"]) == (1, 1, 1)
    np.testing.assert_allclose(np.ravel(stats["mean"]), distances.mean(), atol=1)
    assert np.ravel(stats["max"]) == pytest.approx(farthest, abs=step)


def images(folder: Path, feature: dict[str, Any], pixels: np.ndarray, form: str = "PNG") -> None:
    """Replace the images of the camera `wrist` of the published sample."""
    entry(INFO, "features", WRIST, value={"dtype": "image"} | feature)(folder)
    for place, rows in enumerate((slice(0, 7), slice(7, 12))):
        column = pa.array([{"bytes": encoded(image, form), "path": None} for image in pixels[rows]])

        def changed(held: pa.Table, column: pa.Array = column) -> pa.Table:
            return held.set_column(held.column_names.index(WRIST), WRIST, column)

        table(DATA.format(place), changed)(folder)


def test_lerobots_images_of_16_bits_and_of_four_channels(copied: Copied) -> None:
    folder, random = copied("published"), np.random.default_rng(0)
    millimeters = random.integers(0, 65536, (12, 10, 8)).astype(np.uint16)
    meters = (millimeters / 1000).astype(np.float32)
    for pixels, form in ((millimeters, "PNG"), (millimeters, "TIFF"), (meters, "TIFF")):  # LeRobot 0.6 writes TIFF
        images(folder, {"shape": [10, 8, 1], "info": {"is_depth_map": True}}, pixels, form)
        store = open_here(folder)
        np.testing.assert_array_equal(depth.millimeters(np.asarray(store.observations["wrist"])), millimeters)
    images(folder, {"shape": [10, 8, 1]}, millimeters // 256, "TIFF")
    refused(folder, WRIST, "cannot be decoded")
    rgba = random.integers(0, 256, (12, 10, 8, 4)).astype(np.uint8)
    images(folder, {"shape": [10, 8, 4]}, rgba)
    np.testing.assert_array_equal(np.asarray(open_here(folder).observations["wrist"]), rgba)
    entry(INFO, "features", FRONT, "shape", value=[32, 48, 4])(folder)
    refused(folder, FRONT, "1 or 3 channels")


def config(**options: Any) -> EncoderConfig:
    return EncoderConfig("impala_tiny", features=8, cameras={"depth": CameraConfig(depth=True, **options)})


def test_the_encoder_sees_distances_scaled_by_the_farthest() -> None:
    encoder = Encoder({"depth": (1, 2, 16, 16)}, config())
    assert encoder.tower("depth").shape == (1, 1, 16, 16)
    encoder.scale_distances({"depth": 4000.0})
    millimeters = np.full((1, 16, 16), 1000, np.uint16)
    millimeters[0, 0] = 8000
    frames = torch.from_numpy(depth.to_bytes(millimeters)).permute(0, 3, 1, 2)[:, None]
    seen = encoder._preprocessed("depth", encoder._checked("depth", frames))
    assert seen.shape == (1, 1, 1, 16, 16)
    torch.testing.assert_close(seen[0, 0, 0, 1], torch.full((16,), 255 / 4))
    assert (seen[0, 0, 0, 0] == 255).all(), "beyond the farthest"
    near = torch.from_numpy(depth.to_bytes(millimeters - 8)).permute(0, 3, 1, 2)[:, None]
    assert not torch.equal(encoder({"depth": frames}), encoder({"depth": near})), "8 mm"
    with pytest.raises(GtpVisionError, match="two bytes a pixel, and the camera's have 3;"):
        Encoder({"depth": (1, 3, 16, 16)}, config())


def test_distances_are_resized_and_augmented_as_distances() -> None:
    """An average of bytes of two distances would be another distance; colors and blur leave them alone."""
    encoder = Encoder({"depth": (1, 2, 16, 16)}, config(size=[8, 8]))
    encoder.scale_distances({"depth": 255.0 * 4})
    millimeters = np.tile(np.array([254, 258], np.uint16), (1, 16, 8))
    frames = torch.from_numpy(depth.to_bytes(millimeters)).permute(0, 3, 1, 2)[:, None]
    seen = encoder._preprocessed("depth", frames)
    assert (seen[..., 1:-1] - 64).abs().max() < 0.5
    settings = EncoderConfig(
        augmentation=AugmentationConfig(shift=0, brightness=0.5, blur=2.0, blur_probability=1.0),
        cameras={"depth": CameraConfig(depth=True)},
    )
    shapes = {"depth": (1, 2, 16, 16), "front": (1, 3, 16, 16)}
    augment = Augmentation(settings, shapes)
    observation = {"depth": frames, "front": torch.randint(0, 256, (1, 1, 3, 16, 16), dtype=torch.uint8)}
    changed = augment(observation, augment.draw(1, RandomStream(0, 0)))
    assert torch.equal(changed["depth"], frames)
    assert not torch.equal(changed["front"], observation["front"])


def test_pictures_show_distances_in_gray() -> None:
    frame = depth.to_bytes(np.array([[0, 2000], [1000, 4000]], np.uint16))
    assert pictures.rgb(frame)[..., 0].tolist() == [[0, 128], [64, 255]]


@pytest.mark.trains
def test_depth_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store((9, 8), cameras={"front": (24, 24, 3), "depth": (24, 24, 2)}, attributes={"depth": ["depth"]})
    distances = np.random.default_rng(0).integers(0, 3000, (17, 24, 24)).astype(np.uint16)
    store.observations["depth"][:] = depth.to_bytes(distances)
    assert farthest(store) == {"depth": distances.max()}
    path = native.write(tmp_path / "data.h5", store)
    words = [*STATES, *small("gtp_bc"), f"task.dataset={path}", "training.steps=2", f"run_dir={tmp_path / 'run'}"]
    words += [*PIXELS, "encoder.augmentation.brightness=0.2"]
    assert main(["train", *words]) == 2
    assert "set encoder.cameras.depth.depth=true" in capsys.readouterr().err
    assert main(["train", *words, "encoder.cameras.depth.depth=true"]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "policy")]) == 0
    policy = load_policy(tmp_path / "policy")
    observation = {name: np.asarray(array[0]) for name, array in store.observations.items()}
    assert np.isfinite(policy.act(observation)).all()
