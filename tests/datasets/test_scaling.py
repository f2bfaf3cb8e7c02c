"""Actions in the units of the file become [-1, 1], and the attributes invert it, whatever the format."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from refusals import open_here
from samples import dm_env_folder, minari_folder, npz, replay_buffer, rlds_folder
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.units import in_units
from gtp_vision.datasets.formats import lerobot_writer, native
from gtp_vision.datasets.scaling import MODES, in_file_units, scaled, sentence
from gtp_vision.datasets.store import ACTION_BOUNDS, Store
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")
N = 20
ACTIONS = np.stack([np.linspace(-1.5, 3.5, N), np.linspace(0, 0.2, N)], 1).astype(np.float32)
STATES = np.arange(3 * N, dtype=np.float32).reshape(N, 3)
LAST = np.arange(N) % 10 == 9


def of(actions: np.ndarray, **attributes: Any) -> Store:
    end = len(actions)
    store = make_store((end,), terminals={end - 1}, attributes=attributes)
    return replace(store, actions=np.asarray(actions, np.float32))


def flat() -> dict[str, np.ndarray]:
    flags = {"terminals": np.zeros(N, bool), "timeouts": LAST}
    return {"observations": STATES, "actions": ACTIONS, "rewards": np.ones(N, np.float32)} | flags


def d4rl(folder: Path) -> Path:
    with h5py.File(folder / "hopper.hdf5", "w") as file:
        for name, array in flat().items():
            file[name] = array
    return folder / "hopper.hdf5"


def robomimic(folder: Path) -> Path:
    with h5py.File(folder / "lift.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for k, rows in enumerate((slice(0, 10), slice(10, 20))):
            demo = file.create_group(f"data/demo_{k}")
            demo.attrs["num_samples"] = 10
            demo["actions"], demo["obs/arm"] = ACTIONS[rows], STATES[rows]
            demo["rewards"], demo["dones"] = LAST[rows].astype(float), LAST[rows].astype(int)
    return folder / "lift.hdf5"


def store() -> Store:
    return replace(make_store((10, 10)), actions=ACTIONS)


def minari(folder: Path, high: float) -> Path:
    path, _ = minari_folder(folder / "minari", spaces.Box(-1, 1, (3,)), spaces.Box(-high, high, (2,)), (10, 10))
    with h5py.File(path / "data/main_data.hdf5", "r+") as file:
        for k in range(2):
            file[f"episode_{k}/actions"][...] = ACTIONS[10 * k : 10 * k + 10]
    return path


HALVES = (slice(0, 10), slice(10, 20))


def aloha(folder: Path) -> Path:
    (folder / "aloha").mkdir()
    for k, rows in enumerate(HALVES):
        with h5py.File(folder / "aloha" / f"episode_{k}.hdf5", "w") as file:
            file["observations/qpos"], file["action"] = STATES[rows], ACTIONS[rows]
    return folder / "aloha"


def led_to(rows: slice, array: np.ndarray, *, is_before: bool = False) -> np.ndarray:
    """The rows of an episode with one more, of zeros, in front or behind."""
    return np.pad(array[rows], [(is_before, not is_before)] + [(0, 0)] * (array.ndim - 1))


def dm_env(folder: Path) -> Path:
    parts = [
        {
            "observation": led_to(rows, STATES),
            "action": led_to(rows, ACTIONS, is_before=True),
            "reward": np.zeros(11),
            "discount": np.ones(11),
        }
        for rows in HALVES
    ]
    return dm_env_folder(folder / "buffer", parts)


def maniskill(folder: Path) -> Path:
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for k, rows in enumerate(HALVES):
            file[f"traj_{k}/obs"], file[f"traj_{k}/actions"] = led_to(rows, STATES), ACTIONS[rows]
            file[f"traj_{k}/terminated"] = np.zeros(10, bool)
    return folder / "trajectory.h5"


def rlds(folder: Path) -> Path:
    parts = [{"observation/state": led_to(rows, STATES), "action": led_to(rows, ACTIONS)} for rows in HALVES]
    return rlds_folder(folder / "bridge" / "1.0.0", parts)


def ours(folder: Path) -> Path:
    """Scaled already, by other bounds."""
    return native.write(folder / "ours.h5", *scaled([store()], "meanstd"))


KINDS: dict[str, Callable[[Path], Path]] = {
    "d4rl": d4rl,
    "npz": lambda folder: npz(folder / "hopper.npz", flat()),
    "robomimic": robomimic,
    "native": lambda folder: native.write(folder / "native.h5", store()),
    "lerobot": lambda folder: lerobot_writer.write(folder / "lerobot", store()),
    "minari": lambda folder: minari(folder, np.inf),
    "minari with bounds": lambda folder: minari(folder, 4),
    "aloha": aloha,
    "dm_env": dm_env,
    "maniskill": maniskill,
    "zarr": lambda folder: replay_buffer(folder / "a.zarr", {"state": STATES, "action": ACTIONS}, (10, 10)),
    "rlds": rlds,
    "scaled already": ours,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_scaled_and_acted_in_its_own_units(kind: str, tmp_path: Path) -> None:
    opened = open_here(KINDS[kind](tmp_path))
    assert kind == "scaled already" or np.asarray(opened.actions).max() == 3.5, "readers do not scale"
    (found,) = scaled([opened], "minmax")
    assert problems(found) == []
    held = np.flatnonzero(~found.final_observations)
    np.testing.assert_allclose(found.actions[held[[0, -1]]], [[-1, -1], [1, 1]], atol=1e-5)
    np.testing.assert_allclose([found.attributes[b] for b in ACTION_BOUNDS], [[-1.5, 0], [3.5, 0.2]], atol=1e-5)
    np.testing.assert_allclose(in_file_units(found)[held], ACTIONS, atol=1e-6)
    (by_default,) = scaled([opened])
    assert problems(by_default) == []
    low, high = ([4.0] * 2, [-4.0] * 2) if "bounds" in kind else (None, None)
    if "bounds" in kind:
        assert [by_default.attributes[bound] for bound in ACTION_BOUNDS] == [high, low]
        assert by_default.attributes["action_bounds"] == "declared"
    elif kind == "scaled already":
        assert by_default is opened
    else:
        np.testing.assert_allclose(
            [by_default.attributes[b] for b in ACTION_BOUNDS], [[-1.5, 0], [3.5, 0.2]], atol=1e-5
        )
        assert sentence(by_default) == "actions: [-1, 1] stands for -1.5 to 3.5, 0 to 0.2 (by quantile)"
    assert scaled([opened], "none")[0] is opened
    if kind not in ("scaled already", "minari with bounds"):
        assert "task.action_scaling=minmax" in problems(opened)[0]


@given(
    arrays(np.float32, st.tuples(st.integers(2, 30), st.integers(1, 3)), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(MODES),
)
def test_acting_inverts_scaling(actions: np.ndarray, mode: str) -> None:
    """Where nothing is clipped the file's action comes back; what is clipped comes back as the nearest bound."""
    (found,) = scaled([of(actions)], mode)
    if any(bound not in found.attributes for bound in ACTION_BOUNDS):
        np.testing.assert_array_equal(found.actions, actions)
        return
    low, high = (np.asarray(found.attributes[bound]) for bound in ACTION_BOUNDS)
    assert np.abs(found.actions).max() <= 1
    back = in_units(found.actions, low, high)
    np.testing.assert_allclose(back, np.clip(actions, low, high), rtol=0, atol=1e-6 * max(1, np.abs([low, high]).max()))
    if mode == "minmax":
        np.testing.assert_allclose(back, actions, rtol=0, atol=2e-6 * max(1, np.abs(actions).max()))


