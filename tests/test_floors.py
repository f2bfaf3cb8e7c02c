"""The floors of the house: an import only ever goes down, and its path is absolute."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"gtp_vision": "gtp_vision", "datasets": "gtp_vision.datasets", "encoders": "gtp_vision.encoders"}
ROOMS["configs"] = "gtp_vision.configs"

# From the ground up. Rooms of one floor know nothing of each other.
FLOORS = [
    {
        "gtp_vision",
        "gtp_vision.compilers",
        "gtp_vision.discovery",
        "gtp_vision.errors",
        "gtp_vision.pages",
        "gtp_vision.reduce",
        "gtp_vision.configs",
    },
    {"gtp_vision.untrusted"},
    {"gtp_vision.datasets"},
    {"gtp_vision.encoders", "gtp_vision.networks", "gtp_vision.envs"},
    {"gtp_vision.policies", "gtp_vision.critics"},
    {"gtp_vision.agents"},
    {"gtp_vision.presets"},
    {"gtp_vision.config"},
    {"gtp_vision.training"},
    {"gtp_vision.experiments", "gtp_vision.benchmark", "gtp_vision.serving"},
    {"gtp_vision.cli_data", "gtp_vision.cli_suite", "gtp_vision.cli_serve"},
    {"gtp_vision.cli_measure"},
    {"gtp_vision.cli"},
    {"gtp_vision.torture"},
    {"gtp_vision.__main__"},
]
# What the package itself hands out, imported when it is asked for.
DOORS = {("gtp_vision", "gtp_vision.serving.artifact")}
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}


def module_files() -> dict[str, Path]:
    """Every module of the package by the name it is imported under."""
    found = {}
    for folder, package in ROOMS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *inner]).removesuffix(".__init__")] = path
    return found


MODULES = module_files()


def room(module: str) -> str:
    """The room of a module: `gtp_vision.agents` of `gtp_vision.agents.gtp`."""
    return ".".join(module.split(".")[:2])


def first_party(source: str) -> set[str]:
    """The modules of this package that a source imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "gtp_vision"}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "gtp_vision":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


IMPORTS = {name: first_party(path.read_text()) for name, path in MODULES.items()}
EACH_MODULE = pytest.mark.parametrize("module", sorted(MODULES))


def test_the_house_was_found() -> None:
    assert {"gtp_vision.cli", "gtp_vision.agents.gtp", "gtp_vision.datasets.sampler"} <= set(MODULES)
    assert "gtp_vision.policies" in IMPORTS["gtp_vision.agents.base"]
    assert sum(map(len, IMPORTS.values())) > 40


@EACH_MODULE
def test_every_module_has_a_floor(module: str) -> None:
    assert room(module) in HEIGHT, f"give {room(module)} a floor in FLOORS"


@EACH_MODULE
def test_imports_exist(module: str) -> None:
    assert IMPORTS[module] - set(MODULES) == set()


@EACH_MODULE
def test_imports_go_down(module: str) -> None:
    ours = room(module)
    up = {
        other
        for other in IMPORTS[module]
        if (module, other) not in DOORS
        and room(other) != ours
        and not (other == "gtp_vision" or HEIGHT[room(other)] < HEIGHT[ours])
    }
    assert up == set()


@EACH_MODULE
def test_imports_are_absolute(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert relative == []
    named = [(node, [alias.name for alias in node.names]) for node in ast.walk(tree) if isinstance(node, ast.Import)]
    named += [(node, [node.module or ""]) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    short = [name for _, names in named for name in names if name.split(".")[0] in set(ROOMS) - {"gtp_vision"}]
    assert short == [], "a room is imported as gtp_vision.<room>"


@pytest.mark.parametrize(
    ("used", "users"),
    [
        (
            "gtp_vision.config",
            {f"gtp_vision.{name}" for name in ("training", "experiments", "benchmark", "serving", "cli")},
        ),
        ("gtp_vision.envs", {"gtp_vision.training", "gtp_vision.experiments", "gtp_vision.benchmark"}),
    ],
)
def test_some_rooms_are_open_to_few(used: str, users: set[str]) -> None:
    found = {module for module, others in IMPORTS.items() if used in map(room, others) and room(module) != used}
    assert {module for module in found if room(module) not in users} == set()
    assert found, f"nobody imports {used} any more"


@pytest.mark.parametrize(
    ("user", "allowed"),
    [
        ("gtp_vision.errors", set()),
        ("gtp_vision.pages", set()),
        ("gtp_vision.reduce", set()),
        ("gtp_vision.envs", {"gtp_vision.datasets", "gtp_vision.errors"}),
        ("gtp_vision.discovery", set()),
        ("gtp_vision.datasets", {"gtp_vision.discovery", "gtp_vision.errors", "gtp_vision.pages"}),
        ("gtp_vision.encoders", {"gtp_vision.datasets", "gtp_vision.discovery", "gtp_vision.errors"}),
        (
            "gtp_vision.policies",
            {f"gtp_vision.{name}" for name in ("encoders", "networks", "datasets", "errors", "reduce")},
        ),
    ],
)
def test_some_rooms_know_little(user: str, allowed: set[str]) -> None:
    known = {room(other) for module, others in IMPORTS.items() if room(module) == user for other in others}
    assert known - {user} - allowed == set()


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


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) == "gtp_vision.datasets"))
def test_data_know_no_networks(module: str) -> None:
    assert uses_of_networks(MODULES[module].read_text()) == []


def test_the_rules_can_be_broken() -> None:
    source = "import torch\ndef late():\n    from gtp_vision import agents\n    import gtp_vision.critics as c\n"
    assert first_party(source) == {"gtp_vision.agents", "gtp_vision.critics"}
    for line in ("import torch.nn", "from torch import nn", "from torch.nn import Module", "x = torch.nn.Linear(1, 1)"):
        assert uses_of_networks(line) == [1]
