"""Draw the rooms of the package and their floors, from the imports: scripts/house.py [--check].

A room is a package directly below `gtp_vision`; a room's floor is one above the highest room that it imports.
Writes docs/img/house.svg; --check only compares, and fails if the picture is out of date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "img" / "house.svg"
MOVED = ("datasets", "encoders", "configs")  # folders of the root, installed inside gtp_vision
FACADE = "gtp_vision"  # the package's own modules: __init__, which imports on first use, and what it offers


def modules() -> dict[str, Path]:
    """Every module of the package by the name under which it is imported."""
    folders = {"gtp_vision": ROOT / "gtp_vision"} | {f"gtp_vision.{name}": ROOT / name for name in MOVED}
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for package, folder in folders.items()
        for path in sorted(folder.rglob("*.py"))
    }


def first_party(source: str, known: Mapping[str, Path]) -> set[str]:
    """The modules among `known` that a source imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "gtp_vision"}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "gtp_vision":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return found


def room(module: str) -> str:
    """The room of a module: `agents` of `gtp_vision.agents.gtp`; `cli` of `python -m gtp_vision`."""
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
        return "cli"
    return FACADE if len(parts) == 1 or (ROOT / "gtp_vision" / f"{parts[1]}.py").is_file() else parts[1]


def house() -> dict[str, set[str]]:
    """Every room with the rooms that it imports."""
    known = modules()
    rooms: dict[str, set[str]] = {room(module): set() for module in known}
    for module, path in known.items():
        rooms[room(module)] |= {room(other) for other in first_party(path.read_text(), known)}
    return {name: below - {name} for name, below in rooms.items()}


def floors(rooms: Mapping[str, set[str]]) -> list[list[str]]:
    """The rooms from the ground up.

    Raises:
        SystemExit: rooms import each other in a circle, which is named.
    """
    height: dict[str, int] = {}

    def climb(name: str, path: tuple[str, ...] = ()) -> int:
        if name in path:
            raise SystemExit(f"import circle: {' -> '.join([*path[path.index(name) :], name])}")
        if name not in height:
            height[name] = max((climb(below, (*path, name)) + 1 for below in sorted(rooms[name])), default=0)
        return height[name]

    for name in rooms:
        climb(name)
    return [sorted(name for name in rooms if height[name] == floor) for floor in range(max(height.values()) + 1)]


def what(name: str) -> str:
    """A room's docstring, its first line."""
    package = "gtp_vision" if name == FACADE else f"gtp_vision.{name}"
    return (ast.get_docstring(ast.parse(modules()[package].read_text())) or "").partition("\n")[0]


def drawing() -> str:
    """The picture as SVG, a row for each floor; lines lead to imported rooms that no other line reaches."""
    rooms = house()
    rows = floors(rooms)[::-1]
    reach: dict[str, set[str]] = {}
    for row in rows[::-1]:
        for name in row:
            reach[name] = set(rooms[name]).union(*(reach[below] for below in rooms[name]))
    box, gap, high, step = 150, 14, 34, 86
    width = max(map(len, rows)) * (box + gap) + gap + 60
    place = {}
    for y, row in enumerate(rows):
        left = (width + 60 - len(row) * (box + gap) + gap) / 2
        place |= {name: (left + x * (box + gap), 20 + y * step) for x, name in enumerate(row)}
    lines, boxes = [], []
    for name, (x, y) in place.items():
        direct = rooms[name] - set().union(*(reach[below] for below in rooms[name]))
        for below in sorted(direct):
            to_x, to_y = place[below]
            lines.append(
                f'<line x1="{x + box / 2:g}" y1="{y + high:g}" x2="{to_x + box / 2:g}" y2="{to_y:g}" stroke="#9aa5b1"/>'
            )
        boxes.append(
            f'<g><title>{escape(what(name))}</title><rect x="{x:g}" y="{y:g}" width="{box}" height="{high}" rx="5" '
            f'fill="#eef2f7" stroke="#4a5b70"/><text x="{x + box / 2:g}" y="{y + 22:g}" text-anchor="middle">'
            f"{escape(name)}</text></g>"
        )
    numbers = [f'<text x="10" y="{42 + y * step}" fill="#9aa5b1">{len(rows) - y}</text>' for y in range(len(rows))]
    tall = len(rows) * step
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" font-family="sans-serif" '
        f'font-size="15"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *lines, *boxes, *numbers, "</svg>", ""])


def main() -> None:
    """Write the picture, or compare with it."""
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(drawing(), encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != drawing():
        raise SystemExit(f"{PICTURE.relative_to(ROOT)} is out of date: run scripts/house.py")
    for number, row in reversed(list(enumerate(floors(house()), 1))):
        print(number, *row)


if __name__ == "__main__":
    main()
