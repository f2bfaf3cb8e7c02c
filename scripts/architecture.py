"""Draw the way from a file to a robot, and list the agents, from the code: scripts/architecture.py [--check].

Writes docs/img/architecture.svg and the tables of agents in docs/architecture.md and README.md, between the comments
`<!-- NAME: scripts/architecture.py -->` and `<!-- end -->`; --check only compares, and fails if one is out of date.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path

from gtp_vision.agents import AGENTS, CRITICS, IMPROVEMENTS
from gtp_vision.agents.improvement import Recipe
from gtp_vision.agents.settings import ActingConfig
from gtp_vision.cli.verb import VERBS
from gtp_vision.config.compose import from_command_line
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.formats import FORMATS
from gtp_vision.datasets.store import Store
from gtp_vision.encoders.backbones import BACKBONES
from gtp_vision.envs.simulator import SIMULATORS
from gtp_vision.evaluation.metrics import METRICS
from gtp_vision.models import FAMILIES
from gtp_vision.models.critic import BACKUPS
from gtp_vision.serving.answer import Answered
from gtp_vision.serving.schema import Schema

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "img" / "architecture.svg"
WIDTH, LEFT, LINE, PAD, GAP = 900, 190, 19, 10, 34


@dataclass(frozen=True)
class Box:
    """A part of the way: where its code is, the verbs that use it, what it has by name, and what it hands on."""

    title: str
    folder: str
    verbs: tuple[str, ...]
    holds: dict[str, Iterable[str]]
    out: type | str = ""

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line on the right."""
        found = []
        for label, names in self.holds.items():
            wrapped = textwrap.wrap(", ".join(names), 96 - len(label))
            found += [(label if number == 0 else "", line) for number, line in enumerate(wrapped)]
        return found


def way() -> list[Box]:
    """The boxes from file to robot."""
    acting = sorted(path.stem for path in (ROOT / "configs" / "acting").glob("*.yaml") if path.stem != "own")
    backbones = [f"{name}..." if name.endswith("/") else name for name in sorted(BACKBONES)]
    return [
        Box("Files", "datasets/formats/", ("data",), {"formats": sorted(FORMATS)}, Store),
        Box("Sampler, loader", "datasets/", (), {"rows of": ["the step's number and the seed alone"]}, Batch),
        Box("Encoder", "encoders/", (), {"backbones": backbones}, "features (B, F), once for all jumps of a step"),
        Box(
            "Agent",
            "agents/, models/",
            ("train",),
            {
                "policy": sorted(FAMILIES),
                "critic": [*BACKUPS, *sorted(CRITICS)],
                "improvement": sorted(IMPROVEMENTS),
                "acting": ["the policy's action", *acting],
            },
            "checkpoints in a run folder",
        ),
        Box(
            "Judged",
            "evaluation/, envs/",
            ("eval", "judge", "report"),
            {"simulators": sorted(SIMULATORS), "metrics": sorted(METRICS)},
            "the checkpoint that is chosen",
        ),
        Box("Artifact", "serving/", ("export", "rehearse"), {"files": ["safetensors", "JSON", "ONNX"]}, Schema),
        Box("Server", "serving/", ("serve", "replay"), {"to": ["robots on the network"]}, Answered),
    ]


def handed_on(out: type | str) -> list[str]:
    """A dataclass with its fields, in lines; a sentence as it is."""
    if isinstance(out, str):
        return [out]
    text = f"{out.__name__}: " + ", ".join(field.name for field in fields(out))
    return textwrap.wrap(text, 118)


