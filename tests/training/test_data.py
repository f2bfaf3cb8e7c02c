import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import Encoder
from gtp_vision.training import evaluate, trainer
from gtp_vision.training.build import build, shapes
from gtp_vision.training.data import constant_dimensions, fit, open_data

MakeStore = Callable[..., Store]
TINY = [
    "task=demo",
    "agent=gtp",
    "encoder=state",
    "training.batch_size=4",
    "training.steps=2",
    "training.log_every=1",
    "training.eval_episodes=0",
    "agent.policy.hidden=[8]",
    "agent.critic.hidden=[8]",
]


@pytest.fixture
def folder(make_store: MakeStore, tmp_path: Path) -> Path:
    """Two data sets of states; the first has groups of episodes, a dull dimension and a second observation."""
    bounds = {"action_low": [0.0, -3.0], "action_high": [1.0, 3.0]}
    first = make_store((9, 8, 7), attributes={"filters": {"train": [0, 2]}, **bounds})
    first.observations["state"][:, 1] = 4
    first.observations["extra"] = np.random.default_rng(5).normal(3, 2, (24, 2)).astype(np.float32)
    native.write(tmp_path / "a.h5", first)
    native.write(tmp_path / "b.h5", make_store((6, 6), seed=3, attributes=bounds))
    return tmp_path


def config(folder: Path, *overrides: str) -> Config:
    return from_command_line([*TINY, "task.dataset=null", f"run_dir={folder / 'run'}", *overrides])


def test_a_task_sees_its_episodes_and_observations(folder: Path) -> None:
    a = folder / "a.h5"
    assert open_data(config(folder, f"task.dataset={a}")).episodes == 3
    some = open_data(config(folder, f"task.dataset={a}", "task.filter=train", "task.observations=[extra]"))
    assert some.episode_ends.tolist() == [9, 16]
    assert list(some.observations) == ["extra"]


def test_data_sets_are_mixed_by_their_shares(folder: Path) -> None:
    pair = f"task.datasets=[{folder}/a.h5,{folder}/b.h5]"
    mixed = open_data(config(folder, pair, "task.shares=[3,1]", "task.observations=[state]"))
    assert len(mixed) == 36
    assert mixed.weights is not None
    weights = mixed.weights[mixed.transitions]
    assert weights[mixed.transitions < 24].sum() == pytest.approx(3 * weights[mixed.transitions >= 24].sum())
    with pytest.raises(GtpVisionError, match=r"b\.h5 holds state 3 .*a\.h5 holds extra 2 float32, state 3"):
        open_data(config(folder, pair))
    equal = open_data(config(folder, pair, "task.observations=[state]"))
    assert equal.attributes["mixed"] == [{"path": f"{folder}/{name}.h5", "share": 1.0} for name in "ab"]
    assert open_data(config(folder, f"task.datasets=[{folder}/b.h5]")).weights is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.dataset=a.h5", "task.datasets=[b.h5]"], r"both given"),
        (["task.datasets=[]"], r"names no data set"),
        (["task.datasets=[a.h5,b.h5]", "task.shares=[1]"], r"shares=\[1.0\].*each of the 2 data sets"),
        (["task.datasets=[b.h5]", "task.shares=[0]"], r"shares=\[0.0\].*above 0"),
        (["task.shares=[1]"], r"each of the 0 data sets"),
        (["task.observations=[]"], r"nothing to see"),
        (["training.placement=cloud"], r"placement=cloud is unknown.*'auto', 'device', 'mapped'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        config(folder, *overrides)


@pytest.mark.parametrize("standardize", [True, False])
def test_encoders_scale_states_and_leave_dull_dimensions(folder: Path, standardize: bool) -> None:
    store = open_data(config(folder, f"task.dataset={folder / 'a.h5'}"))
    made = config(folder)
    encoder = Encoder(shapes(store, 1), made.encoder)
    found = fit(encoder, store, standardize=standardize)
    assert constant_dimensions(found) == "near-constant dimensions, not scaled: observations/state [1]"
    state, extra = (torch.tensor(np.asarray(store.observations[name])) for name in ("state", "extra"))
    seen = encoder({"state": state[:, None], "extra": extra[:, None]})
    joined = torch.cat([extra, state], dim=1)  # by name, as HDF5 lists them
    if standardize:
        wanted = (joined - joined.mean(0)) / joined.std(0, unbiased=False)
        wanted[:, 3] = 0  # the dull one is centred only
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)
        other = Encoder(shapes(store, 1), made.encoder)
        other.load_state_dict(encoder.state_dict())
        assert torch.equal(other({"state": state[:, None], "extra": extra[:, None]}), seen), "saved with the weights"
    else:
        assert torch.equal(seen, joined)


def test_a_run_says_where_its_data_live_and_keeps_their_statistics(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in ("device", "mapped"):
        made = config(folder, f"task.dataset={folder / 'a.h5'}", f"training.placement={how}", f"run_dir={folder / how}")
        trainer.train(made)
        told = capsys.readouterr().err
        assert ("on cpu" if how == "device" else "mapped from") in told
        assert "near-constant dimensions, not scaled: observations/state [1]" in told
        kept = json.loads((folder / how / "statistics.json").read_text())
        assert kept["observations/state"]["constant"] == [1]
        assert len(kept["actions"]["quantiles"]["0.99"]) == 2
        assert (kept["action_low"], kept["action_high"]) == ([0, -3], [1, 3])
    one, other = (
        (folder / how / "checkpoints" / "last" / "agent.safetensors").read_bytes() for how in ("device", "mapped")
    )
    assert one == other, "the same batches, wherever they lie"


def test_own_data_need_no_simulator(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = from_command_line(
        ["task=own", f"task.dataset={folder / 'a.h5'}", *TINY[1:], "training.eval_episodes=50", f"run_dir={folder}/run"]
    )
    assert made.training.eval_episodes == 0
    results = trainer.train(made, progress=False)
    assert results["env"] is None
    assert "last" not in results
    with pytest.raises(GtpVisionError, match="trained without a simulator"):
        evaluate.evaluate_run(folder / "run")
    with pytest.raises(GtpVisionError, match=r"task\.env=null names no data set"):
        from_command_line(["task=own"])


def test_another_simulator_than_the_datas_is_refused_before_training(folder: Path) -> None:
    made = config(folder, f"task.dataset={folder / 'a.h5'}", "task.observations=[state]", "training.eval_episodes=1")
    with pytest.raises(GtpVisionError, match=r"puzzle-3x3.*takes actions \(5,\).*a\.h5 holds .*\(3,\).*actions \(2,\)"):
        trainer.train(made, progress=False)
    assert not (folder / "run").exists()


def test_likely_mistakes_are_told_when_training_begins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_data(config(folder, f"task.dataset={folder / 'b.h5'}"))
    native.write(folder / "zero.h5", replace(store, rewards=np.zeros(len(store), np.float32)))
    trainer.train(config(folder, f"task.dataset={folder / 'zero.h5'}", "agent=gtp_bc"))
    assert "warning: rewards are 0 everywhere" in capsys.readouterr().err


def test_a_list_without_brackets_is_told(folder: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"task\.datasets: this is a list; write it in brackets"):
        config(folder, f"task.datasets={folder / 'a.h5'}")


def test_evaluating_copies_no_frames_to_the_device(folder: Path) -> None:
    made = config(folder, f"task.dataset={folder / 'a.h5'}", "training.placement=device")
    trainer.train(made, progress=False)
    assert "on cpu" in build(made).where
    assert "mapped from" in evaluate.restore(folder / "run")[1].where