def test_what_is_clipped_is_told() -> None:
    rows = np.arange(1000, dtype=np.float32)[:, None]  # 10 to 991 are between the quantiles
    (found,) = scaled([of(rows)])
    assert np.count_nonzero(np.abs(in_file_units(found) - rows) > 1e-3) == 18
    words = "(by quantile); 1.80% of the rows leave it and are clipped (task.action_scaling=minmax keeps them)"
    assert words in sentence(found)


NOISE = np.random.default_rng(0).normal(size=1000)
COLUMNS: dict[str, tuple[np.ndarray, str, tuple[float, float]]] = {
    "a gripper that rarely closes": (np.where(np.arange(1000) < 5, 0.04, 0.0), "quantile", (0, 0.04)),
    "a gripper by its deviation": (np.where(np.arange(1000) < 500, 0.0, 90.0), "meanstd", (0, 90)),
    "a joint that rarely moves": (np.where(np.arange(1000) < 5, np.arange(1000) + 1.0, 0), "quantile", (0, 5)),
    "an outlier": (np.where(np.arange(1000) == 7, 1e6, np.arange(1000.0)), "quantile", (10, 991)),
    "a constant": (np.full(1000, 7.5), "quantile", (7.5, 7.5)),
    "an idle motor": (100 + 1e-4 * (np.arange(1000) % 2 + np.arange(1000) % 3), "minmax", (99.95, 100.05)),
    "a normal distribution": (NOISE, "meanstd", (NOISE.mean() - 3 * NOISE.std(), NOISE.mean() + 3 * NOISE.std())),
}


