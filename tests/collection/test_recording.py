import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtp_vision.collection.recording import Execution, recorded
from gtp_vision.core.errors import GtpVisionError

pytestmark = pytest.mark.processes


@dataclass(frozen=True)
class Recorder:
    """Records its numbers, and fails at episode 2 as configured."""

    seed: int = 0
    failure: str = ""

    def make(self) -> Any:
        if self.failure == "no simulator":
            raise GtpVisionError("there is no simulator; install one")
        return open(os.devnull)  # an object that can be closed, as environments can

    def record(self, env: Any, episode: int) -> dict[str, np.ndarray]:
        if episode == 2 and self.failure == "dies":
            os._exit(1)
        if episode == 2 and self.failure == "refuses":
            raise GtpVisionError("the simulator is out of order")
        return {"numbers": np.full(3, self.seed + episode)}


def collect(target: Path, recorder: Recorder = Recorder(), command: str = "c", processes: int = 1) -> list[int]:
    execution = Execution(processes, command, progress=False, overwrite=True)
    with recorded(target, recorder, episodes=4, settings={"seed": recorder.seed}, execution=execution) as parts:
        numbers = [int(parts.load(episode)["numbers"][0]) for episode in range(4)]
        with parts.whole(target) as aside:
            aside.write_text(parts.command)
    return numbers


def test_a_collection_leaves_only_its_file(tmp_path: Path) -> None:
    assert collect(tmp_path / "deep" / "out.txt", Recorder(seed=7), processes=2) == [7, 8, 9, 10]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.txt"]


def test_a_failed_collection_keeps_its_parts_and_resumes(tmp_path: Path) -> None:
    target, folder = tmp_path / "out.txt", tmp_path / ".out.txt.parts"
    target.write_text("an earlier collection")
    with pytest.raises(GtpVisionError, match="give the same command"):
        collect(target, Recorder(failure="dies"), "the first")
    assert target.read_text() == "an earlier collection"
    assert sorted(path.name for path in folder.glob("*.npz")) == ["000000.npz", "000001.npz"]
    with pytest.raises(GtpVisionError, match="out of order"):
        collect(target, Recorder(failure="refuses"), "the second")
    with pytest.raises(GtpVisionError, match=r"seed 0, not 1; .* remove the folder"):
        collect(target, Recorder(seed=1))
    assert collect(target, command="the third") == [0, 1, 2, 3]
    assert target.read_text() == "the first", "the command that started it is recorded"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_damaged_and_differing_parts_and_a_second_process_are_refused(tmp_path: Path) -> None:
    target, folder = tmp_path / "out.txt", tmp_path / ".out.txt.parts"
    with recorded(target, Recorder(), episodes=2, settings={"seed": 0}, execution=Execution(progress=False)) as parts:
        with pytest.raises(GtpVisionError, match="another process"):
            collect(target)
        with open(os.devnull, "wb") as stream:
            parts.stack("numbers", [0, 1], 6, stream)
            for wrong in (np.arange(2), np.arange(4), np.zeros((3, 1), int), np.zeros(3)):
                np.savez(parts.path(1), numbers=wrong)
                with pytest.raises(GtpVisionError, match=r"000001\.npz .*remove it"):
                    parts.stack("numbers", [0, 1], 6, stream)
        parts.path(1).write_bytes(b"PK\x03\x04 and so on")
        with pytest.raises(GtpVisionError, match=r"000001\.npz.*damaged.*remove it"):
            parts.load(1)
    folder.mkdir()
    (folder / "000000.npz").write_bytes(b"")
    (folder / "settings.json").write_text("{")
    with pytest.raises(GtpVisionError, match=r"settings\.json.*damaged.*remove the folder"):
        collect(target)


def test_failures_before_the_first_part_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="no simulator"):
        collect(tmp_path / "out.txt", Recorder(failure="no simulator"))
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(GtpVisionError, match="choose another --out"):
        collect(tmp_path / "file" / "out.txt")
    with pytest.raises(GtpVisionError, match="is a folder"):
        collect(tmp_path)
    with pytest.raises(GtpVisionError, match="--overwrite"):
        recorded(tmp_path / "file", Recorder(), episodes=1, settings={}, execution=Execution()).__enter__()
