"""Labels beside the data: what is read from them, what is refused, and that no writer loses another's."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets import labels
from gtp_vision.datasets.formats import native, open_states, open_store
from gtp_vision.datasets.inspection import facts, inspection_text
from gtp_vision.datasets.labels import Label, labels_path, prune, read, set_group, set_labels
from gtp_vision.datasets.store import LABELS, mix

BY = "keys"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return native.write(tmp_path / "data.h5", make_store((5, 7, 6, 4), attributes={"filters": {"train": [0, 1]}}))


def label(data: Path, **marks: bool | None) -> Path:
    """Label episodes `e0`, `e1`, ..."""
    path = labels_path(data)
    set_labels(path, open_store(data), {int(name[1:]): Label(mark) for name, mark in marks.items()}, BY)
    return path


def test_labels_become_marks_and_filters_of_every_reader(data: Path) -> None:
    before = data.read_bytes()
    label(data, e0=True, e2=False)
    for store in (open_store(data), open_states(data)):
        assert store.attributes["episode_success"] == [True, None, False, None]
        assert store.attributes["filters"] == {"train": [0, 1], "success": [0], "failed": [2], "labelled": [0, 2]}
        assert store.filtered("failed").attributes["episode_success"] == [False]
    found = facts(open_store(data))
    assert (found["success"]["solved"], found["success"]["of"]) == (1, 2)
    assert "50%: 1 of 2 episodes labelled so, 2 more are not marked" in inspection_text(
        found | {"path": "data.h5", "format": "native", "title": ""}
    )
    assert data.read_bytes() == before


def test_labels_replace_the_recorders_marks_and_may_say_unknown(tmp_path: Path) -> None:
    store = make_store((5, 7, 6), attributes={"episode_success": [True, True, False]})
    data = native.write(tmp_path / "data.h5", store)
    label(data, e0=False, e2=None)
    assert open_store(data).attributes["episode_success"] == [False, True, None]


def test_who_set_them_is_kept_through_filters_and_mixtures(data: Path, tmp_path: Path) -> None:
    path = label(data, e0=True)
    set_labels(path, open_store(data), {1: Label(False, probability=0.02)}, "classifier")
    other = native.write(tmp_path / "other.h5", make_store((5, 7), seed=1))
    about = {"success": 1, "failed": 1, "unlabelled": 2, "by": {"keys": 1, "classifier": 1}}
    store = mix([open_store(other), open_store(data).filtered("labelled")], [1, 1])
    assert store.attributes[LABELS] == {"data.h5": about}


def test_a_frame_of_success_follows_its_episode(data: Path) -> None:
    set_labels(labels_path(data), open_store(data), {2: Label(True, frame=3)}, BY)
    store = open_store(data)
    assert store.attributes["success_frame"] == [None, None, 3, None]
    assert store.subset([2, 0]).attributes["success_frame"] == [3, None]


def test_a_group_is_a_filter(data: Path) -> None:
    set_group(labels_path(data), open_store(data), "helps", [3, 1], "account")
    assert open_store(data).filtered("helps").numbers.tolist() == [1, 3]  # type: ignore[union-attr]


def test_writers_at_once_lose_nothing_and_readers_see_whole_files(data: Path) -> None:
    store, path = open_store(data), labels_path(data)

    def write(number: int) -> None:
        set_labels(path, store, {number % 4: Label(number % 2 == 0)}, f"writer {number}")
        read(path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(12)))
    found = read(path)
    assert found.version == 12
    assert sorted(found.episodes) == [0, 1, 2, 3]
    assert sorted(label.version for label in found.episodes.values())[-1] == 12


def test_labels_elsewhere(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    file = labels_path(data, folder)
    set_labels(file, open_store(data), {0: Label(True)}, BY)
    assert file == folder / "data.h5.labels.json"
    for chosen in (folder, file):
        assert open_store(data, labels=chosen).attributes["episode_success"][0] is True
    assert "episode_success" not in open_store(data).attributes
    with pytest.raises(GtpVisionError, match=r"none.json, named as the labels of .* does not exist"):
        open_store(data, labels=tmp_path / "none.json")


def test_labels_of_a_folder_are_not_part_of_it(tmp_path: Path) -> None:
    assert labels_path(tmp_path / "set") == tmp_path / "set.labels.json"
    assert labels_path(Path()).name == f"{Path.cwd().name}.labels.json"


def test_labels_that_do_not_fit_are_one_sentence_and_can_be_pruned(data: Path, tmp_path: Path) -> None:
    path = label(data, e0=True, e1=True, e3=False)
    set_group(path, open_store(data), "helps", [0, 3], "account")
    store = make_store((5, 7, 6, 4)).subset([0, 1, 2])  # episode 3 is gone
    native.write(data, store)
    with pytest.raises(GtpVisionError, match=r"1 episodes that do not exist \(first 3, of 3\) .* --prune"):
        open_store(data)
    store.actions[0] *= 0.5
    native.write(data, store)
    with pytest.raises(GtpVisionError, match=r"do not exist .* and of 1 episodes that have changed \(first 0\)"):
        open_store(data)
    assert prune(path, store) == 4
    assert open_store(data).attributes["episode_success"] == [None, True, None]
    label(data, e2=True)
    native.write(data, make_store((5, 7, 6), seed=9))
    with pytest.raises(GtpVisionError, match="is of another data set: none of its 2 labels fits"):
        open_store(data)


@pytest.mark.parametrize(
    "edit",
    [
        lambda stored: stored.update(format="else"),
        lambda stored: stored.update(version=-1),
        lambda stored: stored.update(episodes=[1, 2]),
        lambda stored: stored["episodes"].update({"-1": stored["episodes"]["0"]}),
        lambda stored: stored["episodes"].update({"x": stored["episodes"]["0"]}),
        lambda stored: stored["episodes"]["0"].update(success="yes"),
        lambda stored: stored["episodes"]["0"].update(success=1),
        lambda stored: stored["episodes"]["0"].update(frame=1e300),
        lambda stored: stored["episodes"]["0"].update(by="x" * 1000),
        lambda stored: stored["episodes"]["0"].pop("content"),
        lambda stored: stored.update(groups={"a": {"by": "", "time": "", "episodes": [0]}}),
    ],
)
def test_damaged_labels_are_one_sentence(data: Path, edit: object) -> None:
    path = label(data, e0=True)
    stored = json.loads(path.read_text())
    edit(stored)  # type: ignore[operator]
    path.write_text(json.dumps(stored))
    with pytest.raises(GtpVisionError, match=r"data.h5.labels.json does not hold labels of episodes .*restore it"):
        open_store(data)
    with pytest.raises(GtpVisionError, match="does not hold labels"):
        set_labels(path, make_store((5, 7, 6, 4)), {1: Label(True)}, BY)
    assert json.loads(path.read_text()) == stored, "what cannot be read is not replaced"


def test_a_frame_after_the_end_is_one_sentence(data: Path) -> None:
    set_labels(labels_path(data), open_store(data), {0: Label(True, frame=5)}, BY)
    with pytest.raises(GtpVisionError, match="marks frame 5 of episode 0, which has 5"):
        open_store(data)


def test_a_folder_that_cannot_be_written_is_one_sentence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(labels.FileLock, "acquire", fail)  # root may write anywhere
    with pytest.raises(GtpVisionError, match=r"cannot be written \(Permission denied\); give --labels FILE"):
        label(data, e0=True)


def test_the_hash_of_an_episode_is_of_its_actions_alone() -> None:
    one, other = make_store((5, 7)), make_store((5, 7))
    other.rewards[:] = 1
    other.observations["state"] = np.zeros((12, 1), np.float32)
    assert labels.contents(one) == labels.contents(other)
    other.actions[11, 0] += 0.1
    assert [a == b for a, b in zip(labels.contents(one), labels.contents(other), strict=True)] == [True, False]
