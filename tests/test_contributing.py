"""CONTRIBUTING shows files of the plug-in tests/plugin; pip installs it here, and the page's commands run with it."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import ended

from gtp_vision.core.registry import QUIET

pytestmark = [pytest.mark.docs, pytest.mark.trains, pytest.mark.processes]

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "tests" / "plugin"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`tests/plugin/(\S+\.py)`[^\n]*:\n\n```python\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("gtp-vision ")
]
SMALL = ["training.steps=30", "training.batch_size=8", "training.log_every=10", "training.device=cpu"]
SMALL += ["agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "encoder.features=16", "training.probe_rows=0"]
SMALL += ["training.eval_episodes=2", "training.eval_envs=1", "training.videos=0", "task.max_episode_steps=5"]
DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
import numpy as np
from gtp_vision import load_policy
from gtp_vision.cli.main import main

def act(folder):
    observation = {"rgb": np.zeros((32, 32, 3), np.uint8), "joints": np.zeros(2, np.float32)}
    print(load_policy(Path(folder)).act(observation).tolist())
    return 0

done = []
for words in json.loads(sys.argv[1]):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = act(*words[1:]) if words[0] == "act" else main(words)
    done.append([status, output.getvalue(), errors.getvalue()])
print(json.dumps(done))
"""
Run = Callable[..., list[list]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    ended(*pip, "--target", folder / "site", folder / "source")
    return folder / "site"


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `gtp-vision` commands in one process, beside the plug-in and other folders: statuses, outputs, errors."""
    folder = tmp_path_factory.mktemp("work")
    recordings(folder / "rig.h5")

    def run(*commands: list[str], beside: tuple[Path, ...] = (site,)) -> list[list]:
        path = os.pathsep.join(map(str, beside))
        environment = {"PYTHONPATH": path, "GTP_VISION_CACHE": str(folder / "cache"), QUIET: None}
        output, _ = ended("-c", DRIVER, json.dumps(commands), cwd=folder, environment=environment)
        return json.loads(output.splitlines()[-1])

    return run


def recordings(path: Path) -> None:
    """A file of the plug-in's format, of what its simulator shows."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(3):
            recording = file.create_group(f"runs/{number}")
            recording["rgb"] = random.integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
            recording["joints"] = random.uniform(-1, 1, (6, 2)).astype(np.float32)
            recording["commands"] = random.uniform(-1, 1, (6, 2)).astype(np.float32)


def test_the_files_are_the_plugins() -> None:
    assert {"gtp_vision_rig/cql.py", "gtp_vision_rig/recordings.py", "gtp_vision_rig/simulator.py"} <= set(FILES)
    for name, text in FILES.items():
        file, position = (PLUGIN / name).read_text(encoding="utf-8"), 0
        for part in re.split(r"^ *\.\.\.\n", text, flags=re.MULTILINE):
            position = file.index(part, position) + len(part)


def test_without_the_plugin_its_names_are_unknown(run: Run) -> None:
    train = ["train", "task=own", "task.dataset=rig.h5"]
    wrong = [[*train, "agent=cql"], [*train, "encoder=strided"], ["data", "inspect", "rig.h5"], ["hello"]]
    done = run(*wrong, beside=())
    for (status, _, errors), name in zip(done, ["'cql'", "'strided'", "rig.h5", "'hello'"], strict=True):
        assert status == 2
        assert name in errors


def test_its_commands_train_evaluate_export_and_act(run: Run) -> None:
    assert {words[0] for words in COMMANDS} == {"train", "eval", "export", "data"}
    commands = [[*words, *SMALL] if words[0] == "train" else words for words in COMMANDS]
    commands += [["act", "policy"], ["hello"]]
    outputs = {}
    for words, (status, output, errors) in zip(commands, run(*commands), strict=True):
        assert status == 0, f"{words}\n{output}\n{errors}"
        assert "plug-in" not in errors
        outputs[" ".join(words)] = output
    assert "rig (the rig's HDF5), 3 episodes, 18 frames" in outputs["data inspect rig.h5"]
    for words in ("data convert rig.h5 native.h5 --to native", "data convert native.h5 rig-again.h5 --to rig"):
        assert "every frame, action, reward and flag is as it was" in outputs[words]
    assert json.loads(outputs["eval runs/cql --episodes 2 --json"])["median_length"] <= 50
    assert len(json.loads(outputs["act policy"])) == 2
    assert outputs["hello"] == "hello\n"


def faulty(folder: Path, name: str, module: str, group: str) -> None:
    """Lay out a distribution as pip would, whose module has this text."""
    (folder / f"{name}-1.0.dist-info").mkdir(parents=True)
    (folder / f"{name}.py").write_text(module)
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")


def test_faulty_plugins_are_a_sentence_each_and_everything_else_works(run: Run, site: Path, tmp_path: Path) -> None:
    faulty(tmp_path, "broken", "import no_such_driver", "gtp_vision.formats")
    clash = "from gtp_vision.datasets.formats.format import Format\nOTHER = Format('d4rl', 'other', None)\n"
    faulty(tmp_path, "clash", clash, "gtp_vision.formats")
    inspect = ["data", "inspect", "rig.h5"]
    train = ["train", "task=own", "task.name=rig", "task.env=null", "task.dataset=rig.h5", "agent=cql"]
    first, second, refused = run(inspect, inspect, [*train, "agent.improvement.penalty=-1"], beside=(site, tmp_path))
    assert refused[0] == 2
    assert "agent.improvement.penalty=-1.0 must be at least 0" in refused[2]
    assert first[0] == second[0] == 0
    assert "3 episodes" in second[1]
    assert second[2] == "", "once a process"
    lines = sorted(first[2].splitlines())
    assert len(lines) == 2, "not once more by the reader's process"
    assert lines[0].startswith("gtp-vision: the plug-in broken is left out: ")
    assert "no_such_driver" in lines[0]
    assert lines[1].startswith("gtp-vision: the plug-in clash is left out: ")
    assert "'d4rl'" in lines[1]
