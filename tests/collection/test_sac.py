import itertools
import json
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CLI, started, wait_for

from gtp_vision.cli.main import main
from gtp_vision.collection import sac
from gtp_vision.collection.recording import Execution, collection_lock
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store

pytestmark = [pytest.mark.simulates, pytest.mark.trains]
STEPS = 150
QUIET = Execution(progress=False)


def command(out: Path, *more: str) -> list[str]:
    return ["data", "collect", "gymnasium/Hopper-v4", "--policy", "sac", "--out", str(out), "--processes", "1", *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three sets of a very short run, in which the choice of the medium policy is patched: it has not learned."""
    out = tmp_path_factory.mktemp("sac")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sac, "medium", lambda returns: min(map(int, returns["returns"])))
        sets = ["--sets", "replay,medium,medium-expert", "--medium-steps", "80"]
        assert main(command(out, "--steps", str(STEPS), *sets)) == 0
    return out


def test_the_replay_set_has_all_transitions_in_order(folder: Path) -> None:
    store = open_store(folder / "hopper-replay-sac.hdf5")
    states, last = np.asarray(store.observations["state"]), store.episode_ends - 1
    assert states.shape == (STEPS, 11)
    assert np.array_equal(np.flatnonzero(store.terminals), last[:-1]), "an untrained hopper falls"
    assert np.array_equal(np.flatnonzero(store.terminals | store.timeouts), last)
    inside = np.setdiff1d(np.arange(STEPS - 1), last)
    jumps = np.linalg.norm(states[inside + 1, :5] - states[inside, :5], axis=1)
    assert jumps.max() < 1, "rows follow each other"
    assert np.all(states[np.r_[0, last[:-1] + 1], 0] > 1.2), "an episode begins standing"


def test_medium_and_expert_sets_are_rollouts_of_so_many_steps(folder: Path) -> None:
    medium, both = (open_store(folder / f"hopper-{name}-sac.hdf5") for name in ("medium", "medium-expert"))
    assert (len(medium), len(both)) == (80, 160)
    assert np.array_equal(both.actions[:80], medium.actions)
    assert not np.array_equal(both.actions[80:], medium.actions)
    assert both.episode_ends[len(medium.episode_ends) - 1] == 80
    assert {"env": "Hopper-v4", "set": "medium", "steps": STEPS, "seed": 0}.items() <= medium.attributes.items()
    assert medium.attributes["medium_policy"]["step"] > 0
    assert not list(folder.glob(".*")), "checkpoints are removed when all is written"


def test_the_medium_policy_is_the_first_a_third_of_the_way() -> None:
    returns: dict[str, Any] = {"random_return": 10.0, "final_return": 100.0}
    returns["returns"] = {"10": 20.0, "20": 41.0, "30": 39.0, "40": 100.0}
    assert sac.medium(returns) == 20
    with pytest.raises(GtpVisionError, match=r"5\.0.* 10\.0"):
        sac.medium(returns | {"final_return": 5.0})


@pytest.mark.processes
def test_a_stopped_collection_resumes(tmp_path: Path) -> None:
    given = command(tmp_path, "--steps", "300", "--sets", "replay")
    process = started(*CLI, *given)
    wait_for(lambda: list(tmp_path.glob(".hopper-sac/policy_*.pt")), process)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "of 300; give the same command again to resume" in stderr
    stopped = int(stderr.split("stopped at step ")[1].split()[0])
    with np.load(tmp_path / ".hopper-sac" / "buffer.npz", allow_pickle=False) as stored:
        rows = {name: stored[name] for name in stored.files}
    assert 0 < len(rows["actions"]) == stopped < 300
    inside = np.flatnonzero(rows["dones"][:-1] == 0)
    assert np.array_equal(rows["next_observations"][inside], rows["observations"][inside + 1])
    assert main(command(tmp_path, "--steps", "400", "--sets", "replay")) == 2, "other settings"
    assert main([*given, "--overwrite"]) == 0
    store = open_store(tmp_path / "hopper-replay-sac.hdf5")
    states = np.asarray(store.observations["state"])
    assert len(store) == 300
    assert np.array_equal(store.actions[:stopped], rows["actions"])
    assert np.array_equal(states[:stopped], rows["observations"].astype(np.float32))
    assert stopped in store.episode_ends, "it resumes in a new episode"
    starts = states[np.r_[0, store.episode_ends[:-1]]]
    assert len(np.unique(starts, axis=0)) == len(starts), "which is not a repetition"


def test_episodes_cut_by_the_time_limit_are_timeouts_and_actions_lie_in_the_unit_box(tmp_path: Path) -> None:
    sac.collect("Pendulum-v1", tmp_path, steps=210, sets="replay", execution=QUIET)
    store = open_store(tmp_path / "pendulum-replay-sac.hdf5")
    assert np.array_equal(store.episode_ends, [200, 210])
    assert np.array_equal(np.flatnonzero(store.timeouts), [199, 209])
    assert not store.terminals.any()
    assert 0.5 < np.abs(store.actions).max() <= 1, "the torque goes up to 2"


def stop_at(monkeypatch: pytest.MonkeyPatch, query: int) -> Iterator[int]:
    """Request a stop at this query of the collection; counts the queries."""
    asked = itertools.count(1)
    monkeypatch.setattr(sac, "stop_requested", lambda: nullcontext(lambda: next(asked) == query))
    return asked


def test_checkpoints_hold_whole_steps_wherever_a_collection_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 31)
    with pytest.raises(GtpVisionError, match="stopped at step 30 of 120"):
        sac.collect("Hopper-v4", tmp_path, steps=120, sets="replay", execution=QUIET)
    sac.collect("Hopper-v4", tmp_path, steps=120, sets="replay", execution=QUIET)
    store = open_store(tmp_path / "hopper-replay-sac.hdf5")
    assert len(store) == 120
    assert np.asarray(store.observations["state"]).any(axis=1).all(), "no row of zeros"
    assert store.terminals[29] or store.timeouts[29]


def test_a_stop_while_a_policy_is_recorded_keeps_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stop_at(monkeypatch, 150)
    monkeypatch.setattr(sac, "medium", lambda returns: min(map(int, returns["returns"])))
    with pytest.raises(GtpVisionError, match=r"stopped; .*kept"):
        sac.collect("Hopper-v4", tmp_path, steps=100, medium_steps=60, execution=QUIET)
    assert not list(tmp_path.glob("*.hdf5"))
    sac.collect("Hopper-v4", tmp_path, steps=100, medium_steps=60, execution=QUIET)
    assert next(asked) == 150 + 60 + 1, "the training took no step again"
    assert {len(open_store(path)) for path in tmp_path.glob("*.hdf5")} == {60, 100}


def test_a_damaged_checkpoint_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / ".hopper-sac"
    folder.mkdir()
    with collection_lock(folder), pytest.raises(GtpVisionError, match="another process"):
        sac.collect("Hopper-v4", tmp_path, steps=100, execution=QUIET)
    (folder / "settings.json").write_text(json.dumps({"env": "Hopper-v4", "policy": "sac", "steps": 100, "seed": 0}))
    (folder / "state.pt").write_bytes(b"nothing")
    with pytest.raises(GtpVisionError, match=r"damaged .*remove the folder"):
        sac.collect("Hopper-v4", tmp_path, steps=100, execution=QUIET)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "ppo"], "--policy ppo is unknown"),
        (["--sets", "replay,expert"], "--sets expert is unknown: did you mean"),
        (["--sets", ","], "--sets is empty"),
        (["--steps", "5"], "--steps 5 must be at least 100"),
        (["--episodes", "3"], "--episodes does not apply to Gymnasium's tasks by SAC"),
    ],
)
def test_invalid_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main([*command(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_and_discrete_environments_and_existing_files_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for env in ("Hoper-v4", "CartPole-v1"):
        assert main(["data", "collect", f"gymnasium/{env}", "--out", str(tmp_path)]) == 2
        assert env in capsys.readouterr().err
    assert main(command(folder, "--steps", str(STEPS))) == 2
    assert "--overwrite" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(command(tmp_path)) == 2
    assert "pip install 'gtp-vision[sac]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
