"""What docs/deploying.md tells its reader to type is typed, in its order."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands_of_docs import ROOT, Command, blocks, commands

from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training.trainer import train

PAGE = ROOT / "docs/deploying.md"
FIRST = [
    *("task=own", "agent=gtp", "encoder=impala_small", "agent.policy.hidden=[16]", "training.device=cpu"),
    *("training.batch_size=8", "training.steps=2", "training.engine=eager", "training.probe_rows=0"),
    *("task.frame_stack=2", "run_dir=runs/demo/gtp"),
]
CAMERA, ACTIONS = (64, 64, 3), 5


@pytest.fixture(scope="module")
def reader(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's reader stands: beside a run of the demo's shapes."""
    folder, before = tmp_path_factory.mktemp("reader"), Path.cwd()
    os.chdir(folder)
    bounds = {"action_low": [-1.0] * ACTIONS, "action_high": [1.0] * ACTIONS}
    store = make_store((30, 20), state=None, cameras={"camera": CAMERA}, actions=ACTIONS, attributes=bounds)
    train(from_command_line([*FIRST, f"task.dataset={native.write(folder / 'data.h5', store)}"]), progress=False)
    yield folder
    os.chdir(before)


def test_the_page_is_followed(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [each for each in commands(PAGE) if each.ours]
    exported, graph, act, serve, bench = (each.ours or [] for each in _in_order(typed))
    assert main(exported) == 0
    assert "sees camera (64, 64, 3); answers 5 numbers" in capsys.readouterr().out
    acting, pushing, theirs, ours, program = blocks(PAGE, "python")
    known: dict[str, object] = {"frame": np.zeros(CAMERA, np.uint8)}
    exec(acting, known)
    assert isinstance(known["action"], np.ndarray)
    assert known["action"].shape == (ACTIONS,)
    assert "push_to_hub" in pushing, "it needs a hub: tests/serving/test_artifact.py has a stand-in"

    server = [sys.executable, "-P", "-m", "gtp_vision", *serve, "--port", "0"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            port = running.stdout.readline().partition("127.0.0.1:")[2].partition(",")[0]
            capsys.readouterr()
            exec(theirs.replace("8000", port), {})
            assert "(1, 5) {'infer_ms'" in capsys.readouterr().out
            asked: dict[str, object] = {}
            exec(ours.replace("8000", port), asked)
            assert isinstance(asked["plan"], np.ndarray)
            assert asked["plan"].shape == (1, ACTIONS)
        finally:
            running.terminate()
        _, said = running.communicate(timeout=30)
    assert running.returncode == 0, said
    assert "is gone after 2 messages" in said

    assert main([*graph, "--overwrite"]) == 0
    exec(program, known)
    assert known["inputs"] == {"camera": [1, 2, *CAMERA[2:], *CAMERA[:2]], "noise_0": [1, ACTIONS]}
    assert isinstance(known["actions"], torch.Tensor)
    assert known["actions"].shape == (1, ACTIONS)
    assert main([*act, "--rounds", "3"]) == 0
    assert main([*bench, "--clients", "1", "--requests", "20"]) == 0
    told = capsys.readouterr().out
    assert "the graphs and PyTorch differ by" in told
    assert "0 errors" in told


def _in_order(typed: list[Command]) -> list[Command]:
    begins = ("export", "export", "bench act", "serve", "bench serve")
    lines = {each.line.removeprefix("gtp-vision "): each for each in typed}
    found = []
    for begin in begins:
        line = next(line for line in lines if line.startswith(begin))
        found.append(lines.pop(line))
    assert not lines, f"nobody types {list(lines)}"
    return found