@pytest.mark.parametrize(("column", "mode", "expected"), COLUMNS.values(), ids=COLUMNS)
def test_bounds_of_a_dimension(column: np.ndarray, mode: str, expected: tuple[float, float]) -> None:
    (found,) = scaled([of(np.stack([column, np.arange(1000)], 1))], mode)
    low, high = (found.attributes[bound][0] for bound in ACTION_BOUNDS)
    np.testing.assert_allclose((low, high), expected, rtol=1e-3)
    if low == high:
        assert not found.actions[:, 0].any()
        assert in_units(found.actions, *(found.attributes[b] for b in ACTION_BOUNDS))[3, 0] == 7.5


def test_a_mixture_has_common_bounds_of_all_its_files() -> None:
    wide, narrow = of(ACTIONS * 10), of(ACTIONS)
    found = scaled([wide, narrow], "minmax")
    assert found[0].attributes["action_low"] == found[1].attributes["action_low"] == [-15, 0]
    np.testing.assert_allclose(in_file_units(found[1]), ACTIONS, atol=1e-5)
    other = scaled([*scaled([wide], "minmax"), *scaled([narrow], "minmax")])
    assert other[0].attributes["action_low"] == other[1].attributes["action_low"]
    inside = of(ACTIONS / 10)
    assert scaled([*scaled([wide], "minmax"), inside])[1] is inside, "its units are unknown: mix refuses it"


def test_degrees_and_radians_are_not_mixed() -> None:
    stores = [of(ACTIONS), of(np.degrees(ACTIONS))]
    with pytest.raises(GtpVisionError, match=r"span 57\.3 times those of the first .*task\.action_scaling=minmax"):
        scaled(stores)
    first, second = scaled(stores, "minmax")
    assert first.attributes["action_high"] == second.attributes["action_high"]


def test_a_run_that_continues_keeps_its_scale() -> None:
    known = scaled([of(ACTIONS)])[0].attributes
    (longer,) = scaled([of(np.concatenate([ACTIONS, 2 * ACTIONS]))], known=known)
    assert [longer.attributes[bound] for bound in ACTION_BOUNDS] == [known[bound] for bound in ACTION_BOUNDS]
    assert longer.attributes["action_scaling"]["by"] == "quantile"


@pytest.mark.parametrize(
    "attributes",
    [{"action_low": "x", "action_high": 3}, {"action_low": [1, 1]}, {"action_low": [1, 1], "action_high": [0, 0]}],
    ids=str,
)
def test_wrong_attributes_are_a_fault_and_a_wrong_space_is_ignored(attributes: dict[str, Any]) -> None:
    (found,) = scaled([of(ACTIONS / 10, **attributes)], "minmax")
    assert "action_low and action_high must be 2 finite numbers" in problems(found)[-1]
    for space in ([[1], [2, 3]], "x", [[1, 1], [0, 0]], {"low": 1}):
        assert scaled([of(ACTIONS, action_space=space)])[0].attributes["action_scaling"]["by"] == "quantile"


def test_convert_scales_and_inspect_says_what_a_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = d4rl(tmp_path)
    assert main(["data", "inspect", str(source)]) == 0
    assert "[-1, 1] stands for -1.5 to 3.5, 0 to 0.2 (by quantile)" in " ".join(capsys.readouterr().out.split())
    for name, to, more, words in (
        ("plain.h5", "native", [], "every frame, action, reward and flag is as it was"),
        ("lerobot", "lerobot", [], "fps is 10"),
        ("scaled.h5", "native", ["--scale", "minmax"], "every frame, action, reward and flag is as it was"),
        ("quantiles.h5", "native", ["--scale"], "every frame, action, reward and flag is as it was"),
    ):
        assert main(["data", "convert", str(source), str(tmp_path / name), "--to", to, *more]) == 0
        said, after = capsys.readouterr().out, open_here(tmp_path / name)
        assert words in said
        assert "differ" not in said or name == "clipped.h5"
        assert ("action_low" in after.attributes) == bool(more)
        assert more or np.array_equal(after.actions, ACTIONS)
    assert main(["data", "convert", str(source), "x", "--to", "native", "--scale", "best"]) == 2
    assert "--scale best is unknown" in capsys.readouterr().err


def test_what_cannot_be_scaled_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of other actions than was asked for would look right."""
    with h5py.File(d4rl(tmp_path), "r+") as file:
        file["actions"][3, 1] = np.nan
    words = ["data", "convert", str(tmp_path / "hopper.hdf5"), str(tmp_path / "a.h5"), "--to", "native"]
    assert main([*words, "--scale"]) == 2
    assert (
        "hopper.hdf5 cannot be scaled: actions holds a value that is not finite at episode 0" in capsys.readouterr().err
    )
    assert not (tmp_path / "a.h5").exists()
    assert main(words) == 0
