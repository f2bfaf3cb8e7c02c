"""Environments behind a process boundary: the same episodes, and one sentence for each way in which it can fail."""

import os
import struct
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec, _remote_worker, make_vector, remote
from gtp_vision.envs.libero import PYTHON, tasks
from gtp_vision.envs.remote import RemoteEnv, versions_in

pytestmark = pytest.mark.processes

PENDULUM = """
import os, sys, time
import numpy as np, gymnasium

class Pendulum:
    def __init__(self, settings):
        self.env = gymnasium.make("Pendulum-v1")
        if settings.get("name", "Pendulum-v1") != "Pendulum-v1":
            error = ValueError("unknown task 'Pendulm'")
            error.known = ["Pendulm", "Pendulum", "Cube"]
            raise error

    def spaces(self):
        print("what a simulator prints")
        space, facts = self.env.action_space, {"beside": any(path.endswith("envs") for path in sys.path)}
        return self.reset(0)[0], space.low, space.high, facts

    def reset(self, seed):
        return {"state": self.env.reset(seed=seed)[0], "front": np.full((4, 4, 3), seed, np.uint8)}, {}

    def step(self, action):
        if action[0] > 1.5:
            os._exit(3)
        if action[0] > 1.2:
            time.sleep(60)
        if action[0] > 1.1:
            raise RuntimeError("a joint\\nis stuck")
        seen, reward, terminated, _, _ = self.env.step(action.astype(np.float32))
        return {"state": seen, "front": np.zeros((4, 4, 3), np.uint8)}, reward, terminated, {"success": False}

    def state(self):
        return {"state": np.array(self.env.unwrapped.state)}

    def restore(self, arrays):
        self.env.unwrapped.state = arrays["state"]

make = Pendulum
"""


def made(folder: Path, text: str = PENDULUM, **settings: Any) -> RemoteEnv:
    file = folder / "pendulum.py"
    file.write_text(text)
    return RemoteEnv("own/Pendulum", Path(sys.executable), file, settings)


def test_an_episode_is_that_of_the_environment_and_a_state_can_be_returned_to(tmp_path: Path) -> None:
    env, own = made(tmp_path), gymnasium.make("Pendulum-v1")
    assert env.facts == {"beside": False}, "this package's files of simulators' names are not on the path"
    assert {name: space.dtype for name, space in env.observation_space.items()} == {
        "state": np.float32,
        "front": np.uint8,
    }
    np.testing.assert_array_equal(env.reset(seed=3)[0]["state"], own.reset(seed=3)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 1)).astype(np.float32):
        seen, reward, terminated, truncated, info = env.step(action)
        wanted = own.step(action)
        np.testing.assert_array_equal(seen["state"], wanted[0])
        assert (reward, terminated, truncated, info) == (float(wanted[1]), False, False, {"success": False})
    held = env.state()
    later = env.step(np.zeros(1))[0]["state"]
    env.restore(held)
    np.testing.assert_array_equal(env.step(np.zeros(1))[0]["state"], later)
    env.close()
    assert env._process.returncode == 0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (2.0, r"^own/Pendulum: its process has ended \(what a simulator prints\)$"),
        (1.3, "its process is silent for 1 s"),
        (1.15, "own/Pendulum: RuntimeError: a joint is stuck$"),
    ],
)
def test_a_simulator_that_fails_is_one_sentence(
    action: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_STEP", 1.0)
    monkeypatch.setattr(remote, "_FAREWELL", 0.1)
    env = made(tmp_path)
    with pytest.raises(GtpVisionError, match=message):
        env.step(np.array([action]))
    env.close()


def test_what_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="own/Pendulum: unknown task 'Pendulm': did you mean 'Pendulum'"):
        made(tmp_path, name="Pendulm")
    with pytest.raises(GtpVisionError, match="ModuleNotFoundError: No module named 'of_another_python'"):
        made(tmp_path, "import of_another_python")
    with pytest.raises(GtpVisionError, match=r"cannot be started \(No such file or directory\)"):
        RemoteEnv("own/Pendulum", tmp_path / "python", tmp_path / "pendulum.py", {})
    assert versions_in(str(tmp_path / "python"), ["numpy"]) == {}
    assert versions_in(sys.executable, ["numpy", "nothing"]) == {"numpy": np.__version__}


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", 2) + b"[]",
        *(
            struct.pack("<Q", len(header)) + header
            for header in (
                b'{"arrays":[["a","|O",[1000]]]}',
                b'{"arrays":[["a","<f8",[100000,100000]]]}',
                b'{"arrays":[["a","<f8",[-1,8,9]]]}',
                b'{"facts": {}, "arrays":[]}',
            )
        ),
    ],
)
def test_messages_that_lie_are_refused(answer: bytes, tmp_path: Path) -> None:
    (tmp_path / "answer").write_bytes(answer)
    liar = tmp_path / "python"
    liar.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\nread line\n")
    liar.chmod(0o755)
    with pytest.raises(GtpVisionError, match="own/Liar: its process does not answer as _remote_worker"):
        RemoteEnv("own/Liar", liar, tmp_path / "pendulum.py", {})


