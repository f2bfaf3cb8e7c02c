import json
import os
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.bench import encoders
from gtp_vision.cli.main import main

NAMES = ("impala_tiny", "drq")
RATIOS = {"cached_vs_state", "live_vs_cached", "impala_vs_bare"}
HEADS = ["agent.policy.hidden=[8]", "agent.critic.hidden=[8]", "encoder.features=512"]


def _measured(**options: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_FRAMES": 200, "_SIDE": 32, "_LIVE_BATCH": 4, "_FORWARD_BATCH": 2}.items():
            patch.setattr(encoders, name, value)
        patch.setattr(encoders, "_FORWARD", NAMES)
        return encoders.bench_encoders(rounds=1, names=NAMES, batch=8, more=HEADS, progress=False, **options)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return _measured()


def test_every_ratio_is_that_of_the_times_told_and_the_worst_of_the_backbones(told: dict[str, Any]) -> None:
    for each in told["backbones"].values():
        assert each["cached_vs_state"] == pytest.approx(each["cached_ms"] / each["state_ms"], rel=0.02)
        assert each["live_vs_cached"] == pytest.approx(each["live_ms"] / each["cached_small_ms"], rel=0.02)
    assert list(told["backbones"]) == list(NAMES)
    assert told["cached_vs_state"] == max(each["cached_vs_state"] for each in told["backbones"].values())
    assert told["live_vs_cached"] == min(each["live_vs_cached"] for each in told["backbones"].values())
    ms = told["impala_ms"]
    assert told["impala_vs_bare"] == pytest.approx(ms["ours"] / min(ms["channels_last"], ms["contiguous"]), rel=0.02)
    assert list(told["images_per_second"]) == list(NAMES)
    assert all(rate > 0 for rate in told["images_per_second"].values())


def test_features_have_the_width_of_their_backbone(told: dict[str, Any]) -> None:
    assert told["backbones"]["impala_tiny"]["width"] == 32 * 4 * 4
    assert {each["dtype"] for each in told["backbones"].values()} <= {"float16", "float32"}


def test_the_results_are_one_json_object_and_a_table(told: dict[str, Any]) -> None:
    assert json.loads(json.dumps(told)) == told
    assert told.keys() > RATIOS
    text = encoders.table(told)
    for name, each in told["backbones"].items():
        assert f"{name:<28}{each['state_ms']:>9.1f}" in text
    assert f"contiguous: {told['impala_vs_bare']:.2f}" in text


def test_the_users_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "cache"))
    with encoders._cache(tmp_path / "own"):
        assert os.environ["GTP_VISION_CACHE"] == str(tmp_path / "own")
    assert os.environ["GTP_VISION_CACHE"] == str(tmp_path / "cache")


def test_the_command_prints_what_was_measured(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(encoders, "bench_encoders", lambda **options: asked.append(options) or told)
    assert main(["bench", "encoders", "--rounds", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert main(["bench", "encoders"]) == 0
    assert "impala_small forward and backward" in capsys.readouterr().out
    assert asked == [{"rounds": 3, "progress": False}, {"rounds": 7, "progress": True}]
    assert main(["bench", "encoders", "--rounds", "0"]) != 0
    assert "--rounds 0 must be at least 1" in capsys.readouterr().err
