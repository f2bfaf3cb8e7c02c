"""Judgements on tiny runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import small_run
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.evaluation.fqe import FQESettings
from gtp_vision.report.judge_page import table, write
from gtp_vision.training.judge import judge
from gtp_vision.training.trainer import train

FEW = FQESettings(steps=30, batch_size=16, members=3, hidden=(8,))
pytestmark = pytest.mark.trains


def _data(path: Path, **options: object) -> Path:
    """Ten episodes of 12 frames with rewards, three of which end in a terminal."""
    return native.write(path, make_store((12,) * 10, terminals={11, 35, 59}, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run with a critic and a clone, of two checkpoints."""
    folder = tmp_path_factory.mktemp("judged")
    data = _data(folder / "data.h5")
    chunk = "agent.action_chunk=2"
    for agent, more in (("gtp", []), ("gtp_bc", [chunk])):
        train(small_run(data, folder / agent, "training.steps=4", *more, agent=agent))
    return [folder / "gtp", folder / "gtp_bc"]


def test_runs_are_ranked_on_the_first_ones_data(runs: list[Path], tmp_path: Path) -> None:
    found = judge(runs, settings=FEW, progress=False)
    results = found.results
    assert results["measure"] == "return"
    assert results["episodes"] == 10
    assert results["held_out"] == 1
    assert not results["trained_on_held_out"]
    policies = results["policies"]
    assert [policy["name"] for policy in policies] == ["gtp", "gtp_bc"]
    assert sum(policy["best"] for policy in policies) == pytest.approx(1)
    assert policies[0]["better"][1] + policies[1]["better"][0] == pytest.approx(1)
    for policy in policies:
        assert policy["interval"][0] <= policy["value"] <= policy["interval"][1]
        assert 0 <= policy["coverage"] <= 1
        assert len(policy["moments"]) >= 1
    page = write(tmp_path, results, found.pictures).read_text()
    assert "gtp_bc" in page
    assert json.loads((tmp_path / "judge.json").read_text()) == results
    assert "gtp_bc" in table(results)
    again = judge(runs, settings=FEW, progress=False).results
    for one, other in zip(policies, again["policies"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_all_checkpoints_of_a_camera_run_show_frames(tmp_path: Path) -> None:
    data = _data(tmp_path / "data.h5", cameras={"front": (12, 12, 3)})
    pixels = ("encoder=impala_tiny", "encoder.features=8", "task.frame_stack=2", "training.steps=4")
    train(small_run(data, tmp_path / "run", *pixels, agent="gtp_bc"))
    found = judge([tmp_path / "run"], checkpoints="all", settings=FEW, progress=False)
    assert [policy["checkpoint"] for policy in found.results["policies"]] == ["step_3", "step_4"]
    assert found.pictures[0][0][0].startswith("data:image/jpeg")
    assert "data:image/jpeg" in write(tmp_path / "page", found.results, found.pictures).read_text()


def test_successes_are_judged_before_returns(runs: list[Path], tmp_path: Path) -> None:
    store = make_store((12,) * 10, attributes={"episode_success": [True, False] * 5})
    other = native.write(tmp_path / "marked.h5", store)
    results = judge(runs[:1], data=other, starts=other, settings=FEW, progress=False).results
    assert results["measure"] == "success"
    assert str(other) in table(results)
    assert results["starts"] == str(other)


def test_without_rewards_there_is_coverage_and_action_error_alone(runs: list[Path], tmp_path: Path) -> None:
    store = make_store((12,) * 10)
    other = native.write(tmp_path / "silent.h5", replace(store, rewards=np.zeros_like(store.rewards)))
    found = judge(runs, data=other, settings=FEW, progress=False)
    assert found.results["measure"] is None
    assert "value" not in found.results["policies"][0]
    assert found.results["policies"][0]["action_error"] > 0
    assert "gtp-vision data label" in table(found.results)
    write(tmp_path, found.results, found.pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "step_7"}, "has no checkpoint 'step_7'"),
        ({"discount": 1.0}, "below 1; set --discount"),
        ({"rows": 0}, "rows=0 must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(runs: list[Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message.replace("(", r"\(")):
        judge(runs[:1], settings=FEW, progress=False, **options)  # type: ignore[arg-type]


def test_one_episode_is_too_few(runs: list[Path], tmp_path: Path) -> None:
    other = native.write(tmp_path / "one.h5", make_store((12,)))
    with pytest.raises(GtpVisionError, match="one out of at least 5"):
        judge(runs[:1], data=other, settings=FEW, progress=False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.success_reward=1", r"has task.success_reward=1.0, the first run None; judge runs of one task"),
        ("task.goals=hindsight", r"was trained with goals \(task.goals=hindsight\)"),
    ],
)
def test_a_run_of_another_task_is_refused(runs: list[Path], tmp_path: Path, setting: str, message: str) -> None:
    other = tmp_path / "other"
    train(small_run(_data(tmp_path / "data.h5"), other, "training.steps=1", setting, agent="gtp_bc"))
    with pytest.raises(GtpVisionError, match=message):
        judge([*runs[:1], other], settings=FEW, progress=False)


def test_an_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(GtpVisionError, match="is an artifact"):
        judge([tmp_path], progress=False)
