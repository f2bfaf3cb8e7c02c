import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import Framing
from gtp_vision.envs import EnvSpec, close, make_vector

MODULE = """
import gymnasium
import numpy as np

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict(
        front=gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
        arm=gymnasium.spaces.Box(-9, 9, (2,), np.float32),
        hidden=gymnasium.spaces.Box(-9, 9, (1,), np.float32),
    )
    action_space = gymnasium.spaces.Box(np.float32([0, -4]), np.float32([10, 4]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.shown(self.np_random.uniform(-1, 1, 2)), {}

    def step(self, action):
        return self.shown(action), 1.0, False, False, {"success": bool(action[0] > 9)}

    def shown(self, arm):
        return {"front": np.zeros((8, 8, 3), np.uint8), "arm": np.float32(arm), "hidden": np.zeros(1, np.float32)}

gymnasium.register("Mine-v0", entry_point=Mine, max_episode_steps=3)
gymnasium.register("Endless-v0", entry_point=Mine)
"""
pytestmark = pytest.mark.simulates
NAME = "gymnasium/tests_own_module:Mine-v0"
SHOWN = {"front": (8, 8, 3), "arm": (2,)}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the module in it, which is forgotten afterwards."""
    (tmp_path / "tests_own_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = dict(gymnasium.registry)
    yield tmp_path
    sys.modules.pop("tests_own_module", None)
    for name in set(gymnasium.registry) - set(before):
        if "tests_own_module" in str(gymnasium.registry[name].entry_point):  # packages register theirs only once
            del gymnasium.registry[name]


@pytest.mark.usefixtures("module")
def test_its_actions_are_scaled_and_its_episodes_are_functions_of_their_seeds() -> None:
    env = EnvSpec(NAME, shown=SHOWN).make()
    first, again, other = (env.reset(seed=seed)[0] for seed in (4, 4, 5))
    assert set(first) == set(SHOWN), "of what it shows only what the data hold"
    assert np.array_equal(first["arm"], again["arm"])
    assert not np.array_equal(first["arm"], other["arm"])
    assert env.action_space.low.tolist() == [-1, -1]
    assert env.action_space.high.tolist() == [1, 1]
    moved, _, _, *end = env.step(np.float32([0.5, -1]))
    assert moved["arm"] == pytest.approx([7.5, -4])
    assert end == [False, {"success": False}]
    env.step(np.zeros(2, np.float32))
    assert env.step(np.float32([1, 0]))[3:] == (True, {"success": True})
    close(env)


@pytest.mark.usefixtures("module")
def test_all_is_shown_where_the_data_are_not_known_and_limits_can_be_set() -> None:
    env = EnvSpec(NAME, max_episode_steps=1).make()
    assert set(env.reset(seed=0)[0]) == {"front", "arm", "hidden"}
    assert env.step(np.zeros(2, np.float32))[3] is True
    assert EnvSpec("gymnasium/tests_own_module:Endless-v0", max_episode_steps=2).make().spec.max_episode_steps == 2


@pytest.mark.usefixtures("module")
def test_workers_import_it_for_themselves() -> None:
    vector = make_vector(EnvSpec(NAME, shown=SHOWN), 2)
    assert not np.array_equal(*vector.reset(seed=[1, 2])[0]["arm"])
    vector.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":Mine-v0", "must be gymnasium/MODULE:ID"),
        ("../mine:Mine-v0", "must be gymnasium/MODULE:ID"),
        ("no_such_module:Mine-v0", "'no_such_module' is missing; install its package, or set PYTHON"),
        ("tests_own_module:Mien-v0", "registers no 'Mien-v0': did you mean 'Mine-v0'"),
        ("tests_own_module:Endless-v0", "without max_episode_steps"),
        ("tests_own_broken:A-v0", r"raised RuntimeError \(no robot\); fix it"),
        ("tests_own_needy:A-v0", "importing tests_own_needy needs 'no_such_driver'; install it"),
    ],
)
def test_what_cannot_be_made_is_refused(module: Path, name: str, message: str) -> None:
    (module / "tests_own_broken.py").write_text("raise RuntimeError('no robot\\nis connected')")
    (module / "tests_own_needy.py").write_text("import no_such_driver")
    with pytest.raises(GtpVisionError, match=message):
        EnvSpec(f"gymnasium/{name}").make()


@pytest.mark.usefixtures("module")
def test_its_frames_are_made_as_the_data_were() -> None:
    framing = Framing({"front": (2, 5)}, (4, 6), recorded={"front": (8, 8, 3)})
    env = EnvSpec(NAME, shown=SHOWN, frames=framing).make()
    seen = env.reset(seed=0)[0]
    assert (seen["front"].shape, seen["arm"].shape) == ((2, 5, 3), (2,))
    assert env.observation_space.contains(seen)
    assert env.step(np.zeros(2, np.float32))[0]["front"].shape == (2, 5, 3)
    close(env)
