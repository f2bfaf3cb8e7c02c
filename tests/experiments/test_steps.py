import json
import re
from pathlib import Path

import pytest
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.compile import has_compiler
from gtp_vision.datasets.formats import native
from gtp_vision.experiments.steps import sweep, table
from gtp_vision.training.trainer import train

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    native.write(folder / "data.h5", make_store((9, 8)))
    overrides = ["task=demo", "agent=gtp_bc", "encoder=state", "agent.policy.hidden=[16]", "training.device=cpu"]
    overrides += ["training.steps=2", "training.batch_size=4", "training.eval_episodes=0", "task.frame_stack=1"]
    overrides += ["task.env=null", f"task.dataset={folder / 'data.h5'}", f"run_dir={folder / 'run'}"]
    train(from_command_line(overrides), progress=False)
    return folder / "run"


def test_each_k_has_an_error_and_a_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "steps", str(run), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert list(results["steps"]) == ["1", "2", "3", "5", "10"]
    assert all(row["action_error"] > 0 < row["act_ms"] for row in results["steps"].values())
    assert Path(results["figure"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "steps.json").read_text()) == results


@pytest.mark.compiles
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_acting_is_timed_beside_it(run: Path) -> None:
    results = sweep(run, steps=[1], compiled=True, progress=False)
    assert results["acting"] == "acting: compile"
    assert results["steps"][1]["act_ms_compiled"] > 0 < results["steps"][1]["act_ms"]
    assert results["acting"] in table(results)


def test_other_recordings_of_the_same_shape_can_be_used(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = native.write(tmp_path / "other.h5", make_store((6, 6), seed=5))
    assert main(["experiment", "steps", str(run), "--data", str(path)]) == 0
    assert f"on {path}" in capsys.readouterr().out
    for name, shape in (("state", {"state": 5}), ("action", {"actions": 3})):
        path = native.write(tmp_path / f"{name}.h5", make_store((6, 6), **shape))
        assert main(["experiment", "steps", str(run), "--data", str(path)]) == 2
        assert name in capsys.readouterr().err


def test_a_missing_simulator_or_checkpoint_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (["--episodes", "1"], "task.env=null"),
        (["--episodes", "-1"], "episodes=-1 must be at least 0"),
        (["--checkpoint", "step_9"], "step_2"),
    ):
        assert main(["experiment", "steps", str(run), *options]) == 2
        assert re.search(words, capsys.readouterr().err)
