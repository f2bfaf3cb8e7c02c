import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.sources import HostSource
from gtp_vision.training import eager as updates
from gtp_vision.training import trainer
from gtp_vision.training.build import build

TINY = [
    "task=demo",
    "training=demo",
    "agent=gtp_demo",
    "encoder=demo",
    "training.batch_size=8",
    "training.eval_episodes=0",
    "training.log_every=2",
    "training.checkpoint_every=3",
    "agent.policy.hidden=[16]",
    "agent.critic.hidden=[16]",
    "encoder.features=16",
]


def _config(folder: Path, *more: str) -> Config:
    return from_command_line([*TINY, f"run_dir={folder}", *more])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / "last"
    return load_file(path / "agent.safetensors") | load_file(path / "optimizer.safetensors")


def _assert_equal_runs(one: Path, other: Path) -> None:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing


def test_two_steps_then_resumed_to_four_equal_four(tmp_path: Path) -> None:
    trainer.train(_config(tmp_path / "whole", "training.steps=4", "training.schedule=constant"), progress=False)
    halves = tmp_path / "halves"
    trainer.train(_config(halves, "training.steps=2", "training.schedule=constant"), progress=False)
    resumed = trainer.train(
        _config(halves, "training.steps=4", "training.schedule=constant"), resume=True, progress=False
    )
    assert resumed["steps"] == 4
    _assert_equal_runs(tmp_path / "whole", halves)


TUNED = {
    "layerwise": ["encoder.tuning=layerwise", "encoder.decay=0.5", "encoder.unfreeze_step=1", "encoder.share=false"],
    "lora": ["encoder.tuning=lora", "encoder.lora.rank=2", "training.clip_gradient=1.0"],
    "frozen": ["encoder.tuning=frozen", "encoder.cache=false", "encoder.share=false"],
}


@pytest.mark.parametrize("tuning", TUNED)
def test_a_tuned_run_resumed_equals_the_whole(tmp_path: Path, tuning: str) -> None:
    more = [*TUNED[tuning], "training.schedule=constant"]
    trainer.train(_config(tmp_path / "whole", "training.steps=5", *more), progress=False)
    halves = tmp_path / "halves"
    trainer.train(_config(halves, "training.steps=2", *more), progress=False)
    trainer.train(_config(halves, "training.steps=5", *more), resume=True, progress=False)
    _assert_equal_runs(tmp_path / "whole", halves)


def test_a_run_goes_on_with_its_own_tuning_only(tmp_path: Path) -> None:
    trainer.train(_config(tmp_path, "training.steps=1"), progress=False)
    with pytest.raises(
        GtpVisionError, match=r"optimizer\.safetensors was written while .* encoder\.tuning that it was"
    ):
        trainer.train(_config(tmp_path, "training.steps=2", "encoder.tuning=partial"), resume=True, progress=False)


