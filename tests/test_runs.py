"""From Python: what the command line does, with its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import STATES
from stores import make_store

import gtp_vision
from gtp_vision.datasets.formats import native

FEW = {"steps": 30, "batch_size": 16, "members": 3, "hidden": (8,)}
SETTINGS = dict(word.split("=", 1) for word in STATES if word.startswith("training.") and "rate" not in word)
NETWORKS = {"agent.policy.hidden": [16], "agent.policy.grid": 2, "agent.critic.hidden": [16]}


@pytest.mark.trains
def test_a_run_is_trained_continued_judged_exported_and_fine_tuned(tmp_path: Path) -> None:
    data = native.write(tmp_path / "my data.h5", make_store((12,) * 10, terminals={11, 35, 59}))
    assert gtp_vision.open_dataset(data).episodes == 10
    settings = {key: int(value) if value.isdigit() else value for key, value in SETTINGS.items()} | NETWORKS
    settings |= {"run_dir": tmp_path / "a run", "task.name": "small, or not", "training.steps": 4}
    run = gtp_vision.train("own", settings, dataset=data, agent="gtp", encoder="state", progress=False)
    assert run == gtp_vision.open_run(tmp_path / "a run")
    assert run.results["steps"] == 4
    assert run.train({"training.steps": 6}, new_segment=True, progress=False).results["steps"] == 6
    judged = run.judge(fit=FEW, progress=False)
    assert "is best" in str(judged)
    assert judged._repr_html_().startswith("<iframe srcdoc=")
    assert "&lt;html" in str(run._repr_html_())
    policy = run.export(tmp_path / "policy", limits=["off"])
    assert isinstance(policy, gtp_vision.Policy)
    tuned = gtp_vision.fine_tune(
        tmp_path / "policy", {"run_dir": tmp_path / "tuned", "task.dataset": data, "training.steps": 2}, progress=False
    )
    assert tuned.results["steps"] == 2


def test_errors_are_those_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(gtp_vision.GtpVisionError, match="did you mean 'gtp'"):
        gtp_vision.train("own", dataset=tmp_path / "my.h5", agent="gpt")
    with pytest.raises(gtp_vision.GtpVisionError, match="is not a run folder"):
        gtp_vision.open_run(tmp_path)
    with pytest.raises(gtp_vision.GtpVisionError, match="has no results yet"):
        print(gtp_vision.Run(tmp_path).results)


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, gtp_vision; print(gtp_vision.__all__, {'torch', 'numpy'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip().endswith("set()")
    assert all(hasattr(gtp_vision, name) for name in gtp_vision.__all__)
