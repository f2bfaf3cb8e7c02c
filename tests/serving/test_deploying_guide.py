import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CLI, started
from commands_of_docs import blocks, commands
from small_runs import composed
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import native
from gtp_vision.training.trainer import train

pytestmark = [pytest.mark.docs, pytest.mark.trains, pytest.mark.processes, pytest.mark.compiles]

PAGE = "docs/deploying.md"
FIRST = [
    *("task=own", "agent=gtp", "encoder=impala_tiny", "agent.policy.hidden=[16]", "training.device=cpu"),
    *("training.batch_size=8", "training.steps=1", "training.engine=eager", "training.probe_rows=0"),
    *("task.frame_stack=2", "run_dir=runs/demo/gtp"),
]
CAMERA, ACTIONS = (64, 64, 3), 5


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's working directory, with a run of the demo's shapes."""
    folder, before = tmp_path_factory.mktemp("reader"), Path.cwd()
    os.chdir(folder)
    bounds = {"action_low": [-1.0] * ACTIONS, "action_high": [1.0] * ACTIONS}
    store = make_store((30, 20), state=None, cameras={"camera": CAMERA}, actions=ACTIONS, attributes=bounds)
    train(composed(*FIRST, f"task.dataset={native.write(folder / 'data.h5', store)}"), progress=False)
    yield folder
    os.chdir(before)


def test_the_page_runs(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {command.line.removeprefix("gtp-vision "): command.ours or [] for command in commands(PAGE) if command.ours}
    prefixes = ("export", "export", "export", "bench act", "serve", "bench serve")
    exported, limited, graph, act, serve, bench = (_pop(lines, prefix) for prefix in prefixes)
    assert not lines, "commands that no test runs"
    assert main(exported) == 0
    assert "sees camera (64, 64, 3); answers 5 numbers" in capsys.readouterr().out
    acting, pushing, theirs, ours, program = blocks(PAGE, "python")
    scope: dict[str, Any] = {"frame": np.zeros(CAMERA, np.uint8)}
    exec(acting, scope)
    assert scope["action"].shape == (ACTIONS,)
    assert scope["policy"].clamps == scope["policy"].session().clamps, "random data, whose limits change nothing"
    assert "push_to_hub" in pushing, "needs the hub: tests/serving/test_artifact.py has a stand-in"

    with started(*CLI, *serve, "--port", "0") as running:
        try:
            assert running.stdout
            port = running.stdout.readline().partition("127.0.0.1:")[2].partition(",")[0]
            capsys.readouterr()
            exec(theirs.replace("8000", port), {})
            assert "(1, 5) {'infer_ms'" in capsys.readouterr().out
            client: dict[str, Any] = {}
            exec(ours.replace("8000", port), client)
            assert client["plan"].shape == (1, ACTIONS)
        finally:
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 0, errors
    assert "disconnected after 2 messages" in errors
    assert "Traceback" not in errors

    assert main(limited) == 0
    assert (
        "speed of 5 of 5 numbers, at 20 actions a second (twice what the data do; by hand: " in capsys.readouterr().out
    )
    assert main([*graph, "--overwrite"]) == 0
    exec(program, scope)
    assert scope["inputs"] == {"camera": [1, 2, *CAMERA[2:], *CAMERA[:2]], "noise_0": [1, ACTIONS]}
    assert scope["actions"].shape == (1, ACTIONS)
    assert main([*act, "--rounds", "3"]) == 0
    assert main([*bench, "--clients", "1", "--requests", "20"]) == 0
    printed = capsys.readouterr().out
    assert float(printed.partition("the graphs and PyTorch differ by ")[2].split()[0]) < 1e-5
    assert main([*act, "--rounds", "0"]) == 2
    assert "0 errors" in printed


def _pop(lines: dict[str, list[str]], prefix: str) -> list[str]:
    return lines.pop(next(line for line in lines if line.startswith(prefix)))
