"""Two processes do what one does: the same gradients, from the same batch and the same noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small import make
from torch.nn.parallel import DistributedDataParallel

from gtp_vision.agents import Agent
from gtp_vision.core.distributed import global_mean, global_std
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store

BATCH, STEP, PROCESSES = 16, 3, 2
AGENTS = ["gtp", "bdm", "qgpo", "fql", "idql", "rebrac"]
STAGE = 5  # past bdm's cloning


def learner(name: str) -> Agent:
    more = ["agent.policy.noise_draws=2", "agent.improvement.form=exponential"] if name == "gtp" else []
    made = make(name, *more)
    if name == "bdm":  # a policy that is its behaviour has no gradient of interest
        made.begin(2)
        with torch.no_grad():
            for parameter in made.policy.parameters():
                parameter.mul_(1.2)
    return made


def gradients(name: str, store: Store, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Gradients and loss metrics of one training step of this process."""
    online = learner(name)
    online.begin(STAGE)
    module: torch.nn.Module = online
    if world_size > 1:
        module = DistributedDataParallel(online)
    batch = Sampler(store, BATCH, 0, frame_stack=2, action_chunk=2).batch(STEP, rank, world_size)
    loss, metrics = module(batch, RandomStream(0, STEP, rank=rank, world_size=world_size))
    loss.backward()
    found = {key: p.grad for key, p in online.named_parameters() if p.grad is not None}
    return {f"{name} {key}": value for key, value in found.items()} | {
        f"{name} metric {key}": value for key, value in metrics.items()
    }


def every_gradient(store: Store, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    return {key: value for name in AGENTS for key, value in gradients(name, store, rank, world_size).items()}


def moments(values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mean": global_mean(values), "deviation": global_std(values)}


def work(rank: int, store: Store, values: torch.Tensor, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    try:
        found = every_gradient(store, rank, PROCESSES)
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
    alone = every_gradient(store, 0, 1) | moments(values)
    return alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", AGENTS)
def test_two_processes_find_the_gradients_of_one(name: str, runs: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, together = runs
    own = [key for key in alone if key.startswith(f"{name} ") and " metric " not in key]
    parts = {key.partition(" ")[2].partition(".")[0] for key in own}
    assert parts == {"policy", "critic"} | ({"improvement"} if name in ("fql", "qgpo") else set())
    largest = {part: max(float(alone[key].abs().max()) for key in own if f" {part}." in key) for part in parts}
    for found in together:
        assert found.keys() == alone.keys()
        for key in own:
            scale = max(float(alone[key].abs().max()), 1e-2 * largest[key.partition(" ")[2].partition(".")[0]])
            torch.testing.assert_close(found[key], alone[key], rtol=1e-4, atol=2e-5 * scale, msg=key)


@pytest.mark.parametrize("name", AGENTS)
def test_the_losses_of_two_processes_average_to_those_of_one(
    name: str, runs: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    alone, together = runs
    watched = ["loss", "critic/loss", "actor/loss", "weight/effective_share"]
    watched += ["weight/mean", "weight/advantage"] if name == "gtp" else []
    for key in (f"{name} metric {key}" for key in watched):
        mean = sum(float(found[key]) for found in together) / PROCESSES
        assert mean == pytest.approx(float(alone[key]), rel=1e-4), key
    share = float(alone["gtp metric weight/effective_share"])
    assert share < 0.9, "the test needs weights that the deviation matters for"


def test_global_moments_are_those_of_all_values(runs: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, together = runs
    values = np.random.default_rng(0).normal(2, 3, 64)
    for found in (alone, *together):
        assert float(found["mean"]) == pytest.approx(values.mean(), rel=1e-5)
        assert float(found["deviation"]) == pytest.approx(values.std(), rel=1e-5)
