"""Labels by a classifier, from the command line, on frames whose content is known."""

from pathlib import Path

import numpy as np
import pytest
from small_runs import PIXELS, small_run
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.labels import Label, labels_path, read, set_labels
from gtp_vision.training.trainer import train

EPISODES = 24


@pytest.fixture
def truth() -> np.ndarray:
    return np.arange(EPISODES) % 3 == 0


@pytest.fixture
def data(tmp_path: Path, truth: np.ndarray) -> Path:
    """Dark noise; the last frame of a success has a bright corner."""
    store = make_store([6] * EPISODES, cameras={"front": (16, 16, 3)}, state=None)
    store.observations["front"] //= 4
    store.observations["front"][store.episode_ends[truth] - 1, :8, :8] += 150
    path = native.write(tmp_path / "data.h5", store)
    labels = {number: Label(bool(truth[number])) for number in range(12)}
    set_labels(labels_path(path), open_store(path), labels, "keys")
    return path


def test_the_other_episodes_are_labelled(data: Path, truth: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "label", str(data), "--classifier", "--threshold", "0.6"]
    assert main(words) == 0
    assert "right about 100% of 12 labelled episodes" in capsys.readouterr().out
    found = read(labels_path(data)).of(open_store(data))
    assert all(label.success == truth[number] for number, label in found.items())
    assert len(found) == EPISODES
    assert found[20].by.startswith("classifier on impala_small (random weights), 100% of 12")
    assert found[0].by == "keys"
    assert main(words) == 0, "its own labels are not learned from, and are replaced"
    assert "right about 100% of 12 labelled" in capsys.readouterr().out


@pytest.mark.trains
def test_the_encoder_of_a_run_describes_frames(data: Path, tmp_path: Path, truth: np.ndarray) -> None:
    train(small_run(data, tmp_path / "run", *PIXELS, "training.steps=2", agent="gtp_bc"))
    words = ["data", "label", str(data), "--classifier", "--encoder", str(tmp_path / "run"), "--threshold", "0.5"]
    assert main(words) == 0
    found = read(labels_path(data)).of(open_store(data))
    assert np.mean([label.success == truth[number] for number, label in found.items()]) > 0.9
    assert "the encoder of run" in found[20].by


def test_what_is_missing_is_one_sentence(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "label", str(data)]
    for options, message in (
        (["--threshold", "0.7"], "--threshold is of the classifier"),
        (["--classifier", "--threshold", "2"], "must be a probability"),
        (["--classifier", "--observations", "back"], "has no observation 'back'"),
        (["--classifier", "--backbone", "impala_smal"], "did you mean 'impala_small'"),
    ):
        assert main([*words, *options]) == 2
        assert message in capsys.readouterr().err
    labels_path(data).unlink()
    assert main([*words, "--classifier"]) == 2
    assert "there are none yet" in capsys.readouterr().err
