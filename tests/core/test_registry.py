"""Registries that fill themselves, and presets of what has none in configs/."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import pytest

from gtp_vision.agents import AGENTS, IMPROVEMENTS, MARKS
from gtp_vision.config.schema import from_command_line, options
from gtp_vision.core.registry import by_name, instances, subclasses
from gtp_vision.datasets.formats import FORMATS
from gtp_vision.encoders import backbones


@dataclass(frozen=True)
class Thing:
    name: str


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


MODULES = {
    "b": "from test_discovery import Thing, Shape\nLAST = Thing('last')\nclass Square(Shape):\n    area = abs\n",
    "a": "from test_discovery import Thing, Shape\nFIRST, AGAIN = [Thing('first')] * 2\nclass Half(Shape): ...\n",
    "c": "from test_discovery_package.a import FIRST\nfrom test_discovery_package.b import Square\n",
    "_hidden": "raise RuntimeError\n",
    "__init__": "",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "test_discovery_package"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_discovery", sys.modules[__name__])
    return folder.name


def test_what_stands_in_a_file_is_found_once(package: str) -> None:
    assert [thing.name for thing in instances(package, Thing)] == ["first", "last"]
    assert [found.__name__ for found in subclasses(package, Shape)] == ["Square"], "nothing abstract, nothing imported"


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two are called 'twin'"):
        by_name([Thing("twin"), Thing("other"), Thing("twin")])


def test_the_registries_hold_what_the_files_do() -> None:
    assert set(FORMATS) == {"native", "d4rl", "lerobot", "minari", "ogbench", "robomimic"}
    assert next(iter(FORMATS)) == "native"
    assert len(AGENTS) == 15
    assert set(IMPROVEMENTS) == {"none", "advantage", "q_gradient", "guidance", "alignment", "distillation"}
    assert sorted(MARKS.values()) == ["a", "bc", "d", "e", "l", "q"]
    assert "drq" in backbones.named()


def test_presets_of_files_are_not_replaced() -> None:
    assert {"gtp", "gtp_demo"} <= set(options("agent"))
    assert from_command_line(["task=demo", "agent=gtp"]).agent.policy.hidden == [512] * 4
    assert from_command_line(["task=demo", "encoder=drq"]).encoder.name == "drq"