def test_groups_learn_at_their_own_rates_and_all_are_clipped(tmp_path: Path) -> None:
    more = ["encoder.tuning=layerwise", "encoder.decay=0.5", "encoder.learning_rate_scale=0.1"]
    config = _config(tmp_path, "encoder.unfreeze_step=1", "training.clip_gradient=1e-3", *more)
    parts = build(config)
    for step, scales in enumerate([[1, 0, 0], [1, 0.05, 0.1]]):
        metrics = updates.Eager(HostSource(parts.sampler), config, parts).step(step, parts.sampler.batch(step))[0]
        rate = updates.learning_rate(config, step)
        assert [group["lr"] for group in parts.optimizer.param_groups] == pytest.approx([rate * s for s in scales])
    gradients = [p.grad for group in parts.optimizer.param_groups for p in group["params"] if p.grad is not None]
    assert float(metrics["gradient_norm"]) > 1e-3
    assert float(torch.stack([gradient.norm() for gradient in gradients]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_run_tells_what_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = trainer.train(_config(tmp_path / "full", "training.steps=1"))
    assert f"{results['trained_parameters']:,} trained parameters, learning rate " in capsys.readouterr().err
    assert results["parameters"] == results["trained_parameters"]
    partial = trainer.train(_config(tmp_path / "partial", "training.steps=1", "encoder.tuning=partial"))
    told = capsys.readouterr().err
    assert "encoder.tuning=partial" in told
    assert "actor_encoder: layers.0 to layers.2" in told
    assert partial["parameters"] == results["parameters"] > partial["trained_parameters"]


BDM = [
    *("agent=bdm", "agent.improvement.pretrain_steps=3", "agent.improvement.support_actions=3"),
    *("agent.improvement.support_steps=2", "agent.acting.steps=2", "training.schedule=constant"),
]


def test_alignment_resumed_before_when_and_after_its_behaviour_is_frozen_equals_the_whole(tmp_path: Path) -> None:
    trainer.train(_config(tmp_path / "whole", *BDM, "training.steps=5"), progress=False)
    for stop in (2, 3, 4):
        halves = tmp_path / f"stopped at {stop}"
        stopped = _config(halves, *BDM, "training.steps=5")
        stopped.training.steps = stop  # as an interruption would; such a run on its own is refused
        trainer.train(stopped, progress=False)
        trainer.train(_config(halves, *BDM, "training.steps=5"), resume=True, progress=False)
        _assert_equal_runs(tmp_path / "whole", halves)
    found = _weights(tmp_path / "whole")
    name = "observe.weight"
    assert not torch.equal(found[f"policy.{name}"], found[f"improvement.behaviour.{name}"])


def test_ctrl_c_then_resume_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    steps = "training.steps=40"
    trainer.train(_config(tmp_path / "whole", steps), progress=False)
    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "gtp_vision", "train"]
    overrides = [*TINY, f"run_dir={broken}", steps]
    running = subprocess.Popen(
        [*command, *overrides], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": _threads()}
    )
    deadline = time.monotonic() + 120
    while not (broken / "checkpoints" / "step_3").exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=120)[1]
    assert running.returncode == 130, told
    assert f"--resume {broken}" in told
    stopped = json.loads((broken / "checkpoints" / "last" / "state.json").read_text())["step"]
    assert 3 <= stopped < 40
    resumed = subprocess.run(
        [*command, "--resume", str(broken)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": _threads()},
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {stopped}" in resumed.stdout
    _assert_equal_runs(tmp_path / "whole", broken)
    lines = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == 40


def test_a_run_that_ended_before_its_evaluation_evaluates_when_resumed(tmp_path: Path) -> None:
    trainer.train(_config(tmp_path, "training.steps=2"), progress=False)
    more = ["training.eval_episodes=1", "task.max_episode_steps=2", "training.videos=0"]
    results = trainer.train(_config(tmp_path, "training.steps=2", *more), resume=True, progress=False)
    assert [found["step"] for found in results["evaluations"]] == [2]
    again = trainer.train(_config(tmp_path, "training.steps=2", *more), resume=True, progress=False)
    assert again["evaluations"] == results["evaluations"]


def test_sigterm_during_an_evaluation_ends_the_run_with_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [*TINY, f"run_dir={run}", "training.steps=2", "training.eval_episodes=40", "training.videos=0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "gtp_vision", "train", *overrides], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step_2").exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    told = running.communicate(timeout=120)[1]
    assert running.returncode == 130, told
    assert "stopped at step 2 of 2" in told
    assert "Traceback" not in told
    assert (run / "checkpoints" / "last").resolve().name == "step_2"


def _threads() -> str:
    return str(torch.get_num_threads())  # sums of convolutions depend on it


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    overrides = [*TINY, "training.steps=4", "training.batch_size=16"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    trainer.train(_config(tmp_path / "one", *overrides[len(TINY) :]), progress=False)
    ran = subprocess.run(
        [*launcher, "-m", "gtp_vision", "train", *overrides, f"run_dir={tmp_path / 'two'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("report: ") == 1
    assert json.loads((tmp_path / "two" / "results.json").read_text())["processes"] == 2
    one, two = (load_file(tmp_path / n / "checkpoints" / "last" / "agent.safetensors") for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_an_occupied_run_folder_is_refused_and_overwrite_replaces_it(tmp_path: Path) -> None:
    config = _config(tmp_path, "training.steps=1")
    trainer.train(config, progress=False)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(GtpVisionError, match=r"holds a run already; give --resume .* --overwrite"):
        trainer.train(config, progress=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    trainer.train(config, overwrite=True, progress=False)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_value_that_is_not_finite_stops_the_run_with_step_and_metric(tmp_path: Path) -> None:
    config = _config(tmp_path, "agent=gtp_bc_demo", "training.steps=6", "training.learning_rate=1e38")
    with pytest.raises(GtpVisionError, match=r"step [1-6]: .*loss.* is not finite; the last good checkpoint is"):
        trainer.train(config, progress=False)


def test_weights_of_a_critic_that_ran_away_stop_the_run_with_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path, "training.steps=6", "training.log_every=3")
    plain = updates.Eager.step

    def runs_away(engine: updates.Eager, step: int, fetched: Any) -> Any:
        if step == 4:
            with torch.no_grad():
                next(engine._parts.agent.critic.parameters()).fill_(float("nan"))
        return plain(engine, step, fetched)

    monkeypatch.setattr(updates.Eager, "step", runs_away)
    with pytest.raises(GtpVisionError, match=r"step 5: .*is not finite.*last good checkpoint is"):
        trainer.train(config, progress=False)


def test_resuming_with_another_architecture_is_refused(tmp_path: Path) -> None:
    trainer.train(_config(tmp_path, "training.steps=1"), progress=False)
    other = _config(tmp_path, "training.steps=2", "agent.policy.hidden=[32]")
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(GtpVisionError, match="another architecture"):
        trainer.train(other, resume=True, progress=False)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(GtpVisionError, match=r"training\.device=cuda.*training\.device=auto"):
        trainer.train(_config(tmp_path, "training.device=cuda"), progress=False)


def test_a_missing_official_data_set_says_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    config = from_command_line(
        ["task=ogbench/visual-cube-single-play-singletask-task1", f"data_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    )
    with pytest.raises(GtpVisionError, match=r"put visual-cube-single-play-v0\.npz and .* into"):
        trainer.train(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_what_evaluation_will_need_is_checked_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GtpVisionError, match="no OGBench environment 'visual-puzle-3x3"):
        trainer.train(
            _config(tmp_path, "training.eval_episodes=1", "task.env=visual-puzle-3x3-singletask-task1"), progress=False
        )
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(GtpVisionError, match="no OpenGL library"):
        trainer.train(_config(tmp_path, "training.eval_episodes=1"), progress=False)
    assert not list(tmp_path.iterdir())


def test_schedules() -> None:
    config = from_command_line(["task=demo", "training.steps=100", "training.warmup_steps=10"])
    assert updates.learning_rate(config, 0) == pytest.approx(3e-5)
    assert updates.learning_rate(config, 50) == pytest.approx(3e-4)
    config.training.schedule = "cosine"
    assert updates.learning_rate(config, 50) == pytest.approx(1.5e-4)
    assert updates.learning_rate(config, 99) < 1e-6


def test_gtp_bc_trains_from_pixels(tmp_path: Path) -> None:
    results = trainer.train(_config(tmp_path, "agent=gtp_bc_demo", "training.steps=2"), progress=False)
    assert results["agent"] == "gtp_bc"
    assert "critic" not in (tmp_path / "metrics.jsonl").read_text()
    assert (tmp_path / "images" / "first_batch.png").stat().st_size > 1000
    assert (tmp_path / "report.html").exists()
