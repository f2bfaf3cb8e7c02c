import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from commands import CLI, started, wait_for
from running import Running
from small_policies import HIGH, LOW, observations, untrained, write
from small_runs import composed
from stores import make_store
from websockets.sync.client import ClientConnection, connect

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.units import in_units
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.serving.answer import ACTION, PLAN, Answered, answer
from gtp_vision.serving.client import Client
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.protocol import packed, unpacked
from gtp_vision.serving.recorder import Recorder
from gtp_vision.serving.recording import Served, Step, arrays_of, read
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings
from gtp_vision.training.data import open_split

SERVED = Served("hash", PLAN, "eager", "cpu", 1, "2")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return untrained("agent=gtp_bc")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recorder(policy: Policy, tmp_path: Path, said: list[str]) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "new", policy.schema, SERVED, 300_000, said.append)
    yield recorder
    recorder.close()


def asked(robot: ClientConnection, **content: object) -> np.ndarray:
    robot.send(packed(content))
    answer = unpacked(bytes(robot.recv(timeout=60)))
    return np.asarray(answer.get("actions", []))


@pytest.mark.processes
def test_a_killed_server_has_recorded_what_robots_sent_and_were_answered(policy: Policy, tmp_path: Path) -> None:
    """Two episodes of one robot: of the second, which the kill interrupts, nothing that was sent is lost."""
    served = write(tmp_path / "policy", policy, *[name for name, _ in policy.agent.named_children()])
    seen, folder = observations(policy.schema, 7), tmp_path / "new"
    command = [*CLI, "serve", served, "--port", "0", "--threads", "1", "--record", folder, "--map", "image=front"]
    with started(*command) as server:
        assert server.stdout is not None
        address = "ws://" + server.stdout.readline().partition("ws://")[2].split(",")[0]
        with connect(address) as robot:
            robot.recv()
            sent = [{"image": each["front"], "arm": each["arm"]} for each in seen]
            answers = [asked(robot, **each, reset=number == 4) for number, each in enumerate(sent)]
            wait_for((folder / "000000.h5").exists, server)
            server.send_signal(signal.SIGKILL)
    wait_for((folder / "000001.h5").exists)
    store = open_store(folder)
    assert store.episode_ends.tolist() == [4, 7]
    for name, array in store.observations.items():
        np.testing.assert_array_equal(array[:], np.stack([each[name] for each in seen]))
    rows = store.transitions
    assert rows.tolist() == [0, 1, 2, 4, 5]
    in_robots_units = in_units(store.actions[rows], LOW, HIGH)
    np.testing.assert_allclose(in_robots_units, np.concatenate(answers)[rows], rtol=1e-5, atol=1e-4)
    assert (store.attributes["action_low"], store.attributes["action_high"]) == (list(LOW), list(HIGH))
    first = read(folder / "000000.h5")
    assert all(0 <= end - start < 60 for start, end in zip(*first.measures.values(), strict=True))


def record(recorder: Recorder, policy: Policy, client: int, count: int) -> None:
    for each in observations(policy.schema, count):
        recorder.add(client, each, Answered(np.zeros((1, 2), np.float32), 0, 0, 0, 1), 0.0, 0.0)
    recorder.end(client)


@pytest.mark.processes
def test_recording_stops_once_at_its_limit(policy: Policy, recorder: Recorder, tmp_path: Path, said: list[str]) -> None:
    for client in range(40):  # of 2.4 kB and the file's own each
        record(recorder, policy, client, 4)
    recorder.close()
    assert len(said) == 1
    assert "recording has stopped, serving continues" in said[0]
    assert "--record-limit 0.0003" in said[0]
    record(recorder, policy, 0, 4)  # is ignored
    assert sum(path.stat().st_size for path in (tmp_path / "new").iterdir()) < 310_000


@pytest.mark.processes
@pytest.mark.parametrize("fault", ["full", "killed"])
def test_serving_continues_without_a_recorder(policy: Policy, tmp_path: Path, said: list[str], fault: str) -> None:
    """A disk of 300 kB that fills, or a recording process that is killed: whole episodes stay, and it is said once."""
    (disk := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]
    if fault == "full" and subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    recorder = Recorder(disk / "new", policy.schema, SERVED, 1_000_000, said.append)
    running = Running(Server(policy, Settings(port=0, timeout=60), recorder=recorder))
    try:
        if fault == "killed":
            psutil.Process(recorder._process.pid).kill()
        with Client(running.address, timeout=60) as robot:
            for number, each in enumerate(observations(policy.schema, 100)):
                assert robot.infer(each, reset=number % 4 == 0)["actions"].shape == (1, 2)
        recorder.close()
        (sentence,) = said
        assert sentence.startswith("recording has stopped, serving continues: ")
        assert ("make room or record elsewhere" if fault == "full" else "ended with status -9") in sentence
        whole = sorted((disk / "new").glob("*.h5"))
        assert (len(whole) > 3) == (fault == "full")
        assert all(len(read(path)) == 4 for path in whole)
        assert not list((disk / "new").glob(".*")), "no part of a file is left"
    finally:
        running.end()
        recorder.close()
        subprocess.run(["umount", "-l", disk], capture_output=True, check=False)


