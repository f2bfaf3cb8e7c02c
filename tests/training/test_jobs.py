from pathlib import Path

import pytest
import torch

from gtp_vision.config.compose import from_command_line, to_yaml
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import jobs

SMALL = [
    *("task=own", "encoder=state", "agent=gtp_bc", "agent.policy.hidden=[16]", "training.device=cpu"),
    *("training.batch_size=8", "training.engine=eager"),
]


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, [None]),
        ("", 0, [None]),
        ("3,5", 2, ["3", "5"]),
        ("3", 0, [None]),  # that GPU does not exist
        ("-1", 0, [None]),
        ("NoDevFiles", 0, [None]),
        ("0,-1,1", 1, ["0"]),  # CUDA ignores what follows
        ("0,0", 0, [None]),
        ("GPU-8a1b, MIG-77", 2, ["GPU-8a1b", "MIG-77"]),
    ],
)
def test_each_run_gets_one_of_the_usable_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, names: list[str | None]
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert jobs._gpus() == names


@pytest.mark.processes
def test_a_failed_run_is_reported_with_its_log_and_the_others_continue(data: Path, tmp_path: Path) -> None:
    good = [*SMALL, f"task.dataset={data}", "training.steps=2"]
    bad = tmp_path / "bad"
    runs = {bad: [*good, "task.dataset=/none.h5"], tmp_path / "good": good}
    results = dict(jobs.train_runs(runs, workers=1, progress=False))
    assert results[tmp_path / "good"] == ""
    assert (tmp_path / "good" / "results.json").exists()
    assert f"the run {bad} ended with status 2; " in results[bad]
    assert str(tmp_path / "bad.log") in results[bad]
    assert "/none.h5" in (tmp_path / "bad.log").read_text()
    with pytest.raises(GtpVisionError, match=r"status 2; .*bad\.log"):
        jobs.train_all({bad: runs[bad]}, progress=False)


def test_a_folder_of_other_settings_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = from_command_line(["task=demo", "seed=1", "run_dir=elsewhere"])
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    moved = from_command_line(["task=demo", "seed=1", f"run_dir={tmp_path / 'run'}"])
    jobs.require_same_settings(tmp_path / "run", moved)
    with pytest.raises(GtpVisionError, match="other settings"):
        jobs.train_all({tmp_path / "run": ["task=demo", "seed=2"]}, progress=False)
