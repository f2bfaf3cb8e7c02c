import json
import shutil
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from commands import CLI, started, wait_for

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites import cost
from gtp_vision.suites.plan import Plan, plan, records
from gtp_vision.suites.suite import Suite, load

pytestmark = [pytest.mark.trains, pytest.mark.processes, pytest.mark.simulates]
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
    collect = ["data", "collect", "ogbench/pointmaze-medium-navigate", "--out", str(folder)]
    assert main([*collect, "--episodes", "2", "--processes", "1"]) == 0
    (folder / "tiny.yaml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    """The records, without the seconds, which differ from run to run."""
    found = list(json.loads((out / "records.json").read_text()))
    for record in found:
        first, last = record.pop("seconds")
        assert 0 < first < last
    return found


def test_a_plan_has_a_run_for_each_agent_with_all_seeds_and_names_missing_tasks(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = planned(data, tmp_path)
    assert [(job.task, job.agent, job.seeds, job.done) for job in found.jobs] == [
        ("maze", "gtp", (0, 1), 0.0),
        ("maze", "iql", (0, 1), 0.0),
    ]
    (missing,) = found.missing
    assert missing.startswith("elsewhere is left out: ")
    assert missing.endswith(f"get its data with: gtp-vision data fetch elsewhere --to {data}")
    left = cost.cost(found, progress=False)
    assert all(seconds > 0 for seconds in left.values())
    assert missing in cost.table(found, left, workers=2)
    assert main(command(data, tmp_path / "out", "--plan", "--agents", "iql")) == 0
    assert "hours of one core" in capsys.readouterr().out
    assert main(command(data, tmp_path / "out", "--commands")) == 0
    printed = capsys.readouterr()
    assert [line.split()[:3] for line in printed.out.splitlines()] == [["gtp-vision", "train", "--resume"]] * 2
    assert printed.err == f"gtp-vision: {missing}\n"
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_the_cost_of_an_episode_is_measured_without_a_step_after_its_end() -> None:
    class Strict(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))
        left = 0

        def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
            self.left = 100
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert self.left > 0
            self.left -= 1
            return np.zeros(1, np.float32), 0.0, False, not self.left, {}

    assert 0 < cost.episode_seconds(Strict(), 100) < 1


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


def test_finished_runs_are_kept_and_more_seeds_are_separate_runs(data: Path, whole: Path) -> None:
    runs = [("gtp", (0, 1), 1.0), ("gtp", (2, 3), 0.0), ("iql", (0, 1), 1.0), ("iql", (2, 3), 0.0)]
    _, more = planned(data, whole, seeds=4)
    assert [(job.agent, job.seeds, job.done) for job in more.jobs] == runs
    (whole / "maze" / "iql" / "seed_2").mkdir()  # of a run that was killed before it wrote anything
    _, same = planned(data, whole, seeds=4)
    assert [(job.agent, job.seeds, job.done) for job in same.jobs] == runs
    (whole / "maze" / "iql" / "seed_2").rmdir()
    suite, fewer = planned(data, whole, seeds=1)
    assert [job.done for job in fewer.jobs] == [1.0, 1.0]
    assert {record.seed for record in records(suite, whole)} == {0}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_suite_ends_with_the_same_scores(
    data: Path, whole: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process = started(*CLI, *command(data, tmp_path))
    wait_for(lambda: list(tmp_path.glob("maze/*/seeds_0-1/seed_1/checkpoints/step_*")), process)
    process.send_signal(how)
    _, error = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert process.returncode == 130
        assert "run the same command to resume" in error
    wait_for(lambda: not are_running(tmp_path))  # runs end by themselves after their suite was killed
    assert main(command(data, tmp_path)) == 0
    assert scores(tmp_path) == scores(whole)


def are_running(out: Path) -> bool:
    return any(str(out) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def test_a_run_of_other_settings_is_refused(data: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(data, whole, "--steps", "30")) == 2
    assert "holds a run of other settings" in capsys.readouterr().err


def test_tables_need_no_data_set(whole: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shutil.copytree(whole, tmp_path / "out", symlinks=True)
    assert main(command(data, out, "--data", str(tmp_path / "none"), "--tables")) == 0
    assert "maze" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert "left out" not in (out / "results.md").read_text()


def test_a_suite_without_any_runnable_task_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path, "--tasks", "elsewhere")) == 2
    assert "nothing of the suite can be run here: elsewhere is left out" in capsys.readouterr().err
    assert main(command(data, tmp_path, "--seeds", "0")) == 2
    assert "--seeds 0 must be at least 1" in capsys.readouterr().err


def test_a_launcher_of_hydra_can_start_the_runs(
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
