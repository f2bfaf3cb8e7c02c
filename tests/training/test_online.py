"""Online fine-tuning: what is collected, what is learned from it, and a run that is stopped anywhere and resumed."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import PIXELS, assert_equal, lines, saved, small_run
from stores import make_store

from gtp_vision.agents import ActingConfig
from gtp_vision.config.compose import acting_while_collecting, from_command_line, from_run
from gtp_vision.config.schema import Config, OnlineConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.replay_store import ReplayStore
from gtp_vision.datasets.store import Store
from gtp_vision.envs import EnvSpec
from gtp_vision.training import checkpoint, segments, trainer
from gtp_vision.training.build import build
from gtp_vision.training.collector import episode_seed
from gtp_vision.training.evaluate import actor_of, restore
from gtp_vision.training.online import OnlineLoader
from gtp_vision.training.tracking import Meters

ENV = "gymnasium/training.toy_simulator:Toy-v0"
ROUND = 8  # steps of the simulator, and gradient steps
SETTINGS = (
    *(f"task.env={ENV}", "training.checkpoint_every=4", "training.keep_checkpoints=100", "training.eval_timeout=60"),
    *("online.steps=24", f"online.start={ROUND}", f"online.round={ROUND}", "online.ratio=0.25", "agent.action_chunk=2"),
    *("training.eval_envs=1", "training.videos=0"),
)


@pytest.fixture(autouse=True)
def _module_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # of collectors


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store((30, 40), terminals={29}, state=2, cameras={"front": (12, 12, 3)})
    return native.write(tmp_path_factory.mktemp("offline") / "data.h5", store)


def config_of(offline: Path, run: Path, *more: str) -> Config:
    seen = [] if PIXELS[0] in more else ["task.observations=[state]"]
    return small_run(offline, run, *SETTINGS, *seen, *more)


def resumed(run: Path, *more: str) -> Config:
    return dataclasses.replace(from_run(run, more), run_dir=str(run))


@pytest.fixture(scope="module")
def whole(offline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    run = tmp_path_factory.mktemp("online") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        trainer.train(config_of(offline, run, "training.eval_episodes=2", "training.eval_every=12"), progress=False)
    return run


@pytest.mark.parametrize(
    ("steps", "start", "size", "updates"), [(50_000, 1000, 1000, 1.0), (24, 8, 8, 0.5), (9, 9, 4, 3)]
)
def test_the_plan_of_rounds(steps: int, start: int, size: int, updates: float) -> None:
    online = OnlineConfig(steps=steps, start=start, round=size, updates=updates)
    collected = [start + number * size for number in range(online.rounds)]
    assert collected[-1] >= steps
    assert all(held < steps for held in collected[:-1])
    assert online.gradient_steps == online.rounds * math.ceil(size * updates)


@pytest.mark.parametrize(("acting", "candidates"), [(None, 1), ("best_of_n", 32)])
def test_an_agent_that_acts_without_noise_explores_with_it(acting: str | None, candidates: int) -> None:
    own = ActingConfig(noise=0, execute=2)
    collecting = acting_while_collecting(own, OnlineConfig(noise=0.5, acting=acting))
    assert collecting == dataclasses.replace(own, noise=0.5, candidates=candidates)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.env=null"], "task.env is null"),
        (["agent=gtp_bc"], "has no critic"),
        (["online.ratio=1.5"], "online.ratio=1.5 must be between 0 and 1"),
        (["online.start=100"], "at most online.steps=50"),
        (["training.seeds=2"], "seeds side by side"),
        (["training.placement=device"], "training.placement=mapped"),
        (["agent=iql", "online.acting=beam"], "online.acting=beam does not fit"),
        (["online.acting=best_of_n", "online.noise=0"], "best_of_n does not fit.*; set online.noise=1"),
        (["agent.acting.candidates=4", "online.noise=0"], "online.noise=0 does not fit.*; set online.noise=1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    common = ["task=own", "task.name=x", "task.dataset=x.h5", f"task.env={ENV}", "encoder=state"]
    with pytest.raises(GtpVisionError, match=words):
        from_command_line([*common, "online.steps=50", "online.start=10", *overrides])


@pytest.mark.trains
@pytest.mark.processes
def test_each_round_is_what_the_weights_of_the_round_before_do_in_the_simulator(whole: Path) -> None:
    replay, total = ReplayStore(whole / "replay"), 0
    assert replay.numbers() == [0, 1, 2]
    for number in replay.numbers():
        config, trained = restore(whole, f"step_{ROUND * max(0, number - 1)}")
        env, store = EnvSpec(ENV, shown={"state": (2,)}).make(), replay.open(number)
        for episode, (start, end) in enumerate(zip(store.episode_starts, store.episode_ends, strict=True)):
            seed = episode_seed(config.seed, number, episode)
            actor, (shown, _) = actor_of(trained.agent), env.reset(seed=seed)
            for row in range(start, end - (not store.terminals[end - 1])):
                np.testing.assert_array_equal(store.observations["state"][row], shown["state"])
                seen = {"state": torch.from_numpy(shown["state"][None]).repeat(1, config.task.frame_stack, 1)}
                if row == start:  # later stacks hold earlier frames
                    acted = actor(seen, EpisodeNoise(seed, [0], [0], torch.device("cpu")))[0]
                    np.testing.assert_array_equal(store.actions[row], acted.numpy())
                shown, reward, terminated, truncated, _ = env.step(store.actions[row])
                assert (store.rewards[row], bool(store.terminals[row])) == (reward, terminated)
            assert terminated or truncated
        total += len(store.transitions)
        assert total >= ROUND * (number + 1)
        assert total - ROUND * (number + 1) < 6  # less than an episode more, in all rounds together
    assert "fine-tuned online" in open_store(replay.folder).attributes["source"]
    assert open_store(replay.folder).episodes == sum(replay.open(number).episodes for number in replay.numbers())


@pytest.mark.trains
@pytest.mark.processes
def test_before_and_after_are_in_the_results(whole: Path) -> None:
    results = trainer.json.loads((whole / "results.json").read_text())
    assert [found["step"] for found in results["evaluations"]] == [0, 12, 24]
    assert results["offline"] == results["evaluations"][0]
    assert results["online"] == results["last"]
    page = (whole / "report.html").read_text()
    assert "Fine-tuned in the simulator" in page
    metrics = [line for line in lines(whole) if "online/steps" in line]
    assert [line["online/steps"] // ROUND for line in metrics if line["step"] in (8, 16, 24)] == [1, 2, 3]


@pytest.mark.trains
@pytest.mark.processes
def test_a_batch_has_the_share_of_the_simulator(whole: Path) -> None:
    config = from_run(whole)
    parts = build(config)
    loader = OnlineLoader(config, whole, parts, start=2 * ROUND + 1, stop=lambda: False, meters=Meters())
    with loader:
        next(iter(loader))
        rows = np.concatenate([parts.sampler.rows(step) for step in range(500)])
    held, expected = len(rows), config.online.ratio
    share = np.mean(rows >= len(parts.store))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / held)
    collected = loader.metrics()["online/steps"]
    assert len(np.unique(rows[rows >= len(parts.store)])) == collected  # every row is drawn, and none without outcome


@pytest.mark.trains
@pytest.mark.processes
@pytest.mark.parametrize("stop", [4, 8])  # within a round, and where one begins
def test_a_resumed_run_equals_the_whole(whole: Path, tmp_path: Path, stop: int) -> None:
    run = tmp_path / "whole"
    shutil.copytree(whole, run, symlinks=True)
    checkpoint.forget_after(run / "checkpoints", stop)
    config = resumed(run)
    trainer.train(config, resume=True, progress=False)
    assert_equal(saved(whole), saved(run))
    for path in (whole / "replay").iterdir():
        assert path.read_bytes() == (run / "replay" / path.name).read_bytes()


@pytest.mark.trains
@pytest.mark.processes
def test_a_finished_run_is_continued_by_more_steps(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    shutil.copytree(whole, run, symlinks=True)
    trainer.train(resumed(run, "online.steps=32"), resume=True, progress=False)
    assert ReplayStore(run / "replay").numbers() == [0, 1, 2, 3]
    assert lines(run)[-1]["step"] == 32
    for path in (whole / "replay").iterdir():
        assert path.read_bytes() == (run / "replay" / path.name).read_bytes()


@pytest.mark.trains
@pytest.mark.processes
def test_frames_two_collectors_and_another_way_of_acting(offline: Path, tmp_path: Path) -> None:
    more = [
        "online.collectors=2",
        "online.acting=best_of_n",
        "online.noise=0.5",
        "online.steps=16",
        "task.frame_stack=2",
    ]
    trainer.train(config_of(offline, tmp_path, *PIXELS, *more), progress=False)
    replay = ReplayStore(tmp_path / "replay")
    assert replay.numbers() == [0, 1, 2, 3]
    first = replay.open(0)
    assert first.observations["front"].dtype == np.uint8
    assert np.any(np.diff(np.asarray(first.observations["front"], int), axis=0))
    assert not np.array_equal(first.actions[:2], replay.open(1).actions[:2])


@pytest.mark.trains
@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "more", "words"),
    [
        ("raises", [], "raised RuntimeError .a joint is stuck. in step 3 of the episode"),
        ("hangs", ["training.eval_timeout=2"], "gave no answer for"),
    ],
)
def test_a_simulator_that_fails_ends_the_run_by_a_sentence(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, more: list[str], words: str
) -> None:
    monkeypatch.setenv("TOY_FAULT", fault)
    with pytest.raises(GtpVisionError, match=words):
        trainer.train(config_of(offline, tmp_path, *more), progress=False)
    monkeypatch.delenv("TOY_FAULT")
    if fault == "raises":
        trainer.train(config_of(offline, tmp_path), resume=True, progress=False)
        assert checkpoint.newest(tmp_path / "checkpoints").name == "step_24"  # type: ignore[union-attr]


@pytest.mark.trains
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: setattr(config.online, "steps", 0), "cannot be resumed with online.steps=0"),
        (lambda config: setattr(config.online, "round", 4), "online.round=8, which numbers its rounds"),
    ],
)
def test_a_run_keeps_its_rounds(whole: Path, tmp_path: Path, change: Any, words: str) -> None:
    run = tmp_path / "whole"
    shutil.copytree(whole, run, symlinks=True)
    config = resumed(run)
    change(config)
    config.training.steps = max(24, config.online.gradient_steps)
    with pytest.raises(GtpVisionError, match=words):
        trainer.train(config, resume=True, new_segment=True, progress=False)


def test_the_simulator_is_a_setting_of_the_steps_of_a_run_that_collects(offline: Path) -> None:
    for more, free in (([], False), (["online.steps=0", "training.eval_episodes=0"], True)):
        old, new = (config_of(offline, Path("run"), *more, f"task.max_episode_steps={limit}") for limit in (3, 4))
        assert "task.max_episode_steps" in segments.changes(old, new, free=free)


@pytest.mark.trains
def test_what_is_missing_or_of_another_task_is_refused_and_nothing_is_removed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    shutil.copytree(whole, run, symlinks=True)
    checkpoint.forget_after(run / "checkpoints", 20)
    config = resumed(run)
    (run / "replay" / "000001.h5").unlink()
    with pytest.raises(GtpVisionError, match=r"000001\.h5 is missing, which the steps after 20"):
        trainer.train(config, resume=True, progress=False)
    stranger: Store = make_store((8,), state=5)
    native.write(run / "replay" / "000000.h5", stranger)
    before = sorted(path.name for path in (run / "replay").iterdir())
    with pytest.raises(GtpVisionError, match=r"replay store of another task: .* holds state 5"):
        trainer.train(config, resume=True, progress=False)
    assert sorted(path.name for path in (run / "replay").iterdir()) == before
