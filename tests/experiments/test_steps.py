import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gtp_vision.cli.main import main
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.compile import has_compiler
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.experiments.steps import sweep, table
from gtp_vision.training.trainer import train

MakeStore = Callable[..., Store]


@pytest.fixture
def run(tmp_path: Path, make_store: MakeStore) -> Path:
    """A run of two steps on states."""
    native.write(tmp_path / "data.h5", make_store((9, 8)))
    chosen = ["task=demo", "agent=gtp_bc", "encoder=state", "agent.policy.hidden=[16]", "training.device=cpu"]
    chosen += ["training.steps=2", "training.batch_size=4", "training.eval_episodes=0", "task.frame_stack=1"]
    config = from_command_line([*chosen, f"task.dataset={tmp_path / 'data.h5'}", f"run_dir={tmp_path / 'run'}"])
    train(config, progress=False)
    return tmp_path / "run"


def test_each_k_has_an_error_and_a_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "steps", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["steps"]) == ["1", "2", "3", "5", "10"]
    assert all(found["action_error"] > 0 < found["act_ms"] for found in told["steps"].values())
    assert Path(told["figure"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "steps.json").read_text()) == told


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_acting_is_timed_beside_it(run: Path) -> None:
    told = sweep(run, steps=[1], compiled=True, progress=False)
    assert told["acting"] == "acting: compile"
    assert told["steps"][1]["act_ms_compiled"] > 0 < told["steps"][1]["act_ms"]
    head, row, *rest = table(told).splitlines()
    assert head.split() == ["K", "action", "error", "act", "ms", "compiled", "success"]
    assert len(row.split()) == 4
    assert rest[0] == told["acting"]


def test_recordings_that_were_not_trained_on_may_be_given(
    run: Path, tmp_path: Path, make_store: MakeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    native.write(tmp_path / "other.h5", make_store((6, 6), seed=5))
    assert main(["experiment", "steps", str(run), "--data", str(tmp_path / "other.h5")]) == 0
    told = capsys.readouterr().out
    assert f"on {tmp_path / 'other.h5'}" in told
    assert "action error" in told


def test_recordings_of_another_shape_are_refused(
    run: Path, tmp_path: Path, make_store: MakeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, store in (("state", make_store((6, 6), state=5)), ("action", make_store((6, 6), actions=3))):
        native.write(tmp_path / f"{name}.h5", store)
        assert main(["experiment", "steps", str(run), "--data", str(tmp_path / f"{name}.h5")]) == 2
        assert name in capsys.readouterr().err


def test_episodes_without_a_simulator_are_refused(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    config.write_text(re.sub(r"(?m)^  env: .*$", "  env: null", config.read_text()))
    assert main(["experiment", "steps", str(run), "--episodes", "1"]) == 2
    assert "trained without a simulator (task.env=null); leave out --episodes" in capsys.readouterr().err


def test_no_such_checkpoint_is_told_with_those_there_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "steps", str(run), "--checkpoint", "step_9"]) == 2
    told = capsys.readouterr().err
    assert "step_9" in told
    assert "step_2" in told
