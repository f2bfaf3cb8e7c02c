"""What users write: scripts/wheel checks its types by mypy --strict, with gtp_vision as the wheel installs it."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np

import gtp_vision


def first_policy(data: Path) -> np.ndarray:
    """From data to an action."""
    assert_type(gtp_vision.open_dataset(data), gtp_vision.Store)
    run = gtp_vision.train("own", {"training.steps": 2000}, dataset=data, agent="gtp", encoder="resnet18")
    assert_type(run, gtp_vision.Run)
    assert_type(run.results, dict[str, Any])
    print(run.judge(gtp_vision.open_run("runs/other")).results)
    print(run.export("policy").schema)
    policy = gtp_vision.load_policy("policy")
    assert_type(policy, gtp_vision.Policy)
    agent: gtp_vision.Agent = policy.agent
    print(agent.config)
    return policy.session().act({"camera": np.zeros((64, 64, 3), np.uint8)})


def in_a_simulator(run: gtp_vision.Run) -> float | None:
    """The success of a run, and of a warm start from it."""
    found = gtp_vision.evaluate(run, episodes=10, videos="videos")
    tuned = gtp_vision.fine_tune(run, {"training.steps": 100}, append=["new.h5"])
    try:
        gtp_vision.evaluate(tuned.folder)
    except gtp_vision.GtpVisionError as error:
        print(error.exit_status, gtp_vision.__version__)
    success: float | None = found["success"]
    return success