@pytest.mark.processes
def test_a_folder_that_cannot_be_written_any_more_stops_the_recording(
    policy: Policy, recorder: Recorder, tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "new").rmdir()
    (tmp_path / "new").write_text("")  # nothing can be written here, whoever tries
    record(recorder, policy, 0, 4)
    recorder.close()
    assert len(said) == 1
    assert "cannot be" in said[0]


@pytest.mark.processes
def test_recordings_of_another_task_are_refused_before_anybody_is_served(
    policy: Policy, recorder: Recorder, tmp_path: Path
) -> None:
    record(recorder, policy, 0, 2)
    recorder.close()
    with pytest.raises(GtpVisionError, match="holds recordings of another task"):
        Recorder(tmp_path / "new", untrained(action_low=(-1.0, -1.0)).schema, SERVED, 1)


@pytest.mark.processes
def test_a_recording_holds_what_answers_depend_on(tmp_path: Path) -> None:
    """Plans, goals, a seed, an episode's number, executed actions, clamps and doubts come back as they were."""
    planner = untrained("agent=gtp_bc", "agent.action_chunk=4", states={"arm": 5, "goal/arm": 3})
    recorder = Recorder(tmp_path / "new", planner.schema, SERVED, 1_000_000)
    session, seen = planner.session(7, episode=2), observations(planner.schema, 5)
    seen[4]["goal/arm"] = seen[4]["goal/arm"] + 1
    sent = [answer(session, each, PLAN, steps=2) for each in seen]
    sent[3] = replace(sent[3], executed=3, delay=1, clamps={"speed": 2}, doubt={"map": 0.5})
    for number, (each, answered) in enumerate(zip(seen, sent, strict=True)):
        recorder.add(1, each, answered, float(number), number + 0.5)
    recorder.close()
    found = read(tmp_path / "new" / "000000.h5")
    assert found.served == SERVED
    assert (found.measures["sent"] - found.measures["received"]).tolist() == [0.5] * 5
    for row, (each, answered) in enumerate(zip(seen, sent, strict=True)):
        again = found.answered(row)
        np.testing.assert_equal(found.observation(row), each)
        np.testing.assert_array_equal(again.actions, answered.actions)
        assert (again.seed, again.episode, again.step, again.steps) == (7, 2, row, 2)
        assert (again.executed, again.delay) == ((3, 1) if row == 3 else (None, 0))
        assert again.clamps["speed"] == (2 if row == 3 else 0)
        np.testing.assert_equal(again.doubt["map"], 0.5 if row == 3 else np.nan)
    with pytest.raises(GtpVisionError, match="observations are up to 4 actions apart"):
        open_split(composed("task=own", f"task.dataset={tmp_path / 'new'}", "agent=gtp_bc"))
    with pytest.raises(GtpVisionError, match="another --answer"):
        Recorder(tmp_path / "new", planner.schema, replace(SERVED, answer=ACTION), 1)


def test_files_without_answers_are_refused(tmp_path: Path) -> None:
    path = native.write(tmp_path / "000000.h5", make_store((3,)))
    with pytest.raises(GtpVisionError, match="holds no answers to replay"):
        read(path)
    with h5py.File(path, "a") as file:
        file.attrs["metadata"] = json.dumps({"answers": {"counts": ["seed"]}})
        file["answers/actions"], file["answers/counts"] = np.zeros((3, 1, 2), np.float32), np.zeros((3, 1), np.int64)
        file["answers/measures"] = np.zeros((2, 1))
    with pytest.raises(GtpVisionError, match="'answers/measures' has 2 rows, wanted 3"):
        read(path)
    with h5py.File(path, "a") as file:
        del file["answers/measures"]
        file["answers/measures"] = np.zeros((3, 1))
    with pytest.raises(GtpVisionError, match="group 'answers' is damaged"):
        read(path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"threads": "many"}, "how the server answered"),
        ({"answer": "neither"}, "how the server answered"),
        ({"counts": ["seed"]}, "is damaged"),
        ({"seed": -1}, "out of range"),
        ({"goal/arm": 9}, "out of range"),
    ],
)
def test_hostile_recordings_are_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    seen = {"arm": np.zeros(5, np.float32), "goal/arm": np.zeros(3, np.float32)}
    steps = [Step(1, seen, Answered(np.zeros((1, 2), np.float32), 0, 0, row, 2), 0.0, 0.0) for row in range(3)]
    beside, columns = arrays_of(steps)
    for name in changed.keys() & set(columns["counts"]):
        beside["answers/counts"][1, columns["counts"].index(name)] = changed[name]
    told = asdict(SERVED) | columns | {"client": 1} | changed
    path = native.write(tmp_path / "000000.h5", make_store((3,), attributes={"answers": told}), beside=beside)
    with pytest.raises(GtpVisionError, match=words):
        read(path)


def test_the_limit_of_a_recording_is_above_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = write(tmp_path / "policy", policy := untrained("agent=gtp_bc"), *dict(policy.agent.named_children()))
    assert main(["serve", str(served), "--record", str(tmp_path / "new"), "--record-limit", "0"]) == 2
    assert "must be above 0 GB" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
