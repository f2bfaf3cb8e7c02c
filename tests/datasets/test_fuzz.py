"""Files damaged at random: each opens as a store, or is refused in a sentence; nothing else may happen.

GTP_VISION_FUZZ_ROUNDS multiplies the rounds, GTP_VISION_FUZZ_SEED chooses others:

    GTP_VISION_FUZZ_ROUNDS=20 GTP_VISION_FUZZ_SEED=7 python -m pytest tests/datasets/test_fuzz.py
"""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from samples import FORMATS
from torture.mutations import damage

from gtp_vision.core import sandbox
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.inspection import facts, inspection_text
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.processes
ROUNDS = 40  # of each sample
ALLOWED = 200_000_000


def watermark(child: int) -> tuple[int, int]:
    """Bytes that a process holds, and the most that it held."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
    return 1024 * int(status["VmRSS"].split()[0]), 1024 * int(status["VmHWM"].split()[0])


def size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def used(path: Path) -> str:
    """Do with a data set what is done before training; returns `sound`, `faulty` or `refused`."""
    try:
        store = open_store(path)
    except GtpVisionError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert str(path) in refusal
        assert "\n" not in refusal
        return "refused"
    found = problems(store)
    with np.errstate(all="ignore"):
        inspection_text({"path": str(path), "format": "", "title": ""} | facts(store))
    for array in store.observations.values():  # mapped pages beyond a file's end would end this process here
        for row in range(len(array)):
            np.asarray(array[row]).tobytes()
    assert all("\n" not in problem for problem in found)
    if found:
        return "faulty"
    Sampler(store, 1, 0, frame_stack=2, n_step=2, action_chunk=2).gather(store.transitions)
    return "sound"


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_opens_or_is_refused_in_a_sentence(
    name: str, samples: dict[str, Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTP_VISION_PATIENCE", "5")
    seed = int(os.environ.get("GTP_VISION_FUZZ_SEED", 0))
    rounds = int(ROUNDS * float(os.environ.get("GTP_VISION_FUZZ_ROUNDS", 1)))
    assert used(samples[name]) == "sound"
    ends: Counter[str] = Counter()
    for number in range(rounds):
        random = np.random.default_rng([seed, number])
        path = tmp_path / str(number) / samples[name].name
        path.parent.mkdir()
        (shutil.copytree if samples[name].is_dir() else shutil.copyfile)(samples[name], path)
        what = damage(path, random)
        child = sandbox._started()
        Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # forget the most that was held
        before, _ = watermark(child.pid)
        try:
            ends[used(path)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number} ({what}): {path}") from error
        if child.poll() is None:
            grown = watermark(child.pid)[1] - before
            assert grown < size(path) + ALLOWED, f"round {number} ({what}) took {grown} bytes"
        shutil.rmtree(path.parent)
        shutil.rmtree(cache, ignore_errors=True)
    assert ends["refused"], "some damage must be noticed"
    assert ends["sound"] + ends["faulty"], "some damage must pass the first checks"
