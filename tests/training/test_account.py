"""Accounts of episodes: planted bad ones are found first, and a group without them is trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import small_run
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.evaluation.influence import HELD_OUT, advantages, agreements, loss_parts
from gtp_vision.training.account import account
from gtp_vision.training.data import open_data
from gtp_vision.training.evaluate import restore
from gtp_vision.training.trainer import train

EPISODES, PLANTED = 40, (3, 11, 17, 30)
_STEP = 1e-4  # down the gradient; losses are float32, which hide smaller ones


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The action is a function of the state, but for four episodes of random actions."""
    store = make_store([12] * EPISODES)
    store.observations["state"] = np.random.default_rng(0).normal(size=store.observations["state"].shape).astype("f4")
    good = np.tanh(store.observations["state"][:, :2])
    of = store.episode_of(np.arange(len(store)))
    bad = np.isin(of, PLANTED)
    store.actions[~bad] = 0.8 * good[~bad]
    store.rewards[:] = np.where(bad, -1, 1)
    return native.write(tmp_path_factory.mktemp("account") / "data.h5", store)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    wide = ("agent.policy.hidden=[64,64]", "agent.critic.hidden=[64,64]", "training.batch_size=64")
    rate = ("training.learning_rate=3e-3", "training.checkpoint_every=400", "training.log_every=400")
    train(small_run(data, folder, *wide, *rate, "training.steps=400", "task.validation=0.2"))
    return folder


@pytest.mark.trains
def test_planted_episodes_are_found_first_and_left_out(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = account(run)
    held_out = set(range(EPISODES)) - {each["episode"] for each in found["episodes"]}
    planted = set(PLANTED) - held_out
    assert len(planted) >= 2
    worst = found["episodes"][: len(planted)]
    assert {each["episode"] for each in worst} == planted
    assert all(each["harms"] and each["advantage"] < 0 for each in worst)
    assert sum(each["harms"] for each in found["episodes"]) == len(planted)
    assert main(["data", "account", str(run), "--group", "helps", "--worst", "2"]) == 0
    output = capsys.readouterr().out
    assert f"has {EPISODES - len(planted)} of {EPISODES} episodes; train with task.filter=helps" in output
    kept = open_data(small_run(data, "unused", "task.filter=helps", "task.validation=0"))
    assert kept.numbers is not None
    assert set(range(EPISODES)) - set(kept.numbers.tolist()) == planted
    assert open_store(data).attributes["filters"].keys() == {"helps"}
    assert main(["data", "account", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == found["episodes"], "a function of run and data alone"


@pytest.mark.trains
def test_agreement_is_the_slope_of_the_held_out_loss(data: Path, run: Path) -> None:
    """A small step down the loss of one episode changes another's by agreement_i times its own squared gradient."""
    config, trained = restore(run)
    agent, sampler = trained.agent.double(), Sampler(open_data(config), 1, 0, frame_stack=3)
    one, other = np.array_split(sampler.store.transitions[:22], 2)

    def loss(rows: np.ndarray, seed: int) -> torch.Tensor:
        return torch.stack(list(loss_parts(agent, sampler, rows, seed, "cpu"))).sum()

    (agreement,) = agreements(agent, sampler, [one], sampler, [other], "cpu")
    parameters = list(agent.policy.parameters())
    with torch.enable_grad():
        own, held = (torch.autograd.grad(loss(*args), parameters) for args in ((one, 0), (other, HELD_OUT)))
    size = sum(slope.square().sum() for slope in held)
    before = loss(other, HELD_OUT)
    with torch.no_grad():
        for parameter, slope in zip(parameters, own, strict=True):
            parameter -= _STEP * slope
    change = float((before - loss(other, HELD_OUT)).detach() / _STEP / size)
    assert change == pytest.approx(agreement, rel=0.2), "up to targets that the loss holds fixed"
    assert np.isfinite(advantages(agent.float(), sampler, one, "cpu")).all()


@pytest.mark.trains
def test_what_cannot_be_judged_is_one_sentence(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "account", str(run), "--group", "success"]) == 2
    assert "cannot name a group" in capsys.readouterr().err
    train(small_run(data, tmp_path / "run", "training.steps=1", "task.validation=0"))
    capsys.readouterr()
    assert main(["data", "account", str(tmp_path / "run")]) == 2
    assert "holds out no episode" in capsys.readouterr().err
