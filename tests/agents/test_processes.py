"""Two processes compute the gradients of one, from the same batch and the same noise."""

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

pytestmark = pytest.mark.processes
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
    loss, metrics = module(batch, RandomStream(0, STEP, rank=rank, world_size=world_size), STAGE)
    loss.backward()
    found = {f"{name} {key}": p.grad for key, p in online.named_parameters() if p.grad is not None}
    return found | {f"{name} metric {key}": value for key, value in metrics.items()}


def results(store: Store, values: torch.Tensor, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Gradients of all agents, and moments of values."""
    found = {key: value for name in AGENTS for key, value in gradients(name, store, rank, world_size).items()}
    own = values.chunk(world_size)[rank]
    return found | {"mean": global_mean(own), "deviation": global_std(own)}


def work(rank: int, store: Store, values: torch.Tensor, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    try:
        torch.save(results(store, values, rank, PROCESSES), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(
    make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of one process, and of each of two."""
    store, folder = make_store((30, 40), terminals={29}), tmp_path_factory.mktemp("processes")
    values = torch.from_numpy(np.random.default_rng(0).normal(2, 3, 64)).float()
    mp.spawn(work, (store, values, folder), nprocs=PROCESSES)
    together = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    return results(store, values, 0, 1), together


@pytest.mark.parametrize("name", AGENTS)
def test_two_processes_compute_the_gradients_and_losses_of_one(
    name: str, runs: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    alone, together = runs
    own = [key for key in alone if key.startswith(f"{name} ") and " metric " not in key]
    parts = {key: key.partition(" ")[2].partition(".")[0] for key in own}
    assert set(parts.values()) == {"policy", "critic"} | ({"improvement"} if name in ("fql", "qgpo") else set())
    largest = {part: max(float(alone[key].abs().max()) for key in own if parts[key] == part) for part in parts.values()}
    for found in together:
        assert found.keys() == alone.keys()
        for key in own:
            scale = max(float(alone[key].abs().max()), 1e-2 * largest[parts[key]])
            torch.testing.assert_close(found[key], alone[key], rtol=1e-4, atol=2e-5 * scale, msg=key)
    watched = ["loss", "critic/loss", "actor/loss", "weight/effective_share", "weight/mean", "weight/advantage"]
    for key in (f"{name} metric {key}" for key in watched):
        if key in alone:
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
