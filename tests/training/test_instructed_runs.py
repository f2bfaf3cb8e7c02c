import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from small_runs import PIXELS, assert_equal, saved, small_run
from two_tasks import ENV, LEFT, MODULE, RIGHT, two_tasks, write_text_encoder, write_two_tasks

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.arrays import Lookup
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import HostSource
from gtp_vision.envs import make_named
from gtp_vision.training import trainer
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager
from gtp_vision.training.evaluate import env_spec, evaluate_run, restore

FAST = ("training.steps=100", "training.learning_rate=5e-3", "agent.policy_tau=0.1", "training.checkpoint_every=100")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulator of two tasks, which is forgotten afterwards."""
    (tmp_path / "tests_two_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    sys.modules.pop("tests_two_tasks", None)
    for name in ("Two-v0", "Left-v0", "Right-v0", "Silent-v0", "Up-v0"):
        gymnasium.registry.pop(name, None)


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("encoder"))


def config_of(folder: Path, *more: str) -> Config:
    data = folder / "two.h5"
    if not data.exists():
        write_two_tasks(data)
    return small_run(data, folder / "run", *PIXELS, *more, agent="gtp_bc")


@pytest.mark.trains
@pytest.mark.parametrize(
    "how",
    [
        ("task.instructions=id",),
        ("task.instructions=id", "encoder.conditioning=film"),
        ("task.instructions=id", "encoder.fusion=transformer"),
        ("task.instructions=text",),
        (),
    ],
    ids=" ".join,
)
def test_the_instruction_decides_between_equal_frames(tmp_path: Path, text_encoder: Path, how: tuple[str, ...]) -> None:
    encoder = [f"task.text_encoder={text_encoder}"] if "task.instructions=text" in how else []
    parts = build(config := config_of(tmp_path, *FAST, *how, *encoder))
    engine = Eager(HostSource(parts.sampler), config, parts)
    for step in range(config.training.steps):
        engine.step(step, parts.sampler.batch(step))
    batch = parts.batch(0)
    with torch.no_grad():
        action = parts.agent.act(batch.observation, RandomStream(1, 1))[:, 0]
    error = (action - batch.action[:, 0]).abs().mean()
    assert error < 0.2 if how else error > 0.5, "equal frames have no other right action than the mean"


def test_rows_are_looked_up_and_nothing_is_copied(tmp_path: Path) -> None:
    parts = build(config_of(tmp_path, "task.instructions=id"))
    shown = parts.store.observations["instruction"]
    assert isinstance(shown, Lookup)
    assert shown.table.tolist() == [[1, 0], [0, 1]], "of the texts in alphabetical order"
    way = np.asarray(parts.store.actions)[:, 0] > 0
    np.testing.assert_array_equal(shown[:].argmax(1), way)
    batch = parts.batch(0)
    assert batch.observation["instruction"].shape == (16, 2, 2)
    torch.testing.assert_close(batch.observation["instruction"][:, 0, 1] > 0, batch.action[:, 0] > 0)
    assert torch.equal(batch.observation["instruction"], batch.next_observation["instruction"])
    assert parts.held_out is not None
    assert isinstance(parts.held_out.store.observations["instruction"], Lookup)
    for name in ("mean_instruction", "scale_instruction"):
        assert set(parts.agent.actor_encoder.get_buffer(name).tolist()) == {float("scale" in name)}, "not scaled"


def test_files_are_united_by_their_texts(tmp_path: Path) -> None:
    write_two_tasks(tmp_path / "left.h5", [LEFT])
    write_two_tasks(tmp_path / "both.h5", [RIGHT, LEFT])
    paths = f"task.datasets=[{tmp_path / 'left.h5'},{tmp_path / 'both.h5'}]"
    config = config_of(tmp_path, "task.instructions=id", "task.dataset=null", paths)
    store = build(config).store
    np.testing.assert_array_equal(store.observations["instruction"][:].argmax(1), store.actions[:, 0] > 0)
    native.write(tmp_path / "both.h5", replace(two_tasks(), attributes={}))
    with pytest.raises(GtpVisionError, match=r"both\.h5 does not name the task of each episode.*null"):
        build(config)


@pytest.mark.trains
def test_a_run_resumes_bit_for_bit_and_without_its_text_encoder(tmp_path: Path, text_encoder: Path) -> None:
    how = ("task.instructions=text", "encoder.conditioning=film", "training.checkpoint_every=3")
    for name, steps in (("whole", 6), ("half", 3)):
        config = config_of(tmp_path, *how, f"task.text_encoder={text_encoder}", f"training.steps={steps}")
        trainer.train(replace(config, run_dir=str(tmp_path / name)), progress=False)
    moved = config_of(tmp_path, *how, "task.text_encoder=gone", "training.steps=6")
    trainer.train(replace(moved, run_dir=str(tmp_path / "half")), progress=False, resume=True)
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "half"))
    with pytest.raises(GtpVisionError, match=r"the text encoder 'gone' cannot be loaded.*task.text_encoder"):
        build(config_of(tmp_path, *how, "task.text_encoder=gone"))


def test_features_of_a_frozen_backbone_are_trained_with_the_instruction(tmp_path: Path) -> None:
    parts = build(config_of(tmp_path, "task.instructions=id", "encoder.conditioning=film", "encoder.tuning=frozen"))
    assert isinstance(parts.sampler.store.observations["instruction"], Lookup)
    cached, recorded = parts.sampler.batch(0).observation, parts.frames.batch(0).observation
    assert cached["front"].shape[1:] == (1, parts.agent.actor_encoder.tower("front").width)
    encode = parts.agent.actor_encoder.eval()
    torch.testing.assert_close(encode(cached), encode(recorded), atol=1e-2, rtol=1e-2)


@pytest.mark.trains
@pytest.mark.simulates
@pytest.mark.usefixtures("module")
def test_each_task_is_evaluated_by_its_instruction(tmp_path: Path) -> None:
    turns = f"task.env={ENV}:Left-v0+{ENV}:Right-v0"
    one = ("task.instructions=id", "training.eval_envs=1")
    trainer.train(config_of(tmp_path, *FAST, *one, turns), progress=False)
    found = evaluate_run(tmp_path / "run", episodes=4, progress=False)
    assert found["success"] == 1
    assert found["tasks"] == {f"{ENV}:Left-v0": 1.0, f"{ENV}:Right-v0": 1.0}
    record = restore(tmp_path / "run")[1].record
    texts = {"Two-v0": [LEFT, RIGHT, LEFT], "Right-v0": [RIGHT] * 3}
    for name, expected in texts.items():
        env = make_named(env_spec(config_of(tmp_path, *one, f"task.env={ENV}:{name}"), record))
        assert [env.reset(seed=seed)[1]["task"] for seed in range(3)] == expected
        assert env.step(np.zeros(1))[0]["instruction"].tolist() == [expected[-1] == LEFT, expected[-1] == RIGHT]
    for name, words in (("Up-v0", "'go to the up' is not an instruction .*left"), ("Silent-v0", "Silent-v0' is not")):
        env = make_named(env_spec(config_of(tmp_path, *one, f"task.env={ENV}:{name}"), record))
        with pytest.raises(GtpVisionError, match=words):
            env.reset(seed=0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.instructions=ids"], "task.instructions=ids .*'id'"),
        (["encoder.conditioning=film"], "film needs an instruction.*task.instructions"),
        (["task.instructions=id", "encoder.conditioning=film", "encoder.fusion=transformer"], "film changes .*concat"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        build(config_of(tmp_path, *overrides))


def test_goals_have_no_instruction_of_their_own(tmp_path: Path) -> None:
    parts = build(config_of(tmp_path, "task.instructions=id", "task.goals=hindsight"))
    assert list(parts.agent.actor_encoder.shapes) == ["front", "instruction", "goal/front"]
