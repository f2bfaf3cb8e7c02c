import json
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.bench import loader
from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import open_store


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which the numbers say nothing, but every part runs."""
    shapes = dict.fromkeys(("agentview_image", "robot0_eye_in_hand_image"), (8, 8, 3))
    cases = {"one_camera": (3200, dict(list(shapes.items())[:1])), "two_cameras": (3200, shapes)}
    for name, value in {
        "_CASES": cases,
        "_BATCH": 16,
        "_TIMED": 2,
        "_MEMORY_FRAMES": 2000,
        "_MEMORY_BATCHES": 3,
        "_CACHE_BYTES": 300 << 20,
    }.items():
        monkeypatch.setattr(loader, name, value)
    monkeypatch.setattr(loader, "array_statistics", lambda numbers: None)  # a million rows take a second


def test_the_bench_prints_one_json_object(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loader", "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for case in (found, found["two_cameras"]):
        assert case["ms"].keys() == {"native", "gather", "native_stacked", "h5py", "robomimic", "robomimic_cached"}
        for name in ("vs_gather", "vs_robomimic", "vs_robomimic_cached", "vs_h5py"):
            assert case[name] > 0
        assert case["vs_robomimic"] == pytest.approx(case["ms"]["robomimic"] / case["ms"]["native"], rel=0.1)
        assert case["vs_h5py_stacked"] == pytest.approx(case["ms"]["h5py"] / case["ms"]["native_stacked"], rel=0.1)
    assert 0 < found["private_growth_mb"] < found["private_mb"] < 1000
    assert found["stats_seconds"] >= 0
    cold = found["beyond_cache"]
    if cold is not None:  # where we may make a control group
        assert cold["file_gb"] == pytest.approx(2 * cold["limit_gb"], abs=0.02)
        assert cold["ms"] > 0
    text = loader.table(found)
    assert f"{found['vs_robomimic']:.0f} times faster than robomimic" in text


def test_both_files_hold_the_same_demonstrations(tmp_path: Path, cache: Path) -> None:
    frames, cameras = loader._CASES["two_cameras"]
    ours, theirs = (open_store(path) for path in loader._files(tmp_path, "case", frames, cameras))
    assert ours.episode_ends.tolist() == theirs.episode_ends.tolist()
    for name in (*cameras, "state"):
        np.testing.assert_array_equal(np.asarray(ours.observations[name]), np.asarray(theirs.observations[name]))
    np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_rounds_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loader", "--rounds", "0"]) == 2
    assert "--rounds 0" in capsys.readouterr().err
