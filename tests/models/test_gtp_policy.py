import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gtp_vision.core.random import RandomStream
from gtp_vision.models import GTPPolicy, PolicyConfig, effective_sample_size
from gtp_vision.models.networks import frozen_copy, polyak_
from gtp_vision.models.timed import Time

F, A = 3, 2


def policy(seed: int = 0, features: int = F, actions: int = A, **settings_: Any) -> GTPPolicy:
    torch.manual_seed(seed)
    return GTPPolicy(features, actions, PolicyConfig(**{"hidden": [16, 16], "grid": 6} | settings_))


class Calls:
    """The noised actions and levels (a_t, t, s) of every call of a policy's network."""

    def __init__(self, watched: GTPPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[torch.Tensor, ...]] = []
        network = watched._phi

        def noted(observed: torch.Tensor, *places: Any) -> torch.Tensor:
            self.made.append(tuple(torch.as_tensor(place).detach().clone() for place in places))
            return network(observed, *places)

        monkeypatch.setattr(watched, "_phi", noted)

    def joined(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.cat(parts) for parts in zip(*self.made, strict=True))

    def jumps(self) -> tuple[torch.Tensor, ...]:
        """The rows with s < t: the consistency loss."""
        a_t, t, s = self.joined()
        return a_t[s < t], t[s < t], s[s < t]

    def denoisings(self) -> tuple[torch.Tensor, ...]:
        """The rows with s = t: the flow loss."""
        a_t, t, s = self.joined()
        return a_t[s == t], t[s == t], s[s == t]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (32, F), actions (32, A) and weights (32,)."""
    noise = RandomStream(7, 0)
    return noise.normal(32, F), 2 * noise.uniform(32, A) - 1, 0.5 + noise.uniform(32)


# The map --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), t=st.floats(0.002, 80))
def test_from_a_level_to_itself_the_flow_map_is_exactly_the_identity(seed: int, t: float) -> None:
    noise = RandomStream(seed, 0)
    a_t, level = t * noise.normal(4, A), torch.full((4,), t)
    assert torch.equal(policy(sigma_max=80.0).flow_map(noise.normal(4, F), a_t, level, level), a_t)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), t=st.floats(0.002, 80))
def test_to_level_0_the_flow_map_is_exactly_the_network(seed: int, t: float) -> None:
    noise, actor = RandomStream(seed, 0), policy(sigma_max=80.0)
    features, a_t = noise.normal(4, F), t * noise.normal(4, A)
    t_b, zero = torch.full((4,), t), torch.zeros(4)
    assert torch.equal(actor.flow_map(features, a_t, t_b, zero), actor.phi(features, a_t, t_b, zero))


def test_the_flow_map_mixes_the_noised_action_and_the_network_by_s_over_t() -> None:
    actor, noise = policy().double(), RandomStream(0, 0)
    features, a_t = noise.normal(16, F).double(), 5 * noise.normal(16, A).double()
    t = 0.1 + 9 * noise.uniform(16).double()
    s = t * noise.uniform(16).double()
    ratio = (s / t)[:, None]
    expected = ratio * a_t + (1 - ratio) * actor.phi(features, a_t, t, s)
    torch.testing.assert_close(actor.flow_map(features, a_t, t, s), expected, rtol=1e-12, atol=1e-12)


def test_the_network_sees_the_features_the_action_and_both_levels() -> None:
    actor, noise = policy(), RandomStream(0, 0)
    given_ = [noise.normal(4, F), noise.normal(4, A), torch.full((4,), 2.0), torch.full((4,), 1.0)]
    before = actor.phi(*given_)
    for index in range(4):
        changed = [part + 0.5 if position == index else part for position, part in enumerate(given_)]
        assert not torch.allclose(actor.phi(*changed), before), index


@pytest.mark.parametrize(("t", "s"), [(10.1, 1.0), (5.0, -0.1), (1.0, 2.0), (float("nan"), 0.0)])
def test_times_outside_the_trajectory_are_refused_with_the_range(t: float, s: float) -> None:
    actor = policy()
    for asked in (actor.phi, actor.flow_map):
        with pytest.raises(ValueError, match=r"t <= sigma_max = 10 to s >= 0; got"):
            asked(torch.zeros(2, F), torch.zeros(2, A), torch.full((2,), t), torch.full((2,), s))


def test_at_level_0_the_flow_map_is_the_identity() -> None:
    a_0, zero = torch.randn(4, A), torch.zeros(4)
    assert torch.equal(policy().flow_map(torch.zeros(4, F), a_0, zero, zero), a_0)


class GaussianFlow(GTPPolicy):
    """A policy whose network is the exact solution for actions from N(mean, deviation^2).

    `shift` is a fault: it is added to every jump that ends at level 0.
    """

    mean, deviation, shift = 0.1, 0.2, 0.0

    def _phi(self, observed: torch.Tensor, a_t: torch.Tensor, t: Time, s: Time) -> torch.Tensor:
        t, s = (torch.as_tensor(time, dtype=a_t.dtype).view(-1, 1) for time in (t, s))
        v_t, v_s = self.deviation**2 + t.square(), self.deviation**2 + s.square()
        solution = self.mean + (v_s / v_t).sqrt() * (a_t - self.mean)
        denoised = (self.deviation**2 * a_t + t.square() * self.mean) / v_t
        return torch.where(s < t, (solution - s / t * a_t) / (1 - s / t), denoised) + self.shift * (s == 0)


def test_jumps_of_the_exact_map_compose_to_one_jump() -> None:
    exact = GaussianFlow(1, 1, PolicyConfig(hidden=[4], sigma_max=3.0))
    noise = RandomStream(0, 0).normal(64, 1)
    scale = exact.deviation / math.hypot(exact.deviation, 3.0)
    expected = (exact.mean + scale * (3 * noise - exact.mean)).clamp(-1, 1)
    for steps in (1, 2, 5, 20):
        actions = exact.sample(torch.zeros(64, 1), steps, RandomStream(0, 0))
        torch.testing.assert_close(actions, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 200),
    sigma_last=st.floats(1e-4, 0.1),
    sigma_max=st.floats(0.2, 100),
    rho=st.floats(1, 12),
)
def test_levels_fall_from_sigma_max_over_sigma_last_to_0_in_count_steps(
    count: int, sigma_last: float, sigma_max: float, rho: float
) -> None:
    levels = policy(sigma_min=5e-5, sigma_last=sigma_last, sigma_max=sigma_max, rho=rho).levels(count)
    assert len(levels) == count + 1
    assert levels[0] == pytest.approx(sigma_max, rel=1e-9)
    assert levels[-1] == 0
    assert all(high > low for high, low in itertools.pairwise(levels))
    assert count == 1 or levels[-2] == pytest.approx(sigma_last, rel=1e-6)


def test_places_on_the_grid_are_karras_levels() -> None:
    actor = policy(sigma_min=0.01, sigma_max=4.0, grid=5)
    place = torch.tensor([0.0, 1.5, 4.999999, 5.0, 6.0])
    low, high = 0.01 ** (1 / 7), 4.0 ** (1 / 7)
    expected = [4.0, (high + 0.3 * (low - high)) ** 7, 0.01, 0.0, 0.0]
    assert actor.level(place).tolist() == pytest.approx(expected, rel=1e-3)


# The loss -------------------------------------------------------------------------------------------------------


def falling(rows: int, sigma_max: float) -> tuple[torch.Tensor, ...]:
    """Levels t > u > s, the last of them 0 in some rows."""
    places = RandomStream(3, 0).uniform(rows, 3).sort(1, descending=True).values
    places[:5, 2] = 0
    return tuple((sigma_max * places.pow(3)).unbind(1))


@pytest.mark.parametrize("sigma_max", [10.0, 80.0])
@pytest.mark.parametrize("residual", ["plain", "phi"])
@pytest.mark.parametrize("teaches", ["data", "model"])
def test_the_cancelled_noise_residual_equals_the_plain_form_in_double_precision(
    batch: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch, teaches: str, residual: str, sigma_max: float
) -> None:
    features, action, _ = batch
    settings_ = {
        "residual": residual,
        "sigma_max": sigma_max,
        "lambda_flow": 0.0,
        "teacher": teaches,
        "input_gain": 1.0,
    }
    student, teacher = policy(0, **settings_), policy(1, **settings_)
    t, u, s = falling(32, sigma_max)
    monkeypatch.setattr(student, "triple", lambda rows, generator: (t, u, s))
    each, _ = student.loss(features, action, torch.ones(32), RandomStream(0, 0), teacher)

    student, teacher = student.double(), teacher.double()
    o, a, t, u, s = (part.double() for part in (features, action, t, u, s))
    z = RandomStream(0, 0).normal(32, A).double()
    a_t = a + t[:, None] * z
    if teaches == "data":
        a_u = a + u[:, None] * z  # the paper's score approximation: the noise is shared
    else:
        d = teacher.denoised_between(teacher.observe(o), a_t.float(), t.float(), u.float()).double()
        a_u = d + (u / t)[:, None] * (a_t - d)
    plain = student.flow_map(o, a_t, t, s) - teacher.flow_map(o, a_u, u, s)
    if residual == "phi":
        plain = plain / (1 - s / t)[:, None]
    torch.testing.assert_close(each.double(), plain.square().sum(1), rtol=1e-3, atol=1e-6)


def test_the_flow_loss_is_the_squared_error_of_the_denoiser(
    batch: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, action, weight = batch
    losses = {}
    for factor in (0.0, 0.7):
        student = policy(0, lambda_flow=factor)
        calls = Calls(student, monkeypatch)
        losses[factor], metrics = student.loss(features, action, weight, RandomStream(0, 0), policy(1))
    a_t, t, _ = calls.denoisings()
    flow = (student.phi(features, a_t, t, t) - action).square().sum(1)
    torch.testing.assert_close(losses[0.7] - losses[0.0], 0.7 * weight * flow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["flow_loss"], flow.mean())
    z = (a_t - action) / t[:, None]
    assert bool((t > 0).all())
    assert float(z.std()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("residual", ["plain", "phi"])
def test_weights_scale_each_samples_loss_and_no_other(batch: tuple[torch.Tensor, ...], residual: str) -> None:
    features, action, weight = batch
    student, teacher = policy(0, residual=residual), policy(1)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return student.loss(features, action, w, RandomStream(0, 0), teacher)[0]

    assert loss(weight).shape == (32,)
    torch.testing.assert_close(loss(weight), weight * loss(torch.ones(32)))
    torch.testing.assert_close(loss(3 * weight), 3 * loss(weight))
    only = torch.zeros(32).index_fill(0, torch.tensor([5]), 1.0)
    assert loss(only).nonzero().flatten().tolist() == [5]


def test_only_the_student_learns(batch: tuple[torch.Tensor, ...]) -> None:
    features, action, weight = batch
    student, teacher = policy(0), policy(1)
    student.loss(features.requires_grad_(), action, weight, RandomStream(0, 0), teacher)[0].mean().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.parameters())
    assert features.grad is not None


def drawn_places(teaches: str, grid: int = 4, rows: int = 20_000) -> dict[str, np.ndarray]:
    """Where the levels t, u and s lie on the grid: 0 is sigma_max, `grid` is level 0."""
    student = policy(0, grid=grid, teacher=teaches, zero_share=0.25)
    high, low = student.config.sigma_max ** (1 / 7), student.config.sigma_min ** (1 / 7)

    def place(level: torch.Tensor) -> np.ndarray:
        return torch.where(level > 0, grid * (high - level.pow(1 / 7)) / (high - low), grid).numpy()

    return {name: place(level) for name, level in zip("tus", student.triple(rows, RandomStream(5, 0)), strict=True)}


@pytest.mark.parametrize("teaches", ["data", "model"])
def test_levels_fall_from_t_over_u_to_s_and_t_is_uniform_on_the_grid(teaches: str) -> None:
    at = drawn_places(teaches)
    assert bool((at["t"] < at["s"]).all() and (at["t"] < at["u"]).all() and (at["u"] <= at["s"]).all())
    assert chisquare(np.histogram(at["t"], 8, (0, 4))[0]).pvalue > 1e-3


@pytest.mark.parametrize("teaches", ["data", "model"])
def test_many_jumps_end_at_level_0_and_the_others_anywhere_below(teaches: str) -> None:
    at = drawn_places(teaches)
    beyond = 1 / (5 - at["t"])  # of the rest of the grid that counts as level 0
    expected = 0.25 + 0.75 * beyond.mean()
    assert float((at["s"] == 4).mean()) == pytest.approx(expected, abs=0.015)
    share = ((at["s"] - at["t"]) / (5 - at["t"]))[at["s"] < 4]
    assert float(share.min()) < 0.01


def test_the_models_trajectory_is_followed_for_one_step_of_the_grid() -> None:
    at = drawn_places("model")
    assert np.allclose(at["u"], np.minimum(at["t"] + 1, at["s"]).clip(max=4), atol=1e-3)


def test_on_the_datas_trajectory_u_lies_anywhere_unless_s_is_within_a_step() -> None:
    at = drawn_places("data")
    gap = at["s"] - at["t"]
    assert bool((at["u"] == at["s"])[gap < 0.999].all())
    share = ((at["u"] - at["t"]) / gap)[gap > 1.001]
    assert chisquare(np.histogram(share, 8, (0, 1))[0]).pvalue > 1e-3


def test_where_u_is_s_the_target_is_where_the_trajectory_goes() -> None:
    teacher, d, a_t = policy(1), torch.rand(3, A), torch.randn(3, A)
    t, s = torch.tensor([2.0, 0.5, 0.1]), torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(teacher.target(teacher.observe(torch.zeros(3, F)), a_t, d, t, s, s), d)


def test_a_teacher_that_runs_away_is_held_to_the_range_of_actions() -> None:
    teacher = policy(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(100)
    o, a_t = teacher.observe(torch.randn(64, F)), 5 * torch.randn(64, A)
    t, u, s = falling(64, 10.0)
    d = teacher.denoised_between(o, a_t, t, u)
    assert float(teacher._phi(o, a_t, t, t).detach().abs().max()) > 1
    assert float(d.detach().abs().max()) <= 1
    assert float(teacher.target(o, a_t, d, t, u, s).detach().abs().max()) <= 1


def test_the_solvers_step_is_of_second_order() -> None:
    """Halving the step quarters its share of the error, on a Gaussian whose solution is known."""
    exact = GaussianFlow(1, 1, PolicyConfig(hidden=[4], sigma_max=3.0)).double()
    a_t, start, end = torch.linspace(-1, 1, 11).double()[:, None], 1.0, 0.25
    a_t = exact.mean + math.hypot(exact.deviation, start) * a_t
    errors = []
    for steps in (4, 8, 16):
        x, levels = a_t, torch.logspace(0, math.log10(end), steps + 1).double()
        for t, u in itertools.pairwise(levels):
            t, u = t.expand(11), u.expand(11)
            x = torch.lerp(exact.denoised_between(exact.observe(x), x, t, u).double(), x, (u / t)[:, None])
        solution = exact.mean + math.hypot(exact.deviation, end) / math.hypot(exact.deviation, start) * (
            a_t - exact.mean
        )
        errors.append(float((x - solution).abs().max()))
    assert errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_the_flow_loss_meets_every_positive_level(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = policy(0, hidden=[1]), policy(1, hidden=[1])
    calls = Calls(student, monkeypatch)
    student.loss(torch.zeros(10_000, F), torch.zeros(10_000, A), torch.ones(10_000), RandomStream(5, 0), teacher)
    t = calls.denoisings()[1]
    high, low = 10.0 ** (1 / 7), 0.002 ** (1 / 7)
    assert chisquare(np.histogram((high - t.pow(1 / 7)) / (high - low), 10, (0, 1))[0]).pvalue > 1e-3


def test_the_loss_is_a_function_of_the_noise(batch: tuple[torch.Tensor, ...]) -> None:
    features, action, weight = batch
    student, teacher = policy(0), policy(1)

    def loss(step: int) -> torch.Tensor:
        return student.loss(features, action, weight, RandomStream(0, step), teacher)[0]

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))


@pytest.mark.parametrize("residual", ["plain", "phi"])
def test_a_shift_of_the_jumps_to_level_0_costs_something(residual: str) -> None:
    """Student and teacher agree on the shift, so that only the data can tell that it is wrong."""
    features, action = torch.zeros(4096, 1), 0.1 + 0.2 * RandomStream(1, 0).normal(4096, 1)
    losses = []
    for shift in (0.0, 0.5):
        flow = GaussianFlow(1, 1, PolicyConfig(hidden=[4], grid=6, sigma_max=3.0, residual=residual))
        flow.shift = shift
        each, _ = flow.loss(features, action, torch.ones(4096), RandomStream(0, 0), flow)
        losses.append(float(each.mean()))
    assert losses[1] > losses[0] + 0.01 * 0.5**2


def test_several_noise_draws_are_averaged_for_each_sample(batch: tuple[torch.Tensor, ...]) -> None:
    features, action, weight = batch
    student, teacher = policy(0, noise_draws=4), policy(1)
    each, _ = student.loss(features, action, weight, RandomStream(0, 0), teacher)
    repeated = [part.repeat_interleave(4, 0) for part in (features, action)]
    student.config.noise_draws = 1
    apart, _ = student.loss(*repeated, torch.ones(128), RandomStream(0, 0), teacher)
    torch.testing.assert_close(each, weight * apart.view(32, 4).mean(1))


@pytest.fixture(scope="module")
def trained() -> GTPPolicy:
    """A policy trained for a few seconds on actions from N(0.3, 0.25^2)."""
    mean, deviation, batch_size, steps = 0.3, 0.25, 256, 1500
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads only slow networks as small as this
    student = policy(1, 1, 1, sigma_max=5.0, hidden=[64, 64])
    teacher = frozen_copy(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    features, weight = torch.zeros(batch_size, 1), torch.ones(batch_size)
    for step in range(steps):
        noise = RandomStream(0, step)
        action = mean + deviation * noise.normal(batch_size, 1)
        loss = student.loss(features, action, weight, noise, teacher)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        polyak_(teacher, student, 0.05)
    torch.set_num_threads(threads)
    return student.eval()


@torch.no_grad()
def test_a_trained_denoiser_is_the_mean_of_the_actions_given_the_noised_one(trained: GTPPolicy) -> None:
    mean, deviation = 0.3, 0.25
    levels, deviations = torch.tensor(trained.levels(10)[:-1]), torch.linspace(-1.5, 1.5, 9)
    t, z = (x.flatten() for x in torch.meshgrid(levels, deviations, indexing="ij"))
    a_t = (mean + torch.hypot(t, torch.tensor(deviation)) * z)[:, None]
    v, v_t = deviation**2, t.square()[:, None]
    expected = (v * a_t + v_t * mean) / (v + v_t)
    error = trained.phi(torch.zeros(len(t), 1), a_t, t, t) - expected
    assert float(error.square().mean().sqrt()) < 0.03


@pytest.mark.parametrize("steps", [1, 2, 5])
@torch.no_grad()
def test_a_trained_policy_acts_around_the_mean_of_the_actions(trained: GTPPolicy, steps: int) -> None:
    actions = trained.sample(torch.zeros(2000, 1), steps, RandomStream(1, 0))
    assert float(actions.mean()) == pytest.approx(0.3, abs=0.1)


@torch.no_grad()
def test_a_trained_policy_acts_as_widely_as_the_actions_in_five_jumps(trained: GTPPolicy) -> None:
    actions = trained.sample(torch.zeros(2000, 1), 5, RandomStream(1, 0))
    assert float(actions.std()) == pytest.approx(0.25, rel=0.4)


# Acting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 17])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_actions_lie_within_the_unit_box(steps: int, scale: float) -> None:
    actor = policy()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(scale)
    actions = actor.sample(torch.randn(64, F), steps, RandomStream(0, 0))
    assert actions.shape == (64, A)
    assert float(actions.detach().abs().max()) <= 1


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_acting_is_that_many_jumps_of_the_map_down_the_levels(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = policy()
    features = torch.randn(8, F)
    a_t = 10 * RandomStream(0, 0).normal(8, A)
    for t, s in itertools.pairwise(actor.levels(steps)):
        a_t = actor.flow_map(features, a_t, torch.full((8,), t), torch.full((8,), s))
    calls = Calls(actor, monkeypatch)
    torch.testing.assert_close(actor.sample(features, steps, RandomStream(0, 0)), a_t.clamp(-1, 1))
    assert len(calls.made) == steps


def test_several_draws_are_actions_of_one_observation_side_by_side() -> None:
    actor, features = policy(), torch.randn(4, F)
    actions = actor.sample(features, 2, RandomStream(0, 0), draws=3)
    repeated = actor.sample(features.repeat_interleave(3, 0), 2, RandomStream(0, 0))
    torch.testing.assert_close(actions, repeated)
    assert len(actions.unique(dim=0)) == 12


def test_acting_is_a_function_of_the_noise() -> None:
    actor, features = policy(), torch.randn(16, F)
    first, again, other = (actor.sample(features, 3, RandomStream(0, step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_jump_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}.*at least 1"):
        policy().sample(torch.zeros(2, F), steps, RandomStream(0, 0))


# Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: policy(actions=0), "0 dimensions"),
        (lambda: policy(sigma_min=1.0, sigma_max=0.5), "sigma_min < sigma_last < sigma_max"),
        (lambda: policy(sigma_min=1.0, sigma_max=1.0), "sigma_min < sigma_last < sigma_max"),
        (lambda: policy(sigma_min=0.0), "0 < sigma_min"),
        (lambda: policy(residual="ph"), "residual is 'ph'"),
        (lambda: policy(activation="gelo"), "'gelo'"),
        (lambda: policy(grid=1), "grid"),
        (lambda: policy(noise_draws=0), "noise_draws"),
        (lambda: policy(hidden=[]), "hidden"),
    ],
    ids=[
        "no actions",
        "levels reversed",
        "one level",
        "smallest level 0",
        "residual",
        "activation",
        "grid of one",
        "no draws",
        "no layer",
    ],
)
def test_settings_that_make_no_policy_are_refused(make: Callable[[], GTPPolicy], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# The share of samples that count --------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.1, 10))
def test_the_effective_share_lies_between_one_sample_and_all_whatever_the_scale(
    weights: list[float], scale: float
) -> None:
    weight = torch.tensor(weights, dtype=torch.float64)
    share = float(effective_sample_size(weight))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9
    assert share == pytest.approx(sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)))
    assert float(effective_sample_size(scale * weight)) == pytest.approx(share)


def test_the_effective_share_is_all_for_equal_weights_and_one_in_b_for_a_single_one() -> None:
    assert float(effective_sample_size(torch.full((8,), 3.0))) == pytest.approx(1)
    assert float(effective_sample_size(torch.eye(8)[2])) == pytest.approx(1 / 8)
