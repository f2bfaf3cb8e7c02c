import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_runs import PIXELS, assert_equal, composed, saved, small_run
from stores import make_store

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.encoders import Encoder, EncoderConfig
from gtp_vision.serving import graphs
from gtp_vision.serving.export import export
from gtp_vision.training import evaluate, trainer
from gtp_vision.training.build import build, shapes
from gtp_vision.training.data import constant_dimensions, fit, measure, open_data, open_states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of states; the first has groups of episodes, a constant dimension and a second observation."""
    folder = tmp_path_factory.mktemp("data")
    bounds = {"action_low": [0.0, -3.0], "action_high": [1.0, 3.0]}
    first = make_store((9, 8, 7), attributes={"filters": {"train": [0, 2]}, **bounds})
    first.observations["state"][:, 1] = 4
    first.observations["extra"] = np.random.default_rng(5).normal(3, 2, (24, 2)).astype(np.float32)
    native.write(folder / "a.h5", first)
    native.write(folder / "b.h5", make_store((6, 6), seed=3, attributes=bounds))
    return folder


def task(*overrides: str) -> Config:
    return composed("task=own", "encoder=state", "run_dir=unused", *overrides)


def test_filter_and_observations_of_a_task(folder: Path) -> None:
    a = folder / "a.h5"
    assert open_data(task(f"task.dataset={a}")).episodes == 3
    some = open_data(task(f"task.dataset={a}", "task.filter=train", "task.observations=[extra]"))
    assert some.episode_ends.tolist() == [9, 16]
    assert list(some.observations) == ["extra"]


def test_data_sets_are_mixed_by_their_shares(folder: Path) -> None:
    pair = f"task.datasets=[{folder}/a.h5,{folder}/b.h5]"
    mixed = open_data(task(pair, "task.shares=[3,1]", "task.observations=[state]"))
    assert len(mixed) == 36
    assert mixed.weights is not None
    weights = mixed.weights[mixed.transitions]
    assert weights[mixed.transitions < 24].sum() == pytest.approx(3 * weights[mixed.transitions >= 24].sum())
    with pytest.raises(GtpVisionError, match=r"b\.h5 holds state 3 .*a\.h5 holds extra 2 float32, state 3"):
        open_data(task(pair))
    equal = open_data(task(pair, "task.observations=[state]"))
    assert equal.attributes["mixed"] == [{"path": f"{folder}/{name}.h5", "share": 1.0} for name in "ab"]
    assert open_data(task(f"task.datasets=[{folder}/b.h5]")).weights is None


def test_a_chunk_longer_than_every_episode_is_refused(folder: Path) -> None:
    small = ("agent=gtp_bc", "training.device=cpu", "agent.policy.hidden=[8]", f"task.dataset={folder}/b.h5")
    build(task(*small, "agent.action_chunk=5"))  # 6 rows, of which the last has no outcome
    with pytest.raises(GtpVisionError, match=r"action_chunk=6 is more than the 5 actions .*b\.h5; set it to at most 5"):
        build(task(*small, "agent.action_chunk=6"))


@pytest.mark.parametrize("standardize", ["meanstd", "minmax", "quantile", "none"])
def test_encoders_scale_states_except_constant_dimensions(folder: Path, standardize: str) -> None:
    store = open_data(task(f"task.dataset={folder / 'a.h5'}"))
    statistics, record = measure(store)
    encoder, other = (Encoder(shapes(record, 1), EncoderConfig(name="state")) for _ in range(2))
    fit(encoder, statistics, standardize=standardize)
    assert constant_dimensions(statistics.arrays).endswith("observations/state [1]")
    state, extra = (torch.tensor(np.asarray(store.observations[name])) for name in ("state", "extra"))
    observation = {"state": state[:, None], "extra": extra[:, None]}
    joined = torch.cat([extra, state], dim=1)  # by name, as HDF5 lists them
    if standardize == "none":
        assert torch.equal(encoder(observation), joined)
        return
    low, high = (joined.quantile(q, 0) for q in ((0.01, 0.99) if standardize == "quantile" else (0, 1)))
    expected = (2 * joined - low - high) / (high - low)
    if standardize == "meanstd":
        expected = (joined - joined.mean(0)) / joined.std(0, unbiased=False)
    expected[:, 3] = 0
    torch.testing.assert_close(encoder(observation), expected, rtol=1e-4, atol=1e-5)
    shifted = observation | {"state": observation["state"] + torch.tensor([0.0, 7.0, 0.0])}
    torch.testing.assert_close(encoder(shifted), encoder(observation), rtol=0, atol=1e-20, msg="it is ignored")
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(observation), encoder(observation)), "saved with the weights"


@pytest.mark.trains
def test_placement_changes_no_bit_and_statistics_are_saved(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for how, where in (("device", "on cpu"), ("mapped", "mapped from")):
        run, more = tmp_path / how, [f"training.placement={how}", "training.eval_episodes=50"]
        results = trainer.train(small_run(folder / "a.h5", run, "training.steps=2", *more))
        assert results["env"] is None, "own data need no simulator"
        assert "last" not in results
        message = capsys.readouterr().err
        assert where in message
        assert "observations/state [1]" in message
        statistics = json.loads((run / "statistics.json").read_text())
        assert statistics["observations/state"]["constant"] == [1]
        assert len(statistics["actions"]["quantiles"]["0.99"]) == 2
        assert (statistics["action_low"], statistics["action_high"]) == ([0, -3], [1, 3])
    assert_equal(saved(tmp_path / "device"), saved(tmp_path / "mapped"))
    assert "on cpu" in build(small_run(folder / "a.h5", run, "training.placement=device")).where
    with pytest.raises(GtpVisionError, match="without a simulator"):
        evaluate.evaluate_run(tmp_path / "device")


def test_data_sets_of_other_bounds_are_mixed_in_common_ones(tmp_path: Path) -> None:
    for name, bound in (("a", 2.0), ("b", 3.0)):
        attributes = {"action_low": [-bound] * 2, "action_high": [bound] * 2}
        native.write(tmp_path / f"{name}.h5", make_store((9, 8), attributes=attributes))
    config = task(f"task.datasets=[{tmp_path}/a.h5,{tmp_path}/b.h5]")
    low = np.asarray(open_data(config).attributes["action_low"])
    assert np.all((low < -2) & (low >= -3))
    assert len(open_states(config)) == 34


@pytest.mark.trains
def test_a_run_on_actions_in_their_own_units_keeps_their_scale(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stored in run and artifact; a longer run, and one of a version that scaled by other bounds, continue with it."""
    store = make_store((90, 110))  # of fewer rows the quantiles are the extremes
    native.write(tmp_path / "raw.h5", replace(store, actions=3 + 40 * np.asarray(store.actions)))
    run, data = tmp_path / "run", tmp_path / "raw.h5"
    trainer.train(small_run(data, run, "training.steps=2"))
    assert "actions: [-1, 1] stands for -3" in (said := capfd.readouterr().err)
    assert "(by quantile)" in said
    stored = json.loads((run / "statistics.json").read_text())
    policy = export(run, tmp_path / "artifact")
    assert (list(policy.schema.action_low), list(policy.schema.action_high)) == (
        stored["action_low"],
        stored["action_high"],
    )
    session = policy.session()
    acted = np.stack([session.act({"state": 3 * np.ones(3, np.float32)}) for _ in range(8)])
    assert np.all((acted >= np.float32(stored["action_low"])) & (acted <= np.float32(stored["action_high"])))
    assert np.abs(acted - 3).max() > 1, "in the file's units"

    bounds = {"action_low": [-100.0, -50.0], "action_high": [100.0, 50.0]}
    known = open_data(small_run(data, run), bounds)
    assert known.attributes["action_low"] == [-100, -50]
    np.testing.assert_allclose(known.actions * [100, 50], 3 + 40 * np.asarray(store.actions), atol=1e-4)
    before = measure(open_data(small_run(data, run)))[1]
    assert before.content == measure(open_data(small_run(data, run), before.attributes))[1].content
    trainer.train(small_run(data, run, "training.steps=4"), progress=False, resume=True)
    assert "resuming from step 2" in capfd.readouterr().out
    with pytest.raises(GtpVisionError, match=r"task\.action_scaling: auto -> minmax.*action_low"):
        trainer.train(small_run(data, run, "training.steps=6", "task.action_scaling=minmax"), resume=True)
    with pytest.raises(GtpVisionError, match=r"actions leave \[-1, 1\].*task\.action_scaling=minmax"):
        open_data(small_run(data, run, "task.action_scaling=none"))


