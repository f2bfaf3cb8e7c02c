import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from gtp_vision.agents import AGENTS, AgentConfig, check_agent, create
from gtp_vision.cli.main import main
from gtp_vision.core.random import counter_rng
from gtp_vision.experiments import bandit_acting
from gtp_vision.experiments.bandit import bandit, judge, table, theory
from gtp_vision.experiments.bandit_problem import (
    CONTEXTS,
    DEVIATION,
    MODES,
    REWARDS,
    SHARES,
    advantage_optimum,
    best_share,
    demonstrations,
    exact_q,
    expectile,
    improved,
    shares_of,
    tilted,
)
from gtp_vision.experiments.bandit_rows import ROWS, run_config


def test_data_have_the_given_shares_and_rewards() -> None:
    store = demonstrations(60_000, counter_rng(0))
    context = store.observations["context"].argmax(1)
    share, outside = shares_of(np.stack([store.actions[context == c] for c in range(CONTEXTS)]))
    assert share == pytest.approx(SHARES, abs=0.01)
    assert outside.max() < 1e-3
    nearest = np.linalg.norm(store.actions[:, None] - MODES, axis=-1).argmin(1)
    for c, m in np.ndindex(CONTEXTS, len(MODES)):
        rows = (context == c) & (nearest == m)
        assert store.rewards[rows].mean() == pytest.approx(REWARDS[c, m], abs=0.01)
        assert store.actions[rows].std(0) == pytest.approx(DEVIATION, rel=0.1)
    assert sorted(best_share(SHARES)) == [0.1, 0.2, 0.4], "the best mode is not the most frequent one everywhere"


def test_the_exact_q_is_the_expected_reward() -> None:
    on_modes = np.broadcast_to(MODES, (CONTEXTS, *MODES.shape))
    assert exact_q(on_modes) == pytest.approx(REWARDS)
    middle = np.zeros((CONTEXTS, 1, 2))  # as far from all modes
    assert exact_q(middle)[:, 0] == pytest.approx((SHARES * REWARDS).sum(1))


def test_every_way_of_acting_is_legal_and_a_beam_is_no_worse_than_its_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandit_acting, "_BATCH", 30)
    config = run_config(bandit_acting.LABEL, Path("data.h5"), 10, 0)
    for acting in bandit_acting.WAYS.values():
        check_agent(replace(config.agent, acting=acting))
    agent = create({"context": (1, CONTEXTS)}, 2, config.agent, config.encoder)
    ways = bandit_acting.ways_of_acting(agent, 0)
    best_of = ways["best of 4"]["learned_q"]
    assert best_of > ways["single"]["learned_q"]
    for name in ("beam of 16, t'=0.25", "beam of 16, t'=0.5", "beam of 16, t'=1"):
        assert ways[name]["learned_q"] >= best_of - 1e-6
    assert len(bandit_acting.table(ways)) == 1 + len(ways)


def test_an_action_between_the_modes_is_outside() -> None:
    actions = np.stack([[MODES[0], MODES[3] + 0.2, [0, 0], [0.6, 0.0]]] * CONTEXTS)
    share, outside = shares_of(actions)
    assert share[0] == pytest.approx([0.25, 0, 0, 0.25])
    assert outside == pytest.approx([0.5] * CONTEXTS)


def test_a_tilt_is_the_optimum_of_kl_regularized_improvement() -> None:
    alpha = 3.0
    for c in range(CONTEXTS):

        def cost(logits: np.ndarray, c: int = c) -> float:
            share = np.exp(logits - np.logaddexp.reduce(logits))
            return float((share * np.log(share / SHARES[c])).sum() - alpha * (share * REWARDS[c]).sum())

        logits = minimize(cost, np.zeros(len(MODES)), tol=1e-12).x
        assert tilted(alpha * REWARDS)[c] == pytest.approx(np.exp(logits - np.logaddexp.reduce(logits)), abs=1e-4)


@pytest.mark.parametrize(
    ("form", "standardize", "clip"), [("positive", True, 1e6), ("exponential", False, 1e6), ("exponential", True, 1.5)]
)
def test_advantage_weighting_reproduces_its_own_fixed_point(form: str, standardize: bool, clip: float) -> None:
    share = advantage_optimum(1.0, form=form, standardize=standardize, clip=clip)
    advantage = REWARDS - (share * REWARDS).sum(1, keepdims=True)
    rows = np.repeat(np.arange(CONTEXTS), 1000)
    modes = np.concatenate([np.repeat(np.arange(4), (1000 * SHARES[c]).round().astype(int)) for c in range(CONTEXTS)])
    drawn = advantage[rows, modes]  # a data set with exactly these shares
    scaled = drawn / drawn.std() if standardize else drawn
    weight = np.exp(np.maximum(scaled, 0) if form == "positive" else scaled).clip(max=clip)
    for c in range(CONTEXTS):
        counted = np.bincount(modes[rows == c], weight[rows == c], minlength=4) / weight[rows == c].sum()
        assert counted == pytest.approx(share[c], abs=1e-6)


