import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.sources import HostSource, SeedsSource
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def loader_threads() -> int:
    return sum(thread.name == "gtp-vision-loader" for thread in threading.enumerate())


class Failing(HostSource):
    """A source whose step number 2 cannot be gathered."""

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        if step == 2:
            raise OSError(f"the disk went away at step {step}")
        return super().fetch(step, rank, world_size)


class Gated(HostSource):
    """A source that begins when its gate is opened."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler)
        self.gate = threading.Event()

    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        self.gate.wait()
        return super().fetch(step, rank, world_size)


def seen(batch: Batch) -> list[int]:
    """The rows of a batch: the first number of their `state`."""
    return batch.observation["state"][:, -1, 0].int().tolist()


@pytest.fixture
def sampler(make_store: MakeStore) -> Sampler:
    return Sampler(make_store((50, 70)), 12, 0, frame_stack=2)


@pytest.fixture
def source(sampler: Sampler) -> HostSource:
    return HostSource(sampler)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_batches_are_the_samplers_in_order_at_any_depth(source: HostSource, depth: int) -> None:
    with Loader(source, start=0, stop=6, depth=depth) as loader:
        batches = list(loader)
    assert [seen(batch) for batch in batches] == [seen(source.fetch(step)) for step in range(6)]
    leaves, expected = pytree.tree_leaves(batches[3]), pytree.tree_leaves(source.fetch(3))
    assert all(torch.equal(x, other) for x, other in zip(leaves, expected, strict=True))


def test_a_later_start_goes_on_with_the_same_batches(source: HostSource) -> None:
    with Loader(source, start=0, stop=7) as whole, Loader(source, start=4, stop=7) as resumed:
        assert [seen(batch) for batch in whole][4:] == [seen(batch) for batch in resumed]


def test_each_rank_loads_its_own_rows(sampler: Sampler, source: HostSource) -> None:
    with (
        Loader(source, start=3, stop=4, rank=0, world_size=2) as left,
        Loader(source, start=3, stop=4, rank=1, world_size=2) as right,
    ):
        (first,) = left
        (second,) = right
    np.testing.assert_array_equal(seen(first) + seen(second), sampler.rows(3))


def test_a_failure_in_the_thread_is_raised_at_its_batch(sampler: Sampler) -> None:
    batches = []
    with (
        pytest.raises(OSError, match="disk went away at step 2"),
        Loader(Failing(sampler), start=0, stop=9) as loader,
    ):
        batches.extend(loader)
    assert len(batches) == 2
    assert loader_threads() == 0


def test_the_thread_ends_when_the_loader_is_left_early(source: HostSource) -> None:
    before = loader_threads()
    with Loader(source, start=0, stop=10**6, depth=1) as loader:
        next(iter(loader))
        assert loader_threads() == before + 1
    assert loader_threads() == before


def test_the_thread_ends_when_the_readers_own_work_fails(source: HostSource) -> None:
    before = loader_threads()

    def fail() -> None:
        with Loader(source, start=0, stop=10**6) as loader:
            for index, _ in enumerate(loader):
                1 / (index - 1)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert loader_threads() == before


def test_no_batches_are_an_empty_loop(source: HostSource) -> None:
    with Loader(source, start=5, stop=5) as loader:
        assert list(loader) == []


def test_seeds_side_by_side_are_loaded_together(sampler: Sampler) -> None:
    both = SeedsSource([HostSource(sampler), HostSource(Sampler(sampler.store, 12, 1, frame_stack=2))])
    with Loader(both, start=4, stop=5) as loader:
        (batch,) = loader
    rows = batch.observation["state"][:, :, -1, 0].int().tolist()
    assert rows == [Sampler(sampler.store, 12, seed).rows(4).tolist() for seed in (0, 1)]


def test_time_that_the_reader_waits_is_counted_and_its_own_is_not(sampler: Sampler) -> None:
    gated = Gated(sampler)
    with Loader(gated, start=0, stop=3, depth=3) as loader:
        batches = iter(loader)
        threading.Timer(0.6, gated.gate.set).start()
        next(batches)
        assert loader.waited > 0.1
        while loader_threads():  # until all are ready
            time.sleep(0.05)
        before = loader.waited
        next(batches)
        time.sleep(0.6)
        next(batches)
        assert loader.waited < before + 0.5


def test_it_can_be_iterated_over_once(source: HostSource) -> None:
    with Loader(source, start=0, stop=2) as loader:
        assert len(list(loader)) == 2
        with pytest.raises(RuntimeError, match="iterate over it once"):
            next(iter(loader))
