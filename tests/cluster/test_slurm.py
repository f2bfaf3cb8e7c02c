"""Runs on a real SLURM of two nodes, whose daemons are all on this machine (scripts/slurm-cluster)."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import CLI, started, wait_for
from commands_of_docs import PAGES, ROOT
from small_runs import STATES, assert_close, assert_equal, saved, small, small_run
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import native
from gtp_vision.training import trainer

pytestmark = pytest.mark.cluster
SCRIPT = ROOT / "scripts" / "slurm-cluster"
STEPS = ["training.steps=400", "training.checkpoint_every=100", "training.log_every=5", "training.engine=eager"]
ENV, STATE, ACTIONS = "puzzle-3x3-play-singletask-task1", 55, 5
SUITE = f"""
title: Two runs
steps: 4
eval_every: 4
episodes: 1
seeds: 1
agents: [gtp_bc, iql]
settings: [encoder=state, "agent.policy.hidden=[16]", "agent.critic.hidden=[16]", training.batch_size=8,
  training.device=cpu, training.eval_envs=1, training.videos=0, task.max_episode_steps=5]
tasks: [{{name: puzzle, settings: [task.env={ENV}, "task.dataset={{data}}/data.h5"]}}]
"""
STOPPED = """
import os, signal, time
from gtp_vision.core.slurm import requeue_sweep_job

