"""What kills, damage and second trainings leave of a run folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from gtp_vision.cli.main import main
from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training import checkpoint, trainer
from gtp_vision.training import eager as updates
from gtp_vision.training.build import Components
from gtp_vision.training.ranks import report_lost_ranks

SMALL = [
    *("task=own", "task.name=small", "agent=gtp", "encoder=state", "training.device=cpu", "training.eval_episodes=0"),
    *("training.batch_size=8", "training.log_every=4", "training.checkpoint_every=3", "agent.policy.hidden=[16]"),
    *("agent.critic.hidden=[16]", "training.steps=10", "training.schedule=cosine", "training.warmup_steps=4"),
]


@pytest.fixture(scope="module")
def data(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.write(tmp_path_factory.mktemp("data") / "states.h5", make_store((30, 40), terminals={29}))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(config_of(data, folder), progress=False)
    return folder


@pytest.fixture
def finished(whole: Path, config: Config) -> Config:
    """The configuration of a copy of it."""
    shutil.copytree(whole, config.run_dir, symlinks=True)
    return config


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Config:
    return config_of(data, tmp_path / "run")


def config_of(data: Path, folder: Path, *more: str) -> Config:
    return from_command_line([*SMALL, f"task.dataset={data}", f"run_dir={folder}", *more])


def timeless(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")} for line in lines]


def assert_equal_runs(one: Path, other: Path) -> None:
    for part in ("agent", "optimizer"):
        first, second = (load_file(run / "checkpoints" / "last" / f"{part}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        assert not [name for name in first if not torch.equal(first[name], second[name])]
    assert timeless(one) == timeless(other)


def strike(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of a step."""
    plain = updates.Eager.step

    def struck(engine: updates.Eager, now: int, fetched: Any) -> Any:
        if now + 1 == step:
            os.kill(os.getpid(), number)
        return plain(engine, now, fetched)

    monkeypatch.setattr(updates.Eager, "step", struck)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_each_signal_ends_a_run_with_a_checkpoint_and_its_lines_come_out_as_if_it_had_not(
    whole: Path, config: Config, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with monkeypatch.context() as patched:
        strike(patched, 6, number)
        with pytest.raises(trainer.InterruptedRunError) as told:
            trainer.train(config, progress=False)
    assert told.value.exit_status == 130
    assert "stopped at step 6 of 10" in str(told.value)
    trainer.train(config, resume=True, progress=False)
    assert [line["step"] for line in timeless(Path(config.run_dir))] == [4, 8, 10]
    assert_equal_runs(whole, Path(config.run_dir))


def test_a_damaged_checkpoint_is_named_when_it_is_passed_over(
    whole: Path, finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished
    newest = Path(config.run_dir) / "checkpoints" / "step_10"
    weights = bytearray((newest / "agent.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "agent.safetensors").write_bytes(weights)
    trainer.train(config, resume=True, progress=False)
    told = capsys.readouterr()
    assert f"warning: the checkpoint {newest} is damaged: {newest / 'agent.safetensors'} differs" in told.err
    assert "going on from step 9" in told.out
    assert_equal_runs(whole, Path(config.run_dir))


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_over_them(finished: Config) -> None:
    checkpoints = Path(finished.run_dir) / "checkpoints"
    held = sorted(path.name for path in checkpoints.glob("step_*"))
    for name in held:
        (checkpoints / name / "manifest.json").write_text("[]")
    with pytest.raises(GtpVisionError, match=r"step_10 is damaged: .* start over with --overwrite"):
        trainer.train(finished, resume=True, progress=False)
    assert sorted(path.name for path in checkpoints.glob("step_*")) == held


def test_links_are_those_of_the_step_that_is_gone_on_from(finished: Config) -> None:
    checkpoints = Path(finished.run_dir) / "checkpoints"
    checkpoint.link(checkpoints, "last", checkpoints / "step_9")  # as a kill leaves it between rename and link
    trainer.train(finished, resume=True, progress=False)
    assert (checkpoints / "last").resolve().name == "step_10"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(finished.run_dir)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive = gone.pid, os.getppid()
    (run / f".results.json.{dead}.part").write_text("{")
    (run / "checkpoints" / f".step_12.{dead}.part").mkdir()
    (run / "checkpoints" / f".last.{dead}.link").symlink_to("step_10")
    (run / "checkpoints" / "step_10").rename(run / "checkpoints" / f".step_10.{dead}.old")
    (run / f".report.html.{alive}.part").write_text("<html>")
    trainer.train(finished, resume=True, progress=False)
    told = capsys.readouterr()
    assert f"removed temporary files of a killed process: .results.json.{dead}.part" in told.err
    assert "going on from step 10" in told.out
    hidden = {path.name for path in run.rglob(".*")} - {".lock"}
    assert hidden == {f".report.html.{alive}.part"}


@pytest.mark.parametrize("how", ["--overwrite", "--resume"])
def test_a_second_training_in_a_folder_is_refused(
    finished: Config, how: str, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    run = Path(finished.run_dir)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with FileLock(run / ".lock"):
        more = [str(run)] if how == "--resume" else [*SMALL, f"task.dataset={data}", f"run_dir={run}"]
        assert main.main(["train", how, *more]) == 2
    assert f" trains in {run}; wait for it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    trainer.train(finished, overwrite=True, progress=False)


def test_of_two_that_begin_the_slower_is_refused(config: Config, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer.build

    def slow(*arguments: Any, **more: Any) -> Components:
        monkeypatch.setattr(trainer, "build", plain)
        trainer.train(config_of(data, Path(config.run_dir), "training.steps=3"), progress=False)
        return plain(*arguments, **more)

    monkeypatch.setattr(trainer, "build", slow)
    with pytest.raises(GtpVisionError, match="holds a run already"):
        trainer.train(config, progress=False)
    assert checkpoint.newest(Path(config.run_dir) / "checkpoints") is not None


def test_an_error_of_the_machine_is_no_lost_process(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="connection closed"), report_lost_ranks(tmp_path):
        raise RuntimeError("connection closed by peer")  # of one process alone


STATES = {
    "another step": {"step": 3, "train_seconds": 0.0},
    "metrics of words": {"step": 10, "train_seconds": 0.0, "metrics": [{"loss": "x"}]},
    "no metrics": {"step": 10, "train_seconds": 0.0, "metrics": {"loss": 1}},
    "no seconds": {"step": 10},
    "endless seconds": {"step": 10, "train_seconds": float("inf")},
}


@pytest.mark.parametrize("state", sorted(STATES))
def test_a_state_that_somebody_wrote_is_refused_in_a_sentence(
    finished: Config, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(finished.run_dir) / "checkpoints" / "step_10"
    (path / "state.json").write_text(json.dumps(STATES[state]))
    reseal(path)
    assert main.main(["train", "--resume", finished.run_dir]) == 2
    assert "state.json" in capsys.readouterr().err


def reseal(folder: Path) -> None:
    """As somebody would who wants a checkpoint of his to be believed."""
    from gtp_vision.core import manifest

    manifest.write_manifest(folder)


HEADERS = {
    "huge": (1 << 60).to_bytes(8, "little") + b"{}",
    "empty": b"",
    "no JSON": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "beyond the file": (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("header", sorted(HEADERS))
@pytest.mark.parametrize("part", ["agent", "optimizer"])
def test_a_sealed_file_that_is_no_safetensors_is_refused(finished: Config, header: str, part: str) -> None:
    path = Path(finished.run_dir) / "checkpoints" / "step_10"
    (path / f"{part}.safetensors").write_bytes(HEADERS[header])
    reseal(path)
    with pytest.raises(GtpVisionError, match="is not a safetensors file"):
        trainer.train(finished, resume=True, progress=False)


def test_moments_of_other_shapes_and_a_pipe_are_refused(finished: Config) -> None:
    from safetensors.torch import save_file

    path = Path(finished.run_dir) / "checkpoints" / "step_10"
    moments = load_file(path / "optimizer.safetensors")
    key = sorted(name for name in moments if name.endswith(".exp_avg"))[0]
    for strange in (torch.zeros(7), moments[key].double()):
        save_file(moments | {key: strange}, path / "optimizer.safetensors")
        reseal(path)
        with pytest.raises(GtpVisionError, match=rf"holds '{key}'"):
            trainer.train(finished, resume=True, progress=False)
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")
    assert "state.json is missing" in checkpoint.problem(path)
