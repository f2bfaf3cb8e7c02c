import json
import math
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.bench import baseline, cameras
from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError

STORED = Path(__file__).parents[2] / "benchmarks" / "baseline.json"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One round of the eager engine, as the command writes it."""
    path = tmp_path_factory.mktemp("bench") / "now.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cameras, "SIDE", 16)
        patch.setattr(cameras, "OPTIONS", ("agent=gtp_bc", "encoder=impala_tiny", "encoder.recompute=16"))
        assert main(["bench", "step", "--rounds", "1", "--engines", "eager", "--json", "--save", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.trains
def test_every_number_is_there_and_ratios_are_those_of_the_times(results: dict[str, Any]) -> None:
    assert list(results["engines"]) == list(results["act_ms"]) == ["eager"]
    assert results["best_vs_eager"] == results["best_vs_eager_32"] == results["best_vs_eager_pixels"] == 1
    assert list(results["seeds"]) == ["4"]
    assert list(results["act_ms"]["eager"]) == ["1", "2", "5"]
    assert all(0 <= share <= 1 for share in results["data_wait"].values())
    assert results["gap"]["eager seeds"] < 1e-4
    assert list(results["alternate"]) == ["gtp", "gtp_bc"]
    assert all(ratio > 0 for ratio in results["alternate"].values())  # its size is what the command is for
    assert results["parts"].keys() == {"critic", "actor", "adam", "targets"}
    floor = results["floor"]
    assert 1.5 < floor["gflop"] < 1.7, "3 x 256 at batch 256"
    floor_ms = 1e3 * floor["gflop"] / floor["gflops"] + floor["mbytes"] / floor["copy_gb_s"]
    assert floor["floor_ms"] == pytest.approx(floor_ms, rel=0.2)
    step_ms = results["engines"]["eager"]["step_ms"]
    assert floor["fraction"] == pytest.approx(floor["floor_ms"] / step_ms, rel=0.01, abs=1e-3)
    product = math.prod(results["ratios"][f"{agent} over the mean agent"] for agent in results["agents"])
    assert product == pytest.approx(1, rel=1e-2)
    two = results["two_cameras"]
    assert two["step_ms"] > 0
    assert 0 <= two["data_wait"] <= 1
    assert 100 < two["private_mb"] < 2000
    assert "4 seeds over one" in baseline.table(results)


def test_the_stored_baseline_is_one_of_all_engines() -> None:
    stored = baseline.check_baseline(STORED)
    assert stored["engines"].keys() == {"eager", "compile"}
    assert not baseline.disagreement(stored)
    assert not baseline.compare(stored, STORED, stored)[1]
    assert baseline.ratios(stored).keys() == stored["ratios"].keys()
    assert "compile" in baseline.table(stored)


def test_a_ratio_that_got_worse_by_more_than_15_percent_is_named() -> None:
    stored = baseline.check_baseline(STORED)
    name = "compile over eager, step_ms"
    for factor, named in ((1.14, []), (1.16, [name])):
        now = deepcopy(stored)
        now["ratios"][name] *= factor
        now["ratios"]["new"] = 1.0
        table, worse = baseline.compare(now, STORED, stored)
        assert [sentence.partition(" is ")[0] for sentence in worse] == named
        assert "new" in table.splitlines()[-1]
    del now["ratios"][name]
    assert baseline.compare(now, STORED, stored)[1] == [f"{name} is in the baseline but was not measured"]
    with pytest.raises(GtpVisionError, match="same kind of device"):
        baseline.compare(stored | {"device": "NVIDIA H200"}, STORED, stored)


def test_engines_that_disagree_or_fall_back_are_named() -> None:
    for gap, fallbacks, words in (
        ({"compile state": 1e-6}, [], ""),
        ({"compile state": math.nan}, [], "compile state by nan"),
        ({"compile state": 0.2}, ["engine: eager, because"], "compile state by 2.0e-01"),
        ({}, ["engine: eager, because"], "engine: eager, because"),
    ):
        found = baseline.disagreement({"gap": gap, "fallbacks": fallbacks})
        assert words in found if words else not found


def test_wrong_options_are_refused_before_minutes_are_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "baseline.json"
    for content in ("{}", "[]", "not JSON", '{"ratios": {"a": "fast"}, "device": "cpu"}'):
        path.write_text(content)
        assert main(["bench", "step", "--compare", str(path)]) == 2
        assert "is not a baseline of 'gtp-vision bench step'" in capsys.readouterr().err
    for options, words in (
        (["--engines", "warp"], "--engines warp"),
        (["--engines", "eager", "--compare", str(STORED)], "also holds compile"),
        (["--save", str(tmp_path)], "cannot be written"),
        (["--peer", str(tmp_path)], "--peer and --peer-python go together"),
        (["--peer", str(tmp_path), "--peer-python", sys.executable], "is not a checkout of seohongpark/fql"),
        (["--save", "/proc/none.json"], "cannot be written"),
    ):
        assert main(["bench", "step", *options]) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("bench", ["step", "encoders", "loader", "profile"])
def test_rounds_below_one_are_refused(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", bench, "--rounds", "0"]) == 2
    assert "--rounds 0 must be at least 1" in capsys.readouterr().err
