"""Commands and code blocks of the documentation, and the data that they use."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])}
PROGRAMS = ("gtp-vision", "accelerate", "torchrun", "pip", "python", "scripts/", ".")
_BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"[A-Z_]+=\S*")
_UNPROMPTED = re.compile(r"(gtp-vision (?!alone)[a-z]+|accelerate launch|torchrun|pip install|scripts/\S+) ")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: path of the page in the repository.
        line: the command as it stands there, continued lines joined.
        words: its words, without variables that are set before it.
        output: what the page shows as its output; empty if it shows none.
    """

    page: str
    line: str
    words: tuple[str, ...]
    output: str = ""

    @property
    def ours(self) -> list[str] | None:
        """The words after `gtp-vision`, also behind a launcher; None for other programs."""
        if self.words[0] == "gtp-vision":
            return list(self.words[1:])
        if self.words[0] in ("accelerate", "torchrun"):
            return list(self.words[self.words.index("gtp_vision") + 1 :])
        return None

    @property
    def is_refused(self) -> bool:
        """Whether the page shows how `gtp-vision` refuses the command; a server's output begins alike."""
        return "gtp-vision: " in self.output and self.ours is not None and self.ours[0] != "serve"


def blocks(page: str, kind: str) -> list[str]:
    text = PAGES[page].read_text(encoding="utf-8")
    return [block["body"] for block in _BLOCK.finditer(text) if block["kind"] == kind]


def commands(page: str) -> list[Command]:
    """Every line of a bash block; of blocks without a language, lines with a prompt or one of `PROGRAMS`."""
    found: list[Command] = []
    for block in _BLOCK.finditer(PAGES[page].read_text(encoding="utf-8")):
        if block["kind"] not in ("bash", ""):
            continue
        lines = block["body"].replace("\\\n", " ").splitlines()
        for number, whole in enumerate(lines):
            prompted = whole.startswith("$ ")
            line = whole.removeprefix("$ ").strip()
            is_command = block["kind"] == "bash" or prompted or _UNPROMPTED.match(line + " ")
            if not line or line.startswith("#") or not is_command:
                continue
            after = lines[number + 1 :] if prompted else []
            end = next((index for index, other in enumerate(after) if other.startswith("$ ")), len(after))
            words = shlex.split(line.removesuffix("&"), comments=True)
            while _VARIABLE.fullmatch(words[0]):
                del words[0]
            words = list(itertools.takewhile(lambda word: word != ">", words))
            found.append(Command(page, line, tuple(words), "\n".join(after[:end])))
    return found


def write_lift(path: Path) -> None:
    """Write lift.hdf5 of the pages: four short demonstrations of robosuite's Lift in robomimic's format."""
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
