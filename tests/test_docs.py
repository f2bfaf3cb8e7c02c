"""The documentation's commands: what can be run here is run, all else gets to where its work would begin."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from commands_of_docs import PAGES, PROGRAMS, ROOT, Command, blocks, commands, page_name

from gtp_vision import collection
from gtp_vision.cli.main import main
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.download.sources import find
from gtp_vision.suites import suite

COMMANDS = {page_name(page): commands(page) for page in PAGES}
ALL = [command for found in COMMANDS.values() for command in found]
TINY = [
    "training.steps=2",
    "training.batch_size=4",
    "training.log_every=1",
    "training.device=cpu",
    "encoder.features=16",
]
TINY += ["training.eval_episodes=1", "training.probe_rows=0", "training.videos=1", "agent.policy.hidden=[16]"]

# Pages whose commands are run, each page's in its order. Trainings of docs/encoders.md are run by
# tests/training/test_encoders_guide.py, CONTRIBUTING's by test_contributing.py; all others are checked only.
RUN = ("README.md", "docs/data.md", "docs/first-run.md", "docs/own-environment.md")
# Not run of them: what takes a network, a simulator's recording, a GPU, hours or files that nobody has here. Serving
# is followed by tests/serving/test_deploying_guide.py.
NOT_RUN = re.compile(
    r"data (collect|download)|bench |experiment |gtp-vision serve |task=ogbench|task=\.\.\.|RUN|vit_small|"
    r"scripts/|accelerate|cube-single|training=demo agent=gtp_demo|encoder=resnet18|\. \.venv|^gtp-vision$|"
    r"near\.h5|broken\.hdf5|mine\.h5"
)


def refused(command: Command) -> bool:
    """Whether the page shows our program refusing it, not the news of a server that runs."""
    return "gtp-vision: " in command.told and command.ours is not None and command.ours[0] != "serve"


def test_the_commands_were_found() -> None:
    assert len(ALL) > 110
    assert all(command.words[0].startswith(PROGRAMS) for command in ALL), {command.words[0] for command in ALL}
    assert {"README.md", "CONTRIBUTING.md", "docs/first-run.md", "docs/own-environment.md"} <= {
        page for page, found in COMMANDS.items() if found
    }


def planned(words: list[str]) -> None:
    """Follow one of our command lines to the point where its work would begin."""
    if not words:
        return  # it explains itself, see test_cli.py
    chosen, rest = main._parser().parse_known_args(words)
    assert not rest or getattr(chosen, "has_overrides", False), rest
    if chosen.verb in ("train", "demo") and (rest or not getattr(chosen, "resume", None)):
        if "hydra/launcher=submitit_slurm" in rest:
            rest = [word for word in rest if not word.startswith(("hydra.", "hydra/"))]
        settings = [re.sub(r"^task=\.\.\.$", "task=demo", word) for word in rest]
        if chosen.verb == "train" and chosen.multirun:
            settings = [word.partition(",")[0] if "[" not in word else word for word in settings]
        from_command_line(settings if chosen.verb == "train" else ["task=demo", *settings])
    elif (chosen.verb, getattr(chosen, "what", "")) == ("bench", "suite") and not chosen.name.endswith(".yaml"):
        suite.load(chosen.name).chosen(agents=chosen.agents, tasks=chosen.tasks)
    elif (chosen.verb, getattr(chosen, "what", "")) == ("data", "download"):
        find(chosen.name, Path("unused"))
    elif (chosen.verb, getattr(chosen, "what", "")) == ("data", "collect"):
        collection._kind_of(chosen.env)


@pytest.mark.parametrize("page", sorted(page for page, found in COMMANDS.items() if found))
def test_its_commands_are_ones(page: str) -> None:
    here = {"agent=cql", "encoder=strided", "rig"}  # names of the plug-in of CONTRIBUTING
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in COMMANDS[page]:
        if command.ours is not None:
            if refused(command) or here & set(command.words):
                continue  # refused, which is tested below; or known only with the plug-in
            try:
                planned(command.ours)
            except (GtpVisionError, AssertionError) as error:
                pytest.fail(f"{page}: {command.line}\n{error}")
        elif command.words[0].startswith("scripts/"):
            assert os.access(ROOT / command.words[0], os.X_OK), command.line
        elif command.words[0] == "pip":
            assert command.words[1] == "install"
            named = re.fullmatch(r"gtp-vision\[(\w+)\]", command.words[2])
            assert named, command.line
            assert named[1] in extras, command.line
        elif command.words[0] == "python":
            assert (ROOT / command.words[1]).is_file() or page in RUN, command.line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the pages' reader stands: a robomimic file, one of their own, a damaged one, and a checkout's data."""
    folder = tmp_path_factory.mktemp("reader")
    lift(folder / "lift.hdf5")
    (folder / "datasets").symlink_to(ROOT / "datasets")
    before, registered, modules = Path.cwd(), dict(gymnasium.registry), set(sys.modules)
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GTP_VISION_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(folder)
        patch.setenv("TQDM_DISABLE", "1")
        yield folder
    os.chdir(before)
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)
    for name in {"my_robot"} & (set(sys.modules) - modules):
        del sys.modules[name]


