"""Trainings side by side: what each may use, and when it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gtp_vision.config.schema import from_command_line, to_yaml
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training import jobs

SMALL = [
    *("task=own", "encoder=state", "agent=gtp_bc", "agent.policy.hidden=[16]", "training.device=cpu"),
    *("training.batch_size=8", "training.engine=eager"),
]


@pytest.fixture(scope="module")
def data(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.write(tmp_path_factory.mktemp("data") / "states.h5", make_store((30,)))


def test_each_run_has_a_gpu_of_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert jobs._gpus() == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert jobs._gpus() == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert jobs._gpus() == [None]


def test_a_run_that_fails_is_told_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    good = [*SMALL, f"task.dataset={data}", "training.steps=2"]
    runs = {tmp_path / "bad": [*good, "task.dataset=/none.h5"], tmp_path / "good": good}
    told = dict(jobs.train_runs(runs, workers=1, progress=False))
    assert told[tmp_path / "good"] == ""
    assert f"the run {tmp_path / 'bad'} ended with status 2; " in told[tmp_path / "bad"]
    assert str(tmp_path / "bad.log") in told[tmp_path / "bad"]
    assert "/none.h5" in (tmp_path / "bad.log").read_text()
    assert (tmp_path / "good" / "results.json").exists()


def test_a_training_ends_with_a_checkpoint_when_who_started_it_is_gone(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*SMALL, f"task.dataset={data}", "training.steps=1000000"]
    script = f"""
from pathlib import Path
from gtp_vision.training import jobs
list(jobs.trained({{Path({str(folder)!r}): {settings!r}}}, workers=1, progress=False))
"""
    parent = subprocess.Popen([sys.executable, "-P", "-c", script])
    limit = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while not list(folder.glob("checkpoints/step_*/manifest.json")):
        assert time.monotonic() < limit, "the training went on without its parent"
        time.sleep(0.05)
    while "stopped at step" not in (tmp_path / "run.log").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_run_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    broken = ["task=demo", f"data_dir={tmp_path}", "task.dataset=null"]
    with pytest.raises(GtpVisionError, match=r"status 2; .*broken\.log"):
        jobs.train_all({tmp_path / "broken": broken}, progress=False)
    assert str(tmp_path) in (tmp_path / "broken.log").read_text()


def test_a_folder_of_other_settings_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made = from_command_line(["task=demo", "seed=1", "run_dir=elsewhere"])
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(made))
    jobs.require_same_settings(
        tmp_path / "run", from_command_line(["task=demo", "seed=1", f"run_dir={tmp_path / 'run'}"])
    )
    with pytest.raises(GtpVisionError, match="other settings"):
        jobs.train_all({tmp_path / "run": ["task=demo", "seed=2"]}, progress=False)
