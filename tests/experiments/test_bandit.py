"""The bandit's known answers, each against its definition, and the judging of agents by them."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gtp_vision import models
from gtp_vision.agents import AGENTS, AgentConfig
from gtp_vision.cli.main import main
from gtp_vision.core.random import RandomStream, counter_rng
from gtp_vision.experiments.bandit import LIMITS, bandit, judge, table, theory
from gtp_vision.experiments.bandit_problem import (
    CONTEXTS,
    DEVIATION,
    MODES,
    REWARDS,
    SHARES,
    advantage_optimum,
    best_share,
    demonstrations,
    expectile,
    improved,
    shares_of,
    tilted,
)
from gtp_vision.experiments.bandit_rows import ROWS, run_config
from gtp_vision.models.diffusion import VPDiffusionPolicy


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
    assert store.terminals.all()
    assert store.has_outcome.all()
    assert sorted(best_share(SHARES)) == [0.1, 0.2, 0.4], "the best mode is not the most frequent one everywhere"


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


@pytest.mark.parametrize("form", ["positive", "exponential"])
@pytest.mark.parametrize("standardize", [True, False])
def test_advantage_weighting_reproduces_its_own_fixed_point(form: str, standardize: bool) -> None:
    share = advantage_optimum(1.0, form=form, standardize=standardize, clip=1e6)
    advantage = REWARDS - (share * REWARDS).sum(1, keepdims=True)
    rows = np.repeat(np.arange(CONTEXTS), 1000)
    modes = np.concatenate([np.repeat(np.arange(4), (1000 * SHARES[c]).round().astype(int)) for c in range(CONTEXTS)])
    drawn = advantage[rows, modes]  # a data set with exactly these shares
    scaled = drawn / drawn.std() if standardize else drawn
    weight = np.exp(np.maximum(scaled, 0) if form == "positive" else scaled)
    for c in range(CONTEXTS):
        counted = np.bincount(modes[rows == c], weight[rows == c], minlength=4) / weight[rows == c].sum()
        assert counted == pytest.approx(share[c], abs=1e-6)


@pytest.mark.parametrize(
    ("form", "samples", "eta", "error"),
    [
        ("positive", 1, 1, 0.075),
        ("positive", 2, 1, 0.050),
        ("positive", 4, 1, 0.031),
        ("exponential", 1, 1, 0.134),
        ("exponential", 2, 1, 0.081),
        ("exponential", 4, 1, 0.044),
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


def test_weights_of_one_leave_the_behaviour_and_clipped_ones_change_less() -> None:
    assert advantage_optimum(0.0, form="positive", standardize=True, clip=10) == pytest.approx(SHARES)
    assert advantage_optimum(3.0, form="positive", standardize=True, clip=1) == pytest.approx(SHARES)
    free, clipped = (best_share(advantage_optimum(3.0, form="positive", standardize=True, clip=x)) for x in (1e6, 3))
    assert (free > clipped).all()
    assert (clipped > best_share(SHARES)).all()


@pytest.mark.parametrize(("alpha", "support", "error"), [(3, 16, 0.074), (1.5, 16, 0.021)])
def test_few_support_actions_flatten_the_target(alpha: float, support: int, error: float) -> None:
    # Where noise hides which action it was, the loss of guidance and alignment learns E[softmax(alpha Q)_m | a_m].
    generator, errors = counter_rng(0), []
    for c in range(CONTEXTS):
        others = generator.choice(len(MODES), (50_000, support - 1), p=SHARES[c])
        rest = np.exp(alpha * REWARDS[c])[others].sum(1)
        learned = SHARES[c] * [(np.exp(alpha * r) / (np.exp(alpha * r) + rest)).mean() for r in REWARDS[c]]
        errors.append(np.abs(learned / learned.sum() - tilted(alpha * REWARDS)[c]).sum() / 2)
    assert max(errors) == pytest.approx(error, abs=0.01)


def test_the_expectile_is_the_minimum_of_its_loss() -> None:
    assert expectile(0.5) == pytest.approx((SHARES * REWARDS).sum(1))
    v = np.linspace(0, 1, 2001)[:, None]
    for c, value in enumerate(expectile(0.7)):
        u = REWARDS[c] - v
        losses = (SHARES[c] * np.where(u < 0, 0.3, 0.7) * u**2).sum(1)
        assert v[losses.argmin(), 0] == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(("steps", "low", "high"), [(5, 0.40, 0.52), (20, 0.002, 0.02)])
def test_five_steps_of_a_variance_preserving_diffusion_do_not_separate_narrow_modes(
    steps: int, low: float, high: float
) -> None:
    # Its last step answers E[a | x_1], and x_1 is noised by half of an action: why diffusion_bc takes 30 steps, and
    # idql and diffusion_ql 20.
    policy = models.create(1, 2, models.PolicyConfig(family="vp_diffusion", grid=steps, hidden=[8]))
    assert isinstance(policy, VPDiffusionPolicy)
    modes, shares, abar = torch.tensor(MODES).float(), torch.tensor(SHARES[1]).float(), policy.abar

    def exact_noise(observed: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
        kept = abar[round(t * steps)]
        a_t, variance = x / kept.sqrt(), DEVIATION**2 + (1 - kept) / kept
        mean = torch.softmax(shares.log() - (a_t[:, None] - modes).square().sum(-1) / (2 * variance), 1) @ modes
        return (x - kept.sqrt() * (mean + DEVIATION**2 / variance * (a_t - mean))) / (1 - kept).sqrt()

    policy.evaluate = exact_noise  # type: ignore[method-assign, assignment]
    actions = policy.generate(torch.zeros(6000, 8), steps, RandomStream(0, 0)).double().numpy()
    outside = shares_of(actions.reshape(CONTEXTS, -1, 2))[1].mean()
    assert low < outside < high


@pytest.fixture(scope="module")
def configs() -> dict[str, AgentConfig]:
    return {label: run_config(label, Path("data.h5"), 10, 0).agent for label in ROWS}


def test_every_agent_has_a_row_with_its_theory(configs: dict[str, AgentConfig]) -> None:
    assert set(AGENTS) <= {config.name for config in configs.values()}
    theories = {
        "behaviour": {"gtp_bc", "diffusion_bc", "consistency_bc"},
        "optimum": {"gtp", "gtp exponential", "gtp IQL's weights", "qgpo", "bdm", "gtp+e"},
        "best": {"diffusion_ql", "consistency_ac", "gtp+q", "gtp+q, K=5", "gtp+n", "fql", "idql", "ifql"},
        "mean": {"gaussian_bc", "iql"},
        "open": {"td3_bc", "rebrac"},
    }
    for kind, labels in theories.items():
        assert {kind} == {theory(configs[label]) for label in labels}


def test_judging_can_fail_and_pass(configs: dict[str, AgentConfig]) -> None:
    generator = counter_rng(1)

    def draw(share: np.ndarray) -> np.ndarray:
        modes = np.stack([generator.choice(4, 4000, p=p) for p in share])
        return np.asarray(MODES[modes] + DEVIATION * generator.standard_normal((CONTEXTS, 4000, 2)))

    cloning, weighting, choosing = (configs[label] for label in ("gtp_bc", "gtp IQL's weights", "idql"))
    target, best = improved(weighting), np.eye(4)[REWARDS.argmax(1)]
    assert target is not None
    assert target == pytest.approx(tilted(3 * REWARDS))
    for config, share, is_ok in (
        (cloning, SHARES, True),
        (cloning, target, False),
        (weighting, target, True),
        (weighting, SHARES, False),
        (choosing, best, True),
        (choosing, 0.85 * best + 0.15 * SHARES, False),
    ):
        assert judge(config, draw(share))["ok"] is is_ok
    assert judge(weighting, draw(SHARES))["tv"] > LIMITS["optimum"]
    outside = draw(best)
    outside[:, :80] = 0.0
    assert judge(choosing, outside)["ok"] is False
    assert judge(choosing, outside)["outside"] == pytest.approx(0.02, abs=1e-3)


@pytest.mark.trains
def test_a_short_training_moves_towards_the_answer(tmp_path: Path) -> None:
    results = bandit(tmp_path, steps=300, labels=["gaussian_bc", "td3_bc"], progress=False)
    rows = results["rows"]
    assert rows["gaussian_bc"]["distance"] < 0.35
    assert rows["gaussian_bc"]["steps"] == 75
    assert rows["td3_bc"]["ok"] is None
    assert (tmp_path / "bandit.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "bandit.json").read_text())["rows"] == rows
    assert all(label in table(results) for label in ("gaussian_bc", "td3_bc", "seed 0, 300 steps"))


@pytest.mark.parametrize("what", ["bandit", "maps", "multigoal"])
def test_bad_options_are_refused_before_training(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for option, value in (("--train-steps", "0"), ("--seed", "-1"), ("--out", str(tmp_path / "file"))):
        if (what, option) != ("maps", "--out"):
            assert main(["experiment", what, option, value]) == 2
            error = capsys.readouterr().err
            assert option in error
            assert value in error
