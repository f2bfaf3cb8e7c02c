from typing import Any

import pytest
import torch
from learning import A, F, learn, loss_of, sample_batch
from small_runs import other_value

from gtp_vision import models
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.core.settings import settings_of
from gtp_vision.models import FAMILIES, Policy, PolicyConfig
from gtp_vision.models.consistency import ConsistencyPolicy
from gtp_vision.models.diffusion import DiffusionPolicy, VPDiffusionPolicy
from gtp_vision.models.flow_matching import FlowMatchingPolicy, MeanFlowPolicy, ShortcutPolicy
from gtp_vision.models.networks import ARCHITECTURES
from gtp_vision.models.policy import Rows
from gtp_vision.models.timed import Time

EVERY = pytest.mark.parametrize("family", sorted(FAMILIES))
LEARNING = pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"one_step"}))  # from data


def policy(family: str, seed: int = 0, features: int = F, actions: int = A, **settings: Any) -> Any:
    torch.manual_seed(seed)
    usual = {"hidden": [16, 16], "grid": 5, "activation": "mish" if family == "bottleneck" else "relu"}
    return models.create(features, actions, PolicyConfig(family, **usual | settings))


def steps_of(family: str) -> int:
    return 5 if family == "vp_diffusion" else 3


@LEARNING
def test_settings_without_effect_change_nothing_and_all_others_do(family: str) -> None:
    features, action = sample_batch(128)  # some rows train by each loss

    def made(**settings: Any) -> tuple[torch.Tensor, ...]:
        student, teacher = policy(family, **settings), policy(family, seed=1, **settings)
        each, _ = loss_of(student, features, action, RandomStream(0, 0), teacher)
        steps = settings.get("grid", 5) if family == "vp_diffusion" else 3
        return each, student.sample(features, steps, RandomStream(0, 1))

    usual = policy(family).config
    same = {
        name
        for name, value, _ in settings_of(usual)
        if name not in ("family", "hidden", "architecture", "activation", "noise_draws")
        and all(map(torch.equal, made(), made(**{name: other_value(usual, name, value)})))
    }
    assert same == FAMILIES[family].unused


@LEARNING
@pytest.mark.parametrize("draws", [1, 4])
def test_the_loss_of_each_sample_is_a_function_of_the_noise_averaged_over_its_draws(family: str, draws: int) -> None:
    features, action = sample_batch()
    student, teacher = policy(family, noise_draws=draws), policy(family, seed=1)

    def loss(step: int) -> torch.Tensor:
        each, metrics = loss_of(student, features, action, RandomStream(0, step), teacher)
        assert each.shape == (32,)
        assert metrics
        assert all(value.ndim == 0 and bool(value.isfinite()) for value in metrics.values())
        return each

    assert torch.equal(loss(0), loss(0))
    assert torch.equal(loss(0), loss(1)) == (family in ("deterministic", "gaussian"))
    once, repeated = policy(family), [x.repeat_interleave(draws, 0) for x in (features, action)]
    apart, _ = loss_of(once, *repeated, RandomStream(0, 0), teacher)
    torch.testing.assert_close(loss(0), apart.view(32, draws).mean(1))


@LEARNING
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_student_learns_and_the_teacher_does_not(family: str, architecture: str, precision: torch.dtype) -> None:
    features, action = sample_batch()
    features.requires_grad_()
    student, teacher = (policy(family, seed, architecture=architecture, activation="mish") for seed in (0, 1))
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        each, _ = loss_of(student, features, action, RandomStream(0, 0), teacher)
        actions = student.sample(features, steps_of(family), RandomStream(0, 0))
    each.mean().backward()
    assert each.dtype == actions.dtype == torch.float32
    assert bool(each.isfinite().all() and actions.isfinite().all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all() and p.grad.any()) for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert features.grad is not None


@EVERY
def test_actions_are_a_function_of_noise_and_features_within_the_box(family: str) -> None:
    actor, features, k = policy(family), torch.randn(16, F), steps_of(family)
    first, again, other = (actor.sample(features, k, RandomStream(0, step)) for step in (0, 0, 1))
    assert first.shape == (16, A)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (family == "deterministic")
    assert not torch.equal(first, actor.sample(features + 1, k, RandomStream(0, 0)))
    draws = actor.sample(features, k, RandomStream(0, 0), draws=2)
    assert torch.equal(draws, actor.sample(features.repeat_interleave(2, 0), k, RandomStream(0, 0)))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(5)
    assert float(actor.sample(features, k, RandomStream(0, 0)).detach().abs().max()) <= 1


