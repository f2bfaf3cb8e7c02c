"""What a step will take is known before it is taken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_run

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.sources import batch_source
from gtp_vision.training import step_cost as costs
from gtp_vision.training.build import Components, build
from gtp_vision.training.step_cost import step_cost


def parts_of(pixels: Path, *more: str, agent: str = "gtp") -> Components:
    return build(small_run(pixels, "unused", "encoder=impala_tiny", "encoder.features=8", *more, agent=agent))


def kept_bytes(parts: Components) -> int:
    """The bytes that the losses of the first step really keep."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    source = batch_source(parts.sampler, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = parts.agent(source.batch(source.fetch(0)), parts.stream(0), 0)
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("agent", ["gtp", "gtp_ql", "iql"])
def test_the_memory_of_a_step_is_known_before(pixels: Path, agent: str) -> None:
    parts = parts_of(pixels, "training.batch_size=8", agent=agent)
    before = {name: value.clone() for name, value in parts.agent.state_dict().items()}
    cost = step_cost(parts)
    assert cost is not None
    assert cost.bytes == pytest.approx(kept_bytes(parts), rel=0.15)
    assert cost.flops > 1e6
    for name, value in parts.agent.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    loss, metrics = parts.agent(parts.batch(0), parts.stream(0), 0)
    assert {type(x) for x in (loss, *metrics.values())} == {torch.Tensor}, (
        "a training does not meet tensors of the count"
    )
    assert bool(loss.isfinite())


def test_a_step_that_does_not_fit_is_refused_with_a_batch_that_does(
    pixels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = step_cost(parts_of(pixels, "training.batch_size=16"))
    assert cost is not None
    monkeypatch.setattr(costs, "free_memory", lambda device: cost.bytes * 3 // 4)
    with pytest.raises(
        GtpVisionError, match=r"a step of 16 rows needs about .* set training\.batch_size=(\d+), or"
    ) as e:
        step_cost(parts_of(pixels, "training.batch_size=16"))
    fitting = str(e.value).split("training.batch_size=")[1].split(",")[0]
    assert fitting == "8"
    assert step_cost(parts_of(pixels, f"training.batch_size={fitting}"))


def test_activations_that_are_computed_again_take_no_memory(pixels: Path) -> None:
    """The same losses and gradients, for less."""
    whole, again = (parts_of(pixels, "training.batch_size=12", *more) for more in ([], ["encoder.recompute=5"]))
    for parts in (whole, again):
        parts.agent(parts.batch(0), parts.stream(0), 0)[0].backward()
    for (name, one), other in zip(whole.agent.named_parameters(), again.agent.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert kept_bytes(again) < kept_bytes(whole)
    costs_of_both = [step_cost(parts) for parts in (again, whole)]
    assert costs_of_both[0].bytes < costs_of_both[1].bytes  # type: ignore[union-attr]


def test_the_cost_is_told_where_it_is_large(pixels: Path) -> None:
    cost: Any = step_cost(parts_of(pixels))
    cpu = torch.device("cpu")
    assert cost.sentence(cpu) == ""
    said = replace(cost, bytes=3 * 10**9, rows=64).sentence(cpu)
    assert said.startswith("a step of 64 rows: about 3 GB of memory and 0 Gflop, at least ")
    assert step_cost(build(small_run(pixels, "unused", "task.observations=[state]"))) is None
