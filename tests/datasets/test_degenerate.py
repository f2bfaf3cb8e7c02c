"""Dimensions and cameras that never change: every format opens, inspects, draws and converts them, and they come "
"back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from refusals import open_here
from samples import DATA, Contents, Copied, d4rl_file, hopper, minari_folder, npz, ogbench_contents
from stores import make_store

from gtp_vision.datasets import pictures, viewing
from gtp_vision.datasets.formats import FORMATS, check_writable
from gtp_vision.datasets.inspection import inspect, inspection_text
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store

pytestmark = pytest.mark.usefixtures("cache")
WRITABLE = [name for name, known in FORMATS.items() if known.write]
COLOR = np.array([200, 30, 90], np.uint8)


def fill(value: Any, *, name: str = "", dimension: Any = slice(None)) -> Callable[[Store], None]:
    """Set the actions, or an observation, to a constant."""
    return lambda store: (store.observations[name] if name else store.actions).__setitem__((..., dimension), value)


def all_zero(store: Store) -> None:
    for array in (store.actions, store.rewards, *store.observations.values()):
        array[...] = 0


def camera(*shape: int) -> dict[str, Any]:
    return {"cameras": {"front": shape}, "state": None}


KINDS: dict[str, tuple[dict[str, Any], Callable[[Store], None]]] = {
    **{f"actions of {value}": ({}, fill(value)) for value in (0.8, 0, 1, -1)},
    "one dimension of actions": ({}, fill(-0.5, dimension=1)),
    "an action of one number": ({"actions": 1}, fill(0.25)),
    "equal bounds in one dimension": (
        {"attributes": {"action_low": [2.0, -3.0], "action_high": [2.0, 5.0]}}, fill(0, dimension=0)),
    "equal bounds everywhere": ({"attributes": {"action_low": [2.0, 3.0], "action_high": [2.0, 3.0]}}, fill(0)),
    **{f"states of {value:g}": ({}, fill(value, name="state")) for value in (0, 7, 1e6)},
    "a state of one number": ({"state": 1}, fill(0.1, name="state")),
    **{f"a camera of {value}": (camera(16, 16, 3), fill(value, name="front")) for value in (0, 255, 77)},
    "a colored camera": (camera(16, 12, 3), fill(COLOR, name="front")),
    "a gray camera": (camera(16, 16, 1), fill(9, name="front")),
    "a camera of one pixel": (camera(1, 1, 3), fill(9, name="front")),
    "everything": (camera(8, 6, 3), all_zero),
}  # fmt: skip


@pytest.mark.parametrize("to", WRITABLE)
@pytest.mark.parametrize(("content", "change"), KINDS.values(), ids=KINDS)
def test_what_never_changes_comes_back(
    tmp_path: Path, content: dict[str, Any], change: Callable[[Store], None], to: str
) -> None:
    store = make_store((2, 3, 4), terminals={1, 4, 8}, **content)  # all rows have an outcome
    change(store)
    path = check_writable(to)(tmp_path / "data", store)
    after = open_here(path)
    np.testing.assert_allclose(after.actions, store.actions, rtol=0, atol=1e-7 if to.startswith("lerobot") else 0)
    np.testing.assert_array_equal(after.rewards, store.rewards)
    for name, array in store.observations.items():
        away = np.abs(np.asarray(after.observations[name]).astype(float) - np.asarray(array)).max()
        assert away <= (2 if to.startswith("lerobot") and array.ndim == 4 else 0), "a video's colors are rounded"


@pytest.mark.parametrize(("content", "change"), KINDS.values(), ids=KINDS)
def test_what_never_changes_is_inspected_and_drawn(
    tmp_path: Path, content: dict[str, Any], change: Callable[[Store], None]
) -> None:
    store = make_store((2, 3, 4), terminals={1, 4, 8}, **content)
    change(store)
    found, after = inspect(check_writable("native")(tmp_path / "data.h5", store))
    assert found["problems"] == []
    assert "nan" not in inspection_text(found)
    pictures.write_action_histograms(tmp_path / "actions.png", after)
    viewing.write_page(tmp_path / "page.html", found, after)
    if "front" in store.observations:
        pictures.write_contact_sheet(tmp_path / "sheet.png", after)


def in_units(store: Store) -> np.ndarray:
    """The actions in the robot's units."""
    width = store.action_dim
    bounds = {"action_low": [-1.0] * width, "action_high": [1.0] * width} | dict(store.attributes)
    low, high = np.asarray(bounds["action_low"]), np.asarray(bounds["action_high"])
    return low + (np.asarray(store.actions) + 1) / 2 * (high - low)


@pytest.mark.parametrize("value", [0.0, 3.25, -40.0, 180.0, 1e-3])
def test_a_constant_action_of_lerobot_is_its_constant(copied: Copied, value: float) -> None:
    folder = copied("published")
    (folder / "meta/stats.json").unlink()
    for place in (0, 1):
        data = pq.read_table(folder / DATA.format(place))
        actions = np.array(data["action"].to_pylist(), np.float32)
        actions[:, 2] = value
        column = data.column_names.index("action")
        pq.write_table(data.set_column(column, "action", pa.array(list(actions))), folder / DATA.format(place))
    np.testing.assert_allclose(in_units(*scaled([open_here(folder)]))[:, 2], value, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, -7.0])
def test_a_constant_action_of_minari_is_its_constant(tmp_path: Path, value: float) -> None:
    """Low == high is a legal bound."""
    low, high = np.array([-2, value], np.float32), np.array([2, value], np.float32)
    folder, _ = minari_folder(tmp_path, spaces.Box(-1, 1, (3,), np.float64), spaces.Box(low, high), (3, 4))
    (store,) = scaled([open_here(folder)])
    np.testing.assert_allclose(in_units(store)[store.transitions, 1], value)


def constant(contents: Contents) -> Contents:
    return contents | {"actions": np.full_like(contents["actions"], 0.25)}


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: npz(folder / "a.npz", constant(ogbench_contents())),
        lambda folder: npz(folder / "b.npz", constant(hopper())),
        lambda folder: d4rl_file(folder / "c.hdf5", constant(hopper())),
    ],
    ids=["ogbench", "d4rl npz", "d4rl"],
)
def test_constant_actions_of_flat_files(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found, store = inspect(make(tmp_path))
    assert found["problems"] == []
    assert (np.asarray(store.actions) == 0.25).all()
    assert any("a policy learns these values" in warning for warning in found["warnings"])
