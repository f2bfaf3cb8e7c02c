"""Runs of the trainer and their artifacts, made once for all tests of serving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import composed
from stores import make_store

from gtp_vision.datasets.formats import native
from gtp_vision.serving.export import export
from gtp_vision.training.trainer import train

SMALL = [
    *("task=own", "agent.policy.hidden=[16]", "training.device=cpu", "training.batch_size=8", "training.steps=1"),
    *("training.engine=eager", "training.probe_rows=0"),
]
PIXELS = {"cameras": {"front": (16, 16, 3), "wrist": (12, 12, 3)}}
UNITS = {"attributes": {"action_low": [-3.0, 0.0], "action_high": [1.0, 250.0]}}
STATE = "encoder=state task.frame_stack=1"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixels": ("agent=gtp encoder=impala_tiny task.frame_stack=2", PIXELS),
    "fql": (f"agent=fql {STATE}", {"state": 5}),
    "chunks": ("agent=gtp_bc encoder=state task.frame_stack=3 agent.action_chunk=4 agent.acting.execute=3", {}),
    "softmax": ("agent=idql agent.acting.choose=softmax encoder=impala_tiny task.frame_stack=1", PIXELS),
    "beam": (f"agent=gtp acting=beam agent.acting.gradient_step=0.1 agent.critic.hidden=[8] {STATE}", {}),
    "guidance": (f"agent=qgpo {STATE}", {}),
    "units": (f"agent=gtp {STATE}", UNITS),
    "constant": (
        f"agent=idql {STATE}",
        {"attributes": {"action_low": [2.5, 0.0], "action_high": [2.5, 250.0]}, "held": [0.0, -0.6]},
    ),
    "goals": ("agent=gtp_bc encoder=state task.goals=hindsight task.frame_stack=2", {}),
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str) -> tuple[Path, Path]:
        run, out = folder / name / "run", folder / name / "policy"
        if not out.exists():
            settings, data = RUNS[name]
            held = data.get("held")
            store = make_store((30, 20), **{key: value for key, value in data.items() if key != "held"})
            store.actions[:] = store.actions if held is None else held
            path = native.write(folder / name / "data.h5", store)
            train(composed(*SMALL, *settings.split(), f"task.dataset={path}", f"run_dir={run}"), progress=False)
            export(run, out)
        return run, out

    return make
