"""Seeds that are trained side by side are runs of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gtp_vision.cli.main import main
from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training import checkpoint, trainer
from gtp_vision.training.evaluate import restore
from gtp_vision.training.seeds import summary

SMALL = [
    *("task=own", "task.name=small", "agent=gtp", "encoder=state", "training.device=cpu", "training.eval_episodes=0"),
    *("training.batch_size=16", "training.log_every=2", "training.checkpoint_every=3", "agent.policy.hidden=[16]"),
    *("agent.critic.hidden=[16]", "agent.policy.grid=2", "agent.critic.next_steps=2", "training.learning_rate=1e-3"),
]


@pytest.fixture(scope="module")
def data(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.write(tmp_path_factory.mktemp("data") / "states.h5", make_store((30, 40), terminals={29}))


def config_of(data: Path, folder: Path, *more: str) -> Config:
    return from_command_line([*SMALL, f"task.dataset={data}", f"run_dir={folder}", *more])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / "last"
    return load_file(path / "agent.safetensors") | load_file(path / "optimizer.safetensors")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_seed_is_a_run_of_its_own_and_the_report_shows_all(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    results = trainer.train(config_of(data, whole, "training.steps=5", "training.seeds=2", "seed=4"))
    assert "engine: eager" in capsys.readouterr().err
    assert results["seeds"] == [4, 5]
    for seed in (4, 5):
        alone = tmp_path / f"alone_{seed}"
        trainer.train(config_of(data, alone, "training.steps=5", f"seed={seed}"), progress=False)
        inside, single = weights(whole / f"seed_{seed}"), weights(alone)
        assert inside.keys() == single.keys()
        for name, value in single.items():
            torch.testing.assert_close(inside[name], value, rtol=1e-3, atol=1e-4, msg=name)
        assert losses(whole / f"seed_{seed}") == pytest.approx(losses(alone), rel=1e-3)
        config, parts = restore(whole / f"seed_{seed}")
        assert (config.seed, config.training.seeds) == (seed, 1)
        assert torch.equal(parts.agent.policy.observe.weight, inside["policy.observe.weight"])
    assert not np.allclose(losses(whole / "seed_4"), losses(whole / "seed_5"))
    page = (whole / "report.html").read_text()
    assert "seed_4" in page
    assert "seed_5" in page
    assert json.loads((whole / "results.json").read_text())["runs"][1]["seed"] == 5


def test_seeds_go_on_from_the_step_that_all_of_them_have(data: Path, tmp_path: Path) -> None:
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    trainer.train(config_of(data, straight, "training.steps=7", "training.seeds=2"), progress=False)
    trainer.train(config_of(data, halves, "training.steps=6", "training.seeds=2"), progress=False)
    (halves / "seed_1" / "checkpoints" / "step_6" / "agent.safetensors").write_bytes(b"cut off by a kill")
    resumed = config_of(data, halves, "training.steps=7", "training.seeds=2")
    trainer.train(resumed, resume=True, progress=False)
    for seed in ("seed_0", "seed_1"):
        once, twice = weights(straight / seed), weights(halves / seed)
        assert not [name for name in once if not torch.equal(once[name], twice[name])]
        steps = [json.loads(line)["step"] for line in (halves / seed / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4, 6, 7]


def test_a_run_that_ends_between_two_seeds_checkpoints_loses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(data, tmp_path, "training.steps=6", "training.seeds=2", "training.keep_checkpoints=1")
    saved = checkpoint.save

    def full(folder: Path, step: int, *rest: Any, **more: Any) -> Path:
        if (folder.parent.name, step) == ("seed_1", 6):
            raise GtpVisionError("the disk is full")
        return saved(folder, step, *rest, **more)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(GtpVisionError, match="the disk is full"):
        trainer.train(config, progress=False)
    monkeypatch.undo()
    found = checkpoint.newest_of_all([tmp_path / "seed_0" / "checkpoints", tmp_path / "seed_1" / "checkpoints"])
    assert found is not None
    assert found[0].name == "step_3"
    trainer.train(config, resume=True, progress=False)
    for seed in ("seed_0", "seed_1"):
        assert [path.name for path in (tmp_path / seed / "checkpoints").glob("step_*")] == ["step_6"]


def test_more_seeds_than_a_run_has_are_not_begun_over_its_checkpoints(data: Path, tmp_path: Path) -> None:
    trainer.train(config_of(data, tmp_path, "training.steps=3", "training.seeds=2"), progress=False)
    with pytest.raises(GtpVisionError, match=r"whole checkpoint \(newest: seed_0: 3, seed_1: 3, seed_2: none\)"):
        trainer.train(config_of(data, tmp_path, "training.steps=6", "training.seeds=3"), resume=True, progress=False)
    assert checkpoint.newest(tmp_path / "seed_0" / "checkpoints") is not None


def test_an_engine_that_cannot_be_costs_no_old_run(data: Path, tmp_path: Path) -> None:
    trainer.train(config_of(data, tmp_path, "training.steps=3"), progress=False)
    with pytest.raises(GtpVisionError, match="captures a CUDA graph"):
        trainer.train(config_of(data, tmp_path, "training.engine=graph"), overwrite=True, progress=False)
    assert checkpoint.newest(tmp_path / "checkpoints") is not None


def test_one_seed_of_several_can_be_named_to_eval_and_all_cannot(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train(config_of(data, tmp_path, "training.steps=1", "training.seeds=2"), progress=False)
    assert main.main(["eval", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "holds 2 runs" in told
    assert str(tmp_path / "seed_0") in told
    assert main.main(["report", str(tmp_path), "--out", str(tmp_path / "again.html")]) == 0
    assert "seed_1" in (tmp_path / "again.html").read_text()


def test_seeds_that_cannot_share_what_they_see_are_refused(
    make_store: Callable[..., Store], data: Path, tmp_path: Path
) -> None:
    store = make_store((20,), cameras={"front": (12, 12, 3)}, state=None)
    pixels = native.write(tmp_path / "pixels.h5", store)
    more = ["training.seeds=2", "encoder=impala_tiny"]
    with pytest.raises(GtpVisionError, match="camera 'front' differently for each seed; freeze trained weights"):
        trainer.train(config_of(pixels, tmp_path / "run", *more), progress=False)
    with pytest.raises(GtpVisionError, match=r"training.seeds=0 must be within \[1, 64\]"):
        config_of(data, tmp_path, "training.seeds=0")


def test_the_summary_holds_means_over_seeds() -> None:
    shared = dict.fromkeys(("task", "env", "dataset", "agent", "family", "encoder", "steps", "engine", "device"), "x")
    found = [
        {
            **shared,
            "versions": {},
            "seed": seed,
            "train_seconds": 1.0,
            when: {"success": s, "return": 0.0, "length": 9.0},
        }
        for when in ("last",)
        for seed, s in ((0, 0.5), (1, 0.7), (2, 0.9))
    ]
    told = summary(found)["last"]
    assert told["success"] == pytest.approx(0.7)
    assert told["success_by_seed"] == [0.5, 0.7, 0.9]
    assert told["success_error"] == pytest.approx(0.2 / 3**0.5)