@pytest.mark.parametrize(
    ("form", "samples", "eta", "error"),
    [
        ("positive", 1, 1, 0.075),
        ("positive", 4, 1, 0.031),
        ("exponential", 1, 1, 0.134),
        ("exponential", 1, 1.35, 0.002),  # V's noise is alike for all actions of a context: it only widens std(A)
    ],
)
def test_few_samples_of_v_flatten_the_weights(form: str, samples: int, eta: float, error: float) -> None:
    drawn = np.array(list(itertools.product(range(len(MODES)), repeat=samples)))  # all possible V
    advantage = REWARDS[:, :, None] - REWARDS[:, drawn].mean(-1)[:, None]
    share = SHARES
    for _ in range(60):
        chance = share[:, drawn].prod(-1)[:, None]
        mass = SHARES[:, :, None] * chance / CONTEXTS
        deviation = np.sqrt((mass * (advantage - (mass * advantage).sum()) ** 2).sum())
        scaled = eta * advantage / deviation
        weight = (chance * np.exp(np.maximum(scaled, 0) if form == "positive" else scaled)).sum(-1)
        share = (share + SHARES * weight / (SHARES * weight).sum(1, keepdims=True)) / 2
    target = advantage_optimum(1.0, form=form, standardize=True, clip=1e6)
    assert (np.abs(share - target).sum(1) / 2).max() == pytest.approx(error, abs=2e-3)


def test_the_expectile_is_the_minimum_of_its_loss() -> None:
    assert expectile(0.5) == pytest.approx((SHARES * REWARDS).sum(1))
    v = np.linspace(0, 1, 2001)[:, None]
    for c, value in enumerate(expectile(0.7)):
        u = REWARDS[c] - v
        losses = (SHARES[c] * np.where(u < 0, 0.3, 0.7) * u**2).sum(1)
        assert v[losses.argmin(), 0] == pytest.approx(value, abs=1e-3)


@pytest.fixture(scope="module")
def configs() -> dict[str, AgentConfig]:
    return {label: run_config(label, Path("data.h5"), 10, 0).agent for label in ROWS}


def test_every_agent_has_a_row_with_its_theory(configs: dict[str, AgentConfig]) -> None:
    assert {name for name, recipe in AGENTS.items() if not recipe.goals} <= {config.name for config in configs.values()}
    theories = {"gtp_bc": "behaviour", "gtp": "optimum", "fql": "best", "gaussian_bc": "mean", "rebrac": "open"}
    assert {label: theory(configs[label]) for label in theories} == theories


def test_judging_can_fail_and_pass(configs: dict[str, AgentConfig]) -> None:
    generator = counter_rng(1)

    def draw(share: np.ndarray) -> np.ndarray:
        modes = np.stack([generator.choice(4, 4000, p=p) for p in share])
        return np.asarray(MODES[modes] + DEVIATION * generator.standard_normal((CONTEXTS, 4000, 2)))

    target, best = improved(configs["gtp IQL's weights"]), np.eye(4)[REWARDS.argmax(1)]
    assert target == pytest.approx(tilted(3 * REWARDS))
    assert target is not None
    outside = draw(best)
    outside[:, :80] = 0.0
    for label, actions, is_ok in (
        ("gtp_bc", draw(SHARES), True),
        ("gtp_bc", draw(target), False),
        ("gtp IQL's weights", draw(target), True),
        ("gtp IQL's weights", draw(SHARES), False),
        ("idql", draw(best), True),
        ("idql", draw(0.85 * best + 0.15 * SHARES), False),
        ("idql", outside, False),
    ):
        assert judge(configs[label], actions)["ok"] is is_ok


@pytest.mark.trains
def test_a_short_training_moves_towards_the_answer(tmp_path: Path) -> None:
    results = bandit(tmp_path, steps=300, labels=["gaussian_bc", "td3_bc"], progress=False)
    rows = results["rows"]
    assert rows["gaussian_bc"]["distance"] < 0.35
    assert rows["td3_bc"]["ok"] is None
    assert (tmp_path / "bandit.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "bandit.json").read_text())["rows"] == rows
    assert "td3_bc" in table(results)


@pytest.mark.parametrize("what", ["bandit", "maps", "multigoal"])
def test_bad_options_are_refused_before_training(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for option, value in (("--train-steps", "0"), ("--seed", "-1"), ("--out", str(tmp_path / "file"))):
        if (what, option) != ("maps", "--out"):
            assert main(["experiment", what, option, value]) == 2
            error = capsys.readouterr().err
            assert option in error
            assert value in error
