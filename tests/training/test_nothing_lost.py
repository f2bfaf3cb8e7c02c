import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from small_runs import STATES, assert_equal, composed, lines, saved, small

from gtp_vision.cli.main import main
from gtp_vision.config.schema import Config
from gtp_vision.core import manifest
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import checkpoint, eager, prepare, trainer
from gtp_vision.training.build import Components
from gtp_vision.training.ranks import report_lost_ranks

pytestmark = pytest.mark.trains
SMALL = [*STATES, *small("gtp"), "training.batch_size=8", "training.log_every=4", "training.steps=10"]
SMALL += ["training.schedule=cosine", "training.warmup_steps=4"]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(config_of(data, folder), progress=False)
    return folder


@pytest.fixture
def finished(whole: Path, config: Config) -> Config:
    shutil.copytree(whole, config.run_dir, symlinks=True)
    return config


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Config:
    return config_of(data, tmp_path / "run")


def config_of(data: Path, folder: Path, *more: str) -> Config:
    return composed(*SMALL, f"task.dataset={data}", f"run_dir={folder}", *more)


def timeless(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")} for line in lines(folder)]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert_equal(saved(one), saved(other))
    assert timeless(one) == timeless(other)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_resumes_bit_equal(
    whole: Path, config: Config, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    plain = eager.Eager.step

    def send(engine: eager.Eager, step: int, fetched: Any) -> Any:
        if step == 5:
            os.kill(os.getpid(), number)
        return plain(engine, step, fetched)

    with monkeypatch.context() as patched:
        patched.setattr(eager.Eager, "step", send)
        with pytest.raises(trainer.InterruptedRunError, match="step 6 of 10") as raised:
            trainer.train(config, progress=False)
    assert raised.value.exit_status == 130
    trainer.train(config, resume=True, progress=False)
    assert [line["step"] for line in timeless(Path(config.run_dir))] == [4, 8, 10]
    assert_equal_runs(whole, Path(config.run_dir))


def test_a_damaged_checkpoint_is_named_and_skipped(
    whole: Path, finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = Path(finished.run_dir) / "checkpoints" / "step_10"
    weights = bytearray((newest / "agent.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "agent.safetensors").write_bytes(weights)
    trainer.train(finished, resume=True, progress=False)
    printed = capsys.readouterr()
    assert f"the checkpoint {newest} is damaged: {newest / 'agent.safetensors'} differs" in printed.err
    assert "from step 9" in printed.out
    assert_equal_runs(whole, Path(finished.run_dir))


def test_a_run_without_an_undamaged_checkpoint_is_not_started_over(finished: Config) -> None:
    checkpoints = Path(finished.run_dir) / "checkpoints"
    before = sorted(path.name for path in checkpoints.glob("step_*"))
    for name in before:
        (checkpoints / name / "manifest.json").write_text("[]")
    with pytest.raises(GtpVisionError, match=r"step_10 is damaged: .* start over with --overwrite"):
        trainer.train(finished, resume=True, progress=False)
    assert sorted(path.name for path in checkpoints.glob("step_*")) == before


def test_temporary_files_of_killed_processes_are_removed_and_links_corrected(
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
    checkpoint.link(run / "checkpoints", "last", run / "checkpoints" / "step_9")  # as a kill before the link leaves it
    trainer.train(finished, resume=True, progress=False)
    printed = capsys.readouterr()
    assert f".results.json.{dead}.part" in printed.err
    assert "from step 10" in printed.out
    assert {path.name for path in run.rglob(".*")} - {".lock"} == {f".report.html.{alive}.part"}
    assert (run / "checkpoints" / "last").resolve().name == "step_10"


@pytest.mark.parametrize("how", ["--overwrite", "--resume"])
def test_a_second_training_in_a_folder_is_refused(
    finished: Config, how: str, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    run = Path(finished.run_dir)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with FileLock(run / ".lock"):
        more = [str(run)] if how == "--resume" else [*SMALL, f"task.dataset={data}", f"run_dir={run}"]
        assert main(["train", how, *more]) == 2
    assert f" trains in {run}; wait for it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_slower_of_two_that_begin_is_refused(config: Config, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prepare.build

    def slow(*arguments: Any, **more: Any) -> Components:
        monkeypatch.setattr(prepare, "build", plain)
        trainer.train(config_of(data, Path(config.run_dir), "training.steps=3"), progress=False)
        return plain(*arguments, **more)

    monkeypatch.setattr(prepare, "build", slow)
    with pytest.raises(GtpVisionError, match="already holds a run"):
        trainer.train(config, progress=False)
    assert checkpoint.newest(Path(config.run_dir) / "checkpoints") is not None


def test_an_error_in_one_process_is_not_a_lost_rank(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="connection closed"), report_lost_ranks(tmp_path):
        raise RuntimeError("connection closed by peer")


HEADERS = {
    "huge": (1 << 60).to_bytes(8, "little") + b"{}",
    "empty": b"",
    "no JSON": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "beyond the file": (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4]}}',
}
FORGED = {
    "another step": ("state.json", b'{"step": 3, "train_seconds": 0.0}'),
    "metrics of words": ("state.json", b'{"step": 10, "train_seconds": 0.0, "metrics": [{"loss": "x"}]}'),
    "no metrics": ("state.json", b'{"step": 10, "train_seconds": 0.0, "metrics": {"loss": 1}}'),
    "no seconds": ("state.json", b'{"step": 10}'),
    "endless seconds": ("state.json", b'{"step": 10, "train_seconds": Infinity}'),
    **{f"agent {name}": ("agent.safetensors", header) for name, header in HEADERS.items()},
    "optimizer huge": ("optimizer.safetensors", HEADERS["huge"]),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_file_with_a_valid_manifest_is_refused(finished: Config, case: str) -> None:
    name, content = FORGED[case]
    path = Path(finished.run_dir) / "checkpoints" / "step_10"
    (path / name).write_bytes(content)
    manifest.write_manifest(path)
    with pytest.raises(GtpVisionError, match="safetensors file" if name.endswith("tensors") else "state.json"):
        trainer.train(finished, resume=True, progress=False)


def test_moments_of_other_shapes_and_a_pipe_are_refused(finished: Config) -> None:
    path = Path(finished.run_dir) / "checkpoints" / "step_10"
    moments = load_file(path / "optimizer.safetensors")
    key = sorted(name for name in moments if name.endswith(".exp_avg"))[0]
    for strange in (torch.zeros(7), moments[key].double()):
        save_file(moments | {key: strange}, path / "optimizer.safetensors")
        manifest.write_manifest(path)
        with pytest.raises(GtpVisionError, match=rf"holds '{key}'"):
            trainer.train(finished, resume=True, progress=False)
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")
    assert "state.json is missing" in checkpoint.problem(path)
