"""Runs on labelled data: rewards and filters from labels, and a resumed run that notices other labels."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import lines, small_run
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.labels import Label, labels_path, set_labels
from gtp_vision.training.data import open_data, open_states
from gtp_vision.training.segments import segments_of
from gtp_vision.training.trainer import train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return native.write(tmp_path / "data.h5", make_store([6] * 6))


def label(data: Path, marks: list[bool | None]) -> None:
    labels = {number: Label(mark) for number, mark in enumerate(marks)}
    set_labels(labels_path(data), open_store(data), labels, "keys")


@pytest.mark.trains
def test_a_run_learns_from_labels_and_notices_other_ones(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(data, [True, False, True, False, True, False])
    config = small_run(data, tmp_path / "run", "task.rewards=sparse", "task.validation=0", "training.steps=3")
    train(config)
    assert "3 successful" in capsys.readouterr().err
    (segment,) = segments_of(tmp_path / "run" / "checkpoints" / "last")
    assert segment.data is not None
    assert segment.data.attributes["episode_labels"]["data.h5"]["by"] == {"keys": 6}
    longer = replace(config, training=replace(config.training, steps=4))
    label(data, [False, True, True, False, True, False])
    with pytest.raises(GtpVisionError, match="content of rewards"):
        train(longer, resume=True)
    label(data, [True, False, True, False, True, False])
    train(longer, resume=True)
    assert lines(tmp_path / "run")[-1]["step"] == 4


def test_filters_and_rewards_from_labels_meet_what_is_missing(data: Path) -> None:
    sparse = small_run(data, "unused", "task.rewards=sparse")
    with pytest.raises(GtpVisionError, match=r"6 of 6 episodes .* have none; label them"):
        open_data(sparse)
    label(data, [True, None, True, None, None, False])
    with pytest.raises(GtpVisionError, match=r"task\.filter=labelled"):
        open_data(sparse)
    for name, episodes in (("labelled", 3), ("failed", 1)):
        config = small_run(data, "unused", f"task.filter={name}")
        assert open_data(config).episodes == open_states(config).episodes == episodes
    solved = small_run(data, "unused", "task.rewards=sparse", "task.filter=success")
    with pytest.raises(GtpVisionError, match=r"all labelled episodes .* succeed, so agent=gtp.* add failed episodes"):
        open_data(solved)
    clones = small_run(data, "unused", "task.rewards=sparse", "task.filter=success", agent="gtp_bc")
    assert open_data(clones).episodes == 2


def test_labels_elsewhere_are_a_setting(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.json"
    set_labels(file, open_store(data), {0: Label(True)}, "keys")
    assert open_data(small_run(data, "unused", f"task.labels={file}", "task.filter=success")).episodes == 1
