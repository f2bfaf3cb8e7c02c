import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import assert_close, assert_equal, lines, saved, small_run

from gtp_vision.cli.main import main
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import checkpoint, trainer
from gtp_vision.training.evaluate import restore
from gtp_vision.training.seeds import summary

pytestmark = pytest.mark.trains


def config_of(data: Path, folder: Path, steps: int, *more: str, seeds: int = 2) -> Config:
    return small_run(data, folder, f"training.steps={steps}", f"training.seeds={seeds}", *more)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(config_of(data, folder, 7, "seed=4"), progress=False)
    return folder


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder)]


def test_each_seed_is_a_run_of_its_own_and_the_report_shows_all(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train(config_of(data, tmp_path, 7, "seed=5", seeds=1), progress=False)
    inside = whole / "seed_5"
    assert_close(saved(inside), saved(tmp_path), rtol=1e-3, atol=1e-4)
    assert losses(inside) == pytest.approx(losses(tmp_path), rel=1e-3)
    config, parts = restore(inside)
    assert (config.seed, config.training.seeds) == (5, 1)
    assert torch.equal(parts.agent.policy.observe.weight, saved(inside)["policy.observe.weight"])
    assert not np.allclose(losses(whole / "seed_4"), losses(inside))
    results = json.loads((whole / "results.json").read_text())
    assert {"seed_4", "seed_5"} <= set(re.findall(r"seed_\d", (whole / "report.html").read_text()))
    assert results["seeds"] == [run["seed"] for run in results["runs"]] == [4, 5]
    assert main(["eval", str(whole)]) == 2
    assert str(whole / "seed_4") in capsys.readouterr().err
    assert main(["report", str(whole), "--out", str(tmp_path / "again.html")]) == 0
    assert "seed_5" in (tmp_path / "again.html").read_text()


def test_seeds_resume_from_the_step_that_all_of_them_have(data: Path, whole: Path, tmp_path: Path) -> None:
    trainer.train(config_of(data, tmp_path, 6, "seed=4"), progress=False)
    (tmp_path / "seed_5" / "checkpoints" / "step_6" / "agent.safetensors").write_bytes(b"cut off by a kill")
    trainer.train(config_of(data, tmp_path, 7, "seed=4"), resume=True, progress=False)
    for seed in ("seed_4", "seed_5"):
        assert_equal(saved(whole / seed), saved(tmp_path / seed))
        assert [line["step"] for line in lines(tmp_path / seed)] == [2, 4, 6, 7]


def test_a_run_that_ends_between_the_checkpoints_of_two_seeds_loses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, save = config_of(data, tmp_path, 6, "training.keep_checkpoints=1"), checkpoint.save

    def full(folder: Path, step: int, *rest: Any, **more: Any) -> Path:
        if (folder.parent.name, step) == ("seed_1", 6):
            raise GtpVisionError("the disk is full")
        return save(folder, step, *rest, **more)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(GtpVisionError, match="the disk is full"):
        trainer.train(config, progress=False)
    monkeypatch.undo()
    found = checkpoint.newest_of_all([tmp_path / "seed_0" / "checkpoints", tmp_path / "seed_1" / "checkpoints"])
    assert [path.name for path in found or ()] == ["step_3", "step_3"]
    trainer.train(config, resume=True, progress=False)
    for seed in ("seed_0", "seed_1"):
        assert [path.name for path in (tmp_path / seed / "checkpoints").glob("step_*")] == ["step_6"]


def test_refused_changes_leave_the_old_run(data: Path, tmp_path: Path) -> None:
    trainer.train(config_of(data, tmp_path, 3), progress=False)
    for config, how, words in (
        (
            config_of(data, tmp_path, 6, seeds=3),
            "resume",
            "training.seeds=2, and cannot be resumed with training.seeds=3",
        ),
        (config_of(data, tmp_path, 3, "training.engine=graph"), "overwrite", "CUDA graph"),
    ):
        with pytest.raises(GtpVisionError, match=words):
            trainer.train(config, progress=False, **{how: True})
        assert checkpoint.newest(tmp_path / "seed_0" / "checkpoints") is not None


def test_seeds_that_cannot_share_features_are_refused(pixels: Path, tmp_path: Path) -> None:
    config = config_of(pixels, tmp_path / "run", 1, "encoder=impala_tiny")
    with pytest.raises(GtpVisionError, match=r"'front'.*encoder\.tuning=frozen"):
        trainer.train(config, progress=False)


def test_the_summary_holds_means_over_seeds() -> None:
    names = ("task", "env", "dataset", "agent", "family", "encoder", "steps", "step", "data", "engine", "device")
    ends = [{"success": success, "return": 0.0, "length": 9.0} for success in (0.5, 0.7, 0.9)]
    runs = [
        dict.fromkeys((*names, "versions"), "x") | {"seed": k, "train_seconds": 1.0, "last": end}
        for k, end in enumerate(ends)
    ]
    last = summary(runs)["last"]
    assert (last["success"], last["success_error"]) == pytest.approx((0.7, 0.2 / 3**0.5))
    assert last["success_by_seed"] == [0.5, 0.7, 0.9]
    runs[1]["last"]["success"] = None  # type: ignore[index]
    unknown = summary(runs)["last"]
    assert (unknown["success"], unknown["success_error"], unknown["return"]) == (None, None, 0)
