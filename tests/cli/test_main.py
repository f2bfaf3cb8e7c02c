import json
from pathlib import Path

import pytest
from commands import CLI, ended

from gtp_vision.cli.main import _parser, main
from gtp_vision.cli.verb import VERBS
from gtp_vision.datasets import demo_path

TINY = [
    *("training.batch_size=8", "training.steps=2", "training.log_every=1", "training.eval_episodes=1"),
    *("task.max_episode_steps=2", "agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "encoder.features=16"),
]


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = main(list(arguments))
    errors = capsys.readouterr().err
    assert status == 2, errors
    assert errors.startswith("gtp-vision: ")
    assert errors.count("\n") == 1, "one sentence, no traceback"
    return errors


def test_without_arguments_it_shows_each_kind_of_user_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    output = capsys.readouterr().out
    for verb in ("demo", "data inspect", "train", "eval", "report", "export", "serve", "bench suite", "train -m"):
        assert f"  gtp-vision {verb}" in output
    assert "accelerate launch" in output
    assert "encoder.tuning=lora" in output


def test_every_verb_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS.values():
        with pytest.raises(SystemExit) as end:
            main([*verb.name.split(), "--help"])
        assert end.value.code == 0
        assert f"usage: gtp-vision {verb.name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trian", "did you mean 'train'"),
        ("train", "no task is given"),
        ("train task=demo task.dataset=/no/such.h5", "/no/such.h5"),
        ("train --resume /no/such/run", "/no/such/run is not a run folder"),
        ("train --resume task=demoo", "did you mean 'demo'"),
        ("train --resume trainig.steps=3 task=demo", "did you mean 'training.steps'"),
        ("train trainig.steps=3 --resume /no/such/run --resume", "did you mean 'training.steps'"),
        ("train /no/such/run --resume", "/no/such/run is not a run folder"),
        ("train --resume one two", "choose one of one, two"),
        ("train --overwrite task=demo --resume", "give one of the two"),
        ("train -- task=demoo", "did you mean 'demo'"),
        ("train --overwrite task=demo --explain trainig.steps=3", "did you mean 'training.steps'"),
        ("train task=demo task.dataset=x\udce9.h5", "is not UTF-8"),
        ("train run_dir=runs/a\r", "dos2unix"),
        (f"data inspect {'x' * 300}", "File name too long"),
        ("data inspect -dashed.h5", "write ./-dashed.h5 for the path"),
        ("report x --out=~/no/such/folder/page.html --in -dashed.h5", "write ./-dashed.h5"),
        ("eval /no/such/run", "/no/such/run"),
        ("data inspect /no/such/file", "/no/such/file"),
        ("data inspect x --sheeet y", "--sheeet"),
        ("data convert x", "required: target, --to"),
        ("bench step --rounds few", "--rounds 'few' must be a whole number"),
        ("report /no/such/run", "/no/such/run"),
    ],
)
def test_a_mistake_is_one_sentence(
    command: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dashed.h5").write_bytes(b"")
    assert words in _error(capsys, *command.split(" "))


def test_a_home_folder_is_found_behind_an_equals_sign_too() -> None:
    arguments = _parser().parse_args(["data", "view", "~/x.h5", "--out=~/page.html"])
    assert (arguments.path, arguments.out) == (Path.home() / "x.h5", Path.home() / "page.html")
    assert _parser().parse_args(["data", "view", "~x.h5"]).path == Path("~x.h5")


def test_a_setting_that_is_given_twice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=1", "--explain", "task=demo", "seed=2"]) == 0
    output, errors = capsys.readouterr()
    assert output.split()[:2] == ["seed", "2"]
    assert errors == "gtp-vision: seed is given 2 times; the last one counts: 2\n"


@pytest.mark.trains
def test_a_run_of_any_name_continues_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, name = "~ü &!'(1);#,=[2]{}$%@:\\.h5", "-ä b\n&'(1)#,=[]{}"
    (tmp_path / data).symlink_to(demo_path())
    settings = ["task=demo", "training=demo", "agent=gtp_bc_demo", "encoder=demo", *TINY, "training.eval_episodes=0"]
    settings += ["training.engine=eager", "training.probe_rows=0", "training.device=cpu"]
    monkeypatch.chdir(tmp_path)
    assert main(["train", *settings, f"task.dataset={data}", f"run_dir={name}"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run = tmp_path / name
    (run / "results.json").unlink()
    assert main(["train", f"{run}/", "--resume"]) == 0
    assert (run / "results.json").exists()
    assert main(["export", str(run), f"./{name}"]) == 0
    assert main(["report", str(run)]) == 0


@pytest.mark.trains
@pytest.mark.simulates
def test_train_eval_and_report_end_to_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "task=demo", "training=demo", "agent=gtp_demo", "encoder=demo", f"run_dir={run}", *TINY]
    assert main(command) == 0
    assert "success 0% of 1 episodes" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert results["last"]["step"] == 2
    assert results["last"]["length"] == 2
    assert len(list(run.glob("videos/step_2/*.mp4"))) == 2, "an episode, and what moved its actions"
    assert len(list(run.glob("videos/step_2/*_saliency.mp4"))) == 1
    assert list(run.glob("tensorboard/events*"))
    filmed = ["--videos", str(tmp_path / "v"), "--saliency"]
    assert main(["eval", str(run), "--episodes", "1", "--steps", "1", "--json", *filmed]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1
    assert (len(list((tmp_path / "v").glob("*_saliency.mp4"))), len(list((tmp_path / "v").glob("*.mp4")))) == (1, 2)
    assert "--videos FOLDER" in _error(capsys, "eval", str(run), "--saliency")
    assert "candidates=0 must be at least 1" in _error(capsys, "eval", str(run), "--candidates", "0")
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<video") == 2
    assert "did you mean 'step_2'" in _error(capsys, "eval", str(run), "--checkpoint", "step_22")
    assert "--overwrite" in _error(capsys, *command)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("agent", "options", "words"),
    [
        (["agent=gtp_bc_demo"], ["--candidates", "2"], "agent.acting.candidates=2 are chosen by a critic"),
        (["agent=gtp_demo", "improvement=q_gradient"], ["--steps", "5"], "it acts in --steps=5; make them equal"),
    ],
    ids=["no critic", "other steps than those that Q improves"],
)
def test_evaluating_as_the_agent_cannot_act_is_refused(
    agent: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = ["task=demo", "training=demo", *agent, "encoder=demo", f"run_dir={run}", *TINY]
    assert main(["train", *trained, "training.eval_episodes=0"]) == 0
    capsys.readouterr()
    assert words in _error(capsys, "eval", str(run), *options)


@pytest.mark.trains
@pytest.mark.processes
def test_a_sweep_makes_a_run_for_each_seed(tmp_path: Path) -> None:
    command = ["train", "-m", "task=demo", "training=demo", "agent=gtp_bc_demo", "encoder=demo", "seed=1,2", *TINY]
    # In a process of its own: Hydra sets up logging anew, and pytest's is in its way.
    ended(*CLI, *command, "run_dir=é (${seed})", "training.eval_episodes=0", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"é (1)", "é (2)", "runs"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".sweeps"]
    assert sorted(path.parent.name for path in tmp_path.glob("é*/results.json")) == ["é (1)", "é (2)"]


@pytest.mark.trains
@pytest.mark.processes
@pytest.mark.simulates
def test_demo_prints_one_json_object(tmp_path: Path) -> None:
    found = json.loads(ended(*CLI, "demo", "--json", "--out", tmp_path / "demo", *TINY)[0])
    assert {"success", "success_random", "episodes", "train_seconds", "eval_seconds", "report"} <= found.keys()
    page = Path(found["report"]).read_text()
    assert "gtp_bc" in page
    assert "random" in page
    assert page.count("<video") == 4, "an episode of each agent, and what moved its actions"


def test_demo_replaces_only_a_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert "does not hold a demo" in _error(capsys, "demo", "--out", str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_parsing_imports_neither_torch_nor_readers() -> None:
    code = "import sys, gtp_vision.cli.main as cli; cli._parser(); print({'torch', 'h5py', 'numpy'} & {*sys.modules})"
    assert ended("-c", code)[0] == "set()\n"


@pytest.mark.processes
def test_a_folder_that_cannot_be_written_is_one_sentence() -> None:
    errors = ended(*CLI, "demo", status=2, cwd="/sys")[1]  # where even root makes no folder
    assert errors.startswith("gtp-vision: runs")
    assert errors.endswith("; change its permissions or choose another folder\n")
    assert errors.count("\n") == 1


@pytest.mark.processes
def test_a_full_disk_is_one_sentence() -> None:
    inspect = [*CLI, "data", "inspect", demo_path()]
    with open("/dev/full", "w") as full:
        errors = ended(*inspect, status=2, stdout=full, environment={"PYTHONUNBUFFERED": None})[1]
    assert errors == "gtp-vision: No space left on device; make room or choose another folder\n"
