"""The rooms of the house: few, on few floors, imported downwards only and by absolute names."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import house  # noqa: E402

MODULES = house.modules()
IMPORTS = {name: house.first_party(path.read_text(), MODULES) for name, path in MODULES.items()}
FLOORS = [  # from the ground up; rooms of one floor do not import each other
    {"core", "configs"},
    {"datasets", "encoders", "models", "envs"},
    {"agents", "collection"},
    {"config", "evaluation", "report"},
    {"training"},
    {"serving", "suites", "experiments"},
    {"bench"},
    {"cli", house.FACADE},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}


def test_rooms_are_few_and_imports_go_down() -> None:
    rooms = house.house()
    assert set(rooms) == set(HEIGHT)
    assert len(rooms) <= 18
    assert len(house.floors(rooms)) <= 8
    up = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if house.room(module) != house.room(other) and HEIGHT[house.room(other)] >= HEIGHT[house.room(module)]
    }
    assert up == set()


def test_the_picture_of_the_house_is_up_to_date() -> None:
    assert house.PICTURE.read_text(encoding="utf-8") == house.drawing(), "run scripts/house.py"
    assert f"img/{house.PICTURE.name}" in (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_a_circle_is_named() -> None:
    with pytest.raises(SystemExit, match="a -> b -> a"):
        house.floors({"a": {"b"}, "b": {"a"}})


def test_imports_exist_and_are_absolute() -> None:
    short = {"datasets", "encoders", "configs"}
    for module, path in MODULES.items():
        assert IMPORTS[module] <= set(MODULES), module
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}:{node.lineno} is a relative import"
                names = [node.module or ""]
            assert not short & {name.split(".")[0] for name in names}, f"{module}:{node.lineno}: gtp_vision.<room>"


def uses_of_networks(source: str) -> list[int]:
    """Lines that import or name torch.nn."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        if any(f"{name}.".startswith("torch.nn.") for name in names):
            lines.append(node.lineno)
    return lines


def test_data_know_no_networks() -> None:
    for line in ("import torch.nn", "from torch import nn", "from torch.nn import Module", "x = torch.nn.Linear(1, 1)"):
        assert uses_of_networks(line) == [1]
    found = {name: uses_of_networks(path.read_text()) for name, path in MODULES.items() if ".datasets" in name}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_imports_inside_functions_are_seen() -> None:
    source = "import torch\ndef late():\n    from gtp_vision import agents\n    import gtp_vision.config as c\n"
    assert house.first_party(source, MODULES) == {"gtp_vision.agents", "gtp_vision.config"}