signal.signal(signal.SIGUSR2, lambda *_: print("requeue", flush=True))  # as submitit's handler
signal.signal(signal.SIGTERM, lambda *_: print(requeue_sweep_job(), flush=True))
print("begun", flush=True)
time.sleep(300)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all nodes see, with a data set."""
    folder = tmp_path_factory.mktemp("shared")
    native.write(folder / "data.h5", make_store((30, 40), terminals={29}, state=STATE, actions=ACTIONS))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Daemons, and the variables by which commands find them, and `gtp-vision` of this environment."""
    if not all(shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("SLURM is missing: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("GTP_VISION_CACHE", str(folder.parent / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TQDM_DISABLE", "1")
        try:
            subprocess.run([SCRIPT, "start", folder], check=True)
            yield
        finally:
            subprocess.run([SCRIPT, "stop", folder], check=True)


def slurm(*words: str | Path) -> str:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout.strip()


def documented(page: str, words: str) -> str:
    """The batch script of a page that contains these words, without the nodes' resources."""
    found = re.findall(r"```\n(#!/bin/bash\n.*?)```", PAGES[page].read_text(encoding="utf-8"), re.DOTALL)
    (script,) = (script for script in found if words in script)
    return re.sub(r"--(gres|cpus-per-task|time)=\S+", "", script)


def settings(folder: Path, run: str, *more: str) -> list[str]:
    return [*STATES, *small("gtp"), f"task.dataset={folder / 'data.h5'}", f"run_dir={folder / run}", *STEPS, *more]


def has_ended(job: str) -> bool:
    return not slurm("squeue", "--noheader", f"--jobs={job}")


def log_of(job: str, folder: Path) -> str:
    return (folder / f"slurm-{job}.out").read_text() if (folder / f"slurm-{job}.out").exists() else "no log"


def has_begun(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0


def submitted(folder: Path, script: str, *options: str) -> str:
    """Submit a batch script that runs in the folder, and return the number of its job."""
    (folder / "job.sh").write_text(script)
    return slurm("sbatch", "--parsable", f"--chdir={folder}", "--output=slurm-%j.out", *options, folder / "job.sh")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[int], dict[str, Any]]:
    """What an uninterrupted run of one process, outside SLURM, leaves for a seed."""

    def run(seed: int) -> dict[str, Any]:
        name = folder / f"alone_{seed}"
        if not name.exists():
            config = small_run(folder / "data.h5", name, *STEPS, f"seed={seed}", agent="gtp")
            trainer.train(config, progress=False)
        return saved(name)

    return run


def test_preempted_jobs_are_requeued_and_end_as_if_they_had_not_been(
    folder: Path, alone: Callable[[int], dict[str, Any]]
) -> None:
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1"]
    swept = settings(folder, "sweep-${seed}", "seed=0,1")
    sweep = started(*CLI, "train", "-m", *launcher, "hydra.launcher.timeout_min=20", *swept, cwd=folder)
    wait_for(lambda: slurm("squeue", "--noheader"), sweep, seconds=600)  # so that all are trained at the same time
    script = documented("docs/reliability.md", "scontrol requeue")
    command = shlex.join(["gtp-vision", "train", *settings(folder, "batch"), "--resume"])
    batch = submitted(folder, re.sub(r"gtp-vision train .*--resume", lambda _: command, script))
    runs = [folder / name for name in ("sweep-0", "sweep-1", "batch")]
    wait_for(lambda: all(map(has_begun, runs)), sweep, seconds=600)
    slurm("sbatch", "--partition=high", "--nodes=2", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true")
    _, errors = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, errors
    wait_for(lambda: has_ended(batch), seconds=600)
    logs = [path.read_text() for path in folder.glob("runs/.sweeps/*/.submitit/*/*_log.out")]
    assert len(logs) == 2
    for log in [*logs, log_of(batch, folder)]:
        assert log.count("resuming from step") == 1, log
    for run, seed in zip(runs, (0, 1, 0), strict=True):
        assert_equal(saved(run), alone(seed))


def test_jobs_of_a_sweep_are_requeued_if_slurm_preempts_them_and_not_if_they_are_cancelled(folder: Path) -> None:
    (folder / "stopped.py").write_text(STOPPED)
    python = f"SUBMITIT_EXECUTOR=slurm srun {sys.executable} -P stopped.py"
    job = submitted(folder, f"#!/bin/bash\n{python}\n", "--array=0-1", "--output=stopped-%a.out")
    preempted, cancelled = (folder / f"stopped-{task}.out" for task in (0, 1))
    wait_for(lambda: all(log.exists() and "begun" in log.read_text() for log in (preempted, cancelled)))
    slurm("scancel", f"{job}_1")
    slurm("scancel", "--signal=TERM", f"{job}_0")  # what SLURM sends at the begin of the grace time
    wait_for(lambda: "None" in preempted.read_text())
    assert "requeue\nNone" in preempted.read_text()
    slurm("scancel", job)
    wait_for(lambda: has_ended(job))
    assert "requeue" not in cancelled.read_text()


def test_a_job_is_requeued_before_its_time_limit_with_two_nodes_that_equal_one(
    folder: Path, alone: Callable[[int], dict[str, Any]]
) -> None:
    script = documented("docs/processes.md", "MASTER_ADDR").replace("--ntasks-per-node=8", "--ntasks-per-node=1")
    command = shlex.join(["gtp-vision", "train", *settings(folder, "two"), "--resume"])
    job = submitted(folder, re.sub(r"gtp-vision train .*--resume", lambda _: command, script))
    wait_for(lambda: has_begun(folder / "two"), seconds=600)
    slurm("scancel", "--signal=USR1", job)  # as --signal has SLURM send it
    wait_for(lambda: has_ended(job), seconds=600)
    assert "resuming from step" in log_of(job, folder)
    assert json.loads((folder / "two" / "results.json").read_text())["processes"] == 2
    assert_close(saved(folder / "two"), alone(0), rtol=1e-3, atol=1e-4)


def test_a_suite_is_a_job_array(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "two.yaml").write_text(SUITE)
    suite = ["bench", "suite", str(folder / "two.yaml"), "--data", str(folder), "--out", str(folder / "suite")]
    assert main([*suite, "--commands"]) == 0
    commands = capsys.readouterr().out
    assert commands.count("\n") == 2
    (folder / "commands.txt").write_text(commands)
    submitted(folder, documented("docs/benchmarks.md", "commands.txt"), "--wait", "--array=1-2")
    assert main([*suite, "--commands"]) == 0
    assert capsys.readouterr().out.strip() == "", "all runs are finished"
    assert main([*suite, "--tables"]) == 0
    records = json.loads((folder / "suite" / "records.json").read_text())
    assert {record["agent"] for record in records} == {"gtp_bc", "iql"}
