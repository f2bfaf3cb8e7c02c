from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.placement import place
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store, mix

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return native.read(native.write(tmp_path / "data.h5", make_store((9, 12), cameras={"front": (6, 6, 3)})))


def test_batches_do_not_depend_on_the_placement(store: Store) -> None:
    for each in (store, mix([store, make_store((5,), cameras={"front": (6, 6, 3)})], [1, 3])):
        here, told = place(each, CPU, "device")
        assert "on cpu" in told
        mapped, device = (Sampler(s, 16, 0, frame_stack=3).batch(2) for s in (each, here))
        for name in ("front", "state"):
            assert torch.equal(mapped.observation[name], device.observation[name])
            assert torch.equal(mapped.next_observation[name], device.next_observation[name])
        np.testing.assert_array_equal(np.asarray(here.observations["front"]), np.asarray(each.observations["front"]))
        np.testing.assert_array_equal(here.observations["front"][2:5], each.observations["front"][2:5])
        np.testing.assert_array_equal(here.observations["state"][[4, 1]], each.observations["state"][[4, 1]])


def test_mapped_frames_are_left_where_they_are(store: Store) -> None:
    for how in ("mapped", "auto"):
        there, told = place(store, CPU, how)
        assert there is store
        assert f"mapped from {store.path}" in told


def test_what_does_not_fit_is_refused_only_when_it_is_demanded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=store.nbytes()))
    assert place(store, CPU, "auto")[0] is store
    with pytest.raises(GtpVisionError, match=r"placement=device.*set training.placement=mapped") as told:
        place(store, CPU, "device")
    assert str(store.path) in str(told.value)
