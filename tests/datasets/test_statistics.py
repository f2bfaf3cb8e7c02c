import json

import numpy as np
import pytest
from stores import make_store

from gtp_vision.datasets.arrays import Array, Segmented
from gtp_vision.datasets.statistics import array_statistics, mean_images, store_statistics


def test_the_mean_image_is_over_all_of_few_and_a_sample_of_many_frames() -> None:
    store = make_store((3, 4), cameras={"front": (4, 6, 3)})
    means = mean_images(store)
    assert list(means) == ["front"]
    assert means["front"].dtype == np.float32
    assert np.allclose(means["front"], store.observations["front"].astype(float).mean(0))
    ramp = np.linspace(0, 255, 20_000).astype(np.uint8)
    many = make_store((20_000,), observations={"front": np.broadcast_to(ramp[:, None, None, None], (20_000, 2, 2, 1))})
    assert np.allclose(mean_images(many)["front"], ramp.mean(), atol=0.2)


@pytest.mark.parametrize("rows", [1, 7, 100_000])
@pytest.mark.parametrize("pieces", [False, True])
def test_statistics_of_an_array_are_those_of_numpy(rows: int, pieces: bool) -> None:
    random = np.random.default_rng(0)
    values = (random.normal(size=(rows, 3)) * [1, 1e-3, 1e4] + [0, 1000, -5]).astype(np.float32)
    array: Array = Segmented(np.array_split(values, min(rows, 3))) if pieces else values
    found = array_statistics(array)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, exact.std(0), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(found.min, exact.min(0))
    np.testing.assert_array_equal(found.max, exact.max(0))
    for level, value in found.quantiles.items():
        np.testing.assert_allclose(value, np.quantile(exact, float(level), axis=0), rtol=1e-5, atol=1e-6)


def test_quantiles_of_many_rows_are_near() -> None:
    values = np.random.default_rng(0).normal(size=(400_000, 2)).astype(np.float32)
    found = array_statistics(values)
    for level, value in found.quantiles.items():
        ranks = (values <= np.array(value, np.float32)).mean(0)
        assert ranks == pytest.approx(float(level), abs=0.003)


def test_dimensions_that_hardly_change_are_named_and_not_divided() -> None:
    random, rows = np.random.default_rng(0), 10_000
    values = np.zeros((rows, 6), np.float32)
    values[:, 0] = random.normal(size=rows)
    values[:, 1] = 3.0  # a constant
    values[:, 2] = 1000 + 0.01 * random.normal(size=rows)  # a constant with a sensor's noise
    values[::500, 3] = 1.0  # 0.2 % of the rows differ
    values[:, 4] = 0.001 * random.normal(size=rows)  # small units are no constant
    values[::20, 5] = 1.0  # 5 % of the rows differ: something that happens
    found = array_statistics(values)
    assert found.constant == [1, 2, 3]
    assert found.fixed().tolist() == [False, True, False, False, False, False]
    offset, scale = found.standardizer()
    assert 7 / scale[1] < 1e-20, "other values than the only one are ignored"
    assert scale[[2, 3]].tolist() == [1, 1]
    assert scale[[0, 4, 5]] == pytest.approx(values.std(0)[[0, 4, 5]], rel=1e-4)
    assert np.abs((values - offset) / scale).max() < 6
    for mode, share in (("minmax", 0), ("quantile", 0.02)):
        offset, scale = found.standardizer(mode)
        moving = ((values - offset) / scale)[:, [0, 4]]
        assert np.mean(np.abs(moving) > 1 + 1e-6, axis=0) == pytest.approx(share, abs=1e-3), mode
        assert np.quantile(np.abs(moving), 1 - share, axis=0) == pytest.approx(1, abs=1e-2), mode
        assert 7 / scale[1] < 1e-20


def test_images_are_not_looked_at() -> None:
    class Closed(Segmented):
        def __getitem__(self, rows: object) -> np.ndarray:
            raise AssertionError("an image was read")

    store = make_store((5, 6), cameras={"front": (4, 4, 3)})
    store.observations["front"] = Closed([store.observations["front"]])  # type: ignore[list-item]
    found = store_statistics(store)
    assert list(found) == ["actions", "observations/state"]
    assert json.loads(json.dumps(found["actions"].record()))["mean"] == found["actions"].mean


@pytest.mark.parametrize(
    ("column", "bounds"),
    [
        pytest.param([0.25, 0.25, 0.25], (0.25, 0.25), id="constant"),
        pytest.param([0.0, 0.0, 0.0], (0, 0), id="zero"),
        pytest.param([-1.0, -1.0, -1.0], (-1, -1), id="at-a-bound"),
        pytest.param([1 + 1e-6, 1 + 1e-6, 1 + 1e-6], (1, 1), id="rounded-beyond-a-bound"),
        pytest.param([0.5, 0.5, 0.5 + 1e-7], (0.5, 0.5), id="rounding"),
        pytest.param([0.0, 1e-12, -1e-12], (0, 0), id="spread-1e-12"),
        pytest.param([0.25, 0.25, 0.26], (-1, 1), id="moves"),
        pytest.param([1e-4, 0.0, -1e-4], (-1, 1), id="moves-little"),
    ],
)
def test_bounds_of_a_policy_meet_where_the_data_have_one_value(
    column: list[float], bounds: tuple[float, float]
) -> None:
    values = np.array([column, [-1, 0, 1]], np.float32).T
    assert pytest.approx(np.array([bounds, (-1, 1)]), abs=1e-7) == array_statistics(values).bounds().T
