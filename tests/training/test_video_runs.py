"""Runs whose frames stay in their videos: the numbers of those on unpacked ones."""

import re
from pathlib import Path

import pytest
import torch
from small_runs import PIXELS, assert_equal, saved, small_run
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import lerobot_writer, native
from gtp_vision.datasets.placement import place
from gtp_vision.training.data import open_data, open_states
from gtp_vision.training.trainer import train

pytest.importorskip("av")
SEEK = "task.video=seek"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return lerobot_writer.write(tmp_path / "data", make_store([6, 4, 9, 5, 7, 6], cameras={"front": (24, 24, 3)}))


@pytest.mark.trains
def test_training_and_resuming_equal_those_on_unpacked_frames(data: Path, tmp_path: Path) -> None:
    options = (*PIXELS, "task.image_size=16x16", "training.checkpoint_every=2")
    train(small_run(data, tmp_path / "unpacked", *options, "training.steps=4"), progress=False)
    train(small_run(data, tmp_path / "sought", *options, SEEK, "training.steps=2"), progress=False)
    train(small_run(data, tmp_path / "sought", *options, SEEK, "training.steps=4"), progress=False, resume=True)
    assert_equal(saved(tmp_path / "unpacked"), saved(tmp_path / "sought"))
    assert (tmp_path / "sought" / "validation.json").read_bytes() == (
        tmp_path / "unpacked" / "validation.json"
    ).read_bytes()


def test_what_has_no_videos_is_refused(data: Path, tmp_path: Path) -> None:
    other = native.write(tmp_path / "data.h5", make_store([6, 6], cameras={"front": (24, 24, 3)}))
    with pytest.raises(GtpVisionError, match=r"task\.video=seek is for videos, and .*data\.h5 has none; leave it out"):
        open_data(small_run(other, "unused", SEEK))
    with pytest.raises(GtpVisionError, match="has none"):
        open_data(small_run(other, "unused", SEEK, "task.observations=[front]"))
    store = open_data(small_run(data, "unused", SEEK))
    assert store.has_videos
    words = rf"0\.00 GB of frames, decoded from the videos of {data} when they are needed, with a keyframe every [12]"
    assert re.search(words, place(store, torch.device("cpu"))[1])
    assert list(open_states(small_run(data, "unused", SEEK)).observations) == ["state"]
