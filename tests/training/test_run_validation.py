import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import PIXELS, assert_equal, lines, saved, small_run
from stores import make_store

from gtp_vision.config.compose import from_run, to_yaml
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.evaluation.held_out import draws_of
from gtp_vision.training import checkpoint, trainer
from gtp_vision.training.build import build
from gtp_vision.training.data import open_data, open_split
from gtp_vision.training.health import overfits
from gtp_vision.training.validation import Validation, read_entries


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty episodes, whose actions have units of their own."""
    store = make_store([8] * 20, cameras={"front": (12, 12, 3)})
    store.actions[:, 1] *= 50
    return native.write(tmp_path_factory.mktemp("data") / "several.h5", store)


def config_of(data: Path, run: Path, *more: str, agent: str = "gtp_bc") -> Config:
    seen = [] if PIXELS[0] in more else ["task.observations=[state]"]
    return small_run(data, run, *seen, *more, agent=agent)


def test_held_out_episodes_never_train_and_are_scaled_as_the_others(several: Path, tmp_path: Path) -> None:
    parts = build(config_of(several, tmp_path, agent="gtp"))
    assert parts.held_out is not None
    assert (parts.store.episodes, parts.held_out.store.episodes) == (18, 2)
    hidden = set(parts.split.origin[0]["episodes"])
    assert set(parts.store.numbers.tolist()) == set(range(20)) - hidden
    trained = {float(x) for step in range(60) for x in parts.sampler.batch(step).observation["state"][:, -1, 0]}
    assert trained == {float(x) for x in parts.store.observations["state"][parts.store.transitions][:, 0]}
    assert parts.held_out.store.attributes["action_high"] == parts.store.attributes["action_high"]
    assert np.abs(parts.held_out.store.actions).max() <= 1


@pytest.mark.trains
def test_a_resumed_run_has_the_validations_of_the_whole(several: Path, tmp_path: Path) -> None:
    def train(name: str, steps: int) -> None:
        config = config_of(several, tmp_path / name, f"training.steps={steps}")
        trainer.train(config, resume=(tmp_path / name).exists(), progress=False)

    train("whole", 9)
    for steps in (6, 9):
        train("stopped", steps)
    whole, stopped = (read_entries(tmp_path / name) for name in ("whole", "stopped"))
    assert [entry["step"] for entry in whole] == [3, 6, 9]
    assert whole == stopped
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "stopped"))
    logged = [line for line in lines(tmp_path / "whole") if "valid/energy" in line]
    assert [line["valid/energy"] for line in logged] == [entry["energy"] for entry in whole]
    assert {"valid/error_K1", "valid/error_K2", "valid/error_K5", "valid/energy_training"} <= logged[0].keys()
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["validation"]["last"] == whole[-1]


@pytest.mark.trains
def test_best_is_the_least_energy_where_no_simulator_is(several: Path, tmp_path: Path) -> None:
    more = ["training.steps=24", "training.learning_rate=0.02", "training.keep_checkpoints=1"]
    results = trainer.train(config_of(several, tmp_path, *more), progress=False)
    entries = read_entries(tmp_path)
    least = min(entries, key=lambda entry: entry["energy"])["step"]
    assert (tmp_path / "checkpoints" / "best").resolve().name == f"step_{least}"
    assert results["validation"]["best"]["step"] == least
    assert (
        "valid/energy" in (tmp_path / "report.html").read_text() or "energy" in (tmp_path / "report.html").read_text()
    )


@pytest.mark.trains
def test_a_first_checkpoint_is_not_best_before_anything_was_measured(several: Path, tmp_path: Path) -> None:
    more = ["training.steps=3", "training.on_nonfinite=rollback", "training.keep_checkpoints=1", "task.validation=0"]
    trainer.train(config_of(several, tmp_path, *more), progress=False)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("[!.]*")) == ["last", "step_3"]


@pytest.mark.trains
def test_errors_are_in_the_units_of_the_file(several: Path, tmp_path: Path) -> None:
    config = config_of(several, tmp_path, "agent.action_chunk=2", "training.steps=3")
    trainer.train(config, progress=False)
    (entry,) = read_entries(tmp_path)
    parts = build(config, resumes=None)
    folder = tmp_path / "checkpoints" / "last"
    checkpoint.load(folder.resolve(), parts.agent)
    rows = parts.held_out.store.transitions  # all are measured
    found = draws_of(parts.agent, parts.held_out, rows, (2,), "cpu")[2].error()
    low, high = (np.array(bound) for bound in parts.record.action_bounds)
    np.testing.assert_allclose(entry["error"]["2"], found * (high - low) / 2, rtol=1e-6)
    assert np.mean(entry["error"]["2"], 0)[1] > 10, "of the second dimension, which reaches 50"


@pytest.mark.trains
def test_a_critics_values_are_compared_with_recorded_returns(tmp_path: Path) -> None:
    store = make_store([8] * 20, terminals=set(range(7, 160, 8)))
    data = native.write(tmp_path / "ends.h5", store)
    config = config_of(data, tmp_path / "run", "training.steps=3", agent="gtp")
    parts = build(config)
    validation = Validation(tmp_path, config, parts, start=0)
    metrics = validation.measure(3)
    assert -1 <= metrics["valid/q_correlation"] <= 1
    assert metrics["valid/q_bias"] == validation.entries[0]["q_bias"]
    assert "valid/q_bias" not in build_and_measure(config_of(data, tmp_path / "bc", agent="gtp_bc"), tmp_path)


def build_and_measure(config: Config, folder: Path) -> dict[str, float]:
    return Validation(folder, config, build(config), start=0).measure(1)


@pytest.mark.trains
def test_features_of_frozen_backbones_are_validated_as_frames_are(several: Path, tmp_path: Path) -> None:
    more = [*PIXELS, "encoder.tuning=frozen", "task.observations=[front]"]
    found = [
        build_and_measure(config_of(several, tmp_path / cache, *more, f"encoder.cache={cache}"), tmp_path)
        for cache in ("true", "false")
    ]
    assert found[0]["valid/energy"] == pytest.approx(found[1]["valid/energy"], rel=1e-3)


def test_overfitting_is_a_growing_distance_from_held_out_actions_alone() -> None:
    best = {"energy": 0.10, "energy_training": 0.09, "by_episode": [0.09, 0.10, 0.11]}
    worse = {"energy": 0.13, "energy_training": 0.05, "by_episode": [0.12, 0.13, 0.14]}
    assert overfits(best, worse)
    assert not overfits(best, worse | {"energy_training": 0.12}), "the policy leaves all data: an improvement"
    assert not overfits(best, worse | {"by_episode": [0.05, 0.05, 0.29]}), "one episode"
    assert not overfits(best, best)


def test_a_run_of_an_earlier_version_goes_on_with_all_episodes(several: Path, tmp_path: Path) -> None:
    stored = yaml.safe_load(to_yaml(config_of(several, tmp_path)))
    del stored["task"]["validation"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert open_data(from_run(tmp_path)).episodes == 20
    assert open_split(from_run(tmp_path, ["task.validation=0.1"])).held_out is not None


@pytest.mark.parametrize("content", ["[]", '{"steps": [{"step": 3}]}', '{"steps": [{"step": "3", "by_episode": []}]}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "validation.json").write_text(content)
    with pytest.raises(GtpVisionError, match=r"validation\.json"):
        read_entries(tmp_path)
