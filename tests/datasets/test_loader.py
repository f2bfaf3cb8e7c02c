import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sampler import Batch, Sampler
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def loader_threads() -> int:
    return sum(thread.name == "gtp-vision-loader" for thread in threading.enumerate())


@dataclass(frozen=True)
class Failing(Sampler):
    """A sampler whose batch number `at` cannot be gathered."""

    at: int = 2

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        if step == self.at:
            raise OSError(f"the disk went away at step {step}")
        return super().batch(step, rank, world_size)


@pytest.fixture
def sampler(make_store: MakeStore) -> Sampler:
    return Sampler(make_store((50, 70)), 12, 0, frame_stack=2)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_batches_are_the_samplers_in_order_at_any_depth(sampler: Sampler, depth: int) -> None:
    with Loader(sampler, start=0, stop=6, depth=depth) as loader:
        batches = list(loader)
    assert [step for step, _ in batches] == list(range(6))
    for step, batch in batches:
        assert torch.equal(batch.rows, sampler.batch(step).rows)
        assert torch.equal(batch.observation()["state"], sampler.batch(step).observation()["state"])


def test_a_later_start_goes_on_with_the_same_batches(sampler: Sampler) -> None:
    with Loader(sampler, start=0, stop=7) as whole, Loader(sampler, start=4, stop=7) as resumed:
        late = {step: batch.rows.tolist() for step, batch in whole if step >= 4}
        again = {step: batch.rows.tolist() for step, batch in resumed}
    assert again == late


def test_each_rank_loads_its_own_rows(sampler: Sampler) -> None:
    with (
        Loader(sampler, start=3, stop=4, rank=0, world_size=2) as left,
        Loader(sampler, start=3, stop=4, rank=1, world_size=2) as right,
    ):
        ((_, first),) = left
        ((_, second),) = right
    assert torch.equal(torch.cat([first.rows, second.rows]), sampler.batch(3).rows)


def test_a_failure_in_the_thread_is_raised_at_its_batch(make_store: MakeStore) -> None:
    seen = []
    with (
        pytest.raises(OSError, match="disk went away at step 2"),
        Loader(Failing(make_store((20,)), 4, 0), start=0, stop=9) as loader,
    ):
        seen.extend(step for step, _ in loader)
    assert seen == [0, 1]
    assert loader_threads() == 0


def test_the_thread_ends_when_the_loader_is_left_early(sampler: Sampler) -> None:
    before = loader_threads()
    with Loader(sampler, start=0, stop=10**6, depth=1) as loader:
        next(iter(loader))
        assert loader_threads() == before + 1
    assert loader_threads() == before


def test_the_thread_ends_when_the_readers_own_work_fails(sampler: Sampler) -> None:
    before = loader_threads()

    def fail() -> None:
        with Loader(sampler, start=0, stop=10**6) as loader:
            for step, _ in loader:
                1 / (step - 1)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert loader_threads() == before


def test_no_batches_are_an_empty_loop(sampler: Sampler) -> None:
    with Loader(sampler, start=5, stop=5) as loader:
        assert list(loader) == []
