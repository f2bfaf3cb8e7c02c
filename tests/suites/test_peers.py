import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.suites.peers import Peers, read
from gtp_vision.suites.plan import Plan
from gtp_vision.suites.suite import Suite, SuiteTask

DRIVERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
ENV = "cube-single-play-singletask-task2-v0"
SUITE = Suite(steps=200, eval_every=100, episodes=25, seeds=2, agents=["fql"], tasks=[SuiteTask(name="a/cube")])
PROTOCOL = {"steps": 200, "eval_every": 100, "episodes": 25, "hidden": [8, 8], "batch_size": 4, "discount": 0.99}


def run(folder: Path, seed: int = 0, label: str = "official-fql", **protocol: Any) -> Path:
    """A driver's records of two evaluations, and a third beyond the suite's steps."""
    path = folder / "a-cube" / label / f"seed_{seed}"
    path.mkdir(parents=True)
    peer = {"repository": "seohongpark/fql", "commit": "719d04417c", "protocol": PROTOCOL | protocol}
    (path / "peer.json").write_text(json.dumps(peer))
    found = [{"step": 100 * k, "success": 0.2 * k, "return": 0.0, "train_seconds": 10.0 * k} for k in (1, 2, 3)]
    (path / "evaluations.json").write_text(json.dumps(found))
    return path


def test_official_runs_are_records_of_the_suites_tasks_seeds_and_steps(tmp_path: Path) -> None:
    for seed in (0, 1, 7):
        run(tmp_path, seed)
    found = read(SUITE, Plan(), tmp_path)
    assert [(r.task, r.agent, r.seed, r.steps, r.seconds, r.unfinished) for r in found.records] == [
        ("a/cube", "official-fql", seed, (100, 200), (10.0, 20.0), False) for seed in (0, 1)
    ]
    assert found.records[0].scores == pytest.approx((20, 40))
    assert (found.sources, found.notes) == ({"official-fql": "seohongpark/fql at 719d044"}, [])


def test_another_protocol_is_said_in_a_sentence(tmp_path: Path) -> None:
    run(tmp_path, episodes=2)
    assert read(SUITE, Plan(), tmp_path).notes == ["official-fql: 2 episodes, and the suite's are 25 (a/cube)."]
    (tmp_path / "none").mkdir()
    assert "has no evaluations of the suite's tasks" in read(SUITE, Plan(), tmp_path / "none").notes[0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("peer.json", "{", "peer.json is not the record of a driver"),
        ("peer.json", '{"repository": "a", "commit": "b", "protocol": {"steps": 1}}', "its protocol has no eval_every"),
        ("evaluations.json", '[{"step": 1}]', "an evaluation lacks its step, success or return"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    (run(tmp_path) / file).write_text(text)
    with pytest.raises(GtpVisionError, match=message):
        read(SUITE, Plan(), tmp_path)


def test_a_missing_folder_and_the_name_of_one_of_our_agents_are_refused(tmp_path: Path) -> None:
    run(tmp_path, label="fql")
    with pytest.raises(GtpVisionError, match="has the name of the suite's agent fql"):
        read(SUITE, Plan(), tmp_path)
    with pytest.raises(GtpVisionError, match="is not a folder"):
        read(SUITE, Plan(), tmp_path / "none")
    assert Peers().records == []


def drive(*words: str | Path) -> str:
    """The sentence with which a driver refuses its command line."""
    done = subprocess.run([sys.executable, DRIVERS / "fql.py", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("driver", DRIVERS / "driver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkout(folder: Path) -> Path:
    """A repository with a commit that is not the official one."""
    (folder / "agents").mkdir(parents=True)
    (folder / "agents" / "fql.py").write_text("")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", "-C", folder, *words.split()], check=True)
    return folder


@pytest.mark.processes
def test_a_driver_refuses_what_is_missing_in_one_sentence_each(tmp_path: Path) -> None:
    words = ["--out", tmp_path, "--data", tmp_path, "--env", ENV, "--checkout"]
    assert "is not a checkout of seohongpark/fql; run: git clone https://" in drive(*words, tmp_path)
    repository = checkout(tmp_path / "fql")
    assert "this driver was written for 719d044; run: git -C" in drive(*words, repository)
    accepted = [*words, repository, "--accept-checkout"]
    assert "make it with: gtp-vision data collect ogbench/cube-single-play --out" in drive(*accepted)
    assert "is not a single task of OGBench" in drive(*accepted, "--env", "cube-single-play-v0")
    for name in ("cube-single-play-v0", "cube-single-play-v0-val"):
        (tmp_path / f"{name}.npz").write_bytes(b"")
    assert re.search(r"jax, .* cannot be imported; run: .*pip install -r .*requirements.txt", drive(*accepted))


def test_a_checkout_with_changes_is_refused_or_named(tmp_path: Path, driver: ModuleType) -> None:
    repository = checkout(tmp_path)
    commit = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)

    class Changed:
        repository, commit = "a/b", ""

    Changed.commit = commit.stdout.strip()
    assert driver.check_checkout(Changed, repository, False) == Changed.commit
    (repository / "agents" / "fql.py").write_text("x = 1")
    with pytest.raises(driver.PeerError, match=r"differs from its commit \(e.g. agents/fql.py\)"):
        driver.check_checkout(Changed, repository, False)
    assert driver.check_checkout(Changed, repository, True) == f"{Changed.commit}+changes"
    shutil.rmtree(repository / ".git")
    with pytest.raises(driver.PeerError, match="is not a checkout of a/b"):
        driver.check_checkout(Changed, repository, False)


@pytest.mark.simulates
def test_an_unknown_environment_is_refused(tmp_path: Path, driver: ModuleType) -> None:
    with pytest.raises(driver.PeerError, match="ogbench has no environment for --env cube-none-play-singletask-v0"):
        driver.load("cube-none-play-singletask-v0", tmp_path / "a.npz")
