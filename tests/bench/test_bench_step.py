"""The bench of engines: what it measures is told, and what got worse is refused."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.bench import baseline as bench
from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError

STORED = Path(__file__).parents[2] / "benchmarks" / "baseline.json"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One round of the eager engine, as the command writes it."""
    path = tmp_path_factory.mktemp("bench") / "now.json"
    assert main(["bench", "step", "--rounds", "1", "--engines", "eager", "--json", "--save", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_number_is_there_and_ratios_are_those_of_the_times(told: dict[str, Any]) -> None:
    assert list(told["engines"]) == ["eager"]
    eager = told["engines"]["eager"]
    assert all(0 < ms < 60_000 for ms in eager.values())  # no faster nor slower: who knows what else runs here
    assert told["best_vs_eager"] == told["best_vs_eager_32"] == told["best_vs_eager_pixels"] == 1
    assert told["seeds"].keys() == {"4"}
    assert told["seeds"] == told["seeds_vs_eager"]
    assert told["act_ms"].keys() == {"eager"}
    assert told["act_ms"]["eager"].keys() == {"1", "2", "5"}
    assert all(ms > 0 for ms in told["act_ms"]["eager"].values())
    assert all(0 <= share <= 1 for share in told["data_wait"].values())
    assert told["gap"].keys() == {"eager seeds"}
    assert told["gap"]["eager seeds"] < 1e-4
    assert told["parts"].keys() == {"critic", "actor", "adam", "targets"}
    floor = told["floor"]
    assert 2 < floor["gflop"] < 3, "3 x 256 at batch 256"
    assert floor["floor_ms"] == pytest.approx(
        1e3 * floor["gflop"] / floor["gflops"] + floor["mbytes"] / floor["copy_gb_s"], rel=0.2
    )
    assert floor["fraction"] == pytest.approx(floor["floor_ms"] / eager["step_ms"], rel=0.01, abs=1e-3)
    assert 0 < floor["matrix_fraction"] <= floor["fraction"]
    product = 1.0
    for agent in told["agents"]:
        product *= told["ratios"][f"{agent} over the mean agent"]
    assert product == pytest.approx(1, rel=1e-2)
    assert "4 seeds over one" in bench.table(told)


def test_the_stored_baseline_is_one_of_all_engines() -> None:
    stored = bench.check_baseline(STORED)
    assert stored["engines"].keys() == {"eager", "compile"}
    assert not bench.disagreement(stored)
    table, worse = bench.compare(stored, STORED, stored)
    assert not worse
    assert "compile over eager, step_ms_32" in table


def test_a_ratio_that_got_worse_by_more_than_15_percent_is_named(tmp_path: Path) -> None:
    stored = bench.check_baseline(STORED)
    name = "compile over eager, step_ms"
    for factor, wanted in ((1.14, []), (1.16, [name])):
        now = deepcopy(stored)
        now["ratios"][name] *= factor
        now["engines"]["eager"]["step_ms"] *= 9  # times are another machine's, or another hour's
        _, worse = bench.compare(now, STORED, stored)
        assert [sentence.partition(" is ")[0] for sentence in worse] == wanted
    now = deepcopy(stored)
    del now["ratios"][name]
    assert bench.compare(now, STORED, stored)[1] == [f"{name} is in the baseline and was not measured"]


def test_engines_that_disagree_or_gave_up_are_told() -> None:
    assert bench.disagreement({"gap": {"compile state": 1e-6}, "fallbacks": []}) == ""
    assert "compile state by 2.0e-01" in bench.disagreement({"gap": {"compile state": 0.2}, "fallbacks": []})
    assert "compile state by nan" in bench.disagreement({"gap": {"compile state": float("nan")}, "fallbacks": []})
    assert bench.disagreement({"gap": {}, "fallbacks": ["engine: eager, because"]}) == "engine: eager, because"


def test_what_is_no_baseline_is_refused_before_minutes_are_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ("{}", "[]", "not JSON", '{"ratios": {"a": "fast"}, "device": "cpu"}'):
        path = tmp_path / "baseline.json"
        path.write_text(content)
        assert main(["bench", "step", "--compare", str(path)]) == 2
        assert "is no baseline of 'gtp-vision bench step'" in capsys.readouterr().err
    assert main(["bench", "step", "--engines", "warp"]) == 2
    assert "--engines warp" in capsys.readouterr().err
    assert main(["bench", "step", "--engines", "eager", "--compare", str(STORED)]) == 2
    assert "holds compile too" in capsys.readouterr().err
    for path in (tmp_path, Path("/proc/none.json")):
        assert main(["bench", "step", "--save", str(path)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_baselines_of_other_devices_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(GtpVisionError, match="compare with a baseline of the same kind"):
        bench.compare(told | {"device": "NVIDIA H200"}, STORED, bench.check_baseline(STORED))
