import threading

import pytest
import torch
from stores import make_store
from torch.utils import _pytree as pytree

from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.sources import HostSource


def loader_threads() -> int:
    return sum(thread.name == "gtp-vision-loader" for thread in threading.enumerate())


class Failing(HostSource):
    def fetch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        if step == 2:
            raise OSError(f"the disk went away at step {step}")
        return super().fetch(step, rank, world_size)


def seen(batch: Batch) -> list[int]:
    """The rows of a batch: the first number of their `state`."""
    return batch.observation["state"][:, -1, 0].int().tolist()


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(make_store((50, 70)), 12, 0, frame_stack=2)


@pytest.fixture
def source(sampler: Sampler) -> HostSource:
    return HostSource(sampler)


def test_a_failure_in_the_thread_is_raised_at_its_batch(sampler: Sampler) -> None:
    batches = []
    with pytest.raises(OSError, match="disk went away at step 2"), Loader(Failing(sampler), start=0, stop=9) as loader:
        batches.extend(loader)
    assert len(batches) == 2
    assert loader_threads() == 0


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_batches_are_the_sources_in_order_at_any_depth_start_and_rank(source: HostSource, depth: int) -> None:
    with Loader(source, start=0, stop=6, depth=depth) as loader:
        batches = list(loader)
        with pytest.raises(RuntimeError, match="iterate over it once"):
            next(iter(loader))
    for step, batch in enumerate(batches):
        leaves, expected = pytree.tree_leaves(batch), pytree.tree_leaves(source.fetch(step))
        assert all(torch.equal(x, other) for x, other in zip(leaves, expected, strict=True))
    with Loader(source, start=4, stop=6, rank=1, world_size=2, depth=depth) as resumed:
        assert [seen(batch) for batch in resumed] == [seen(batch)[6:] for batch in batches[4:]]


def test_the_thread_ends_when_the_reader_leaves_or_fails(source: HostSource) -> None:
    def fail() -> None:
        with Loader(source, start=0, stop=10**6, depth=1) as loader:
            next(iter(loader))
            assert loader_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert loader_threads() == 0
