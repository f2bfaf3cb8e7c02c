"""LeRobot's statistics of rows and frames, compared with NumPy's of the same numbers, in both versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import EPISODES, INFO
from stores import make_store

from gtp_vision.datasets.formats import lerobot_writer
from gtp_vision.datasets.formats.lerobot_statistics import levels, of_levels, of_rows

RANDOM = np.random.default_rng(0)
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
ROWS: dict[str, np.ndarray] = {
    "the case": np.linspace(-1, 1, 20, dtype=np.float32)[:, None],
    "one column": RANDOM.normal(size=50),
    "seven columns": RANDOM.normal(size=(50, 7)).astype(np.float32),
    "one row": RANDOM.normal(size=(1, 3)),
    "two rows": np.array([[0.0, 5.0], [1.0, -5.0]]),
    "integers": RANDOM.integers(-9, 9, (40, 2)),
    "flags": RANDOM.random(30) < 0.2,
    "a constant": np.full((25, 2), 7.5, np.float32),
    "an outlier": np.where(np.arange(200) == 3, 1e6, np.arange(200.0)),
    "degrees": RANDOM.uniform(-180, 180, (300, 6)).astype(np.float32),
    "large offsets": (1e6 + RANDOM.normal(size=(60, 1))).astype(np.float64),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_statistics_of_numbers(rows: np.ndarray) -> None:
    found, values = of_rows(rows), np.asarray(rows, np.float64).reshape(len(rows), -1)
    for kind, wanted in {kind: getattr(values, kind)(0) for kind in ("min", "max", "mean", "std")}.items():
        np.testing.assert_allclose(found[kind], wanted, rtol=1e-5, atol=1e-6, err_msg=kind)
    for kind, q in QUANTILES.items():
        np.testing.assert_allclose(found[kind], np.quantile(values, q, axis=0), rtol=1e-5, atol=1e-6, err_msg=kind)
    assert found["count"].tolist() == [len(rows)]


FRAMES: dict[str, np.ndarray] = {
    "colors": RANDOM.integers(0, 256, (5, 12, 10, 3), np.uint8),
    "gray": RANDOM.integers(0, 256, (4, 12, 10, 1), np.uint8),
    "black": np.zeros((3, 8, 8, 3), np.uint8),
    "white": np.full((3, 8, 8, 1), 255, np.uint8),
    "one frame": RANDOM.integers(90, 110, (1, 16, 16, 3), np.uint8),
    "one bright pixel": np.where(np.arange(8 * 8 * 3).reshape(1, 8, 8, 3) == 7, 200, 3).astype(np.uint8),
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_statistics_of_frames(frames: np.ndarray) -> None:
    """Of the same sample in one episode and in two; gray frames are three equal colors."""
    colors = frames.repeat(3, -1) if frames.shape[-1] == 1 else frames
    pixels = colors.reshape(-1, 3) / 255
    halves = [levels(frames, 0, 1), levels(frames, 1, len(frames))] if len(frames) > 1 else []
    for counted in filter(None, ([levels(frames, 0, len(frames))], halves)):
        found = of_levels(counted)
        for kind in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(found[kind].ravel(), getattr(pixels, kind)(0), atol=1e-9, err_msg=kind)
        for kind, q in QUANTILES.items():
            wanted = np.quantile(pixels, q, axis=0, method="inverted_cdf")
            np.testing.assert_allclose(found[kind].ravel(), wanted, atol=1e-9, err_msg=kind)
        assert found["count"].tolist() == [len(frames)]
        assert {value.shape for kind, value in found.items() if kind != "count"} == {(3, 1, 1)}


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize(
    "content", [{}, {"cameras": {"front": (16, 16, 3)}}, {"lengths": (1, 9), "actions": 1}], ids=str
)
def test_quantiles_are_written_of_every_feature_and_episode(
    tmp_path: Path, version: str, content: dict[str, Any]
) -> None:
    store = make_store(**content)
    root = lerobot_writer.write(tmp_path / "a", store, version=version)
    features = json.loads((root / INFO).read_text())["features"]
    stats = json.loads((root / "meta/stats.json").read_text())
    assert stats.keys() == features.keys()
    assert all(QUANTILES.keys() <= found.keys() for found in stats.values())
    if version == "v3.0":
        table = pq.read_table(root / EPISODES).to_pydict()
        of_episodes = [{kind: table[f"stats/action/{kind}"][e] for kind in QUANTILES} for e in range(2)]
        assert {f"stats/{key}/{kind}" for key in features for kind in QUANTILES} <= table.keys()
    else:
        lines = (root / "meta/episodes_stats.jsonl").read_text().splitlines()
        of_episodes = [json.loads(line)["stats"]["action"] for line in lines]
    for rows, found in zip(np.split(store.actions, store.episode_ends[:-1]), of_episodes, strict=True):
        for kind, q in QUANTILES.items():
            np.testing.assert_allclose(found[kind], np.quantile(rows, q, axis=0), rtol=1e-5, atol=1e-6)
