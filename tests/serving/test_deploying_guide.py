import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CLI, started
from commands_of_docs import blocks, commands
from small_runs import composed

from gtp_vision.cli.main import main
from gtp_vision.datasets import demo_path
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
    (folder / "demonstrations.h5").symlink_to(demo_path())
    train(composed(*FIRST, "task.dataset=demo"), progress=False)
    yield folder
    os.chdir(before)


@contextmanager
def served(words: list[str]) -> Iterator[str]:
    """A server of the page, on a port of its own."""
    with started(*CLI, *words, "--port", "0") as running:
        try:
            assert running.stdout
            yield running.stdout.readline().partition("127.0.0.1:")[2].partition(",")[0]
        finally:
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "disconnected after " in errors
    assert "Traceback" not in errors


def test_the_page_runs(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {command.line.removeprefix("gtp-vision "): command.ours or [] for command in commands(PAGE) if command.ours}
    prefixes = ("export", "export", "export", "bench act", "serve policy --map", "bench serve", "rehearse", "serve")
    exported, limited, graph, act, serve, bench, rehearsed, recorded = (_pop(lines, prefix) for prefix in prefixes)
    replayed, _ = _pop(lines, "replay"), _pop(lines, "data label")  # a page: tests/datasets/test_label_server.py
    assert not lines, "commands that no test runs"
    assert main(exported) == 0
    assert "sees camera (64, 64, 3); answers 5 numbers" in capsys.readouterr().out
    robot, acting, pushing, theirs, ours, lerobot, program = blocks(PAGE, "python")
    assert main(rehearsed) in (0, 1), "the policy is hardly trained"
    assert "in 10 episodes of " in capsys.readouterr().out
    with served(recorded) as port:
        exec(robot.replace("8000", port).replace("range(3)", "range(1)").replace("=80", "=6"), {})
        assert capsys.readouterr().out.startswith("episode 0: success ")
    assert main(replayed) == 0
    assert "6 of 6 answers bit-equal" in capsys.readouterr().out

    scope: dict[str, Any] = {"frame": np.zeros(CAMERA, np.uint8)}
    exec(acting, scope)
    assert scope["action"].shape == (ACTIONS,)
    assert scope["policy"].clamps == scope["policy"].session().clamps, "random data, whose limits change nothing"
    assert "push_to_hub" in pushing, "needs the hub: tests/serving/test_artifact.py has a stand-in"

    with served(serve) as port:
        exec(theirs.replace("8000", port), {})
        assert "(1, 5) {'infer_ms'" in capsys.readouterr().out
        client: dict[str, Any] = {}
        exec(ours.replace("8000", port).replace('"camera"', '"observation/image"', 1), client)
        assert client["answer"]["actions"].shape == (1, ACTIONS)
    exec(lerobot, client)
    assert client["policy"].select_action

    assert main(limited) == 0
    printed = capsys.readouterr().out
    assert "speed of 5" in printed
    assert "at 20 actions a second (twice what the data do; by hand: " in printed
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
