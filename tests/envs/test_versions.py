import mujoco
import pytest
import robosuite

from gtp_vision import envs


def test_what_simulates_here_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = envs.versions()
    assert {"gymnasium", "gymnasium-robotics", "mujoco", "ogbench", "robosuite"} == set(found)
    assert found["mujoco"] == mujoco.__version__
    assert found["robosuite"] == robosuite.__version__
    monkeypatch.setattr(envs, "_SIMULATORS", ("mujoco", "no-such-simulator"))
    assert envs.versions() == {"mujoco": mujoco.__version__}
