import json
import subprocess
import sys
from pathlib import Path

import pytest

from gtp_vision.cli import main
from gtp_vision.datasets import demo_path

TINY = [
    "training.batch_size=8",
    "training.steps=2",
    "training.log_every=1",
    "training.eval_episodes=1",
    "task.max_episode_steps=2",
    "agent.policy.hidden=[16]",
    "agent.critic.hidden=[16]",
    "encoder.features=16",
]


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = main(list(arguments))
    told = capsys.readouterr()
    assert status == 2, told
    assert told.err.startswith("gtp-vision: ")
    assert told.err.count("\n") == 1, "one sentence, no traceback"
    return told.err


def test_alone_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    for verb in ("train", "eval", "demo", "data collect", "data inspect", "report", "bench step"):
        assert f"gtp-vision {verb}" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "no task is given"),
        (["train", "task=demoo"], "did you mean 'demo'"),
        (["train", "task=demo", "trainig.steps=3"], "did you mean 'training.steps'"),
        (["train", "task=demo", "training.steps=many"], "training.steps"),
        (["train", "task=demo", "agent=gpt"], "did you mean 'gtp'"),
        (["train", "task=demo", "task.dataset=/no/such.h5"], "/no/such.h5"),
        (["train", "--resume", "/no/such/run"], "/no/such/run is no run folder"),
        (["eval", "/no/such/run"], "/no/such/run is no run folder"),
        (["data", "inspect", "/no/such/file"], "/no/such/file"),
        (["data", "inspect", "x", "--sheeet", "y"], "--sheeet"),
        (["report", "/no/such/run"], "/no/such/run"),
        (["demo", "training.steps=0"], "training.steps=0 must be at least 1"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_mend(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in _error(capsys, *arguments)


def test_inspect_tells_what_the_file_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["data", "inspect", str(demo_path()), "--json", "--sheet", str(sheet)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "native"
    assert found["cameras"] == {"camera": [64, 64, 3]}
    assert found["problems"] == []
    assert found["episodes"] == found["attributes"]["episodes"]
    assert sheet.stat().st_size > 1000
    assert main(["data", "inspect", str(demo_path())]) == 0
    assert f"{found['frames']} frames" in capsys.readouterr().out


def test_train_eval_and_report_end_to_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "task=demo", "training=demo", "agent=gtp_demo", "encoder=demo", f"run_dir={run}", *TINY]
    assert main(command) == 0
    assert "success 0% of 1 episodes" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert results["last"]["step"] == 2
    assert results["last"]["length"] == 2
    assert len(list(run.glob("videos/step_2/*.mp4"))) == 1
    assert list(run.glob("tensorboard/events*"))
    assert main(["eval", str(run), "--episodes", "1", "--steps", "1", "--json", "--videos", str(tmp_path / "v")]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1
    assert len(list((tmp_path / "v").glob("*.mp4"))) == 1
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<video") == 1
    assert "did you mean 'step_2'" in _error(capsys, "eval", str(run), "--checkpoint", "step_22")
    assert "holds a run already" in _error(capsys, *command)


def test_a_sweep_makes_a_run_for_each_seed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "-m", "task=demo", "training=demo", "agent=gtp_bc_demo", "encoder=demo", "seed=1,2", *TINY]
    status = main([*command, f"run_dir={tmp_path}/seed${{seed}}", "training.eval_episodes=0"])
    assert status == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"seed1", "seed2", "runs"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".sweeps"]
    assert sorted(path.parent.name for path in tmp_path.glob("seed*/results.json")) == ["seed1", "seed2"]


def test_demo_prints_one_json_object(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "gtp_vision", "demo", "--json", "--out", str(tmp_path / "demo"), *TINY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert {"success", "success_random", "episodes", "train_seconds", "eval_seconds", "report"} <= found.keys()
    page = Path(found["report"]).read_text()
    assert "gtp_bc" in page
    assert "random" in page
    assert page.count("<video") == 2


def test_demo_replaces_only_a_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert "holds no demo" in _error(capsys, "demo", "--out", str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, gtp_vision.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_demo_whose_run_fails_says_which(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "gtp_vision", "demo", "--json", "--out", str(tmp_path / "demo"), *TINY]
        + ["training.learning_rate=1e38", "training.steps=6", "training.log_every=6"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "is not finite" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("gtp-vision: the run of gtp")
    assert "Traceback" not in ran.stderr


def test_bench_step_prints_the_parts_of_both_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cases"]) == 2
    for times in found["cases"].values():
        assert set(times) == {"data", "critic", "actor", "optimizer", "targets", "step"}
        assert times["step"] > times["targets"] > 0
    assert found["resident_mb"] > 100
