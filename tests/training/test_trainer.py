from pathlib import Path

import pytest
import torch
from commands import CLI, started, wait_for
from engines_of import engine_of
from small_runs import PIXELS, STATES, assert_equal, composed, lines, saved, small, small_run

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import trainer
from gtp_vision.training.build import build
from gtp_vision.training.eager import learning_rate

DEMO = ["task=demo", "task.max_episode_steps=2", *STATES[2:], *PIXELS, "training.videos=0"]  # with a simulator


def config_of(data: Path, run: Path, *more: str, agent: str = "gtp") -> Config:
    seen = [] if PIXELS[0] in more else ["task.observations=[state]"]
    return small_run(data, run, "training.schedule=constant", *seen, *more, agent=agent)


def demo(run: Path, *more: str) -> Config:
    return composed(*DEMO, *small("gtp"), f"run_dir={run}", *more)


RESUMED = {
    "states": ("gtp", []),
    "layerwise": ("gtp", [*PIXELS, "encoder.tuning=layerwise", "encoder.unfreeze_step=1", "encoder.share=false"]),
    "lora": ("gtp", [*PIXELS, "encoder.tuning=lora", "encoder.lora.rank=2", "training.clip_gradient=1.0"]),
    "frozen": ("gtp", [*PIXELS, "encoder.tuning=frozen", "encoder.cache=false", "encoder.share=false"]),
    "bdm": ("bdm", ["agent.improvement.pretrain_steps=3"]),
    "cloned first": ("fql", ["agent.clone_steps=3"]),
}


@pytest.mark.trains
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_equals_the_whole(pixels: Path, tmp_path: Path, kind: str) -> None:
    agent, more = RESUMED[kind]

    def train(name: str, steps: int) -> None:
        config = config_of(pixels, tmp_path / name, *more, f"training.steps={steps}", agent=agent)
        trainer.train(config, resume=(tmp_path / name).exists(), progress=False)

    train("whole", 5)
    for stop in (2, 3, 4) if kind in ("bdm", "cloned first") else (2,):  # before, when and after its stage changes
        for steps in (stop, 5):
            train(f"stopped at {stop}", steps)
        assert_equal(saved(tmp_path / "whole"), saved(tmp_path / f"stopped at {stop}"))
    assert [line["step"] for line in lines(tmp_path / "whole")] == [2, 4, 5]


@pytest.mark.trains
def test_resuming_another_run_is_refused_and_occupied_folders_are_kept(pixels: Path, tmp_path: Path) -> None:
    config = config_of(pixels, tmp_path, *PIXELS, "training.steps=1")
    trainer.train(config, progress=False)
    before = {name: (tmp_path / name).read_bytes() for name in ("config.yaml", "metrics.jsonl")}
    for more, words in (
        (["encoder.tuning=partial"], r"encoder\.tuning: full -> partial"),
        (["agent.policy.hidden=[32]"], r"agent\.policy\.hidden: \[16\] -> \[32\]"),
    ):
        with pytest.raises(GtpVisionError, match=words):
            trainer.train(config_of(pixels, tmp_path, *PIXELS, *more, "training.steps=2"), resume=True, progress=False)
    with pytest.raises(GtpVisionError, match=r"--resume .* --overwrite"):
        trainer.train(config, progress=False)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    trainer.train(config, overwrite=True, progress=False)
    assert len(lines(tmp_path)) == 1


@pytest.mark.trains
@pytest.mark.processes
@pytest.mark.simulates
def test_sigterm_during_an_evaluation_ends_the_run_with_its_checkpoint(tmp_path: Path) -> None:
    overrides = [*DEMO, *small("gtp"), "training.steps=2", "training.eval_episodes=400", "task.max_episode_steps=500"]
    running = started(*CLI, "train", *overrides, f"run_dir={tmp_path}")
    wait_for((tmp_path / "checkpoints" / "step_2").exists, running, 300)
    running.terminate()
    message = running.communicate(timeout=300)[1]
    assert running.returncode == 130, message
    assert "Traceback" not in message
    assert "stopped at step 2 of 2" in message
    assert (tmp_path / "checkpoints" / "last").resolve().name == "step_2"


