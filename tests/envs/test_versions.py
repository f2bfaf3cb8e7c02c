from importlib.metadata import version

import pytest

from gtp_vision import envs


def test_versions_are_those_of_the_installed_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"gymnasium", "mujoco", "ogbench"} <= set(envs.versions())
    toy = envs.Simulator("toy", lambda spec: None, packages=("mujoco", "no-such-simulator"))
    monkeypatch.setattr(envs, "SIMULATORS", {"toy": toy})
    assert envs.versions() == {"mujoco": version("mujoco")}
