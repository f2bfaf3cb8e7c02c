import json
from pathlib import Path

import pytest

from gtp_vision.cli import main
from gtp_vision.config import from_command_line, to_yaml
from gtp_vision.errors import GtpVisionError
from gtp_vision.experiments import pointmaze
from gtp_vision.training import jobs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes by OGBench's recipe."""
    folder = tmp_path_factory.mktemp("data")
    asked = ["data", "collect", "ogbench/pointmaze-medium-navigate", "--out", str(folder)]
    assert main([*asked, "--episodes", "2", "--processes", "1"]) == 0
    return folder


def test_runs_are_trained_summed_up_and_gone_on_with(data: Path, tmp_path: Path) -> None:
    def found() -> dict:
        return pointmaze.pointmaze(
            data, tmp_path / "runs", agents=["gtp+q"], seeds=1, steps=2, episodes=1, progress=False
        )

    results = found()
    assert set(results["agents"]) == {"gtp+q"}
    for name, told in results["agents"].items():
        assert json.loads((tmp_path / "runs" / name / "seed0" / "results.json").read_text())["agent"] == name
        assert len(told["last"]["success"]) == len(told["best"]["length"]) == 1
        assert 0 < told["effective_share"][0] <= 1
    assert json.loads((tmp_path / "runs" / "pointmaze.json").read_text()) == results
    assert "gtp+q" in pointmaze.table(results)
    before = (tmp_path / "runs" / "gtp+q" / "seed0" / "checkpoints" / "step_2" / "agent.safetensors").stat().st_mtime_ns
    assert found()["agents"]["gtp+q"]["last"] == results["agents"]["gtp+q"]["last"]
    after = (tmp_path / "runs" / "gtp+q" / "seed0" / "checkpoints" / "step_2" / "agent.safetensors").stat().st_mtime_ns
    assert after == before, "a run that has ended is not trained again"


def test_missing_data_are_told_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="data collect ogbench/pointmaze-medium-navigate"):
        pointmaze.pointmaze(tmp_path, tmp_path / "runs")


def test_an_unknown_agent_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"'iqm'.*did you mean 'iql'"):
        pointmaze.pointmaze(data, tmp_path / "runs", agents=["iqm"])


def test_a_run_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    broken = ["task=demo", f"data_dir={tmp_path}", "task.dataset=null"]
    with pytest.raises(GtpVisionError, match=r"status 2; .*broken\.log says why"):
        jobs.train_all({tmp_path / "broken": broken}, progress=False)
    assert str(tmp_path) in (tmp_path / "broken.log").read_text()


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made = from_command_line(["task=demo", "seed=1", f"run_dir={tmp_path / 'run'}"])
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(made))
    with pytest.raises(GtpVisionError, match="other settings"):
        jobs.train_all({tmp_path / "run": ["task=demo", "seed=2"]}, progress=False)
