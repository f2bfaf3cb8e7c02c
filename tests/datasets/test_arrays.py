import os
import signal
import time

import numpy as np
import pytest
import torch

from gtp_vision.datasets.arrays import Segmented, gather, view


@pytest.fixture
def segments() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (rows, 2, 3), np.uint8) for rows in (4, 0, 1, 5)]


@pytest.fixture
def whole(segments: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(segments)


@pytest.mark.parametrize(
    "rows",
    [
        *(3, -1, slice(None), slice(2, 7), slice(8, 2), slice(1, 9, 3)),
        *(np.array([0, 3, 4, 4, 9]), np.array([9, 0, 5, 5, 2]), np.array([[1, 8], [4, 0]]), np.array([-1, -10])),
        *(np.array([], np.int64), np.arange(10) % 3 == 0),
    ],
    ids=str,
)
def test_segments_are_indexed_as_one_array(segments: list[np.ndarray], whole: np.ndarray, rows: object) -> None:
    found = Segmented(segments)[rows]
    np.testing.assert_array_equal(found, whole[rows])  # type: ignore[index]
    assert found.shape == whole[rows].shape  # type: ignore[index]


def test_segments_have_the_properties_of_one_array(segments: list[np.ndarray], whole: np.ndarray) -> None:
    nested = Segmented([Segmented(segments[:2]), Segmented(segments[2:])])
    assert all(isinstance(segment, np.ndarray) for segment in nested.segments)
    for name in ("shape", "ndim", "dtype", "nbytes", "__len__"):
        mine, wanted = getattr(nested, name), getattr(whole, name)
        assert (mine() if callable(mine) else mine) == (wanted() if callable(wanted) else wanted)
    np.testing.assert_array_equal(np.asarray(nested), whole)
    assert np.asarray(nested, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without copying"):
        np.asarray(nested, copy=False)
    for row in (10, -11, np.array([2, 10])):
        with pytest.raises(IndexError):
            nested[row]
    for other in (np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.float32)):
        with pytest.raises(ValueError, match="segments are"):
            Segmented([*segments, other])


@pytest.mark.parametrize("span", [(0, 10), (0, 4), (3, 5), (5, 5), (4, 9), (9, 10)])
def test_a_view_copies_nothing(segments: list[np.ndarray], whole: np.ndarray, span: tuple[int, int]) -> None:
    part = Segmented(segments).view(*span)
    np.testing.assert_array_equal(np.asarray(part), whole[slice(*span)])
    shares = [any(np.shares_memory(cut, original) for original in segments) for cut in part.segments if len(cut)]
    assert all(shares)
    assert np.shares_memory(view(whole, 2, 4), whole)


@pytest.mark.parametrize("rows", [3, 700])
@pytest.mark.parametrize("count", [1, 7, 129])
def test_threads_gather_the_same_rows_from_segments_and_from_one_array(rows: int, count: int) -> None:
    random = np.random.default_rng(0)
    whole = random.integers(0, 256, (900, 40, 60), np.uint8)
    array = Segmented(np.array_split(whole, count)) if count > 1 else whole
    chosen = np.sort(random.integers(0, 900, rows))
    np.testing.assert_array_equal(gather(array, chosen, capacity=800), whole[chosen])


def test_memory_is_reused_only_without_references() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (500, 60, 60), np.uint8)
    held = [(rows, gather(whole, rows)[3:]) for rows in np.random.default_rng(1).integers(0, 500, (12, 400))]
    for rows, part in held:
        np.testing.assert_array_equal(part, whole[rows][3:])
    tensors = [(rows, torch.from_numpy(gather(whole, rows)).flatten(1)) for rows, _ in held]
    del held
    for _ in range(5):
        gather(whole, np.zeros(400, int))
    for rows, tensor in tensors:
        np.testing.assert_array_equal(tensor.numpy(), whole[rows].reshape(400, -1))
    address = gather(whole, np.arange(400)).ctypes.data
    assert any(gather(whole, np.arange(400)).ctypes.data == address for _ in range(3))


def test_gathering_works_after_a_fork() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (500, 60, 60), np.uint8)
    gather(whole, np.arange(400))  # starts the threads
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(gather(whole, np.arange(400)), whole[:400]) else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("gathering hangs after a fork")
    assert status == 0