def drawing() -> str:
    """The picture as SVG, from top to bottom."""
    parts, y = [], 10
    for box in way():
        unknown = [verb for verb in box.verbs if verb not in VERBS]
        if unknown:
            raise SystemExit(f"{box.title} names verbs that do not exist: {unknown}")
        lines = box.lines()
        height = max(len(lines), 2 + bool(box.verbs)) * LINE + 2 * PAD
        parts.append(
            f'<rect x="10" y="{y}" width="{WIDTH - 20}" height="{height}" rx="5" fill="#eef2f7" stroke="#4a5b70"/>'
        )
        left = [(box.title, ' font-weight="bold"'), (box.folder, ' fill="#5a6775"')]
        if box.verbs:
            left.append((" ".join(box.verbs), ' font-family="monospace" fill="#8a3b12"'))
        for number, (text, style) in enumerate(left):
            parts.append(f'<text x="22" y="{y + PAD + 14 + number * LINE}"{style}>{escape(text)}</text>')
        for number, (label, text) in enumerate(lines):
            row = y + PAD + 14 + number * LINE
            if label:
                parts.append(f'<text x="{LEFT}" y="{row}" fill="#5a6775">{label}</text>')
            parts.append(f'<text x="{LEFT + 95}" y="{row}">{escape(text)}</text>')
        y += height
        if box.out:
            given = handed_on(box.out)
            below = y + max(GAP, len(given) * LINE + 12)
            arrow = f"M40 {y} V{below - 4} M35 {below - 10} L40 {below - 3} L45 {below - 10}"
            parts.append(f'<path d="{arrow}" stroke="#4a5b70" fill="none"/>')
            parts += [
                f'<text x="58" y="{y + 20 + number * LINE}" fill="#1f5f3f">{escape(text)}</text>'
                for number, text in enumerate(given)
            ]
            y = below
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" font-family="sans-serif" '
        f'font-size="14"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def acts_by(acting: ActingConfig) -> str:
    """How an agent acts, e.g. `the best of 32, K = 10`."""
    drawn = f"K = {acting.steps}"
    if acting.candidates == 1:
        return drawn
    chosen = "the best" if acting.choose == "argmax" else "one by softmax(Q)"
    return f"{chosen} of {acting.candidates}, {drawn}"


def published() -> list[tuple[str, Recipe]]:
    """Every agent with the file that defines it, in the order of files; tasks with goals last."""
    found = []
    for name, recipe in AGENTS.items():
        (path,) = (
            path
            for path in sorted((ROOT / "gtp_vision" / "agents").glob("*.py"))
            if re.search(rf'Recipe\(\s*"{name}"', path.read_text(encoding="utf-8"))
        )
        found.append((path.relative_to(ROOT).as_posix(), recipe))
    return sorted(found, key=lambda one: (one[1].goals, one[0] != "gtp_vision/agents/gtp.py", one[0], one[1].name))


def compositions() -> Iterator[str]:
    """The table of docs/architecture.md: each agent as it is composed."""
    yield "| `agent=` | policy family | critic | improvement | acts by | published |"
    yield "|---|---|---|---|---|---|"
    for _, recipe in published():
        task = "ogbench/pointmaze-medium-navigate-goals" if recipe.goals else "demo"
        config = from_command_line([f"task={task}", f"agent={recipe.name}", "encoder=state"])
        parts = [recipe.family, recipe.backup, recipe.improvement, acts_by(config.agent.acting), recipe.paper]
        yield f"| `{recipe.name}` | {' | '.join(parts)} |"


def papers() -> Iterator[str]:
    """The table of README.md: a row for each file, and one for all that need goals."""
    yield "| `agent=` | published |"
    yield "|---|---|"
    files: dict[str, list[Recipe]] = {}
    for path, recipe in published():
        files.setdefault(path, []).append(recipe)
    rows: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for path, recipes in files.items():
        names = ", ".join(f"`{recipe.name}`" for recipe in recipes)
        rows[recipes[0].goals].append((f"[{names}]({path})", "; ".join(dict.fromkeys(one.paper for one in recipes))))
    for link, papers in rows[False]:
        yield f"| {link} | {papers} |"
    links, papers = zip(*rows[True], strict=True)
    yield f"| for tasks with goals: {', '.join(links)} | in this order: {'; '.join(papers)} |"


TABLES = {"docs/architecture.md": ("compositions", compositions), "README.md": ("agents", papers)}


def page(name: str) -> str:
    """A page with its table as the code has it."""
    block, rows = TABLES[name]
    begin, end = f"<!-- {block}: scripts/architecture.py -->\n", "<!-- end -->"
    before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition(begin)
    return "\n".join([before + begin, *rows(), "", end + rest.partition(end)[2]])


def main() -> None:
    """Write picture and tables, or compare with them."""
    wanted = {PICTURE: drawing(), **{ROOT / name: page(name) for name in TABLES}}
    for path, text in wanted.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.relative_to(ROOT)} is out of date: run scripts/architecture.py")


if __name__ == "__main__":
    main()
