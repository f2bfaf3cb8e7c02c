import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import A, F, learn, loss_of, sample_batch
from scipy.stats import chisquare

from gtp_vision.core.random import RandomStream
from gtp_vision.models import GTPPolicy, PolicyConfig, effective_sample_size
from gtp_vision.models.timed import Time


def policy(seed: int = 0, features: int = F, actions: int = A, **settings_: Any) -> GTPPolicy:
    torch.manual_seed(seed)
    return GTPPolicy(features, actions, PolicyConfig(**{"hidden": [16, 16], "grid": 6} | settings_))


def note_calls(watched: GTPPolicy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """The noised actions and levels (a_t, t, s) of every call of a policy's network."""
    calls: list[tuple[torch.Tensor, ...]] = []
    network = watched._phi

    def noted(observed: torch.Tensor, *places: Any) -> torch.Tensor:
        calls.append(tuple(torch.as_tensor(place).detach().clone() for place in places))
        return network(observed, *places)

    monkeypatch.setattr(watched, "_phi", noted)
    return calls


def denoisings(calls: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The noised actions and levels of the flow loss: the rows with s = t."""
    a_t, t, s = (torch.cat(parts) for parts in zip(*calls, strict=True))
    return a_t[s == t], t[s == t]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), t=st.floats(0.002, 80), share=st.floats(0, 1))
def test_flow_map_mixes_noised_action_and_network_by_s_over_t(seed: int, t: float, share: float) -> None:
    noise, actor = RandomStream(seed, 0), policy(sigma_max=80.0)
    features, a_t = noise.normal(4, F), t * noise.normal(4, A)
    level, zero, s = torch.full((4,), t), torch.zeros(4), torch.full((4,), t) * share
    ratio = (s / level)[:, None]
    expected = ratio * a_t + (1 - ratio) * actor.phi(features, a_t, level, s)
    torch.testing.assert_close(actor.flow_map(features, a_t, level, s), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(actor.flow_map(features, a_t, level, level), a_t)
    assert torch.equal(actor.flow_map(features, a_t, level, zero), actor.phi(features, a_t, level, zero))
    assert torch.equal(actor.flow_map(features, a_t, zero, zero), a_t)


@pytest.mark.parametrize(("t", "s"), [(10.1, 1.0), (5.0, -0.1), (1.0, 2.0), (float("nan"), 0.0)])
def test_times_outside_the_trajectory_are_refused(t: float, s: float) -> None:
    for function in (policy().phi, policy().flow_map):
        with pytest.raises(ValueError, match=r"t <= sigma_max = 10 to s >= 0; got"):
            function(torch.zeros(2, F), torch.zeros(2, A), torch.full((2,), t), torch.full((2,), s))


class GaussianFlow(GTPPolicy):
    """A policy whose network is the exact solution for actions from N(mean, deviation^2).

    `shift` is an error that is added to every jump that ends at level 0.
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


@settings(max_examples=50, deadline=None, derandomize=True)
@given(count=st.integers(1, 200), sigma_last=st.floats(1e-4, 0.1), sigma_max=st.floats(0.2, 100), rho=st.floats(1, 12))
def test_levels_fall_from_sigma_max_over_sigma_last_to_0(
    count: int, sigma_last: float, sigma_max: float, rho: float
) -> None:
    levels = policy(sigma_min=5e-5, sigma_last=sigma_last, sigma_max=sigma_max, rho=rho).levels(count)
    assert len(levels) == count + 1
    assert levels[0] == pytest.approx(sigma_max, rel=1e-9)
    assert levels[-1] == 0
    assert all(high > low for high, low in itertools.pairwise(levels))
    assert count == 1 or levels[-2] == pytest.approx(sigma_last, rel=1e-6)


def test_levels_of_the_grid_are_karras_levels() -> None:
    actor = policy(sigma_min=0.01, sigma_max=4.0, grid=5)
    place = torch.tensor([0.0, 1.5, 4.999999, 5.0, 6.0])
    low, high = 0.01 ** (1 / 7), 4.0 ** (1 / 7)
    expected = [4.0, (high + 0.3 * (low - high)) ** 7, 0.01, 0.0, 0.0]
    assert actor.level(place).tolist() == pytest.approx(expected, rel=1e-3)


def falling(rows: int, sigma_max: float) -> tuple[torch.Tensor, ...]:
    """Levels t > u > s, the last of them 0 in some rows."""
    places = RandomStream(3, 0).uniform(rows, 3).sort(1, descending=True).values
    places[:5, 2] = 0
    return tuple((sigma_max * places.pow(3)).unbind(1))


@pytest.mark.parametrize("sigma_max", [10.0, 80.0])
@pytest.mark.parametrize("residual", ["plain", "phi"])
@pytest.mark.parametrize("teaches", ["data", "model"])
def test_cancelled_noise_residual_equals_the_plain_form_in_double_precision(
    monkeypatch: pytest.MonkeyPatch, teaches: str, residual: str, sigma_max: float
) -> None:
    features, action = sample_batch()
    chosen = {"residual": residual, "sigma_max": sigma_max, "lambda_flow": 0.0, "teacher": teaches, "input_gain": 1.0}
    student, teacher = (policy(seed, alternate=False, **chosen) for seed in (0, 1))
    t, u, s = falling(32, sigma_max)
    monkeypatch.setattr(student, "triple", lambda rows, noise: (t, u, s))
    each, _ = loss_of(student, features, action, RandomStream(0, 0), teacher)

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


def test_flow_loss_is_the_squared_error_of_the_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    features, action = sample_batch()
    losses = {}
    for factor in (0.0, 0.7):
        student = policy(0, lambda_flow=factor, alternate=False)
        calls = note_calls(student, monkeypatch)
        losses[factor], metrics = loss_of(student, features, action, RandomStream(0, 0), policy(1))
    a_t, t = denoisings(calls)
    flow = (student.phi(features, a_t, t, t) - action).square().sum(1)
    torch.testing.assert_close(losses[0.7] - losses[0.0], 0.7 * flow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["flow_loss"], flow.mean())
    assert bool((t > 0).all())
    assert float(((a_t - action) / t[:, None]).std()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("teaches", ["data", "model"])
@pytest.mark.parametrize("residual", ["plain", "phi"])
def test_alternating_rows_have_one_of_the_two_losses(
    monkeypatch: pytest.MonkeyPatch, teaches: str, residual: str
) -> None:
    features, action = sample_batch()
    student, teacher = (
        policy(seed, alternate=True, teacher=teaches, residual=residual, lambda_flow=0.7) for seed in (0, 1)
    )
    both, _ = loss_of(student.eval(), features, action, RandomStream(0, 0), teacher)
    calls, taught = note_calls(student, monkeypatch), note_calls(teacher, monkeypatch)
    some, metrics = loss_of(student.train(), features, action, RandomStream(0, 0), teacher)
    ((a_t, t, s),) = calls
    assert len(a_t) == 32, "a row has one evaluation"
    assert {len(x) for x, _, _ in taught} == {20}
    jumps = [row for row in range(32) if row % 8 in (0, 2, 4, 5, 7)]
    flows = [row for row in range(32) if row % 8 in (1, 3, 6)]
    flow = 0.7 * (student.phi(features[flows], a_t[20:], t[20:], t[20:]) - action[flows]).square().sum(1)
    assert torch.equal(s[20:], t[20:])
    torch.testing.assert_close(some[flows], flow * 8 / 3)
    whole_flow = 0.7 * (student.phi(features[jumps], a_t[:20], t[:20], t[:20]) - action[jumps]).square().sum(1)
    torch.testing.assert_close(some[jumps], (both[jumps] - whole_flow) * 8 / 5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(0.7 * metrics["flow_loss"] + metrics["consistency_loss"], some.mean())


def test_alternating_rows_estimate_the_weighted_loss_of_all() -> None:
    """On a Gaussian whose map is wrong by a known shift, with weights that depend on the action."""
    rows = 100_000
    action = 0.1 + 0.2 * RandomStream(1, 0).normal(rows, 1)
    weight = action[:, 0].exp()
    means = []
    for alternate in (False, True):
        flow = GaussianFlow(1, 1, PolicyConfig(hidden=[4], grid=6, sigma_max=3.0, alternate=alternate))
        flow.shift = 0.5
        each, metrics = loss_of(flow, torch.zeros(rows, 1), action, RandomStream(2, 0), flow)
        means.append([float(x) for x in ((weight * each).mean(), metrics["consistency_loss"], metrics["flow_loss"])])
    assert means[0] == pytest.approx(means[1], rel=0.03)


def drawn_places(teaches: str, grid: int = 4, rows: int = 20_000) -> dict[str, np.ndarray]:
    """Where the levels t, u and s lie on the grid: 0 is sigma_max, `grid` is level 0."""
    student = policy(0, grid=grid, teacher=teaches, zero_share=0.25)
    high, low = student.config.sigma_max ** (1 / 7), student.config.sigma_min ** (1 / 7)

    def place(level: torch.Tensor) -> np.ndarray:
        return torch.where(level > 0, grid * (high - level.pow(1 / 7)) / (high - low), grid).numpy()

    return {name: place(level) for name, level in zip("tus", student.triple(rows, RandomStream(5, 0)), strict=True)}


@pytest.mark.parametrize("teaches", ["data", "model"])
def test_distribution_of_the_levels_of_a_jump(teaches: str) -> None:
    at = drawn_places(teaches)
    assert bool((at["t"] < at["s"]).all() and (at["t"] < at["u"]).all() and (at["u"] <= at["s"]).all())
    assert chisquare(np.histogram(at["t"], 8, (0, 4))[0]).pvalue > 1e-3, "t is uniform on the grid"
    beyond = 1 / (5 - at["t"])  # of the rest of the grid that counts as level 0
    assert float((at["s"] == 4).mean()) == pytest.approx(0.25 + 0.75 * beyond.mean(), abs=0.015)
    assert float(((at["s"] - at["t"]) / (5 - at["t"]))[at["s"] < 4].min()) < 0.01
    if teaches == "model":  # its trajectory is followed for one step of the grid
        assert np.allclose(at["u"], np.minimum(at["t"] + 1, at["s"]).clip(max=4), atol=1e-3)
        return
    gap = at["s"] - at["t"]
    assert bool((at["u"] == at["s"])[gap < 0.999].all())
    share = ((at["u"] - at["t"]) / gap)[gap > 1.001]
    assert chisquare(np.histogram(share, 8, (0, 1))[0]).pvalue > 1e-3, "u is uniform between t and s"


def test_a_jump_that_float32_cannot_tell_from_none_aims_at_the_denoised_action() -> None:
    teacher, level, d = policy(), torch.full((4,), 0.7), torch.rand(4, A)
    found = teacher.target(teacher.observe(torch.zeros(4, F)), torch.rand(4, A), d, level, level, level)
    assert torch.equal(found, d)


def test_targets_of_a_diverged_teacher_are_clipped_to_the_range_of_actions() -> None:
    teacher = policy(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(100)
        o, a_t = teacher.observe(torch.randn(64, F)), 5 * torch.randn(64, A)
        t, u, s = falling(64, 10.0)
        d = teacher.denoised_between(o, a_t, t, u)
        assert float(teacher._phi(o, a_t, t, t).abs().max()) > 1
        assert float(d.abs().max()) <= 1
        assert float(teacher.target(o, a_t, d, t, u, s).abs().max()) <= 1


def test_solver_is_of_second_order() -> None:
    """Halving the step quarters the error, on a Gaussian whose solution is known."""
    exact = GaussianFlow(1, 1, PolicyConfig(hidden=[4], sigma_max=3.0)).double()
    start, end = 1.0, 0.25
    a_t = exact.mean + math.hypot(exact.deviation, start) * torch.linspace(-1, 1, 11).double()[:, None]
    scale = math.hypot(exact.deviation, end) / math.hypot(exact.deviation, start)
    errors = []
    for steps in (4, 8, 16):
        x, levels = a_t, torch.logspace(0, math.log10(end), steps + 1).double()
        for t, u in itertools.pairwise(levels):
            t, u = t.expand(11), u.expand(11)
            x = torch.lerp(exact.denoised_between(exact.observe(x), x, t, u).double(), x, (u / t)[:, None])
        errors.append(float((x - exact.mean - scale * (a_t - exact.mean)).abs().max()))
    assert errors[0] < 0.01
    assert [high / low for high, low in itertools.pairwise(errors)] == pytest.approx([4, 4], rel=0.3)


@pytest.mark.parametrize("residual", ["plain", "phi"])
def test_a_shift_of_jumps_to_level_0_increases_the_loss(residual: str) -> None:
    """Student and teacher agree on the shift, so that only the data can show that it is wrong."""
    features, action = torch.zeros(4096, 1), 0.1 + 0.2 * RandomStream(1, 0).normal(4096, 1)
    losses = []
    for shift in (0.0, 0.5):
        flow = GaussianFlow(1, 1, PolicyConfig(hidden=[4], grid=6, sigma_max=3.0, residual=residual))
        flow.shift = shift
        each, _ = loss_of(flow, features, action, RandomStream(0, 0), flow)
        losses.append(float(each.mean()))
    assert losses[1] > losses[0] + 0.01 * 0.5**2


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_acting_jumps_down_the_levels(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = policy()
    features = torch.randn(8, F)
    a_t = 10 * RandomStream(0, 0).normal(8, A)
    for t, s in itertools.pairwise(actor.levels(steps)):
        a_t = actor.flow_map(features, a_t, torch.full((8,), t), torch.full((8,), s))
    calls = note_calls(actor, monkeypatch)
    torch.testing.assert_close(actor.sample(features, steps, RandomStream(0, 0)), a_t.clamp(-1, 1))
    assert len(calls) == steps


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"sigma_min": 1.0, "sigma_max": 1.0}, "sigma_min < sigma_last < sigma_max"),
        ({"residual": "ph"}, "residual is 'ph'"),
    ],
)
def test_invalid_settings_are_refused(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy(**chosen)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.1, 10))
def test_effective_share_is_between_one_sample_and_all_at_any_scale(weights: list[float], scale: float) -> None:
    weight = torch.tensor(weights, dtype=torch.float64)
    share = float(effective_sample_size(weight))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9
    assert share == pytest.approx(sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)))
    assert float(effective_sample_size(scale * weight)) == pytest.approx(share)
    assert float(effective_sample_size(torch.eye(8)[2])) == pytest.approx(1 / 8)


