from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gtp_vision import agents
from gtp_vision.agents.gtp import GTP, GTPBC, AgentConfig, advantage_weights
from gtp_vision.critics import CriticConfig
from gtp_vision.datasets.random import RandomStream
from gtp_vision.datasets.sampler import Batch, Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import Encoder, EncoderConfig
from gtp_vision.errors import GtpVisionError
from gtp_vision.policies import PolicyConfig

MakeStore = Callable[..., Store]
STATE = {"state": (2, 3)}
PIXELS = {"front": (2, 3, 12, 12), "state": (2, 3)}


def agent(name: str = "gtp", shapes: dict[str, tuple[int, ...]] = STATE, seed: int = 0, **chosen: Any) -> Any:
    """A tiny agent; `share`, `shift` and `shift_probability` are the encoder's, the rest the agent's."""
    torch.manual_seed(seed)
    pixels = any(len(shape) == 4 for shape in shapes.values())
    encoder = EncoderConfig(
        name="impala_small" if pixels else "state",
        features=8,
        share=chosen.pop("share", False),
        shift=chosen.pop("shift", 2),
        shift_probability=chosen.pop("shift_probability", 0.5),
    )
    config = AgentConfig(
        name=name,
        policy=PolicyConfig(hidden=[16], grid=5),
        critic=CriticConfig(hidden=[16]),
        **{"target_steps": 2, "act_steps": 3, "value_samples": 3} | chosen,
    )
    return agents.create(shapes, 2, config, encoder)


