"""Data sets by name: their files, where these are published, and where their own loaders look for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.datasets.formats.ogbench import dataset_name

# Tried in this order. The first is D4RL's own server by a protocol that D4RL does not use, but the server speaks.
BASES: dict[str, tuple[str, ...]] = {
    "d4rl": (
        "https://rail.eecs.berkeley.edu/datasets/offline_rl",
        "http://rail.eecs.berkeley.edu/datasets/offline_rl",
    ),
    "ogbench": ("https://rail.eecs.berkeley.edu/datasets/ogbench",),
    "robomimic": ("http://downloads.cs.stanford.edu/downloads/rt_benchmark",),
}
_ROBOMIMIC_REPOSITORY = "amandlek/robomimic"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Files:
    """Single files on a web server: addresses in their order, path below them to path below the folder."""

    folder: Path
    bases: tuple[str, ...]
    files: dict[str, str]
    note: str = ""
    instead: str = ""  # what else gives such a data set


@dataclass(frozen=True)
class Repository:
    """A repository owner/name on the Hugging Face hub, and patterns of the wanted files; none is all."""

    folder: Path
    name: str
    patterns: tuple[str, ...] = ()


def find(name: str, folder: Path | None = None) -> Files | Repository:
    """Find a data set by a name such as `d4rl/hopper-medium-v2`, `robomimic/lift/ph/low_dim_v15` or `hf://owner/name`.

    Without a `folder` it belongs where its own library looks for it. Raises GtpVisionError: the name is unknown.
    """
    if name.startswith("hf://"):
        return _repository(name.removeprefix("hf://").removeprefix("datasets/"), folder)
    suite, _, rest = name.partition("/")
    if suite not in _SUITES:
        raise GtpVisionError(
            f"'{name}' names no published data set: write one of {', '.join(f'{key}/...' for key in _SUITES)}, "
            f"or hf://OWNER/NAME for a repository of the Hugging Face hub"
        )
    return _SUITES[suite](rest, folder)


def d4rl_files() -> dict[str, str]:
    """D4RL's Gym sets (v2) and AntMaze sets (v0 and v2), by name; the path of each below D4RL's address."""
    found = {
        f"{robot}-{level}-v2": f"gym_mujoco_v2/{robot}_{level.replace('-', '_')}-v2.hdf5"
        for robot in ("halfcheetah", "hopper", "walker2d", "ant")
        for level in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    }
    for version, folder, ending in (("v0", "ant_maze_new", ""), ("v2", "ant_maze_v2", "_fixed")):
        for maze, size in (("umaze", "u"), ("medium", "big"), ("large", "hardest")):
            for kind in ("diverse", "play"):
                name = maze if (maze, kind) == ("umaze", "play") else f"{maze}-{kind}"
                starts = f"multistart_{name != 'umaze'}_multigoal_{kind == 'diverse'}"
                found[f"antmaze-{name}-{version}"] = f"{folder}/Ant_maze_{size}-maze_noisy_{starts}_sparse{ending}.hdf5"
    return found


def _d4rl(name: str, folder: Path | None) -> Files:
    known = d4rl_files()
    if name not in known:
        raise GtpVisionError(
            f"'d4rl/{name}' is not one of the known sets of D4RL (robots: v2; antmaze: v0 and v2): "
            f"{propose(name, known)}"
        )
    note = ""
    if name.startswith("antmaze"):
        version, other = ("v0", "v2") if name.endswith("v0") else ("v2", "v0")
        note = f"this is AntMaze {version}; do not compare its scores with those of {other}"
    home = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets")
    return Files(folder or home, BASES["d4rl"], {known[name]: Path(known[name]).name}, note)


def _ogbench(name: str, folder: Path | None) -> Files:
    whole = dataset_name(name if re.search(r"-v\d+$", name) else f"{name}-v0")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+-v\d+", whole):
        raise GtpVisionError(f"'ogbench/{name}' is not an OGBench data set, as ogbench/cube-single-play-v0 is")
    files = {file: file for file in (f"{whole}.npz", f"{whole}-val.npz")}
    place, short = folder or Path("~/.ogbench/data"), re.sub(r"-v\d+$", "", whole)
    is_recorded = re.search(r"(cube|scene|puzzle)\S*-(play|noisy)$|^pointmaze\S*-(navigate|stitch)$", short)
    instead = (
        f", or record data by its recipe: gtp-vision data collect ogbench/{short} --out {place}" if is_recorded else ""
    )
    return Files(place, BASES["ogbench"], files, instead=instead)


def _robomimic_files() -> dict[str, str]:
    """Names of robomimic's sets to their paths; a name without a version means 1.5."""
    kinds = {task: ["ph", "mh"] for task in ("lift", "can", "square", "transport")} | {"tool_hang": ["ph"]}
    found = {}
    for version in ("_v15", "_v141"):
        for task, types in kinds.items():
            for kind in [*types, *(["paired"] if task == "can" else [])]:
                for file in ("demo", "low_dim"):
                    found[f"{task}/{kind}/{file}{version}"] = f"{task}/{kind}/{file}{version}.hdf5"
        for task in ("lift", "can"):
            for file in ("demo", "low_dim_sparse", "low_dim_dense"):
                found[f"{task}/mg/{file}{version}"] = f"{task}/mg/{file}{version}.hdf5"
    for task in ("lift_real", "can_real", "tool_hang_real"):
        found[f"{task}/ph/demo"] = f"{task}/ph/demo.hdf5"
    return found


def _robomimic(name: str, folder: Path | None) -> Files | Repository:
    known = _robomimic_files()
    name = name.removesuffix(".hdf5")
    file = known.get(name) or known.get(f"{name}_v15")
    if file is None:
        if "image" in name:
            raise GtpVisionError(
                f"robomimic publishes no images (robomimic/{name}); download the demo_v15 file beside it and render "
                f"them with robomimic's dataset_states_to_obs.py"
            )
        raise GtpVisionError(f"'robomimic/{name}' is not one of robomimic's sets: {propose(name, known)}")
    folder = folder or Path("~/.robomimic/datasets")
    if file.endswith("_v15.hdf5"):  # since robomimic 0.4 on the hub; older ones and real robots at Stanford
        return Repository(folder, _ROBOMIMIC_REPOSITORY, (f"v1.5/{file}",))
    return Files(folder, BASES["robomimic"], {file: file})


def repository_name(name: str) -> tuple[str, str]:
    """Return OWNER and NAME of a repository of the hub. Raises GtpVisionError: it is not such a name."""
    owner, _, short = name.partition("/")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(short)):
        raise GtpVisionError(f"'{name}' is not a repository of the hub; write OWNER/NAME, as lerobot/pusht")
    return owner, short


def _repository(name: str, folder: Path | None) -> Repository:
    owner, short = repository_name(name)
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    home = Path(os.environ.get("HF_LEROBOT_HOME") or hub / "lerobot")  # where LeRobot looks
    return Repository(folder or home / owner / short, name)


_SUITES: dict[str, Callable[[str, Path | None], Files | Repository]] = {
    "d4rl": _d4rl,
    "ogbench": _ogbench,
    "robomimic": _robomimic,
    "lerobot": lambda name, folder: _repository(f"lerobot/{name}", folder),
}