@EVERY
def test_constants_cached_by_acting_serve_training_other_batches_and_other_precision(family: str) -> None:
    actor, fresh, k = policy(family), policy(family), steps_of(family)
    with torch.inference_mode():
        actor.sample(torch.zeros(4, F), k, RandomStream(0, 0))
    for rows in (4, 7):
        features = RandomStream(1, 0).normal(rows, F)
        for net in (actor, fresh):
            net.zero_grad()
            net.sample(features, k, RandomStream(0, 0)).square().mean().backward()
        learns = {name: p.grad for name, p in fresh.named_parameters() if p.grad is not None}
        assert any(bool(grad.any()) for grad in learns.values())
        for name, p in actor.named_parameters():
            assert (p.grad is None) == (name not in learns)
            assert p.grad is None or torch.equal(p.grad, learns[name])
    actions = actor.sample(features, k, RandomStream(0, 0))
    twice = actor.double().sample(features.double(), k, RandomStream(0, 0))
    torch.testing.assert_close(twice.float(), actions, rtol=1e-3, atol=1e-3)


@LEARNING
def test_a_short_training_learns_actions_that_depend_on_the_observation(family: str) -> None:
    """One feature x in {-1, 1}; the action is 0.5 x with a little noise."""
    grid = {"consistency": 20, "shortcut": 16}.get(family, 5)
    chosen: dict[str, Any] = {"hidden": [32, 32], "grid": grid, "sigma_max": 5.0, "activation": "mish"}
    student = policy(family, features=1, actions=1, **chosen)

    def samples(noise: RandomStream) -> tuple[torch.Tensor, torch.Tensor]:
        x = 2.0 * noise.integers(2, 64, 1) - 1
        return x, 0.5 * x + 0.05 * noise.normal(64, 1)

    learn(student, samples, 150, 1e-2)
    with torch.no_grad():
        actions = student.sample(torch.tensor([[-1.0], [1.0]]), 5, RandomStream(1, 0), draws=500)
    assert actions.view(2, 500).mean(1).tolist() == pytest.approx([-0.5, 0.5], abs=0.15)


@EVERY
def test_bad_steps_and_dimensions_are_refused(family: str) -> None:
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps={steps}"):
            policy(family).sample(torch.zeros(2, F), steps, RandomStream(0, 0))
    with pytest.raises(ValueError, match="0 dimensions"):
        policy(family, actions=0)


def test_an_unknown_family_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"'gpt'.*gtp"):
        policy("gpt")


class PointDenoiser(DiffusionPolicy):
    """All actions are 0.3."""

    def denoise(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time) -> torch.Tensor:
        return torch.full_like(a_t, 0.3)


@pytest.mark.parametrize("steps", [1, 7])
def test_diffusion_with_the_exact_denoiser_of_a_point_ends_there(steps: int) -> None:
    actions = PointDenoiser(F, A, PolicyConfig(hidden=[4])).sample(torch.zeros(8, F), steps, RandomStream(0, 0))
    torch.testing.assert_close(actions, torch.full((8, A), 0.3))


class PointNoise(VPDiffusionPolicy):
    def evaluate(self, observed: torch.Tensor, x: torch.Tensor, *times: Time) -> torch.Tensor:
        abar = self.abar[(torch.as_tensor(times[0]) * self.config.grid).round().long()].view(-1, 1)
        return (x - abar.sqrt() * 0.3) / (1 - abar).sqrt()


def test_variance_preserving_diffusion_with_the_exact_noise_of_a_point_ends_there() -> None:
    actions = PointNoise(F, A, PolicyConfig(hidden=[4], grid=5)).sample(torch.zeros(8, F), 5, RandomStream(0, 0))
    torch.testing.assert_close(actions, torch.full((8, A), 0.3), rtol=1e-4, atol=1e-4)


def test_variance_preserving_diffusion_has_the_schedule_of_diffusion_ql() -> None:
    """For N = 5, by hand: -log(abar_i / abar_{i-1}) = 0.1/5 + 9.9 (2i - 1)/50 = 0.218, 0.614, 1.010, 1.406, 1.802."""
    model = policy("vp_diffusion")
    assert model.abar.tolist() == pytest.approx([1, 0.804125, 0.435178, 0.158500, 0.038852, 0.006409], abs=1e-6)
    # DDPM's posterior of x_4 given x_5 and a, beta_5 = 1 - exp(-1.802) = 0.835031.
    _, _, to_action, to_x, deviation = model._steps[4]
    assert to_action == pytest.approx(0.197108 * 0.835031 / 0.993591, rel=1e-4)
    assert to_x == pytest.approx(0.406161 * 0.961148 / 0.993591, rel=1e-4)
    assert deviation == pytest.approx((0.835031 * 0.961148 / 0.993591) ** 0.5, rel=1e-4)


def test_variance_preserving_diffusion_acts_in_the_steps_that_it_was_trained_for() -> None:
    with pytest.raises(GtpVisionError, match=r"steps=2.*trained for 5"):
        policy("vp_diffusion").sample(torch.zeros(2, F), 2, RandomStream(0, 0))


