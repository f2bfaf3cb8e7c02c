"""Labels by what files say: columns, attributes, names; and the command line."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import CLI, started
from refusals import attribute, put
from samples import DATA, EPISODES, Copied
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.label_server import LabelServer
from gtp_vision.datasets.labels import Label, labels_path, read, set_labels


def columns_of(path: Path, of_episodes: bool) -> None:
    """Add a column `ok` to the frames, or to the episodes, of the published LeRobot set."""
    files = [path / EPISODES] if of_episodes else [path / DATA.format(place) for place in range(2)]
    for place, file in enumerate(files):
        table = pq.read_table(file)
        values = [[True, False, None]] if of_episodes else [[0, 0, 0, 1, 0, 0, 0], [0] * 5]
        pq.write_table(table.append_column("ok", pa.array(values[place])), file)
    if not of_episodes:
        info = json.loads((path / "meta/info.json").read_text())
        info["features"]["ok"] = {"dtype": "int64", "shape": [1], "names": None}
        (path / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("sample", "edit", "marks"),
    [
        ("published", lambda path: columns_of(path, of_episodes=True), [True, False, None]),
        ("published", lambda path: columns_of(path, of_episodes=False), [True, False, False]),
        ("robomimic", attribute("data/demo_1", "ok", "True"), [None, True]),
        ("robomimic", put("data/demo_0/ok", np.array([0, 0, 1])), [True, None]),
        ("native", put("ok", np.float32([0, 1])), [False, True]),
    ],
    ids=["lerobot's episodes", "lerobot's frames", "an attribute", "an array", "of episodes"],
)
def test_a_column_of_any_name_labels(copied: Copied, sample: str, edit: object, marks: list[bool | None]) -> None:
    path = copied(sample)
    edit(path)  # type: ignore[operator]
    assert main(["data", "label", str(path), "--by", "ok"]) == 0
    found = read(labels_path(path)).episodes
    assert [found[number].success if number in found else None for number in range(len(marks))] == marks
    assert {label.by for label in found.values()} == {"column ok"}
    assert open_store(path).attributes["episode_success"][: len(marks)] == marks or sample == "published"


@pytest.mark.parametrize("sample", ["published", "robomimic", "native"])
def test_an_unknown_column_is_one_sentence(copied: Copied, sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied(sample)
    assert main(["data", "label", str(path), "--by", "okk"]) == 2
    assert "has no column" in capsys.readouterr().err
    assert not labels_path(path).exists()


def test_names_of_files_label(copied: Copied, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied("aloha")
    for number, file in enumerate(sorted(path.glob("*.hdf5"))):
        file.rename(path / f"episode_{number}_{'ok' if number else 'bad'}.hdf5")
    words = ["data", "label", str(path), "--pattern", "success=*_ok*", "failed=*_bad*"]
    assert main(words) == 0
    assert open_store(path).attributes["episode_success"] == [False, True]
    assert "1 succeed, 1 fail, of 2 episodes" in capsys.readouterr().out
    for patterns, message in (
        (["success=*.hdf5", "failed=*_bad*"], "make them exclude each other"),
        (["success=*.mp4"], "no name of an episode"),
        (["won=*"], "must be success=PATTERN"),
    ):
        assert main([*words[:4], *patterns]) == 2
        assert message in capsys.readouterr().err


def test_a_source_replaces_its_own_labels_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store((5, 7))
    path = native.write(tmp_path / "lift_ok.h5", store)
    set_labels(labels_path(path), store, {0: Label(False)}, "keys")
    for _ in range(2):
        assert main(["data", "label", str(path), "--pattern", "success=*_ok*"]) == 0
        assert "1 episodes labelled, 1 had a label" in capsys.readouterr().out
    assert open_store(path).attributes["episode_success"] == [False, True]
    native.write(path, store.subset([0]))
    assert main(["data", "inspect", str(path)]) == 2
    assert main(["data", "label", str(path), "--prune"]) == 0
    assert "1 labels removed" in capsys.readouterr().out
    assert main(["data", "inspect", str(path)]) == 0


def test_labels_that_cannot_be_written_are_said_before_the_page(tmp_path: Path) -> None:
    store = make_store()
    path = native.write(tmp_path / "data.h5", store)
    with pytest.raises(GtpVisionError, match=r"x.json cannot be written \(.*\); give --labels FILE"):
        LabelServer({}, store, path / "x.json")


@pytest.mark.processes
def test_the_page_ends_with_a_signal_and_says_what_is_labelled(tmp_path: Path) -> None:
    path = native.write(tmp_path / "data.h5", make_store())
    process = started(*CLI, "data", "label", path)
    assert process.stdout is not None
    assert "open http://127.0.0.1:" in process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.endswith("data.h5.labels.json: 0 succeed, 0 fail, of 2 episodes\n")
