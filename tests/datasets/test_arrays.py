import os
import signal
import time

import numpy as np
import pytest
import torch

from gtp_vision.datasets.arrays import Segmented, gather, view


@pytest.fixture
def parts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (rows, 2, 3), np.uint8) for rows in (4, 0, 1, 5)]


@pytest.fixture
def whole(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "rows",
    [
        3,
        -1,
        slice(None),
        slice(2, 7),
        slice(8, 2),
        slice(1, 9, 3),
        np.array([0, 3, 4, 4, 9]),
        np.array([9, 0, 5, 5, 2]),
        np.array([[1, 8], [4, 0]]),
        np.array([-1, -10]),
        np.array([], np.int64),
        np.arange(10) % 3 == 0,
    ],
    ids=str,
)
def test_pieces_are_indexed_as_the_array_they_make(parts: list[np.ndarray], whole: np.ndarray, rows: object) -> None:
    array = Segmented(parts)
    np.testing.assert_array_equal(array[rows], whole[rows])  # type: ignore[index]
    assert array[rows].shape == whole[rows].shape  # type: ignore[index]


def test_pieces_describe_themselves_as_the_array_they_make(parts: list[np.ndarray], whole: np.ndarray) -> None:
    array = Segmented(parts)
    assert (len(array), array.shape, array.ndim, array.dtype, array.nbytes) == (
        len(whole),
        whole.shape,
        whole.ndim,
        whole.dtype,
        whole.nbytes,
    )
    np.testing.assert_array_equal(np.asarray(array), whole)
    assert np.asarray(array, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without copying"):
        np.asarray(array, copy=False)


@pytest.mark.parametrize("row", [10, -11, np.array([2, 10])])
def test_rows_beyond_the_end_are_an_error(parts: list[np.ndarray], row: object) -> None:
    with pytest.raises(IndexError):
        Segmented(parts)[row]


@pytest.mark.parametrize("span", [(0, 10), (0, 4), (3, 5), (5, 5), (4, 9), (9, 10)])
def test_a_view_copies_nothing(parts: list[np.ndarray], whole: np.ndarray, span: tuple[int, int]) -> None:
    seen = Segmented(parts).view(*span)
    np.testing.assert_array_equal(np.asarray(seen), whole[slice(*span)])
    assert all(any(np.shares_memory(part, original) for original in parts) for part in seen.parts if len(part))
    assert np.shares_memory(view(whole, 2, 4), whole)


def test_pieces_of_pieces_are_one_list(parts: list[np.ndarray], whole: np.ndarray) -> None:
    nested = Segmented([Segmented(parts[:2]), Segmented(parts[2:])])
    assert all(isinstance(part, np.ndarray) for part in nested.parts)
    np.testing.assert_array_equal(np.asarray(nested), whole)


@pytest.mark.parametrize("other", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.float32)])
def test_pieces_that_do_not_fit_are_refused(parts: list[np.ndarray], other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        Segmented([*parts, other])


def test_threads_gather_the_same_from_pieces_and_from_one_array() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (3000, 32, 32, 3), np.uint8)
    rows = np.sort(np.random.default_rng(1).integers(0, len(whole), 900))  # 2.8 MB: several threads, repeated rows
    pieces = Segmented([whole[start : start + 7] for start in range(0, len(whole), 7)])
    for array in (whole, pieces):
        np.testing.assert_array_equal(gather(array, rows, 1000), whole[rows])


def test_views_do_not_look_at_all_pieces() -> None:
    pieces = Segmented([np.zeros((2, 1), np.uint8)] * 6000)
    started = time.process_time()
    for start in range(0, len(pieces), 2):  # as a writer goes through the episodes
        pieces.view(start, start + 2), pieces[start : start + 2]
    assert time.process_time() - started < 2, "a tenth of a second; in proportion to the pieces it was ten"


# Gathering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 700])
@pytest.mark.parametrize("pieces", [False, True])
def test_many_rows_are_gathered_by_threads_as_by_one(rows: int, pieces: bool) -> None:
    random = np.random.default_rng(0)
    whole = random.integers(0, 256, (900, 40, 60), np.uint8)
    array = Segmented(np.array_split(whole, 7)) if pieces else whole
    chosen = np.sort(random.integers(0, 900, rows))
    np.testing.assert_array_equal(gather(array, chosen, capacity=800), whole[chosen])


def test_memory_is_used_again_only_when_nobody_looks_at_it() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (500, 60, 60), np.uint8)
    held = [(rows, gather(whole, rows)[3:]) for rows in np.random.default_rng(1).integers(0, 500, (12, 400))]
    for rows, seen in held:
        np.testing.assert_array_equal(seen, whole[rows][3:])
    tensors = [(rows, torch.from_numpy(gather(whole, rows)).flatten(1)) for rows, _ in held]
    del held
    for _ in range(5):
        gather(whole, np.zeros(400, int))
    for rows, tensor in tensors:
        np.testing.assert_array_equal(tensor.numpy(), whole[rows].reshape(400, -1))
    address = gather(whole, np.arange(400)).ctypes.data
    assert any(gather(whole, np.arange(400)).ctypes.data == address for _ in range(3))


def test_gathering_goes_on_after_a_fork() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (500, 60, 60), np.uint8)
    gather(whole, np.arange(400))  # the threads are there
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