def lift(path: Path) -> None:
    """Four short demonstrations with what robosuite's Lift records."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for number in range(4):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = 5
            demo["actions"] = random.uniform(-1, 1, (5, 7))
            demo["rewards"] = demo["dones"] = (np.arange(5) == 4).astype(np.int64)
            for camera in ("agentview_image", "robot0_eye_in_hand_image"):
                demo[f"obs/{camera}"] = random.integers(256, size=(5, 84, 84, 3), dtype=np.uint8)
            for state, width in {
                "object": 10,
                "robot0_eef_pos": 3,
                "robot0_eef_quat": 4,
                "robot0_gripper_qpos": 2,
            }.items():
                demo[f"obs/{state}"] = random.normal(size=(5, width))
        file["mask/train"] = np.array([b"demo_0", b"demo_1", b"demo_2"])
        file["mask/valid"] = np.array([b"demo_3"])


def run(words: list[str]) -> tuple[int, str]:
    """Status and output of one of our commands, in this process."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = main.main(words)
    return status, told.getvalue()


def small(words: list[str]) -> list[str]:
    """The same command, with less work."""
    if words[0] == "train" and "--resume" not in words:
        return [*words, *TINY, *(["task.max_episode_steps=2"] if "task=demo" in words else []), "training.eval_envs=1"]
    return [*words, "--episodes", "1"] if words[0] == "eval" else words


def prepare(page: str, folder: Path) -> None:
    """Write the files that a page tells its reader to write."""
    if page == "docs/data.md":
        (block,) = blocks(ROOT / page, "python")
        exec(block, {})  # it writes mine.h5, which is then inspected
        assert run(["data", "inspect", "mine.h5"])[0] == 0
    elif page == "README.md":
        (block,) = blocks(ROOT / page, "python")
        flags = np.eye(1, 6, 5)[0].astype(np.uint8)
        arrays = {"frames": np.zeros((6, 64, 64, 3), np.uint8), "actions": np.full((6, 2), 0.5, np.float32)}
        arrays |= {"rewards": flags.astype(np.float32), "terminals": flags, "timeouts": 0 * flags}
        exec(block, arrays | {"path": folder / "my.h5", "episode_ends": np.array([6])})
    elif page == "docs/own-environment.md":
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in ("my_robot.py", "record.py"):
            found = re.search(rf"`{name}`.*?```python\n(.*?)```", text, re.DOTALL)
            assert found
            (folder / name).write_text(found[1], encoding="utf-8")


@pytest.mark.parametrize("page", RUN)
def test_its_commands_run(page: str, folder: Path) -> None:
    prepare(page, folder)
    done = 0
    for command in COMMANDS[page]:
        if NOT_RUN.search(command.line) or refused(command):
            continue
        if command.ours is None:
            assert command.words[0] == "python", command.line
            told = subprocess.run(
                [sys.executable, "-P", *command.words[1:]], capture_output=True, text=True, check=False
            )
            status, text = told.returncode, told.stderr
        else:
            status, text = run(small(command.ours))
        assert status == 0, f"{page}: {command.line}\n{text}"
        done += 1
    assert done == {"README.md": 3, "docs/data.md": 6, "docs/first-run.md": 6, "docs/own-environment.md": 4}[page]


REFUSED = [command for command in ALL if refused(command) and "mirror" not in command.line]


def test_refusals_are_what_the_pages_say(folder: Path) -> None:
    prepare("docs/own-environment.md", folder)
    with h5py.File(folder / "near.h5", "w") as file:
        for name in ("action", "done", "obs", "reward"):
            file[name] = np.zeros((4, 2))
    (folder / "broken.hdf5").write_bytes((folder / "lift.hdf5").read_bytes()[:100_000])
    if not (folder / "reach.h5").exists():
        subprocess.run([sys.executable, "-P", "record.py"], check=True)
    for command in REFUSED:
        assert command.ours is not None
        status, text = run(command.ours)
        assert status == 2, f"{command.page}: {command.line}\n{text}"
        wanted, got = (" ".join(each[each.index("gtp-vision: ") :].split()) for each in (command.told, text))
        if "cannot be read as HDF5" in wanted:  # with numbers of the reader's own file
            wanted, got = (re.sub(r"\d+", "N", each) for each in (wanted, got))
        pattern = ".*".join(map(re.escape, wanted.split("...")))
        assert re.fullmatch(pattern, got), f"{command.page}: {command.line}\n{got}"
    assert len(REFUSED) >= 11


def test_the_suite_of_the_readers_own_is_one(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs/benchmarks.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block.replace("task.env=...", "task.env=null"), encoding="utf-8")
    assert [task.name for task in suite.load(str(tmp_path / "mine.yaml")).tasks] == ["pick-red", "pick-blue"]