def test_at_the_lowest_level_a_consistency_model_is_the_identity() -> None:
    model: ConsistencyPolicy = policy("consistency")
    a_t = torch.randn(8, A)
    observed = model.observe(torch.randn(8, F))
    torch.testing.assert_close(model.jump(observed, a_t, torch.full((8,), model.config.sigma_min)), a_t)


def test_a_consistency_models_neighbours_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    features, action = sample_batch()
    student, teacher = policy("consistency"), policy("consistency", seed=1)
    seen = []
    for model in (teacher, student):
        plain = model.jump

        def noted(observed: torch.Tensor, a_t: torch.Tensor, t: torch.Tensor, plain: Any = plain) -> torch.Tensor:
            seen.append(((a_t - action) / t[:, None], t))
            return plain(observed, a_t, t)

        monkeypatch.setattr(model, "jump", noted)
    loss_of(student, features, action, RandomStream(0, 0), teacher)
    (z_u, u), (z_t, t) = seen
    torch.testing.assert_close(z_u, z_t, rtol=1e-3, atol=1e-3)
    assert bool((t > u).all())


class PointVelocity:
    """Every path leads straight to 0.3: velocity and mean velocity are (x - 0.3) / r."""

    def evaluate(self, observed: torch.Tensor, x: torch.Tensor, *times: Time) -> torch.Tensor:
        return (x - 0.3) / torch.as_tensor(times[0]).view(-1, 1).clamp_min(1e-6) + 0 * self.observe.weight.sum()  # type: ignore[attr-defined]


class PointFlow(PointVelocity, FlowMatchingPolicy): ...


class PointShortcut(PointVelocity, ShortcutPolicy): ...


class PointMeanFlow(PointVelocity, MeanFlowPolicy): ...


@pytest.mark.parametrize("kind", [PointFlow, PointShortcut, PointMeanFlow])
def test_the_exact_velocity_of_a_point_costs_nothing_and_ends_there(kind: type[Policy]) -> None:
    exact = kind(F, A, PolicyConfig(hidden=[4], grid=16))  # type: ignore[call-arg, arg-type]
    action = torch.full((64, A), 0.3)
    each, _ = loss_of(exact, torch.zeros(64, F), action, RandomStream(0, 0), exact)
    assert float(each.detach().max()) < 1e-4
    for steps in (1, 2, 5):
        actions = exact.sample(torch.zeros(8, F), steps, RandomStream(0, 0))
        torch.testing.assert_close(actions, torch.full((8, A), 0.3), rtol=1e-4, atol=1e-4)


def test_a_shortcut_starts_at_multiples_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    features, action = sample_batch()
    student, teacher = policy("shortcut", grid=16), policy("shortcut", seed=1, grid=16)
    seen: list[tuple[Any, Any]] = []
    plain = student.velocity

    def noted(observed: torch.Tensor, x: torch.Tensor, r: Time, h: Time) -> torch.Tensor:
        seen.append((r, h))
        return plain(observed, x, r, h)

    monkeypatch.setattr(student, "velocity", noted)
    for step in range(20):
        loss_of(student, features, action, RandomStream(0, step), teacher)
    r, h = (torch.cat(x) for x in zip(*seen, strict=True))
    jumps = h > 0
    assert set(h[jumps].tolist()) == {1.0, 0.5, 0.25, 0.125}
    assert torch.equal((r / h)[jumps], (r / h)[jumps].round())
    assert bool((r >= h).all() and (r <= 1).all())
    assert float(jumps.float().mean()) == pytest.approx(0.25, abs=0.06)
    for steps, expected in ((1, 1.0), (8, 0.125), (16, 0.0), (40, 0.0)):  # 1/16 is never trained: it is the velocity
        seen.clear()
        student.sample(features, steps, RandomStream(0, 0))
        assert seen[0][1] == expected


def test_meanflows_target_is_its_identity() -> None:
    """Against finite differences along the path: m = v - (r - q) (m(r + e) - m(r - e)) / 2e."""
    features, action = sample_batch()
    model: MeanFlowPolicy = policy("meanflow", activation="mish").double()
    features, action = features.double(), action.double()
    noise = RandomStream(0, 0)
    z, pair = noise.normal(32, A), noise.uniform(32, 2)
    flows = noise.uniform(32) < model.flow_share
    r = pair.amax(1)
    q = torch.where(flows, r, pair.amin(1))
    observed, v = model.observe(features), z.double() - action

    def along(e: float) -> torch.Tensor:
        at = (r + e).double()
        return model.evaluate(observed, torch.lerp(action, z.double(), at[:, None]), at, q.double())

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    error = (along(0) - (v - (r - q)[:, None] * slope)).square().sum(1)
    expected = error / (error + model.damping)
    given = Rows(observed.float(), action.float(), RandomStream(0, 0), model, observed.float())
    each, _ = model.float().loss(given)
    torch.testing.assert_close(each.double(), expected, rtol=1e-3, atol=1e-4)
