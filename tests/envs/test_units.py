"""What reaches a simulator of actions in [-1, 1], by what the data set says about their units."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs.units import ActionUnits, with_policy_actions

TWO, HALF, MIXED = ([-2.0, -2.0], [2.0, 2.0]), ([0.0, 0.0], [1.0, 1.0]), ([-2.0, 0.0], [1.0, 0.2])
ONE = ([-1.0, -1.0], [1.0, 1.0])


class Robot(gymnasium.Env):
    """Keeps the action that it got last."""

    observation_space = Box(-1, 1, (1,))

    def __init__(self, space: gymnasium.Space) -> None:
        self.action_space, self.got = space, np.zeros(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.got = action
        return np.zeros(1, np.float32), 0.0, False, False, {}


def box(bounds: Any, dtype: Any = np.float32) -> Box:
    return Box(np.array(bounds[0], dtype), np.array(bounds[1], dtype), dtype=dtype)


def units(reach: Any = ONE, bounds: Any = None, **more: Any) -> ActionUnits:
    return ActionUnits("my.h5", reach, bounds, **more)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("data", "takes", "received"),
    [
        (None, MIXED, [-2, 0.15]),
        (units(), TWO, [-2, 1]),
        (units(), HALF, [0, 0.75]),
        (units(), ONE, [-1, 0.5]),
        (units(bounds=MIXED), TWO, [-2, 0.15]),
        (units(bounds=MIXED, declared=True), MIXED, [-2, 0.15]),
        (units(bounds=ONE), TWO, [-1, 0.5]),
        (units(HALF, ONE), HALF, [0, 0.5]),
        (units(bounds=([-2, 0.5], [1, 0.5])), TWO, [-2, 0.5]),
        (units(([-1, 0.25], [1, 0.25])), ([-1, 0.25], [1, 0.25]), [-1, 0.25]),
        (units(([0.25, 0.25], [0.25, 0.25])), ([0.25, 0.25], [0.25, 0.25]), [0.25, 0.25]),
        (units(HALF, recorder="d4rl"), HALF, [0, 0.5]),
        (units(HALF, choice="recorded"), HALF, [0, 0.5]),
        (units(HALF, choice="scaled"), HALF, [0, 0.75]),
        (units(bounds=MIXED, choice="scaled"), TWO, [-2, 1]),
        (units(bounds=TWO, choice="recorded"), ONE, [-2, 1]),
    ],
    ids=[
        *("its own bounds", "the native format", "native, narrower", "the same", "recorded in other ranges"),
        *("declared", "recorded as they are", "recorded, narrower", "a constant"),
        *("a constant of the simulator's", "constants only"),
        *("another recorder's", "chosen recorded", "chosen scaled", "chosen scaled, with bounds", "chosen beyond"),
    ],
)
def test_what_reaches_the_simulator(data: Any, takes: Any, received: Any, dtype: Any) -> None:
    robot = Robot(box(takes, dtype))
    env = with_policy_actions(robot, data, "robot")
    env.step(np.array([-1, 0.5], np.float32))
    np.testing.assert_allclose(robot.got, received, atol=1e-6)
    assert robot.got.dtype == (dtype if env is not robot else np.float32)
    assert np.all(np.abs([env.action_space.low, env.action_space.high]) == 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "takes", "words"),
    [
        (
            units(bounds=([-180, -180], [180, 180])),
            ONE,
            r"my\.h5 has actions of \[-180, 180\], and robot takes \[-1, 1\]",
        ),
        (units(bounds=([-2, -2], [2, 2.1])), TWO, r"\[-2, 2\], \[-2, 2\.1\], and robot takes \[-2, 2\]"),
        (units(bounds=([-1.5, -1], [1.5, 1])), ([-180.0] * 2, [180.0] * 2), "use less than 5%"),
        (units(bounds=ONE, declared=True), TWO, r"has an action space of \[-1, 1\], and robot takes \[-2, 2\]"),
        (units(recorder="d4rl"), TWO, r"does not say in which units.* reach \[-1, 1\], and robot takes \[-2, 2\]"),
        (units(([-1, 0], [0.2, 0.2]), recorder="robomimic"), HALF, "does not say in which units"),
        (units(HALF), HALF, "set task.env_actions=recorded .* or task.env_actions=scaled"),
    ],
    ids=["degrees", "one dimension", "radians in degrees", "declared", "wider", "outside", "native that look recorded"],
)
def test_other_units_are_refused(data: ActionUnits, takes: Any, words: str) -> None:
    with pytest.raises(GtpVisionError, match=words):
        with_policy_actions(Robot(box(takes)), data, "robot")


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3),
        Box(0, 10, (2,), np.int32),
        Box(-np.inf, np.inf, (2,)),
        Box(np.array([-1, -np.inf]), np.ones(2)),
        Box(-3e38, 3e38, (2,)),
    ],
    ids=["discrete", "integers", "unbounded", "half unbounded", "nominally bounded"],
)
def test_actions_without_real_bounds_are_refused(space: gymnasium.Space) -> None:
    with pytest.raises(GtpVisionError, match="only bounded continuous actions"):
        with_policy_actions(Robot(space), units(), "robot")
