import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gtp_vision.agents import IMPROVEMENTS
from gtp_vision.core.registry import QUIET, Registry, _scan


@dataclass(frozen=True)
class Thing:
    name: str


class Shape(ABC):
    name = "shape"

    @abstractmethod
    def area(self) -> float: ...


HEAD = "from test_discovery import Thing, Shape\n"
MODULES = {
    "b": f"{HEAD}LAST = Thing('last')\nclass Square(Shape):\n    name, area = 'square', abs\n",
    "a": f"{HEAD}FIRST, AGAIN = [Thing('first')] * 2\nclass Half(Shape): ...\n",
    "c": "from test_discovery_package.a import FIRST\nfrom test_discovery_package.b import Square\n",
    "_hidden": "raise RuntimeError\n",
    "__init__": "",
}
Registries = tuple[Registry[Thing], Registry[type[Shape]]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registries]:
    """The registries of a package with `MODULES`, beside the plug-ins given by name and the text of their module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_discovery", sys.modules[__name__])
    monkeypatch.delenv(QUIET, raising=False)

    def write(folder: Path, files: dict[str, str]) -> None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)

    def made(**plugins: str) -> Registries:
        write(tmp_path / "test_discovery_package", {f"{name}.py": text for name, text in MODULES.items()})
        for name, text in plugins.items():
            (tmp_path / f"test_discovery_{name}.py").write_text(text)
            write(
                tmp_path / f"{name}-1.0.dist-info",
                {
                    "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
                    "entry_points.txt": f"[test.things]\n{name} = test_discovery_{name}\n",
                },
            )
        package, group = "test_discovery_package", "test.things"
        return Registry(package, group, Thing, beside=(Shape,)), Registry(package, group, Shape, beside=(Thing,))

    yield made
    _scan.cache_clear()
    for name in [name for name in sys.modules if name.startswith("test_discovery")]:
        del sys.modules[name]


def test_two_of_one_name_are_refused(make: Callable[..., Registries], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "d", f"{HEAD}OTHER = Thing('last')\n")
    with pytest.raises(ValueError, match="'last'"):
        len(make()[0])


def test_a_plugin_adds_to_all_registries(make: Callable[..., Registries], capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{HEAD}from test_discovery_package.a import FIRST\nNEW = Thing('new')\nclass Round(Shape):\n"
    things, shapes = make(good=f"{text}    name, area = 'round', abs\n")
    assert list(things) == ["first", "last", "new"]
    assert list(shapes) == ["square", "round"], "not the abstract class"
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('several\\nlines')", "RuntimeError: several lines"),
        (f"{HEAD}class Other(Shape):\n    name, area = 'square', abs\nTHING = Thing('new')", "'square' is taken"),
        (f"{HEAD}class Nameless:\n    ...\nTHING, SAME = Thing('new'), Thing('last')", "'last' is taken"),
    ],
)
def test_a_faulty_plugin_is_left_out_with_one_sentence(
    make: Callable[..., Registries],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    reason: str,
) -> None:
    things, shapes = make(faulty=text, good=f"{HEAD}GOOD = Thing('good')")
    assert (list(things), list(shapes), list(things)) == (["first", "last", "good"], ["square"], [*things])
    told = capsys.readouterr().err
    assert told.startswith("gtp-vision: the plug-in faulty is left out: ")
    assert reason in told
    assert told.count("\n") == 1
    _scan.cache_clear()
    monkeypatch.setenv("RANK", "1")
    assert len(Registry("test_discovery_package", "test.things", Thing, beside=(Shape,))) == 3
    assert not capsys.readouterr().err, "other ranks are silent"


def test_labels_of_improvements_differ() -> None:
    marks = [improvement.label_suffix for improvement in IMPROVEMENTS.values()]
    assert len(set(marks)) == len(marks)
