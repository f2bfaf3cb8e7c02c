"""Trackers with their real packages: W&B offline, MLflow in a database of its own."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_runs import lines, small_run
from wandb.proto.wandb_internal_pb2 import Record

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training import trainer
from gtp_vision.training.trackers import FILE, Trackers, check_trackers


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)


def records(run: Path) -> Iterator[Record]:
    """What offline runs will send: LevelDB's log of protocol buffers, in order."""
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, place, whole = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
            if kind == 0:  # the rest of a block
                place += 32768 - place % 32768
                continue
            whole += data[place + 7 : place + 7 + size]
            if kind in (1, 4):
                yield Record.FromString(whole)
                whole = b""
            place += 7 + size
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768


def history(run: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(run):
        if record.HasField("history"):
            rows.append(row := dict[str, Any]())
            for item in record.history.item:
                *within, last = [item.key] if item.key else item.nested_key
                place = row
                for name in within:
                    place = place.setdefault(name, {})
                place[last] = json.loads(item.value_json)
    return rows


@pytest.mark.trains
def test_a_run_is_logged_and_continued_in_the_same_run(data: Path, tmp_path: Path, quiet: None) -> None:
    both = "training.trackers=[wandb,mlflow]"
    trainer.train(small_run(data, tmp_path / "run", both, "training.steps=4"), progress=False)
    numbers = json.loads((tmp_path / "run" / FILE).read_text())
    trainer.train(small_run(data, tmp_path / "run", both, "training.steps=8"), progress=False, resume=True)
    assert json.loads((tmp_path / "run" / FILE).read_text()) == numbers
    wanted = {line["step"]: line["loss"] for line in lines(tmp_path / "run")}
    assert list(wanted) == [2, 4, 6, 8]
    assert {row["_step"]: row["loss"] for row in history(tmp_path / "run") if "loss" in row} == wanted
    runs = {record.run.run_id for record in records(tmp_path / "run") if record.HasField("run")}
    assert runs == {numbers["wandb"]}
    client = MlflowClient()
    found = {each.step: each.value for each in client.get_metric_history(numbers["mlflow"], "loss")}
    assert found == pytest.approx(wanted)
    assert client.get_run(numbers["mlflow"]).data.params["training.batch_size"] == "16"


def test_videos_and_tables_are_logged(data: Path, tmp_path: Path, quiet: None) -> None:
    video = tmp_path / "episode_000_success.mp4"
    video.write_bytes(b"film")
    trackers = Trackers(tmp_path, small_run(data, tmp_path, "training.trackers=[wandb,mlflow]"), pytest.fail)
    trackers.videos(4, [video])
    trackers.table("evaluations", [{"step": 4, "success": 0.5}, {"step": 8, "success": 1.0}])
    trackers.table("nothing", [])
    trackers.close()
    rows = {key: value for row in history(tmp_path) for key, value in row.items() if isinstance(value, Mapping)}
    assert rows["videos/episode_000_success"]["_type"] == "video-file"
    assert (rows["evaluations"]["_type"], rows["evaluations"]["nrows"]) == ("table-file", 2)
    client, number = MlflowClient(), json.loads((tmp_path / FILE).read_text())["mlflow"]
    assert {entry.path for entry in client.list_artifacts(number)} == {"videos", "evaluations.json"}


def test_seeds_side_by_side_log_to_runs_of_their_own(data: Path, tmp_path: Path, quiet: None) -> None:
    config = small_run(data, tmp_path, "training.trackers=[wandb,mlflow]")
    both = [Trackers(folder, config, pytest.fail) for folder in made(tmp_path, "seed_0", "seed_1")]
    for value, trackers in enumerate(both):
        trackers.log(1, {"loss": float(value)})
    for trackers in both:
        trackers.close()
    for value, folder in enumerate(("seed_0", "seed_1")):
        number = json.loads((tmp_path / folder / FILE).read_text())["mlflow"]
        assert [each.value for each in MlflowClient().get_metric_history(number, "loss")] == [value]
        assert [row["loss"] for row in history(tmp_path / folder)] == [value]


def made(folder: Path, *names: str) -> Sequence[Path]:
    for name in names:
        (folder / name).mkdir()
    return [folder / name for name in names]


def test_a_tracker_that_fails_later_is_left_out(data: Path, tmp_path: Path, quiet: None) -> None:
    told: list[str] = []
    trackers = Trackers(tmp_path, small_run(data, tmp_path, "training.trackers=[wandb,mlflow]"), told.append)
    trackers._open["wandb"].tracker.finish()  # as if its process had ended
    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 2.0})
    trackers.close()
    (sentence,) = told
    assert sentence.startswith("warning: wandb fails (")
    number = json.loads((tmp_path / FILE).read_text())["mlflow"]
    assert [each.step for each in MlflowClient().get_metric_history(number, "loss")] == [1, 2]


def of(data: Path, *names: str) -> Config:
    return small_run(data, "unused", f"training.trackers=[{','.join(names)}]")


def test_what_cannot_begin_is_refused_before_training(
    data: Path, tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trackers(of(data, "wandb", "mlflow"))
    with pytest.raises(GtpVisionError, match=r"training\.trackers=wandbb is unknown: did you mean 'wandb'"):
        of(data, "wandbb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/absent/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with pytest.raises(GtpVisionError, match=r"training\.trackers=\[mlflow\] does not begin"):
        Trackers(tmp_path, of(data, "mlflow"), pytest.fail)
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(GtpVisionError, match=r"\[wandb\] needs a login; run wandb login, or set WANDB_MODE=offline"):
        check_trackers(of(data, "wandb"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GtpVisionError, match=r"needs wandb, which is not installed; run pip install 'gtp-vision\[wan"):
        check_trackers(of(data, "wandb"))