@pytest.mark.trains
@pytest.mark.simulates
def test_a_run_that_ended_before_its_evaluation_evaluates_when_resumed(tmp_path: Path) -> None:
    trainer.train(demo(tmp_path, "training.steps=2"), progress=False)
    config = demo(tmp_path, "training.steps=2", "training.eval_episodes=1")
    results = trainer.train(config, resume=True, progress=False)
    assert [found["step"] for found in results["evaluations"]] == [2]
    again = trainer.train(config, resume=True, progress=False)
    assert again["evaluations"] == results["evaluations"]


def test_groups_learn_at_their_own_rates_and_all_are_clipped(pixels: Path, tmp_path: Path) -> None:
    tuning = ["encoder.tuning=layerwise", "encoder.decay=0.5", "encoder.learning_rate_scale=0.1"]
    more = [*PIXELS, "encoder.unfreeze_step=1", "training.clip_gradient=1e-3", *tuning]
    config = config_of(pixels, tmp_path, *more)
    parts = build(config)
    engine = engine_of("eager", config, [parts])
    for step, scales in enumerate([[1, 0, 0], [1, 0.05, 0.1]]):
        metrics = engine.step(step, engine.source.fetch(step))[0]
        rate = learning_rate(config, step)
        assert [group["lr"] for group in parts.optimizer.param_groups] == pytest.approx([rate * s for s in scales])
    gradients = [p.grad for group in parts.optimizer.param_groups for p in group["params"] if p.grad is not None]
    assert float(metrics["gradient_norm"]) > 1e-3
    assert float(torch.stack([gradient.norm() for gradient in gradients]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_schedules(pixels: Path, tmp_path: Path) -> None:
    def rates(schedule: str) -> list[float]:
        more = ["training.warmup_steps=10", "training.learning_rate=3e-4", "training.steps=100"]
        config = config_of(pixels, tmp_path, *more, f"training.schedule={schedule}")
        return [learning_rate(config, step) for step in (0, 50, 99)]

    assert rates("constant") == pytest.approx([3e-5, 3e-4, 3e-4])
    assert rates("cosine") == pytest.approx([3e-5, 1.5e-4, 0], abs=1e-6)


@pytest.mark.trains
def test_a_run_from_pixels_says_what_it_trains(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = trainer.train(config_of(pixels, tmp_path / "full", *PIXELS, "training.steps=1", agent="gtp_bc"))
    assert f"{results['trained_parameters']:,} trained parameters, learning rate " in capsys.readouterr().err
    assert (tmp_path / "full" / "images" / "first_batch.png").stat().st_size > 1000
    assert (tmp_path / "full" / "report.html").exists()
    tuned = [*PIXELS, "encoder.tuning=partial", "training.steps=1"]
    partial = trainer.train(config_of(pixels, tmp_path / "partial", *tuned, agent="gtp_bc"))
    assert "actor_encoder: layers.0 to layers.2" in capsys.readouterr().err
    assert partial["parameters"] == results["trained_parameters"] > partial["trained_parameters"]


@pytest.mark.simulates
@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param(
            ["training.device=cuda"],
            r"training\.device=cuda.*training\.device=auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device"),
        ),
        (["training.eval_episodes=1", "task.env=visual-puzle-3x3-singletask-task1"], "visual-puzle-3x3"),
        (["training.eval_episodes=1"], "no OpenGL library"),
        (["agent.policy.hidden=[1000000000000,1000000000000]"], r"networks would take .* GB, and .* GB are free"),
        (["task=ogbench/visual-cube-single-play-singletask-task1", "data_dir=."], r"visual-cube-single-play-v0\.npz"),
    ],
)
def test_what_a_run_needs_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    if words == "no OpenGL library":
        monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GtpVisionError, match=words):
        trainer.train(demo(tmp_path / "run", *more), progress=False)
    assert not (tmp_path / "run").exists()
