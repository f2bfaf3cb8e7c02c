import numpy as np
import pytest

from gtp_vision.datasets.arrays import Segmented, view


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