def observation(shapes: dict[str, tuple[int, ...]] = STATE, batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = RandomStream(seed, 0)
    return {
        name: noise.integers(256, batch, *shape).byte() if len(shape) == 4 else noise.normal(batch, *shape)
        for name, shape in shapes.items()
    }


@pytest.fixture
def batch(make_store: MakeStore) -> Batch:
    """Twelve transitions with cameras and states, some terminal."""
    store = make_store((9, 11), cameras={"front": (12, 12, 3)}, terminals={4, 12})
    return Sampler(store, 12, 0, frame_stack=2).gather(store.transitions[:12])


def states_of(batch: Batch) -> Batch:
    """The batch without its cameras."""
    return Batch(**{**vars(batch), "frames": {"state": batch.frames["state"]}})


def owner(name: str) -> str:
    """The part of the agent that a parameter belongs to."""
    return name.partition(".")[0]


# Weights --------------------------------------------------------------------------------------------------------


def plain_weights(advantage: np.ndarray, eta: float, clip: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.minimum(np.exp(eta * np.maximum(advantage, 0) / (advantage.std() + 1e-6)), clip)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    arrays(np.float32, st.integers(2, 40), elements=st.floats(-10, 10, width=32)),
    st.floats(0, 10),
    st.floats(1, 200),
)
def test_weights_are_exponential_in_the_positive_advantage_over_its_deviation_and_clipped(
    advantage: np.ndarray, eta: float, clip: float
) -> None:
    exact = advantage.astype(np.float64)
    assume(exact.std() > 0.1 * np.abs(exact).max() > 1e-3)
    weight = advantage_weights(torch.from_numpy(advantage), eta, clip)
    np.testing.assert_allclose(weight, plain_weights(exact, eta, clip), rtol=2e-3)


def test_the_deviation_keeps_its_digits_far_from_zero() -> None:
    advantage = 300 + 0.05 * torch.randn(256, generator=torch.Generator().manual_seed(0))
    eta = 3e-4  # so that the weights stay far below the clip
    expected = plain_weights(advantage.double().numpy(), eta, 100)
    np.testing.assert_allclose(advantage_weights(advantage, eta, 100), expected, rtol=1e-2)


def test_weights_at_eta_0_are_all_1() -> None:
    weight = advantage_weights(torch.tensor([-5.0, 0.0, 3.0, 1e6]), 0.0, 100.0)
    assert weight.tolist() == [1, 1, 1, 1]


def test_no_advantage_weighs_1_and_the_clip_is_the_most() -> None:
    weight = advantage_weights(torch.tensor([-5.0, -1.0, 0.0, 50.0]), 10.0, 20.0)
    assert weight.tolist() == [1, 1, 1, 20]


def test_equal_advantages_stay_finite() -> None:
    assert advantage_weights(torch.full((4,), 2.0), 3.0, 100.0).tolist() == [100] * 4
    assert advantage_weights(torch.zeros(4), 3.0, 100.0).tolist() == [1] * 4


def test_the_advantage_is_the_value_above_the_mean_over_policy_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = agent(value_samples=3)
    critic_features, actor_features = torch.randn(4, 6), torch.randn(4, 6)
    action, samples = torch.rand(4, 2), torch.rand(12, 2)
    asked: list[tuple[torch.Tensor, int, int]] = []

    def sample(features: torch.Tensor, steps: int, generator: RandomStream, draws: int = 1) -> torch.Tensor:
        asked.append((features, steps, draws))
        return samples

    monkeypatch.setattr(learner.policy_target, "sample", sample)
    advantage = learner.advantage(critic_features, actor_features, action, RandomStream(0, 0))
    for row in range(4):
        one = critic_features[row : row + 1]

        def value(a: torch.Tensor, one: torch.Tensor = one) -> float:
            return min(learner.critic(one, a[None])[:, 0].tolist())

        expected = value(action[row]) - np.mean([value(samples[3 * row + k]) for k in range(3)])
        assert float(advantage[row]) == pytest.approx(expected, abs=1e-5)
    ((features, steps, draws),) = asked
    assert (steps, draws) == (2, 3)
    assert torch.equal(features, actor_features)


# Critic ---------------------------------------------------------------------------------------------------------


def test_the_critics_loss_is_the_squared_td_error_over_members_and_batch(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, few = agent(), states_of(batch)
    next_action = torch.rand(12, 2)
    monkeypatch.setattr(learner.policy_target, "sample", lambda *_: next_action)
    with torch.no_grad():  # targets of their own
        for parameter in learner.critic_target.parameters():
            parameter.add_(0.1)
    features, following = few.observation()["state"].flatten(1), few.next_observation()["state"].flatten(1)
    loss, _ = learner.critic_loss(features, few, few.next_observation(), RandomStream(0, 0))
    target = few.reward + few.discount * learner.critic_target(following, next_action).min(0).values
    expected = torch.stack([(q - target) ** 2 for q in learner.critic(features, few.action)]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_follows_a_terminal_does_not_reach_the_critic(batch: Batch) -> None:
    learner, few = agent(), states_of(batch)
    ended = few.discount == 0
    assert ended.any()
    assert not ended.all()

    def critic_loss(rows: torch.Tensor) -> float:
        changed = {"state": few.next_observation()["state"] + 5 * rows[:, None, None]}
        return learner.critic_loss(few.observation()["state"].flatten(1), few, changed, RandomStream(0, 0))[0].item()

    untouched = critic_loss(torch.zeros(12))
    assert critic_loss(ended.float()) == pytest.approx(untouched, rel=1e-6)
    assert critic_loss((~ended).float()) != pytest.approx(untouched, rel=1e-3)


# Augmentation ---------------------------------------------------------------------------------------------------


def test_observation_and_next_observation_are_shifted_alike(batch: Batch) -> None:
    learner = agent(shapes=PIXELS, shift=3, shift_probability=1.0)
    batch.next_window = batch.window  # the same frames, so that only the shift could tell them apart
    seen: dict[str, torch.Tensor] = {}
    for name in ("actor_encoder", "critic_encoder", "actor_encoder_target", "critic_encoder_target"):

        def note(_: Any, arguments: Any, name: str = name) -> None:
            seen[name] = arguments[0]["front"]

        getattr(learner, name).register_forward_pre_hook(note)
    learner(batch, RandomStream(0, 0))
    assert len(seen) == 4
    assert all(torch.equal(images, seen["actor_encoder"]) for images in seen.values())
    assert not torch.equal(seen["actor_encoder"], batch.observation()["front"]), "nothing was shifted"
    moved = [not torch.equal(*pair) for pair in zip(seen["actor_encoder"], batch.observation()["front"], strict=True)]
    assert sum(moved) >= 10, "each sample has a shift of its own"


def test_states_are_not_augmented(batch: Batch) -> None:
    learner = agent("gtp_bc", shapes=PIXELS, shift=3, shift_probability=1.0)
    shifted = learner.augmented(batch.observation(), torch.full((12, 2), 3))
    assert torch.equal(shifted["state"], batch.observation()["state"])
    assert not torch.equal(shifted["front"], batch.observation()["front"])


# Gradients and targets ------------------------------------------------------------------------------------------


def reached(learner: GTPBC, loss: torch.Tensor) -> set[str]:
    """The parts of the agent that a loss has a gradient for, each of whose parameters it must reach."""
    named = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    found: dict[str, list[bool]] = {}
    for name, gradient in zip(named, gradients, strict=True):
        found.setdefault(owner(name), []).append(gradient is not None and bool(gradient.any()))
    assert all(all(parts) or not any(parts) for parts in found.values()), found
    return {name for name, parts in found.items() if any(parts)}


@pytest.mark.parametrize(
    ("share", "critics", "actors"),
    [
        (False, {"critic", "critic_encoder"}, {"policy", "actor_encoder"}),
        (True, {"critic", "actor_encoder"}, {"policy", "actor_encoder"}),
    ],
    ids=["separate", "shared"],
)
def test_each_loss_trains_its_own_network_and_encoder(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, share: bool, critics: set[str], actors: set[str]
) -> None:
    learner = agent(shapes=PIXELS, share=share)
    losses: dict[str, torch.Tensor] = {}
    for name in ("critic_loss", "actor_loss"):
        compute = getattr(learner, name)

        def noted(*arguments: Any, name: str = name, compute: Any = compute) -> Any:
            losses[name], metrics = compute(*arguments)
            return losses[name], metrics

        monkeypatch.setattr(learner, name, noted)
    loss, metrics = learner(batch, RandomStream(0, 0))
    assert loss.item() == pytest.approx(losses["critic_loss"].item() + losses["actor_loss"].item(), rel=1e-6)
    assert reached(learner, losses["critic_loss"]) == critics
    assert reached(learner, losses["actor_loss"]) == actors
    assert all(not metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("name", ["gtp", "gtp_bc"])
@pytest.mark.parametrize("share", [False, True])
def test_targets_get_no_gradient_and_everything_else_does(batch: Batch, name: str, share: bool) -> None:
    learner = agent(name, shapes=PIXELS, share=share)
    learner(batch, RandomStream(0, 0))[0].backward()
    for parameter_name, parameter in learner.named_parameters():
        is_target = owner(parameter_name).endswith("_target")
        assert parameter.requires_grad != is_target, parameter_name
        assert (parameter.grad is None) == is_target, parameter_name


def test_targets_begin_as_copies(batch: Batch) -> None:
    learner = agent(shapes=PIXELS)
    parts = dict(learner.named_children())
    targets = [name for name in parts if name.endswith("_target")]
    assert sorted(targets) == [
        "actor_encoder_target",
        "critic_encoder_target",
        "critic_target",
        "policy_target",
    ]
    for name in targets:
        online = parts[name.removesuffix("_target")].state_dict()
        assert all(torch.equal(value, online[key]) for key, value in parts[name].state_dict().items())


@pytest.mark.parametrize("name", ["gtp", "gtp_bc"])
@pytest.mark.parametrize("share", [False, True])
def test_updating_the_targets_is_exactly_polyaks_step(name: str, share: bool) -> None:
    learner = agent(name, shapes=PIXELS, share=share, tau=0.1)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    learner.update_targets()
    moved = 0
    for key, value in learner.named_parameters():
        part, _, rest = key.partition(".")
        if part.endswith("_target"):
            online = before[f"{part.removesuffix('_target')}.{rest}"]
            torch.testing.assert_close(value, before[key] + 0.1 * (online - before[key]), rtol=1e-6, atol=1e-6)
            assert not torch.equal(value, before[key])
            moved += 1
        else:
            assert torch.equal(value, before[key]), f"{key} is no target"
    assert moved > 0


# Behaviour cloning ----------------------------------------------------------------------------------------------


def test_behaviour_cloning_has_no_critic() -> None:
    learner = agent("gtp_bc", shapes=PIXELS)
    assert type(learner) is GTPBC
    assert {owner(name) for name, _ in learner.named_parameters()} == {"actor_encoder", "policy", "policy_target"}


def test_behaviour_cloning_weighs_every_action_1(batch: Batch) -> None:
    learner, few = agent("gtp_bc"), states_of(batch)
    loss, metrics = learner(few, RandomStream(0, 3))
    noise = RandomStream(0, 3)
    learner.shift.draw(12, noise)  # comes first in the stream
    features = few.observation()["state"].flatten(1)
    each, _ = learner.policy.loss(features, few.action, torch.ones(12), noise, learner.policy_target)
    assert loss.item() == pytest.approx(each.mean().item(), rel=1e-6)
    assert not any(name.startswith(("critic/", "weight/")) for name in metrics)


def test_eta_0_weighs_every_action_1(batch: Batch) -> None:
    _, metrics = agent(eta=0.0)(states_of(batch), RandomStream(0, 0))
    assert float(metrics["weight/mean"]) == 1
    assert float(metrics["weight/effective_share"]) == pytest.approx(1)


def test_the_actors_loss_is_the_weighted_mean_whatever_the_scale_of_the_weights(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, few = agent(), states_of(batch)
    used: list[torch.Tensor] = []
    losses: list[float] = []
    compute = learner.policy.loss

    def noted(*arguments: Any) -> Any:
        used.append(arguments[2])
        return compute(*arguments)

    monkeypatch.setattr(learner.policy, "loss", noted)
    for scale in (1.0, 40.0):
        weight = scale * torch.arange(12.0)
        monkeypatch.setattr(learner, "weights", lambda *_, weight=weight: (weight, {}))
        losses.append(float(learner(few, RandomStream(0, 0))[1]["actor/loss"]))
        torch.testing.assert_close(used[-1], weight / weight.mean())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# The whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gtp", "gtp_bc"])
def test_a_loss_is_a_function_of_the_batch_and_the_noise(batch: Batch, name: str) -> None:
    learner = agent(name, shapes=PIXELS)
    first, again, other = (learner(batch, RandomStream(0, step))[0].item() for step in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["gtp", "gtp_bc"])
@pytest.mark.parametrize("rows", [1, 12])
def test_metrics_are_finite_scalars_at_any_batch_size(make_store: MakeStore, name: str, rows: int) -> None:
    store = make_store((9, 11))
    few = Sampler(store, rows, 0, frame_stack=2).gather(store.transitions[:rows])
    _, metrics = agent(name)(few, RandomStream(0, 0))
    assert {metric.shape for metric in metrics.values()} == {torch.Size()}
    assert {key: float(value) for key, value in metrics.items() if not value.isfinite()} == {}


def test_a_step_of_the_optimiser_lowers_the_loss_of_its_batch(batch: Batch) -> None:
    learner = agent(shapes=PIXELS, shift_probability=0.0)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        loss, _ = learner(batch, RandomStream(0, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


# Acting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gtp", "gtp_bc"])
def test_acting_is_a_function_of_observation_and_noise_within_the_unit_box(name: str) -> None:
    learner = agent(name, shapes=PIXELS, shift=3, shift_probability=1.0)
    action = learner.act(observation(PIXELS), RandomStream(0, 0))
    assert action.shape == (4, 2)
    assert float(action.abs().max()) <= 1
    assert not action.requires_grad
    assert torch.equal(learner.act(observation(PIXELS), RandomStream(0, 0)), action)
    assert not torch.equal(learner.act(observation(PIXELS, seed=1), RandomStream(0, 0)), action)


def test_acting_takes_the_agents_steps_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, asked = agent(act_steps=3), []
    sample = learner.policy.sample

    def noted(features: torch.Tensor, steps: int, generator: RandomStream) -> torch.Tensor:
        asked.append(steps)
        return sample(features, steps, generator)

    monkeypatch.setattr(learner.policy, "sample", noted)
    learner.act(observation(), RandomStream(0, 0))
    learner.act(observation(), RandomStream(0, 0), 7)
    assert asked == [3, 7]


def test_acting_in_no_jump_is_refused() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        agent().act(observation(), RandomStream(0, 0), 0)


# Construction ---------------------------------------------------------------------------------------------------


def test_agents_are_made_by_name() -> None:
    assert type(agent("gtp")) is GTP
    assert type(agent("gtp_bc")) is GTPBC
    with pytest.raises(GtpVisionError, match=r"'gpt'.*did you mean 'gtp'"):
        agent("gpt")


def test_a_shared_encoder_is_one() -> None:
    separate, shared = agent(shapes=PIXELS), agent(shapes=PIXELS, share=True)

    def encoders(learner: GTPBC) -> int:
        return sum(isinstance(part, Encoder) for part in learner.children())

    assert (encoders(separate), encoders(shared)) == (4, 2)
