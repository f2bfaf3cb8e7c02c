"""Files damaged at random: each opens as a store or is refused in a sentence. `torture` also bounds time and memory.

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

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.inspection import facts, inspection_text
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.validation import problems

ROUNDS = 40  # of each sample


def ending(path: Path) -> str:
    """Do with a data set what is done before training; returns `sound`, `faulty` or the message of its refusal."""
    try:
        store = open_store(path)
    except GtpVisionError as error:
        return str(error)
    faults = problems(store)
    with np.errstate(all="ignore"):
        inspection_text({"path": str(path), "format": "", "title": ""} | facts(store))
    for array in store.observations.values():  # mapped pages beyond a file's end would end this process here
        for row in range(len(array)):
            np.asarray(array[row]).tobytes()
    if faults:
        return "faulty"
    Sampler(store, 1, 0, frame_stack=2, n_step=2, action_chunk=2).gather(store.transitions)
    return "sound"


@pytest.mark.processes
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_opens_or_is_refused_in_a_sentence(
    name: str, samples: dict[str, Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTP_VISION_PATIENCE", "5")
    seed = int(os.environ.get("GTP_VISION_FUZZ_SEED", 0))
    ends: Counter[bool] = Counter()
    for number in range(int(ROUNDS * float(os.environ.get("GTP_VISION_FUZZ_ROUNDS", 1)))):
        path = tmp_path / str(number) / samples[name].name
        path.parent.mkdir()
        (shutil.copytree if samples[name].is_dir() else shutil.copyfile)(samples[name], path)
        what = f"seed {seed}, round {number}: {damage(path, np.random.default_rng([seed, number]))}"
        end = ending(path)
        assert end in ("sound", "faulty") or (str(path) in end and "\n" not in end), (what, end)
        ends[end in ("sound", "faulty")] += 1
        shutil.rmtree(path.parent)
        shutil.rmtree(cache, ignore_errors=True)
    assert len(ends) == 2, "some damage must be noticed, some must pass the first checks"