@pytest.mark.trains
def test_a_trained_policy_denoises_and_acts_as_its_data() -> None:
    """Actions from N(0.3, 0.25^2)."""
    mean, deviation = 0.3, 0.25
    trained = policy(1, 1, 1, sigma_max=5.0, hidden=[32, 32])
    learn(trained, lambda noise: (torch.zeros(128, 1), mean + deviation * noise.normal(128, 1)), 300, 5e-3)
    levels, deviations = torch.tensor(trained.levels(10)[:-1]), torch.linspace(-1.5, 1.5, 9)
    t, z = (x.flatten() for x in torch.meshgrid(levels, deviations, indexing="ij"))
    a_t = (mean + torch.hypot(t, torch.tensor(deviation)) * z)[:, None]
    v, v_t = deviation**2, t.square()[:, None]
    with torch.no_grad():
        error = trained.phi(torch.zeros(len(t), 1), a_t, t, t) - (v * a_t + v_t * mean) / (v + v_t)
        assert float(error.square().mean().sqrt()) < 0.03
        for steps in (1, 2, 5):
            actions = trained.sample(torch.zeros(2000, 1), steps, RandomStream(1, 0))
            assert float(actions.mean()) == pytest.approx(mean, abs=0.1)
        assert float(actions.std()) == pytest.approx(deviation, rel=0.4)
