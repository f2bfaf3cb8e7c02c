"""Tests of training steps on a device that is not the CPU; `test_device.py` runs them in a process of their own."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_runs import PIXELS, small_run
from virtual_device import DEVICE, ForeignTensorError, Virtual, virtual_device

from gtp_vision.agents import AGENTS
from gtp_vision.agents.improvement import Metrics
from gtp_vision.core import distributed
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.placement import place
from gtp_vision.datasets.sources import batch_source_of_seeds
from gtp_vision.training import build
from gtp_vision.training.build import Components, components_for_seed
from gtp_vision.training.eager import Eager
from gtp_vision.training.engines import Functional
from gtp_vision.training.seeds import seeds_of

STATES = ["task.observations=[state]"]
SEEING = [*PIXELS, "encoder.share=false"]
RESIDENT = [*PIXELS, "training.placement=device"]
ALL = ["training.clip_gradient=0.5", "training.on_nonfinite=stop"]


class _Stream(RandomStream):
    """The CPU's numbers, on the device: its own generators would be a part of it that is not there."""

    def __init__(self, *key: int, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(*key, rank=rank, world_size=world_size)
        self._to = device

    def _own(self, draw: torch.Tensor) -> torch.Tensor:
        return super()._own(draw).to(self._to)


def steps(engine: str, config: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Metrics]:
    """Metrics of each run's second step, from data set to targets on a device."""
    made = build._prepared

    def prepared(config: Any, agent: Any, accelerator: Accelerator) -> Any:
        return made(config, agent.to(device), accelerator)  # before Adam: such a tensor cannot become another in place

    with monkeypatch.context() as patched:
        patched.setattr(Accelerator, "device", property(lambda _: device))
        patched.setattr(build, "RandomStream", _Stream)
        patched.setattr(build, "_prepared", prepared)
        first, *others = seeds_of(config)
        parts = build.build(first)
        members: list[Components] = [parts, *(components_for_seed(parts, other) for other in others)]
        source = batch_source_of_seeds([member.sampler for member in members], device)
        run = Eager(source, config, parts) if engine == "eager" else Functional(source, config, members, "eager", print)
        return [run.step(step, source.fetch(step).to(device)) for step in range(2)][-1]


@pytest.mark.parametrize("engine", ["eager", "function"])
@pytest.mark.parametrize("name", sorted(AGENTS))
@pytest.mark.parametrize(
    "more", [["task.observations=[state]"], SEEING, RESIDENT], ids=["states", "frames", "resident"]
)
def test_a_step_stays_on_the_device(
    name: str, engine: str, more: list[str], pixels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(engine, small_run(pixels, "unused", *ALL, *more, agent=name), monkeypatch)


CHUNKS = ["agent.action_chunk=2", "task.n_step=2", "agent.critic.chunk=true", "agent.critic.aggregate=mean"]


@pytest.mark.parametrize(
    ("name", "more"),
    [("gtp_ql", ["agent.improvement.step=0.1", "agent.improvement.eta=1"]), ("gtp", [*CHUNKS, "agent.critic.rho=0.5"])],
)
def test_seeds_side_by_side_stay_on_the_device(
    name: str, more: list[str], pixels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check("function", small_run(pixels, "unused", *ALL, *STATES, "training.seeds=2", *more, agent=name), monkeypatch)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_step_needs_no_float64(name: str, pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "WITHOUT_FLOAT64", {DEVICE.type})
    config = small_run(pixels, "unused", *ALL, *SEEING, agent=name)
    check("eager", config, monkeypatch, torch.float64)
    with pytest.raises(GtpVisionError, match="which virtual:0 lacks"):
        place(open_store(pixels), DEVICE, "device")


def check(engine: str, config: Any, monkeypatch: pytest.MonkeyPatch, *without: torch.dtype) -> None:
    """Steps on the device give the CPU's numbers, and leave them there."""
    with virtual_device(*without):
        there = steps(engine, config, DEVICE, monkeypatch)
    here = steps(engine, config, torch.device("cpu"), monkeypatch)
    for mine, his in zip(there, here, strict=True):
        assert all(isinstance(value, Virtual) for value in mine.values())
        assert {n: float(x.held) for n, x in mine.items()} == pytest.approx(  # type: ignore[attr-defined]
            {n: float(x) for n, x in his.items()}, rel=1e-4, abs=1e-6
        )
        assert math.isfinite(float(his["loss"]))


def test_the_device_tells_what_a_gpu_would() -> None:
    with virtual_device(torch.float64), pytest.raises(ForeignTensorError, match="float64, which the device lacks"):
        torch.zeros(3, device=DEVICE).double()
    with virtual_device():
        x = torch.zeros(3, device=DEVICE)
        with pytest.raises(ForeignTensorError, match=r"aten\.add.*\(3,\) of the CPU"):
            x + torch.zeros(3)
        with pytest.raises(ForeignTensorError, match="read by the host"):
            float(x.sum())
        assert (x + torch.tensor(1.0)).device == DEVICE
        assert not isinstance(x.to("cpu"), Virtual)
