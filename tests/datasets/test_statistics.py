from collections.abc import Callable

import numpy as np

from gtp_vision.datasets.statistics import mean_images
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]


def test_the_mean_of_few_frames_is_over_all_of_them_and_of_cameras_alone(make_store: MakeStore) -> None:
    store = make_store((3, 4))
    generator = np.random.default_rng(0)
    store.observations = {
        "front": generator.integers(0, 256, (7, 4, 6, 3), dtype=np.uint8),
        "state": generator.normal(size=(7, 5)).astype(np.float32),
    }
    means = mean_images(store)
    assert list(means) == ["front"]
    assert means["front"].dtype == np.float32
    assert np.allclose(means["front"], store.observations["front"].astype(float).mean(0))


def test_many_frames_are_sampled_from_the_first_to_the_last(make_store: MakeStore) -> None:
    store = make_store((20_000,))
    ramp = np.linspace(0, 255, 20_000).astype(np.uint8)
    store.observations = {"front": np.broadcast_to(ramp[:, None, None, None], (20_000, 2, 2, 1))}
    assert np.allclose(mean_images(store)["front"], ramp.mean(), atol=0.2)
