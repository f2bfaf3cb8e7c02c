import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_policies import untrained
from small_runs import composed
from stores import make_store

import gtp_vision
from gtp_vision.cli.main import main
from gtp_vision.core.random import counter_rng
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.split import Split
from gtp_vision.datasets.store import Store
from gtp_vision.serving.calibration import auroc, calibrate, largest, longest_still, reference_of, thresholds_of
from gtp_vision.serving.reactions import DoubtError, OnDoubt
from gtp_vision.serving.shifts import shifts_of
from gtp_vision.training.data import TaskData
from gtp_vision.training.trainer import train

EPISODES, LENGTH, SIDE = 12, 24, 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that was trained for a step on two cameras that see a point move, and on its place."""
    folder, random = tmp_path_factory.mktemp("doubt"), np.random.default_rng(0)
    places = np.cumsum(random.uniform(-2, 2, (EPISODES, LENGTH, 2)), 1) % (SIDE - 6)
    corners = places.reshape(-1, 2).astype(int)
    frames = {name: np.full((len(corners), SIDE, SIDE, 3), color, np.uint8) for name, color in COLORS.items()}
    for row, (y, x) in enumerate(corners):
        for name, array in frames.items():
            array[row, y : y + 6, x : x + 6] = 255 - COLORS[name]
            array[row] += random.integers(0, 3, array[row].shape, np.uint8)  # a sensor's noise: no frame stands still
    store = make_store([LENGTH] * EPISODES, cameras=dict.fromkeys(COLORS, (SIDE, SIDE, 3)), state=2)
    store.observations.update(frames, state=places.reshape(-1, 2).astype(np.float32))
    path = native.write(folder / "data.h5", store)
    settings = ["task=own", "agent=gtp_bc", "encoder=impala_tiny", "agent.policy.hidden=[16]", "task.frame_stack=1"]
    settings += ["training.device=cpu", "training.batch_size=8", "training.steps=1", "training.engine=eager"]
    train(
        composed(*settings, "training.probe_rows=0", f"task.dataset={path}", f"run_dir={folder / 'run'}"),
        progress=False,
    )
    return folder / "run"


COLORS = {"front": 40, "wrist": 200}


def exported(run: Path, out: Path, *options: str) -> Any:
    assert main(["export", str(run), str(out), "--overwrite", *options]) == 0
    return gtp_vision.load_policy(out)


@pytest.mark.trains
def test_an_artifact_doubts_what_its_cameras_never_saw(run: Path, tmp_path: Path) -> None:
    policy = exported(run, tmp_path / "policy", "--on-doubt", "stop", "--doubt-after", "2")
    report = policy.card["doubt"]
    assert report["beyond"] <= 0.01
    assert report["auroc"].keys() == {"brightness", "occlusion", "frozen", "mirrored", "swapped", "states"}
    for shift in ("brightness", "occlusion", "frozen", "swapped", "states"):
        assert report["auroc"][shift]["doubt"] >= 0.9, shift
    assert policy.reference is not None
    seen = {name: np.full((SIDE, SIDE, 3), color, np.uint8) for name, color in COLORS.items()}
    seen |= {"state": policy.reference.states["state"][0].numpy()}
    swapped, _ = shifts_of(policy.reference)["swapped"](policy.reference, counter_rng(0))(seen)
    np.testing.assert_array_equal(swapped["front"], seen["wrist"])
    policy.act(swapped)
    assert policy.doubt is not None
    assert policy.doubt.value > 1
    assert policy.doubt.because.startswith("camera")
    with pytest.raises(DoubtError, match="reset the episode"):
        policy.act(swapped)
    policy.reset()
    policy.act(swapped)


@pytest.mark.trains
def test_without_data_or_wish_an_artifact_knows_nothing_of_them(run: Path, tmp_path: Path, capsys: Any) -> None:
    known = exported(run, tmp_path / "policy", "--doubt", "features,map")
    assert known.reference is not None
    assert set(known.reference.thresholds) == {"camera front", "camera wrist", "map"}
    assert exported(run, tmp_path / "policy", "--doubt", "off").reference is None
    assert main(["export", str(run), str(tmp_path / "policy"), "--overwrite", "--doubt", "felt"]) == 2
    assert "'felt' is unknown" in capsys.readouterr().err
    data = run.parent / "data.h5"
    data.rename(tmp_path / "elsewhere.h5")
    try:
        policy = exported(run, tmp_path / "policy")
        assert (policy.reference, policy.doubt) == (None, None)
        assert "doubt: not measured (the data cannot be read" in capsys.readouterr().out
        assert main(["export", str(run), str(tmp_path / "policy"), "--overwrite", "--on-doubt", "stop"]) == 2
        assert "holds no calibrated doubt" in capsys.readouterr().err
    finally:
        (tmp_path / "elsewhere.h5").rename(data)
    stored = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert stored["reference"] is False


def test_ordinary_frames_are_rarely_beyond_the_thresholds() -> None:
    random = np.random.default_rng(0)
    ordinary = [{"camera": a, "state": 10 * b, "still front": 0.0} for a, b in random.exponential(size=(1000, 2))]
    thresholds = thresholds_of(ordinary)
    beyond = np.mean([largest(signals, thresholds) > 1 for signals in ordinary])
    assert 0.005 <= beyond <= 0.01, "of both signals together"
    assert thresholds["still front"] == 1


def of_days(episodes: int, seed: int) -> Store:
    """Episodes in which a number is nearly the same, and another one in each."""
    store, random = make_store([LENGTH] * episodes, state=2), np.random.default_rng(seed)
    days = np.repeat(random.normal(size=(episodes, 2)), LENGTH, 0)
    store.observations["state"] = (days + 0.01 * random.normal(size=days.shape)).astype(np.float32)
    return store


@pytest.mark.parametrize("held_out", [1, 3])
def test_few_held_out_episodes_do_not_make_other_days_doubtful(held_out: int) -> None:
    plain = untrained("agent=gtp_bc", cameras={}, states={"state": 2}, frame_stack=1)
    beyond = []
    for seed in range(5):
        data = TaskData(of_days(40, 3 * seed), of_days(held_out, 3 * seed + 1), Split([], [], [], ""))
        reference, others = reference_of(plain.agent, data, 1, 0)
        found, _ = calibrate(plain.agent, plain.schema, reference, OnDoubt(signals=("states",)), others, 0)
        new = torch.from_numpy(of_days(100, 3 * seed + 2).observations["state"])
        beyond.append(float((found.state_distance("state", new) > found.thresholds["state state"]).float().mean()))
        assert found.edges["state"] == pytest.approx(reference.edges["state"])
    assert np.mean(beyond) < 0.1


def test_the_area_under_the_curve_is_the_probability_of_the_right_order() -> None:
    assert auroc([0, 1], [2, 3]) == 1
    assert auroc([0, 2], [1, 2]) == (1 + 0 + 1 + 0.5) / 4


def test_the_longest_still_run_does_not_cross_episodes() -> None:
    store = make_store((4, 5), cameras={"front": (2, 2, 3)})
    for row, value in enumerate([0, 1, 1, 2, 2, 2, 3, 3, 3]):
        store.observations["front"][row] = value
    assert longest_still(store, store.observations["front"]) == 3
