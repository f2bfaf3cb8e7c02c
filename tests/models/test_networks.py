import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gtp_vision.models.networks import (
    MLP,
    EnsembleMLP,
    LNResNet,
    LogTimeEmbedding,
    _mish,
    activation,
    frozen_copy,
    polyak_,
)


@pytest.mark.parametrize(("layer_norm", "norm_after"), [(False, False), (True, False), (True, True)])
def test_an_ensemble_computes_what_its_members_compute(layer_norm: bool, norm_after: bool) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(3, 5, [8, 7], 2, "mish", layer_norm, norm_after)
    for parameter in ensemble.parameters():  # also the norms' scales and shifts, which begin equal
        nn.init.normal_(parameter)
    x = torch.randn(6, 5)
    together = ensemble(x)
    assert together.shape == (3, 6, 2)
    gradients = torch.autograd.grad(together[1].sum(), list(ensemble.parameters()), retain_graph=True)
    assert not any(bool(gradient[[0, 2]].any()) for gradient in gradients), "members learn apart"
    for member in range(3):
        alone = MLP(5, [8, 7], 2, "mish", layer_norm, norm_after=norm_after)
        ours = [parameter[member].squeeze(0) for parameter in ensemble.parameters()]
        theirs = list(alone.parameters())
        with torch.no_grad():
            for one, parameter in zip(ours, theirs, strict=True):
                parameter.copy_(one.T if parameter.ndim == 2 else one)
        torch.testing.assert_close(together[member], alone(x), rtol=1e-5, atol=1e-5)


def test_a_norm_after_the_activation_sees_what_it_made() -> None:
    network = MLP(2, [2], 2, "relu", layer_norm=True, norm_after=True)
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    # relu(3, -4) = (3, 0), normalized to (1, -1); normalized before, relu would have made (1, 0) of (1, -1)
    torch.testing.assert_close(network(torch.tensor([[3.0, -4.0]])), torch.tensor([[1.0, -1.0]]))


def test_a_residual_network_adds_to_its_input_block_by_block() -> None:
    torch.manual_seed(0)
    network, x = LNResNet(8, 2, 3, "mish"), torch.randn(5, 8)
    h = x
    for block in list(network)[:2]:
        norm, widen, _, narrow = block.change
        assert widen.weight.shape == (32, 8)
        with torch.no_grad():
            norm.weight.normal_()
            norm.bias.normal_()
        z = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = h + nn.functional.mish((z * norm.weight + norm.bias) @ widen.weight.T + widen.bias) @ narrow.weight.T
        h = h + narrow.bias
    torch.testing.assert_close(network(x), nn.functional.mish(h) @ network[3].weight.T + network[3].bias)
    assert not any(isinstance(part, nn.Dropout) for part in network.modules())


MISHES = {torch.float64: (1e-12, 1e-13), torch.float32: (2e-6, 3e-7), torch.bfloat16: (2e-2, 1e-2)}
"""Relative and absolute tolerance."""


@pytest.mark.parametrize("dtype", MISHES)
def test_mish_by_one_exponential_equals_mish(dtype: torch.dtype) -> None:
    ends = torch.tensor([-1e4, -200.0, -100.0, -30.0, -1e-6, 0.0, 1e-6, 19.99, 20.0, 20.01, 100.0, 1e4])
    x = torch.cat([torch.linspace(-30, 30, 601), ends]).to(dtype)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for mish, at in ((_mish, x), (nn.functional.mish, x.double())):
        at = at.clone().requires_grad_()
        y = mish(at)
        (slope,) = torch.autograd.grad(y.sum(), at)
        found.append((y.detach(), slope))
    rtol, atol = MISHES[dtype]
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.compiles
def test_mish_is_pytorchs_unless_compiled() -> None:
    x = torch.linspace(-5, 5, 50)
    assert torch.equal(activation("mish")(x), nn.functional.mish(x))
    compiled = torch.compile(activation("mish"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), _mish(x))
    assert not torch.equal(_mish(x), nn.functional.mish(x)), "their rounding tells which it is"
    assert activation("mish").state_dict() == {}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(1e-4, 0.05), st.floats(0.5, 100), st.integers(1, 6))
def test_noise_levels_are_embedded_from_0_to_1_in_order(sigma_min: float, sigma_max: float, frequencies: int) -> None:
    embed = LogTimeEmbedding(sigma_min, sigma_max, frequencies)
    levels = torch.cat([torch.zeros(1), torch.logspace(math.log10(sigma_min), math.log10(sigma_max), 30)])
    features = embed(levels)
    assert features.shape == (31, embed.width) == (31, 1 + 2 * frequencies)
    assert float(features[0, 0]) == 0
    assert float(features[-1, 0]) == pytest.approx(1, abs=1e-4)
    assert bool((features[1:, 0] > features[:-1, 0]).all())
    assert bool(features.isfinite().all())
    assert float(features.abs().max()) <= 1.001


def test_levels_far_above_the_smallest_are_evenly_spaced_in_log_time() -> None:
    embed = LogTimeEmbedding(1e-4, 10.0)
    c = embed(torch.tensor([0.1, 1.0, 10.0]))[:, 0]
    assert float(c[1] - c[0]) == pytest.approx(float(c[2] - c[1]), rel=1e-2)
    assert embed.state_dict() == {}


def test_polyak_leaves_untrained_parameters_and_copies_moving_statistics() -> None:
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    target = frozen_copy(source)
    source[0].requires_grad_(False)
    source[2].eval()
    with torch.no_grad():
        for changed in (*source.parameters(), source[1].running_mean, source[2].running_mean):
            changed.add_(1)
    source[1].num_batches_tracked.fill_(5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    polyak_(target, source, 0.25)
    after = target.state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after}
    assert {name: change for name, change in moved.items() if change} == {
        **{f"{layer}.{name}": pytest.approx(0.25) for layer in (1, 2) for name in ("weight", "bias")},
        "1.running_mean": 1.0,
        "1.num_batches_tracked": 5.0,
    }
