from importlib.metadata import version

import pytest

from gtp_vision import envs


def test_what_simulates_here_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    # Looked up, not imported: robosuite chooses a renderer for the whole process when it is.
    assert envs.versions() == {
        name: version(name) for name in ("gymnasium", "gymnasium-robotics", "mujoco", "ogbench", "robosuite")
    }
    monkeypatch.setattr(envs, "_SIMULATORS", ("mujoco", "no-such-simulator"))
    assert envs.versions() == {"mujoco": version("mujoco")}
