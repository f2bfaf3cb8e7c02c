"""Commands and code of the documentation, as its reader sees them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
PROGRAMS = ("gtp-vision", "accelerate", "torchrun", "pip", "python", "sbatch", "scripts/", ".", "cd")
_BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNED = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: its path in the repository.
        line: as it stands there, continued lines joined.
        words: of the shell, without variables that are set before it.
        variables: these.
        told: what the page says that it prints; empty if it does not say.
    """

    page: str
    line: str
    words: tuple[str, ...]
    variables: tuple[str, ...]
    told: str = ""

    @property
    def ours(self) -> list[str] | None:
        """The words after `gtp-vision`, also where a launcher starts it; None if it is none of our commands."""
        if self.words[0] == "gtp-vision":
            return list(self.words[1:])
        if self.words[0] in ("accelerate", "torchrun"):
            return list(self.words[self.words.index("gtp_vision") + 1 :])
        return None


def page_name(page: Path) -> str:
    """README.md, docs/data.md."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return [found["body"] for found in _BLOCK.finditer(page.read_text(encoding="utf-8")) if found["kind"] == kind]


def commands(page: Path) -> list[Command]:
    """Every line of a bash block, and what else begins with a prompt or with one of `PROGRAMS`."""
    found: list[Command] = []
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["kind"] not in ("bash", ""):
            continue
        lines = block["body"].replace("\\\n", " ").splitlines()
        for number, line in enumerate(lines):
            prompted = line.startswith("$ ")
            line = line.removeprefix("$ ").strip()
            if not line or line.startswith("#") or not (block["kind"] == "bash" or prompted or _is_command(line)):
                continue
            told = []
            for other in lines[number + 1 :] if prompted else []:
                if other.startswith("$ "):
                    break
                told.append(other)
            words = shlex.split(line.removesuffix("&"), comments=True)
            variables = [word for word in words if _ASSIGNED.fullmatch(word)] if _ASSIGNED.fullmatch(words[0]) else []
            found.append(
                Command(page_name(page), line, tuple(words[len(variables) :]), tuple(variables), "\n".join(told))
            )
    return found


def _is_command(line: str) -> bool:
    return (
        re.match(r"(gtp-vision (?!alone)[a-z]+|accelerate launch|torchrun|pip install|scripts/\S+) ", line + " ")
        is not None
    )
