from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import composed, lines
from stores import make_store

from gtp_vision.config.schema import Config
from gtp_vision.datasets.formats import native
from gtp_vision.training import trainer
from gtp_vision.training.build import build
from gtp_vision.training.probes import START, FeatureMonitor, cosine_distance, linear_cka, linear_probe

EPISODES = np.repeat(np.arange(20), 15)
LENGTHS = (9, 7, 8, 6, 10)


def _features(seed: int = 0, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(EPISODES), width)).astype(np.float32)


def test_linear_states_are_predicted_and_noise_is_not() -> None:
    features, random = _features(), np.random.default_rng(1)
    states = {
        "linear": 3 + features @ random.normal(size=(40, 4)) * [1, 10, 100, 1000],
        "noise": random.normal(size=(len(EPISODES), 4)),
        "still": np.full((len(EPISODES), 2), 0.3),
    }
    found = linear_probe(features, states, EPISODES, seed=0)
    assert found.keys() == {"linear", "noise"}
    assert found["linear"] > 0.999
    assert abs(found["noise"]) < 0.1
    assert linear_probe(features, states, EPISODES, seed=0) == found


def test_probes_work_with_more_features_than_rows() -> None:
    features = _features(width=1000)
    features[:, 0] *= 100  # standardization removes it
    found = linear_probe(features[:, :], {"some": features[:, 1:3]}, EPISODES, seed=0)["some"]
    assert 0.02 < found < 0.9, "180 rows of 1000 features determine a part of it"
    assert linear_probe(np.zeros_like(features), {"some": features[:, 1:3]}, EPISODES, seed=0)["some"] < 0.01


def test_whole_episodes_are_held_out() -> None:
    which = np.eye(20, dtype=np.float32)[EPISODES]  # features of the episode only
    state = np.random.default_rng(0).normal(size=(20, 1))[EPISODES]
    assert linear_probe(which, {"of the episode": state}, EPISODES, seed=0)["of the episode"] < 0.1


def test_cosine_distance_is_of_angles() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert cosine_distance(x, torch.tensor([[0.0, 5.0], [0.0, 1.0]])) == pytest.approx(0.5)  # a right angle, and none
    assert cosine_distance(0 * x, 0 * x) == 0


