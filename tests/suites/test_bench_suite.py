"""A suite is planned, run, interrupted and gone on with; its table is that of one that was never interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites import cost
from gtp_vision.suites.plan import Plan, plan, records
from gtp_vision.suites.suite import Suite, load

SUITE = """
title: A tiny suite
protocol: [Nothing is learnt here.]
selection: last
steps: 60
eval_every: 30
episodes: 2
seeds: 2
agents: [gtp, gtp+n, iql]
settings:
  - encoder=state
  - agent.policy.hidden=[16]
  - agent.critic.hidden=[16]
  - training.batch_size=16
  - training.checkpoint_every=7
  - training.eval_envs=1
  - training.device=cpu
  - task.frame_stack=1
  - task.max_episode_steps=20
tasks:
  - name: maze
    settings: [task.env=pointmaze-medium-navigate-singletask-task1-v0, "data_dir={data}"]
  - name: elsewhere
    settings: ["task.dataset={data}/none.hdf5", task.env=pointmaze-medium-navigate-singletask-task1-v0]
    get: gtp-vision data fetch elsewhere --to {data}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes by OGBench's recipe, and the suite's file."""
    folder = tmp_path_factory.mktemp("data")
    asked = ["data", "collect", "ogbench/pointmaze-medium-navigate", "--out", str(folder)]
    assert main([*asked, "--episodes", "2", "--processes", "1"]) == 0
    (folder / "tiny.yaml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's folder after a run without interruptions."""
    out = tmp_path_factory.mktemp("whole")
    assert main(command(data, out)) == 0
    return out


def command(data: Path, out: Path, *more: str) -> list[str]:
    return ["bench", "suite", str(data / "tiny.yaml"), "--data", str(data), "--out", str(out), "--workers", "2", *more]


def planned(data: Path, out: Path, **changes: Any) -> tuple[Suite, Plan]:
    suite = load(str(data / "tiny.yaml"))
    for name, value in changes.items():
        setattr(suite, name, value)
    return suite, plan(suite, out, data)


def scores(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "records.json").read_text()))


def test_a_plan_has_a_run_for_each_agent_with_all_seeds_and_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    _, found = planned(data, tmp_path)
    assert [(job.task, job.agent, job.seeds, job.done) for job in found.jobs] == [
        ("maze", "gtp", (0, 1), 0.0),
        ("maze", "iql", (0, 1), 0.0),
    ]
    (missing,) = found.missing
    assert missing.startswith("elsewhere is left out: there is no data set at ")
    assert missing.endswith(f"get its data with: gtp-vision data fetch elsewhere --to {data}")
    left = cost.cost(found, progress=False)
    assert all(seconds > 0 for seconds in left.values())
    told = cost.told(found, left, workers=2)
    assert "hours of one core are left" in told
    assert missing in told
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_a_suite_ends_with_scores_of_every_agent_and_seed_and_tables(whole: Path) -> None:
    found = scores(whole)
    assert [(record["agent"], record["seed"]) for record in found] == [
        (agent, seed) for agent in ("gtp", "gtp+n", "iql") for seed in (0, 1)
    ]
    assert all(record["steps"] == [30, 60] and not record["unfinished"] for record in found)
    evaluations = json.loads((whole / "maze" / "gtp" / "seeds_0-1" / "seed_1" / "evaluations.json").read_text())
    assert evaluations[0]["candidates"]["32"]["episodes"] == 2
    for name in ("results.md", "results.csv", "results.html"):
        assert (whole / name).exists()
    assert "elsewhere is left out" in (whole / "results.md").read_text()


def test_what_is_done_is_not_done_again_and_more_seeds_are_runs_of_their_own(data: Path, whole: Path) -> None:
    _, again = planned(data, whole)
    assert [job.done for job in again.jobs] == [1.0, 1.0]
    _, more = planned(data, whole, seeds=4)
    assert [(job.agent, job.seeds, job.done) for job in more.jobs] == [
        ("gtp", (0, 1), 1.0),
        ("gtp", (2, 3), 0.0),
        ("iql", (0, 1), 1.0),
        ("iql", (2, 3), 0.0),
    ]
    (whole / "maze" / "iql" / "seed_2").mkdir()  # of a run that was killed before it wrote anything
    _, same = planned(data, whole, seeds=4)
    assert [(job.agent, job.seeds) for job in same.jobs] == [(job.agent, job.seeds) for job in more.jobs]
    (whole / "maze" / "iql" / "seed_2").rmdir()
    suite, fewer = planned(data, whole, seeds=1)
    assert [job.done for job in fewer.jobs] == [1.0, 1.0]
    assert {record.seed for record in records(suite, whole)} == {0}


def test_some_agents_of_a_suite_are_its_runs(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "copy", symlinks=True)  # the tables are written anew
    # Without `gtp+n` asked for, too, a run of gtp is one that was evaluated with candidates.
    assert main(command(data, out, "--agents", "gtp", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == [record for record in scores(whole) if record["agent"] == "gtp"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_suite_ends_with_the_same_scores(
    data: Path, whole: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gtp_vision", *command(data, tmp_path)],
        env=os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("maze/*/seeds_0-1/seed_1/checkpoints/step_*")):
        assert time.monotonic() < limit, "waited in vain for a checkpoint"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert process.returncode == 130
        assert "the same command goes on" in said
    wait_for_quiet(tmp_path)
    assert main(command(data, tmp_path)) == 0
    assert scores(tmp_path) == scores(whole)


def wait_for_quiet(out: Path) -> None:
    """Until no training writes below a folder: those whose suite was killed end on their own."""
    limit = time.monotonic() + 60
    while any(str(out) in told for told in command_lines()):
        assert time.monotonic() < limit, "a run outlived its suite"
        time.sleep(0.1)


def command_lines() -> list[str]:
    told = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return told


def test_a_run_of_other_settings_is_refused(data: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(data, whole, "--steps", "30")) == 2
    assert "holds a run of other settings" in capsys.readouterr().err


def test_a_suite_of_which_nothing_can_be_run_says_why(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path, "--tasks", "elsewhere")) == 2
    assert "nothing of the suite can be run here: elsewhere is left out" in capsys.readouterr().err
    assert main(command(data, tmp_path, "--seeds", "0")) == 2
    assert "--seeds 0 must be at least 1" in capsys.readouterr().err


def test_the_plan_alone_trains_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(data, tmp_path / "out", "--plan", "--agents", "iql")) == 0
    assert "maze" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_runs_can_be_handed_to_one_of_hydras_launchers(
    data: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path, "--agents", "iql", "--launcher", "basic")) == 0
    assert scores(tmp_path) == [record for record in scores(whole) if record["agent"] == "iql"]
    assert main(command(data, tmp_path, "--agents", "gtp_bc", "--launcher", "nope")) == 2
    assert "1 of 1 runs failed" in capsys.readouterr().err
    assert "Could not find 'hydra/launcher/nope'" in next(tmp_path.glob("maze/gtp_bc/*.log")).read_text()
    assert main(command(data, tmp_path, "--launcher-setting", "partition=gpu")) == 2
    assert "sets nothing without a --launcher" in capsys.readouterr().err


def test_candidates_without_a_critic_are_refused(data: Path) -> None:
    suite = load(str(data / "tiny.yaml"))
    suite = suite.chosen(agents=["gtp_bc", "gtp_bc+n"], tasks=[])
    with pytest.raises(GtpVisionError, match=r"eval_candidates=\[32\] do not fit: .*chosen by a critic"):
        plan(suite, data, data)
