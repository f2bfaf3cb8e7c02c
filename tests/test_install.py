import os
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
MAPPED = {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}
ROOMS = ["gtp_vision", *MAPPED]


def package_name(folder: Path) -> str:
    """The package that the folder is installed as."""
    room, *inner = folder.relative_to(ROOT).parts
    return ".".join([MAPPED.get(room, room), *inner])


def files_in_rooms() -> list[Path]:
    found = (path for room in ROOMS for path in (ROOT / room).rglob("*"))
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def package_folders() -> dict[str, Path]:
    return {package_name(path.parent): path.parent for path in files_in_rooms() if path.name == "__init__.py"}


def installed() -> metadata.Distribution:
    """gtp-vision as pip installed it, not the egg-info that a build leaves in the repository."""
    found = list(metadata.distributions(name="gtp-vision", path=[sysconfig.get_path("purelib")]))
    assert len(found) == 1, f"found {len(found)} gtp-vision beside {sys.executable}: run scripts/setup"
    return found[0]


def pins() -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, lines))}


def test_pyproject_lists_the_packages_that_exist() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(package_folders())


def test_every_module_lies_in_a_package() -> None:
    folders = set(package_folders().values())
    assert [path for path in files_in_rooms() if path.suffix == ".py" and path.parent not in folders] == []


def test_package_data_covers_every_other_file() -> None:
    covered = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in package_folders()[package].glob(pattern)
    }
    data = {path for path in files_in_rooms() if path.suffix not in {".py", ".md"}}
    assert data - covered == set()


def test_nothing_but_the_package_is_installed_at_the_top_level() -> None:
    top_level = installed().read_text("top_level.txt")
    assert top_level is not None
    assert top_level.split() == ["gtp_vision"]
    importable = {path.parts[0] for path in installed().files or [] if path.suffix == ".py"}
    assert not importable & set(MAPPED)


def test_constraints_name_one_exact_version_each() -> None:
    inexact = [str(pin) for pin in pins().values() if [s.operator for s in pin.specifier] != ["=="]]
    assert inexact == []


NEEDED = {*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())}


@pytest.mark.parametrize("line", sorted(line for line in NEEDED if not line.startswith("gtp-vision[")))
def test_constraints_pin_every_direct_dependency_inside_its_range(line: str) -> None:
    wanted = Requirement(line)
    pin = pins().get(canonicalize_name(wanted.name))
    assert pin is not None, f"constraints.txt does not pin {wanted.name}"
    (version,) = (s.version for s in pin.specifier)
    assert wanted.specifier.contains(version, prereleases=True)


# tensorboard brings protobuf; pandas is of no extra alone
SHARED = {"google", "pandas"}
WITHOUT = """
import importlib, sys
sys.modules.update(dict.fromkeys({hidden}))
import gtp_vision
for name in gtp_vision.__all__:
    getattr(gtp_vision, name)
for registry in {registries}:
    module, name = registry.split(":")
    assert len(getattr(importlib.import_module(module), name)), registry
"""
REGISTRIES = ["agents:AGENTS", "models:FAMILIES", "encoders.backbones:BACKBONES", "datasets.formats:FORMATS"]
REGISTRIES += ["envs.simulator:SIMULATORS", "evaluation.metrics:METRICS", "cli.verb:VERBS"]


@pytest.mark.processes
def test_everything_is_found_without_the_packages_of_extras() -> None:
    lines = chain(*(found for name, found in PROJECT["optional-dependencies"].items() if name not in ("test", "docs")))
    extras = {canonicalize_name(Requirement(line).name) for line in lines}
    modules = {
        module
        for module, names in metadata.packages_distributions().items()
        if extras & {canonicalize_name(name) for name in names}
    }
    hidden = modules - SHARED - {"gtp_vision"}
    assert {"ogbench", "pyarrow", "zarr", "websockets", "onnx", "peft"} <= hidden
    code = WITHOUT.format(hidden=hidden, registries=[f"gtp_vision.{name}" for name in REGISTRIES])
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=300)


def run_setup(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GTP_VISION_VENV": str(tmp_path / "venv"), **environment}
    command = ["bash", str(ROOT / "scripts" / "setup")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def fake_python(tmp_path: Path, script: str) -> str:
    """A command that stands in for a Python that this machine does not have."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_setup_refuses_an_old_python(tmp_path: Path) -> None:
    old = fake_python(tmp_path, "exit 1")
    refusal = run_setup(tmp_path, PYTHON=old)
    assert refusal.returncode == 1
    assert refusal.stderr.count("\n") == 1
    assert f"PYTHON={old} is not Python 3.11 or newer: name another one" in refusal.stderr


def test_setup_names_the_debian_package_that_makes_environments(tmp_path: Path) -> None:
    stripped = fake_python(tmp_path, f'case $2 in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    refusal = run_setup(tmp_path, PYTHON=stripped)
    assert refusal.returncode == 1
    assert refusal.stderr.count("\n") == 1
    assert "apt-get install python3-venv" in refusal.stderr