def test_cka_is_invariant_to_rotation_and_scale() -> None:
    x = torch.from_numpy(_features(width=6)).double()
    assert (linear_cka(x, x), linear_cka(torch.zeros(4, 3), torch.zeros(4, 3))) == pytest.approx((1, 1))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    assert linear_cka(x, torch.from_numpy(_features(1, width=6))) < 0.1
    # By hand: centered Gram matrices [[1, -1], [-1, 1]] / 2 of two rows, and of three rows two that are orthogonal.
    assert linear_cka(torch.eye(2), torch.tensor([[0.0], [9.0]])) == pytest.approx(1)
    first, second = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [-2.0], [1.0]])
    assert linear_cka(first, second) == pytest.approx(0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    cameras = {"front": (12, 12, 3), "wrist": (8, 8, 3)}
    return native.write(tmp_path / "data.h5", make_store(LENGTHS, cameras=cameras, state=3))


def _config(folder: Path, data: Path, *more: str) -> Config:
    settings = ["task=own", "agent=gtp_bc_demo", "encoder=demo", f"task.dataset={data}", "training.device=cpu"]
    settings += ["training.batch_size=8", "training.log_every=2", "training.learning_rate=1e-2", "encoder.features=8"]
    settings += ["agent.policy.hidden=[16]", "task.observations=[front,wrist]", "task.frame_stack=2"]
    return composed(*settings, f"run_dir={folder}", *more)


def test_drift_is_zero_at_the_start_and_grows_with_the_weights(tmp_path: Path, data: Path) -> None:
    config = _config(tmp_path, data)
    parts = build(config)
    monitor = FeatureMonitor(tmp_path, config, parts, resumed=False)
    for name in ("front", "wrist", "fused"):
        assert monitor.drift()[f"features/drift_{name}"] == pytest.approx(0)
        assert monitor.drift()[f"features/cka_{name}"] == pytest.approx(1)
    drifts = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in parts.agent.actor_encoder.tower("front").parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        drifts.append(monitor.drift())
    moved = [drift["features/drift_front"] for drift in drifts]
    assert 1e-4 < moved[0] < moved[1] < moved[2]
    assert drifts[-1]["features/cka_front"] < 0.99
    assert drifts[-1]["features/drift_wrist"] == 0
    assert drifts[-1]["features/drift_fused"] > 0
    again = FeatureMonitor(tmp_path, config, parts, resumed=True)
    assert again.drift() == monitor.drift()
    assert again.note == ""
    assert parts.agent.actor_encoder.training


@pytest.mark.trains
def test_a_resumed_run_compares_with_its_start(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    first = trainer.train(_config(run, data, "training.steps=2"), progress=False)
    begun = (run / START).read_bytes()
    results = trainer.train(_config(run, data, "training.steps=6"), resume=True, progress=False)
    assert (run / START).read_bytes() == begun
    assert first["probe"].keys() == {"before", "after", "rows"}
    assert first["probe"]["before"].keys() == {"state"}, "which the task does not use"
    assert results["probe"]["before"] == first["probe"]["before"] != results["probe"]["after"]
    whole = trainer.train(_config(tmp_path / "whole", data, "training.steps=6"), progress=False)
    assert whole["probe"] == results["probe"]
    last = {name: lines(tmp_path / name)[-1] for name in ("run", "whole")}
    for key in ("features/drift_front", "features/cka_wrist", "features/drift_fused"):
        assert last["run"][key] == pytest.approx(last["whole"][key])
        assert 0 < last["run"][key] < 1
    assert "drift_front" in (run / "report.html").read_text()


@pytest.mark.trains
def test_missing_start_features_are_noted(tmp_path: Path, data: Path) -> None:
    trainer.train(_config(tmp_path, data, "training.steps=1"), progress=False)
    (tmp_path / START).unlink()
    results = trainer.train(_config(tmp_path, data, "training.steps=2"), resume=True, progress=False)
    assert "cannot be read" in results["probe"]["note"]
    assert "features/" not in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]


def test_features_of_other_rows_are_not_compared(tmp_path: Path, data: Path) -> None:
    config = _config(tmp_path, data, "training.probe_rows=20")
    parts = build(config)
    FeatureMonitor(tmp_path, config, parts, resumed=False)
    fewer = _config(tmp_path, data, "training.probe_rows=12")
    monitor = FeatureMonitor(tmp_path, fewer, parts, resumed=True)
    assert monitor.drift() == {}
    assert "other rows" in monitor.note


@pytest.mark.parametrize(("lengths", "state"), [((9, 7), 3), (LENGTHS, None)])
def test_few_episodes_and_missing_states_are_noted(tmp_path: Path, lengths: tuple[int, ...], state: int | None) -> None:
    data = native.write(tmp_path / "few.h5", make_store(lengths, cameras={"front": (12, 12, 3)}, state=state))
    config = _config(tmp_path, data, "task.observations=[front]")
    (note,) = FeatureMonitor(tmp_path, config, build(config), resumed=False).probe().values()
    assert note.endswith("fewer than three episodes" if state else "has no states")


def test_states_follow_the_filter_and_the_mixture(tmp_path: Path, data: Path) -> None:
    from gtp_vision.training.data import open_data, open_states

    groups = {"filters": {"train": [0, 2, 3, 4]}}
    cameras = {"front": (12, 12, 3), "wrist": (8, 8, 3)}
    named = native.write(tmp_path / "named.h5", make_store(LENGTHS, cameras=cameras, state=3, attributes=groups))
    config = _config(tmp_path, named, "task.filter=train")
    found = open_states(config)
    assert len(found) == len(open_data(config)) == sum(LENGTHS) - LENGTHS[1]
    assert np.asarray(found.observations["state"])[9, 0] == 16, "the first row of the third episode"
    both = ["task.dataset=null", f"task.datasets=[{data},{named}]"]
    held_out = _config(tmp_path, data, *both)
    assert len(open_states(held_out)) == len(open_data(held_out)) < 2 * sum(LENGTHS)
    mixed = _config(tmp_path, data, *both, "task.validation=0")
    found = open_states(mixed)
    assert len(found) == len(open_data(mixed)) == 2 * sum(LENGTHS)
    assert list(found.observations) == ["state"]
