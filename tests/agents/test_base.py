import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import PIXELS, STATE, make, observation, preset
from stores import make_store

from gtp_vision import agents
from gtp_vision.agents import ActingConfig, Agent
from gtp_vision.agents.improvement import LossInputs
from gtp_vision.agents.search import choose
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import EncoderConfig
from gtp_vision.experiments.bandit_problem import CONTEXTS, MODES, REWARDS, SHARES
from gtp_vision.models.critic import td_target


@pytest.fixture
def counted() -> Store:
    """Row i shows i and is rewarded with i + 1: rows 0 to 5 time out, rows 6 to 9 end in a terminal."""
    return make_store((6, 4), terminals={9}, rewards=np.arange(1, 11, dtype=np.float32))


def values_are_rows(learner: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the slow Q of an observation the number of its row."""
    monkeypatch.setattr(learner.critic_target, "forward", lambda features, action: features[:, 0].expand(2, -1))


ROWS = np.array([0, 3, 4, 6, 7, 9])
TARGETS = [  # discount 0.5, three steps
    1 + 2 / 2 + 3 / 4 + 3 / 8,
    4 + 5 / 2 + 5 / 4,  # cut by the timeout: two rewards, then the value of the last frame
    5 + 5 / 2,  # one reward
    7 + 8 / 2 + 9 / 4 + 9 / 8,
    8 + 9 / 2 + 10 / 4,  # the terminal: no value
    10,
]


def inputs_of(learner: Agent, store: Store, rows: np.ndarray, chunk: int = 1) -> LossInputs:
    sampler = Sampler(store, len(rows), 0, n_step=3, discount=0.5, frame_stack=1, action_chunk=chunk)
    return learner.loss_inputs(sampler.gather(rows), RandomStream(0, 0), 0)


@pytest.mark.parametrize("name", ["gtp", "diffusion_ql", "qgpo", "fql", "td3_bc", "iql"])
def test_n_step_targets_across_a_timeout_and_a_terminal(
    counted: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    learner = make(name, shapes={"state": (1, 3)})
    values_are_rows(learner, monkeypatch)
    if learner.critic.v is not None:
        monkeypatch.setattr(learner.critic.v, "forward", lambda features: features[:, :1])
    inputs = inputs_of(learner, counted, ROWS)
    target = td_target(inputs.batch.reward, inputs.batch.discount, learner.next_value(inputs))
    assert target.tolist() == pytest.approx(TARGETS)
    loss, q, metrics = learner.critic_loss(inputs)
    assert loss.item() == pytest.approx((q - torch.tensor(TARGETS)).square().mean().item(), rel=1e-5)
    assert float(metrics["critic/target"]) == pytest.approx(np.mean(TARGETS))
    assert float(metrics.get("critic/v_loss", 0)) == 0, "V and the slow Q are both the row's number"


def test_chunks_cut_short_by_a_timeout_train_neither_q_nor_v(counted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = ["agent.action_chunk=3", "agent.critic.chunk=true", "task.n_step=3"]
    learner = make("gtp", *chunked, shapes={"state": (1, 3)})
    values_are_rows(learner, monkeypatch)
    inputs = inputs_of(learner, counted, ROWS, chunk=3)
    assert inputs.action.shape == (6, 6)
    loss, q, _ = learner.critic_loss(inputs)
    whole, cut = [0, 3, 4, 5], [1, 2]  # chunks from rows 3 and 4 reach the frame that timed out
    expected = (q[:, whole] - torch.tensor(TARGETS)[whole]).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    learner = make("gtp", *chunked, "agent.critic.backup=expectile", shapes={"state": (1, 3)})
    for rows, learns in ((cut, False), ([0, 3], True)):
        metrics = learner.critic_loss(inputs_of(learner, counted, ROWS[rows], chunk=3))[2]
        assert (float(metrics["critic/v_loss"]) > 0) == learns


@pytest.mark.parametrize("aggregate", ["min", "mean", "mean agent.critic.rho=0.5"])
@pytest.mark.parametrize("backup", ["mean", "max", "softmax"])
def test_backups_over_one_jump_samples_have_the_bandits_known_value(
    monkeypatch: pytest.MonkeyPatch, backup: str, aggregate: str
) -> None:
    """Two members that differ by a mode's `gap`, exact but for that, and the behavior's actions."""
    n, rows, gap, alpha = 3, 3 * 4000, np.array([0.6, 0.0, 0.2, 0.4]), 5.0
    chosen = f"agent.critic.next_actions={n} agent.critic.next_steps=1 agent.critic.softmax_alpha={alpha}"
    more = f"agent.critic.backup={backup} agent.critic.aggregate={aggregate} {chosen}".split()
    learner = make("gtp", *more, shapes={"context": (1, CONTEXTS)})

    def drawn(features: torch.Tensor, steps: int, noise: RandomStream, draws: int) -> torch.Tensor:
        assert steps == 1
        share = torch.from_numpy(SHARES)[features.argmax(1).repeat_interleave(draws)]
        mode = torch.multinomial(share, 1, generator=torch.Generator().manual_seed(0))[:, 0]
        return torch.from_numpy(MODES)[mode].float()

    def values(features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        mode = torch.cdist(action.double(), torch.from_numpy(MODES)).argmin(1)
        reward, apart = torch.from_numpy(REWARDS)[features.argmax(1), mode], torch.from_numpy(gap)[mode]
        return torch.stack([reward + apart, reward - apart])

    monkeypatch.setattr(learner.policy_target, "sample", drawn)
    monkeypatch.setattr(learner.critic_target, "forward", values)
    context = torch.eye(CONTEXTS).repeat(rows // CONTEXTS, 1)[:, None]
    zeros = torch.zeros(rows)
    batch = Batch(
        {"context": context}, {"context": context}, torch.zeros(rows, 1, 2), zeros[:, None] == 0, zeros, zeros
    )
    found = learner.next_value(learner.loss_inputs(batch, RandomStream(0, 0), 0)).view(-1, CONTEXTS).mean(0)

    def worth(members: np.ndarray) -> np.ndarray:
        return members.min(0) if aggregate == "min" else members.mean(0) - 0.5 * ("rho" in aggregate) * members.std(0)

    for c in range(CONTEXTS):
        expected = 0.0
        for modes in itertools.product(range(len(MODES)), repeat=n):
            members = np.array([REWARDS[c, modes] + gap[list(modes)], REWARDS[c, modes] - gap[list(modes)]])
            q = worth(members)
            odds = np.exp(alpha * q) / np.exp(alpha * q).sum()
            best = float(worth(members.max(1))) if aggregate == "min" else q.max()
            value = {"mean": q.mean(), "max": best, "softmax": (odds * q).sum()}[backup]
            expected += float(SHARES[c, modes].prod() * value)
        assert float(found[c]) == pytest.approx(expected, abs=0.02)


def test_observation_and_next_observation_are_shifted_alike(batch: Batch) -> None:
    learner = make(shapes=PIXELS, shift=3, shift_probability=1.0)
    batch = replace(batch, next_observation=batch.observation)  # only the shift could make a difference
    seen: dict[str, torch.Tensor] = {}
    for name in ("actor_encoder", "critic_encoder", "actor_encoder_target", "critic_encoder_target"):

        def note(_: Any, arguments: Any, name: str = name) -> None:
            seen[name] = arguments[0]["front"]

        getattr(learner, name).register_forward_pre_hook(note)
    learner(batch, RandomStream(0, 0), 0)
    assert len(seen) == 4
    assert all(torch.equal(images, seen["actor_encoder"]) for images in seen.values())
    assert not torch.equal(seen["actor_encoder"], batch.observation["front"]), "nothing was shifted"
    moved = [not torch.equal(*pair) for pair in zip(seen["actor_encoder"], batch.observation["front"], strict=True)]
    assert sum(moved) >= 10, "each sample has a shift of its own"
    shifted = learner.augment(batch.observation, learner.augment.draw(12, RandomStream(0, 0)))
    assert torch.equal(shifted["state"], batch.observation["state"])


def _encoder_gradients(batch: Batch, gradient: str) -> torch.Tensor:
    learner = agents.create(
        PIXELS, 2, preset("gtp"), EncoderConfig(name="impala_tiny", features=8, share=True, gradient=gradient)
    )
    learner.load_state_dict(make(shapes=PIXELS, share=True).state_dict())
    learner(batch, RandomStream(0, 0), 0)[0].backward()
    return torch.cat([p.grad.flatten() for p in learner.actor_encoder.parameters() if p.grad is not None])


def test_a_shared_encoder_learns_from_both_losses_or_from_one(batch: Batch) -> None:
    both, actor, critic = (_encoder_gradients(batch, name) for name in ("both", "actor", "critic"))
    assert min(float(actor.norm()), float(critic.norm())) > 0
    assert not torch.allclose(actor, critic, atol=1e-3 * float(both.norm()))
    assert torch.allclose(actor + critic, both, atol=1e-4 * float(both.norm()))


def test_acting_takes_the_agents_steps_unless_given() -> None:
    learner, seen = make("gtp", "agent.acting.steps=3"), observation()

    def sampled(steps: int) -> torch.Tensor:
        return learner.policy.sample(seen["state"].flatten(1), steps, RandomStream(0, 0))

    torch.testing.assert_close(learner.act(seen, RandomStream(0, 0)), sampled(3))
    torch.testing.assert_close(learner.act(seen, RandomStream(0, 0), 7), sampled(7))
    with pytest.raises(ValueError, match="steps=0"):
        learner.act(seen, RandomStream(0, 0), 0)


def test_a_gaussian_without_noise_acts_by_its_mean() -> None:
    learner, seen = make("gaussian_bc"), observation()
    mean = learner.policy.sample_from(seen["state"].flatten(1), torch.zeros(4, 2), 1)
    assert torch.equal(learner.act(seen, RandomStream(0, 0)), mean)
    noisy = make("gaussian_bc", "agent.acting.noise=1").act(seen, RandomStream(0, 0))
    half = make("gaussian_bc", "agent.acting.noise=0.5", "agent.policy.hidden=[16,16]").act(seen, RandomStream(0, 0))
    inside = (noisy.abs() < 1) & (half.abs() < 1)
    torch.testing.assert_close((half - mean)[inside], 0.5 * (noisy - mean)[inside], rtol=1e-5, atol=1e-6)


def test_candidates_are_evaluated_with_their_own_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, seen = make("gtp", "agent.acting.candidates=5"), observation(batch=6)
    drawn = 2 * torch.rand(30, 2) - 1

    def nearness(features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -(action[:, 0] - features[:, 0].tanh()).abs().expand(2, -1)

    monkeypatch.setattr(learner.policy, "sample", lambda features, steps, noise, draws: drawn[: draws * len(features)])
    monkeypatch.setattr(learner.critic_target, "forward", nearness)
    chosen = learner.act(seen, RandomStream(0, 0))
    for row, wanted in enumerate(seen["state"][:, 0, 0].tanh().tolist()):
        own = drawn[5 * row : 5 * row + 5]
        assert torch.equal(chosen[row], min(own, key=lambda a, wanted=wanted: abs(float(a[0]) - wanted)))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_soft_choice_follows_the_softmax_of_q_over_the_temperature(temperature: float) -> None:
    q, rows = torch.tensor([0.0, 1.0, 2.0]), 20_000
    acting = ActingConfig(choose="softmax", temperature=temperature)
    taken = choose(q.expand(rows, 3), acting, RandomStream(0, 0))
    odds = np.exp(np.array([0.0, 1.0, 2.0]) / temperature)
    expected = rows * odds / odds.sum()
    found = np.bincount(taken.numpy(), minlength=3)
    chi_square = ((found - expected) ** 2 / expected).sum()
    assert chi_square < 13.8, "the 0.1 % point of two degrees of freedom"


@pytest.mark.parametrize("value", [-1e3, 0.0, 1e30])
@pytest.mark.parametrize("temperature", [1e-38, 1e-3])
def test_a_cold_choice_takes_the_best_whatever_its_value(temperature: float, value: float) -> None:
    q = value + abs(value or 1) * torch.tensor([[0.0, 0.1, -0.1], [-2, -3, -1]])
    acting = ActingConfig(choose="softmax", temperature=temperature)
    assert choose(q, acting, RandomStream(0, 0)).tolist() == [1, 2]


def test_equal_candidates_are_drawn_alike_at_any_temperature() -> None:
    acting = ActingConfig(choose="softmax", temperature=1e-9)
    taken = choose(torch.full((3000, 3), -70.0), acting, RandomStream(0, 0))
    assert np.bincount(taken.numpy(), minlength=3).min() > 850


def test_networks_that_cannot_be_built_are_refused() -> None:
    config = preset("bdm")
    config.policy.hidden = []
    with pytest.raises(GtpVisionError, match=r"agent\.policy\.hidden=\[\] is a network without layers"):
        agents.create(STATE, 2, config, EncoderConfig(name="state"))


@pytest.mark.parametrize("name", ["gtp_bc", "idql"])
def test_acting_uses_the_statistics_of_batch_normalization_and_training_moves_them(name: str) -> None:
    encoder = EncoderConfig(name="resnet18", pooling="average", batch_norm="train", features=8)
    agent, seen = agents.create(PIXELS, 2, preset(name), encoder), observation(PIXELS)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    planned = agent.plan(seen, RandomStream(0, 0))
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert all(module.training for module in agent.modules()), "its mode is restored"
    agent.actor_encoder(seen)
    means = [name for name in before if name.startswith("actor_encoder.") and "running_mean" in name]
    assert means
    assert not any(torch.equal(agent.state_dict()[name], before[name]) for name in means)
    agent.load_state_dict(before)
    assert torch.equal(agent.eval().plan(seen, RandomStream(0, 0)), planned)
