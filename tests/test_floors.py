import ast
import re
import sys
from pathlib import Path

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


def test_data_know_no_networks() -> None:
    networks = re.compile(r"\btorch\.nn\b|from torch import .*\bnn\b")
    assert [name for name, path in MODULES.items() if ".datasets" in name and networks.search(path.read_text())] == []
