"""`gtp-vision bench loader` at sizes at which the numbers mean nothing, but every part runs."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.bench import loader
from gtp_vision.bench.unpacking import seeking, unpacking
from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import open_store

SHAPES = dict.fromkeys(("agentview_image", "robot0_eye_in_hand_image"), (8, 8, 3))
SIZES = {
    "_CASES": {"one_camera": (3200, {"agentview_image": (8, 8, 3)}), "two_cameras": (3200, SHAPES)},
    **{"_BATCH": 16, "_TIMED": 2, "_MEMORY_FRAMES": 2000, "_MEMORY_BATCHES": 3, "_CACHE_BYTES": 300 << 20},
}


@pytest.mark.processes
def test_the_bench_prints_one_json_object(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SIZES.items():
        monkeypatch.setattr(loader, name, value)
    monkeypatch.setattr(loader, "unpacking", partial(unpacking, frames=4))
    monkeypatch.setattr(loader, "seeking", partial(seeking, frames=4, batches=1))
    monkeypatch.setattr(loader, "array_statistics", lambda numbers: None)  # a million rows take a second
    assert main(["bench", "loader", "--rounds", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    for case in (results, results["two_cameras"]):
        ms = case["ms"]
        assert ms.keys() == {"native", "gather", "native_stacked", "h5py", "robomimic", "robomimic_cached"}
        assert case["vs_robomimic"] == pytest.approx(ms["robomimic"] / ms["native"], rel=0.1)
        assert case["vs_h5py_stacked"] == pytest.approx(ms["h5py"] / ms["native_stacked"], rel=0.1)
    videos = results["unpacking"]
    assert videos["frames_per_s"] > 0
    assert 1 < videos["cache_ratio"] < 1.1, "the frames at their new size, and little else"
    assert min(results["seeking"].values()) > 0
    assert results["private_growth_mb"] < results["private_mb"] < 1000
    beyond_cache = results["beyond_cache"]
    if beyond_cache is not None:  # where the user may create a control group
        assert beyond_cache["file_gb"] == pytest.approx(2 * beyond_cache["limit_gb"], abs=0.02)
    for cold in (None, {"file_gb": 2.0, "limit_gb": 1.0, "ms": 5.0, "vs_gather": 1.5}):
        assert "times faster than robomimic" in loader.table(results | {"beyond_cache": cold})


def test_both_files_hold_the_same_demonstrations(tmp_path: Path, cache: Path) -> None:
    ours, theirs = (open_store(path) for path in loader._write_files(tmp_path, "case", 400, SHAPES))
    assert ours.episode_ends.tolist() == theirs.episode_ends.tolist()
    for name in (*SHAPES, "state"):
        np.testing.assert_array_equal(np.asarray(ours.observations[name]), np.asarray(theirs.observations[name]))
    np.testing.assert_array_equal(ours.actions, theirs.actions)