@pytest.mark.trains
@pytest.mark.compiles
def test_a_run_on_relative_poses_acts_in_the_file_s_poses(tmp_path: Path) -> None:
    """All seeds at once, the artifact and its ONNX graph hold the representation; the state moves what is acted."""
    store = make_store((60, 60), actions=8)
    random = np.random.default_rng(0)
    places = np.cumsum(0.1 * random.normal(size=(120, 3)), 0)
    turns = Rotation.from_rotvec(0.5 * random.normal(size=(120, 3))).as_quat()
    store.observations |= {"eef_pos": np.float32(places), "eef_quat": np.float32(turns)}
    gripper = (np.arange(120) % 2)[:, None]
    actions = np.concatenate([places + 0.01 * random.normal(size=(120, 3)), turns, gripper], 1)
    data, run = native.write(tmp_path / "d.h5", replace(store, actions=np.float32(actions))), tmp_path / "run"
    columns = [
        'agent.representation.rotations=["3:7=quaternion_xyzw"]',
        'agent.representation.relative=["0:3=eef_pos","3:7=eef_quat"]',
        *("agent.representation.frame=wrist", "agent.action_chunk=4", "task.frame_stack=2"),
    ]
    results = trainer.train(small_run(data, run, *columns, "training.steps=4", "training.seeds=2"), progress=False)
    assert results
    policy = export(run / "seed_0", tmp_path / "artifact", onnx=True)
    assert policy.agent.policy.actions == 4 * (3 + 6 + 1), "6-D"
    made = policy.agent.representation
    assert made is not None
    assert (made.high - made.low)[:3].max() < 0.7 * np.ptp(places, axis=0).max(), "positions are relative to the state"
    states = {"state": np.ones(3, np.float32), "eef_pos": np.float32([0, 0, 0]), "eef_quat": np.float32([0, 0, 0, 1])}
    here = policy.session(seed=1).plan(states)
    assert here.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(here[:, 3:7], axis=1), 1, atol=1e-2)
    assert np.all((here[:, 7] >= 0) & (here[:, 7] <= 1))
    there = policy.session(seed=1).plan(states | {"eef_pos": np.float32([0.1, 0.1, 0.1])})
    assert np.abs(there - here)[:, :3].max() > 0.05
    graph, random = graphs.Graph(tmp_path / "artifact" / graphs.NAME), np.random.default_rng(0)
    stacks = {name: np.float32(random.normal(size=(1, *shape))) for name, shape in policy.schema.shapes().items()}
    noise = {name: np.float32(random.normal(size=shape)) for name, shape in graph.noise.items()}
    expected = graphs.sampler_of(policy)(*map(torch.from_numpy, (*stacks.values(), *noise.values())))
    np.testing.assert_allclose(graph.plan(stacks, noise), expected.detach(), atol=1e-5)
    bad = native.write(tmp_path / "bad.h5", replace(store, actions=np.float32(actions * 3)))
    with pytest.raises(GtpVisionError, match=r"columns 3:7 of actions are not rotations of the kind quaternion_xyzw"):
        build(small_run(bad, run, *columns))
    with pytest.raises(GtpVisionError, match="no state 'eef_position'"):
        build(small_run(data, run, 'agent.representation.relative=["0:3=eef_position"]'))


