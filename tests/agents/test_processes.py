"""Two processes do what one does: the same gradients, from the same batch and the same noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from gtp_vision import agents
from gtp_vision.agents import AgentConfig
from gtp_vision.critics import CriticConfig
from gtp_vision.datasets.random import RandomStream
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import EncoderConfig
from gtp_vision.policies import PolicyConfig
from gtp_vision.reduce import global_mean, global_std

BATCH, STEP, PROCESSES = 16, 3, 2


def learner() -> agents.GTP:
    torch.manual_seed(0)
    config = AgentConfig(
        policy=PolicyConfig(hidden=[16], grid=5, noise_draws=2),
        critic=CriticConfig(hidden=[16]),
        target_steps=2,
        value_samples=2,
        eta=1.0,
    )
    made = agents.create({"state": (2, 3)}, 2, config, EncoderConfig(name="state"))
    assert isinstance(made, agents.GTP)
    return made


def gradients(store: Store, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Gradients and loss metrics of one training step of this process."""
    online = learner()
    module: torch.nn.Module = online
    if world_size > 1:
        module = DistributedDataParallel(online)
    batch = Sampler(store, BATCH, 0, frame_stack=2).batch(STEP, rank, world_size)
    loss, metrics = module(batch, RandomStream(0, STEP, rank=rank, world_size=world_size))
    loss.backward()
    found = {name: p.grad for name, p in online.named_parameters() if p.grad is not None}
    return found | {f"metric {name}": value for name, value in metrics.items()}


def moments(values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mean": global_mean(values), "deviation": global_std(values)}


def work(rank: int, store: Store, values: torch.Tensor, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    try:
        found = gradients(store, rank, PROCESSES)
        found |= moments(values.chunk(PROCESSES)[rank])
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(
    make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what each of two found."""
    store, folder = make_store((30, 40), terminals={29}), tmp_path_factory.mktemp("processes")
    values = torch.from_numpy(np.random.default_rng(0).normal(2, 3, 64)).float()
    mp.spawn(work, (store, values, folder), nprocs=PROCESSES)
    alone = gradients(store, 0, 1) | moments(values)
    return alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def test_two_processes_find_the_gradients_of_one(runs: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, together = runs
    names = {name for name in alone if name.startswith(("policy.", "critic."))}
    assert {name.partition(".")[0] for name in names} == {"policy", "critic"}
    for found in together:
        assert found.keys() == alone.keys()
        for name in names:
            scale = float(alone[name].abs().max())
            torch.testing.assert_close(found[name], alone[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_the_weights_of_two_processes_average_to_those_of_one(
    runs: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    alone, together = runs
    for name in ("loss", "critic/loss", "weight/mean", "weight/advantage", "actor/loss"):
        mean = sum(float(found[f"metric {name}"]) for found in together) / PROCESSES
        assert mean == pytest.approx(float(alone[f"metric {name}"]), rel=1e-4), name
    assert float(alone["metric weight/mean"]) > 1.1, "the test needs weights that the deviation matters for"


def test_global_moments_are_those_of_all_values(runs: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, together = runs
    values = np.random.default_rng(0).normal(2, 3, 64)
    for found in (alone, *together):
        assert float(found["mean"]) == pytest.approx(values.mean(), rel=1e-5)
        assert float(found["deviation"]) == pytest.approx(values.std(), rel=1e-5)