def test_libero_is_refused_in_one_sentence_where_it_is_not_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    with pytest.raises(GtpVisionError, match=r"pip install hf-libero, and set GTP_VISION_LIBERO_PYTHON="):
        make_vector(EnvSpec("libero/goal/0"), 1)
    monkeypatch.setenv(PYTHON, str(tmp_path))
    for name, message in {
        "libero/gaol/0": "LIBERO has no suite 'gaol': did you mean 'goal'",
        "libero/goal": f"{PYTHON}={tmp_path} is not a program",
        "libero/goal/10": "libero/goal has the tasks libero/goal/0 to 9",
    }.items():
        with pytest.raises(GtpVisionError, match=message):
            EnvSpec(name).make()
    with pytest.raises(GtpVisionError, match=r"has no observation agentview_rbg .*did you mean 'agentview_rgb'"):
        EnvSpec("libero/goal/0", shown={"agentview_rbg": (8, 8, 3)}).make()
    monkeypatch.setenv(PYTHON, sys.executable)
    with pytest.raises(GtpVisionError, match=r"libero/goal/0: ImportError: hf-libero is not installed in this Python"):
        EnvSpec("libero/goal/0", shown={"state": (8,)}).make()
    assert [each.name for each in EnvSpec("libero/goal").each] == [f"libero/goal/{number}" for number in range(10)]
    assert (len(tasks("libero/90")), tasks("libero/goal/0"), tasks("libero/gaol")) == (90, [], [])


@pytest.mark.simulates
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no Python with hf-libero")
def test_libero_itself() -> None:
    """The initial states of the benchmark, frames upright, the same episode for the same seed."""
    shown = {"agentview_rgb": (32, 32, 3), "image": (32, 32, 3), "state": (8,), "ee_pos": (3,)}
    env: Any = EnvSpec("libero/goal/0", shown=shown).make()
    facts = env.unwrapped.facts
    assert (facts["instruction"], facts["states"]) == ("open the middle drawer of the cabinet", 50)
    assert facts["versions"]["robosuite"] == "1.4.0"
    assert env.get_wrapper_attr("_max_episode_steps") == 300
    first, info = env.reset(seed=3)
    assert info["instruction"] == facts["instruction"]
    np.testing.assert_array_equal(first["image"], first["agentview_rgb"][:, ::-1])
    np.testing.assert_array_equal(first["state"][:3], first["ee_pos"])
    held = env.unwrapped.state()
    steps = [env.step(np.full(7, 0.3, np.float32))[0]["state"] for _ in range(3)]
    assert not np.array_equal(env.reset(seed=4)[0]["agentview_rgb"], first["agentview_rgb"])
    again = env.reset(seed=52)[0]
    np.testing.assert_array_equal(again["agentview_rgb"], first["agentview_rgb"])
    np.testing.assert_array_equal([env.step(np.full(7, 0.3, np.float32))[0]["state"] for _ in range(3)], steps)
    env.unwrapped.restore(held)
    np.testing.assert_array_equal([env.step(np.full(7, 0.3, np.float32))[0]["state"] for _ in range(3)], steps)
    env.close()


def test_messages_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "b": np.zeros((0, 2), np.uint8), "c": np.array(1.5)}
    with (tmp_path / "message").open("wb") as stream:
        _remote_worker.write(stream, {"do": "step"}, arrays)
    with (tmp_path / "message").open("rb") as stream:
        fields, found = _remote_worker.read(stream.read)
    assert fields == {"do": "step"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