@pytest.mark.simulates
def test_a_simulator_that_does_not_fit_the_data_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    more = ["task=demo", "task.observations=[state]", "training.eval_episodes=1"]
    with pytest.raises(GtpVisionError, match=r"puzzle-3x3.*\(5,\).*a\.h5 .*\(3,\).*\(2,\)"):
        trainer.train(small_run(folder / "a.h5", tmp_path / "run", *more), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.trains
def test_likely_mistakes_are_warned_of_when_training_begins(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_data(task(f"task.dataset={folder / 'b.h5'}"))
    zero = native.write(tmp_path / "zero.h5", replace(store, rewards=np.zeros(len(store), np.float32)))
    trainer.train(small_run(zero, tmp_path / "run", "training.steps=1", agent="gtp_bc"))
    assert "warning: rewards are 0 everywhere" in capsys.readouterr().err


CAMERAS = "encoder.cameras={front: {size: [4, 5]}, wrist: {}}"


@pytest.mark.parametrize(
    ("overrides", "shapes_of"),
    [
        ([], {"front": (16, 12, 3), "wrist": (4, 4, 1)}),
        (["task.image_size=6x5"], {"front": (6, 5, 3), "wrist": (6, 5, 1)}),
        (["task.image_size=5", "task.image_crop=4"], {"front": (5, 5, 3), "wrist": (5, 5, 1)}),
        (["task.image_size=auto", CAMERAS], {"front": (4, 5, 3), "wrist": (4, 4, 1)}),
        (["task.image_size=auto"], "none is set"),
        (["task.image_size=auto", "encoder.cameras={front: {size: [4, 5], crop: [6, 6]}}"], "cuts a part out of its"),
        (["task.image_size=big"], "task.image_size=big is not a height and width"),
        (["task.image_crop=40"], "crop 40x40 is larger than the frames of camera 'front', 16x12"),
    ],
)
def test_frames_have_the_size_of_the_task(tmp_path: Path, overrides: list[str], shapes_of: object) -> None:
    cameras = {"front": (16, 12, 3), "wrist": (4, 4, 1)}
    native.write(tmp_path / "a.h5", make_store((9, 8), cameras=cameras))
    config = task(f"task.dataset={tmp_path}/a.h5", "encoder=impala_tiny", *overrides)
    if isinstance(shapes_of, str):
        with pytest.raises(GtpVisionError, match=shapes_of):
            open_data(config)
    else:
        store = open_data(config)
        assert {name: x.shape[1:] for name, x in store.observations.items() if x.ndim == 4} == shapes_of


@pytest.mark.trains
def test_a_run_on_resized_frames_is_evaluated_and_exported_as_it_was_trained(tmp_path: Path) -> None:
    store = make_store((9, 8), cameras={"front": (16, 12, 3)})
    native.write(tmp_path / "a.h5", store)
    sized = (*PIXELS, "task.image_size=8x6", "training.steps=2", "training.probe_rows=0")
    trainer.train(small_run(tmp_path / "a.h5", tmp_path / "run", *sized, agent="gtp_bc"), progress=False)
    config, trained = evaluate.restore(tmp_path / "run")
    spec = evaluate.env_spec(config, trained.record)
    assert spec.shown == {"front": (16, 12, 3), "state": (3,)}
    policy = export(tmp_path / "run", tmp_path / "policy")
    assert policy.schema.cameras == {"front": (8, 6, 3)}
    seen = {"front": np.asarray(store.observations["front"][0]), "state": np.asarray(store.observations["state"][0])}
    small = seen | {"front": open_data(config).observations["front"][0]}
    np.testing.assert_array_equal(policy.session(0).act(seen), policy.session(0).act(small))
