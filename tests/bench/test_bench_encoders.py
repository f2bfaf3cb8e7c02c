"""`gtp-vision bench encoders` at sizes at which the numbers mean nothing, but every part runs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.bench import encoders

pytestmark = pytest.mark.trains
NAMES = ("impala_tiny", "drq")
HEADS = ["agent.policy.hidden=[8]", "agent.critic.hidden=[8]", "encoder.features=512"]
SIZES = {"_FRAMES": 200, "_SIDE": 32, "_LIVE_BATCH": 4, "_FORWARD_BATCH": 2, "_FORWARD": NAMES}


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(encoders, name, value)
        yield encoders.bench_encoders(rounds=1, names=NAMES, batch=8, overrides=HEADS, progress=False)


def test_ratios_are_those_of_the_times_and_the_worst_of_the_backbones(results: dict[str, Any]) -> None:
    backbones = results["backbones"]
    assert list(backbones) == list(results["images_per_second"]) == list(NAMES)
    for times in backbones.values():
        assert times["cached_vs_state"] == pytest.approx(times["cached_ms"] / times["state_ms"], rel=0.02)
        assert times["live_vs_cached"] == pytest.approx(times["live_ms"] / times["cached_small_ms"], rel=0.02)
    assert results["cached_vs_state"] == max(times["cached_vs_state"] for times in backbones.values())
    assert results["live_vs_cached"] == min(times["live_vs_cached"] for times in backbones.values())
    ms = results["impala_ms"]
    assert results["impala_vs_bare"] == pytest.approx(ms["ours"] / min(ms["channels_last"], ms["contiguous"]), rel=0.1)
    assert backbones["impala_tiny"]["width"] == 32 * 4 * 4
    assert f"contiguous: {results['impala_vs_bare']:.2f}" in encoders.table(results)


def test_the_users_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTP_VISION_CACHE", str(tmp_path / "cache"))
    with encoders._temporary_cache(tmp_path / "own"):
        assert os.environ["GTP_VISION_CACHE"] == str(tmp_path / "own")
    assert os.environ["GTP_VISION_CACHE"] == str(tmp_path / "cache")
