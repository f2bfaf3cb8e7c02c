import sys
import warnings
from typing import Any

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs import EnvSpec
from gtp_vision.envs.d4rl import NAMES, find
from gtp_vision.envs.scores import REFERENCE

pytestmark = pytest.mark.simulates

# name, numbers of an observation, of an action, time limit
FAMILIES = [
    ("hopper-medium-replay-v2", 11, 3, 1000),
    ("walker2d-medium-expert-v1", 17, 6, 1000),
    ("ant-random-v2", 111, 8, 1000),
    ("antmaze-umaze-diverse-v2", 29, 8, 700),
    ("antmaze-large-diverse-v2", 29, 8, 1000),
    ("pen-human-v1", 45, 24, 100),
    ("hammer-cloned-v0", 46, 26, 200),
    ("door-expert-v1", 39, 28, 200),
    ("relocate-human-v0", 39, 30, 200),
    ("kitchen-partial-v0", 60, 9, 280),
    ("maze2d-umaze-v1", 4, 2, 300),
    ("maze2d-large-v1", 4, 2, 800),
]
RUNNERS = ("hopper-", "halfcheetah-", "walker2d-", "ant-")


def maze_of(name: str) -> tuple[Any, Any]:
    """A maze and its module, which may be imported only after `make` has chosen the OpenGL library."""
    env = EnvSpec(name).make().unwrapped
    return env, sys.modules[type(env).__module__]


def random_actions(env: Any, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


@pytest.mark.parametrize(("name", "observation", "action", "limit"), FAMILIES)
def test_an_episode_is_a_function_of_its_seed(name: str, observation: int, action: int, limit: int) -> None:
    env = EnvSpec(name, max_episode_steps=5).make()
    assert env.observation_space.shape == (observation,)
    assert env.action_space.shape == (action,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    actions = random_actions(env, 5)
    first, _ = env.reset(seed=7)
    steps = [env.step(a) for a in actions]
    assert [step[3] for step in steps] == [False] * 4 + [True]
    assert not np.array_equal(first, env.reset(seed=8)[0])
    env.step(actions[0])
    np.testing.assert_array_equal(first, env.reset(seed=7)[0])
    for before, after in zip(steps, [env.step(a) for a in actions], strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        assert before[1] == after[1]
        assert ("success" in after[4]) == (not name.startswith(RUNNERS))
    env.close()


@pytest.mark.parametrize(("name", "limit"), [(f[0], f[3]) for f in FAMILIES if f[3] <= 300])
def test_an_episode_ends_at_d4rls_horizon(name: str, limit: int) -> None:
    env = EnvSpec(name).make()
    env.reset(seed=0)
    ends = [env.step(np.zeros(env.action_space.shape, np.float32))[2:4] for _ in range(limit)]
    assert [truncated for _, truncated in ends] == [False] * (limit - 1) + [True]
    assert name.startswith("pen") or not any(terminated for terminated, _ in ends), "a pen may fall"


@pytest.mark.parametrize("hand", ["door", "hammer", "relocate"])
def test_random_actions_return_what_d4rl_says_they_do(hand: str) -> None:
    """Its reference for random actions, measured with MuJoCo 2; the sign of the reach would move it by far more."""
    env = EnvSpec(f"{hand}-human-v1").make()
    returns = []
    for seed in range(3):
        env.reset(seed=seed)
        returns.append(sum(float(env.step(action)[1]) for action in random_actions(env, 200)))
    low, high = REFERENCE[hand]
    assert np.mean(returns) == pytest.approx(low, abs=0.002 * (high - low))


def test_the_reach_of_a_hand_costs_what_d4rl_takes_away() -> None:
    """Relocate's whole reward on the table, from the simulator's bodies: -0.1 |palm - ball|."""
    env = EnvSpec("relocate-human-v1").make()
    env.reset(seed=0)
    _, reward, *_ = env.step(np.zeros(30, np.float32))
    simulator: Any = env.unwrapped
    palm, ball = simulator.data.site("S_grasp").xpos, simulator.data.body("Object").xpos
    assert ball[2] < 0.04
    assert reward == pytest.approx(-0.1 * np.linalg.norm(palm - ball))


def test_a_fallen_pen_ends_the_episode() -> None:
    env = EnvSpec("pen-human-v1").make()
    env.reset(seed=0)
    simulator: Any = env.unwrapped
    for drop, fallen in ((0.15, False), (0.2, True)):  # from 0.25 m; 0.075 is fallen
        positions = simulator.init_qpos.copy()
        positions[-6:-4] = [drop, 0.5]  # down, and out of the hand
        simulator.set_state(positions, np.zeros_like(simulator.data.qvel))
        observation, reward, terminated, _, info = env.step(np.zeros(24, np.float32))
        assert observation[26] == pytest.approx(0.25 - drop, abs=0.01)
        assert (terminated, bool(info["success"])) == (fallen, False)
        distance, alike = np.linalg.norm(observation[39:42]), observation[33:36] @ observation[36:39]
        assert reward == pytest.approx(alike - distance - 5 * fallen)


def test_ant_shows_what_its_sets_hold_and_no_contact_forces() -> None:
    env = EnvSpec("ant-medium-v2").make()
    env.reset(seed=0)
    for action in random_actions(env, 30):
        observation, *_ = env.step(action)
    simulator: Any = env.unwrapped
    np.testing.assert_array_equal(observation[:27], [*simulator.data.qpos[2:], *simulator.data.qvel])
    assert (observation[27:] == 0).all()
    assert np.abs(simulator.data.cfrc_ext).max() > 0  # there are contacts, which D4RL's simulator did not report


def test_antmaze_shows_the_position_first_and_pays_1_at_the_goal() -> None:
    env = EnvSpec("antmaze-medium-diverse-v2").make()
    observation, _ = env.reset(seed=3)
    maze: Any = env.unwrapped
    assert np.abs(observation[:2]).max() <= 0.1
    assert observation[2] == pytest.approx(0.75, abs=0.1)  # the torso's height
    for distance, expected in ((0.6, False), (0.4, True)):
        env.reset(seed=3)
        positions = maze.data.qpos.copy()
        positions[:2] = maze.goal + np.array([distance, 0])
        maze.set_state(positions, np.zeros(14))
        observation, reward, *ends, info = env.step(np.zeros(8, np.float32))
        assert np.linalg.norm(observation[:2] - maze.goal) == pytest.approx(distance, abs=0.05)
        assert (reward, *ends, info["success"]) == (float(expected), expected, False, expected)


@pytest.mark.parametrize("name", ["umaze", "medium-play", "large-diverse"])
def test_an_ants_goal_lies_free_in_d4rls_cell_and_moves_between_episodes(name: str) -> None:
    maze, mazes = maze_of(f"antmaze-{name}-v2")
    size = name.split("-")[0]
    row, column = mazes.ANT_GOALS[size]
    assert mazes.WALLS[size][row][column] == " "
    goals = []
    for seed in range(50):
        maze.reset(seed=seed)
        goals.append(maze.goal - np.array([column - 1, row - 1]) * 4.0)
    assert np.min(goals) >= 0
    assert np.max(goals) <= 1.5
    assert np.ptp(goals, axis=0).min() > 0.8


def test_the_ant_is_d4rls() -> None:
    """0.1 s a step, torques of 30 and D4RL's contacts; Gymnasium's ant has 0.05 s and 150."""
    maze, mazes = maze_of("antmaze-umaze-v2")
    assert maze.dt == pytest.approx(0.1)
    assert (maze.model.actuator_gear[:, 0] == 30).all()
    joints = [maze.model.joint(int(number)).name for number in maze.model.actuator_trnid[:, 0]]
    assert joints == [f"{joint}_{leg}" for leg in (4, 1, 2, 3) for joint in ("hip", "ankle")]
    walls = maze.model.geom_type == mazes.mujoco.mjtGeom.mjGEOM_BOX
    assert walls.sum() == sum(row.count("#") for row in mazes.WALLS["umaze"])
    for setting, expected in (("friction", [1, 0.5, 0.5]), ("solimp", [0.8, 0.8, 0.01]), ("margin", [0.01])):
        actual = getattr(maze.model, f"geom_{setting}")[walls].reshape(walls.sum(), -1)[:, :3]
        np.testing.assert_allclose(actual, [expected] * walls.sum())


def test_walls_stop_the_ant() -> None:
    """Thrown at the wall below the start, it stays in the cell; along the free corridor it leaves it."""
    maze, _ = maze_of("antmaze-umaze-v2")
    ends = []
    for direction in ((0, 6), (6, 0)):
        maze.reset(seed=0)
        maze.set_state(maze.data.qpos, np.array([*direction, *[0] * 12], np.float64))
        ends.append([maze.step(np.zeros(8, np.float32))[0][:2] for _ in range(15)][-1])
    assert ends[0][1] < 2.0 < ends[1][0]  # the wall's face


def test_the_ball_counts_rows_and_columns_and_is_paid_at_every_step_at_the_goal() -> None:
    maze, _ = maze_of("maze2d-large-v1")
    maze.reset(seed=0)
    still = np.zeros(2, np.float32)
    for position, reward in (((7, 9), 1.0), ((7.0, 9.25), 1.0), ((7.0, 8.4), 0.0)):
        maze.set_state(np.array(position, np.float64), np.zeros(2))
        for _ in range(2):
            observation, paid, terminated, _, info = maze.step(still)
            assert (paid, terminated, info["success"]) == (reward, False, bool(reward))
        np.testing.assert_allclose(observation, [*position, 0, 0], atol=0.01)
    dense, _ = maze_of("maze2d-umaze-dense-v1")
    dense.reset(seed=0)
    dense.set_state(np.array([3.0, 1.0]), np.zeros(2))
    assert dense.step(still)[1] == pytest.approx(np.exp(-2.0), rel=1e-3)


def test_the_ball_starts_in_every_free_cell_and_in_no_wall() -> None:
    maze, mazes = maze_of("maze2d-medium-v1")
    starts = [maze.reset(seed=seed)[0] for seed in range(300)]
    found = {(round(x), round(y)) for x, y, *_ in starts}
    assert found == {(i, j) for i, row in enumerate(mazes.WALLS["medium"]) for j, cell in enumerate(row) if cell == " "}


def test_the_ball_is_cut_at_speed_5_and_stopped_by_walls() -> None:
    maze, _ = maze_of("maze2d-umaze-v1")
    maze.reset(seed=0)
    maze.set_state(np.array([1.0, 1.0]), np.array([0.0, 50.0]))
    observation, *_ = maze.step(np.zeros(2, np.float32))
    assert observation[1] - 1.0 == pytest.approx(0.05, rel=0.05)  # 0.01 s at 5
    for _ in range(200):
        observation, *_ = maze.step(np.array([0, 1], np.float32))
    # The wall's face at 3.5, the ball's radius 0.1, D4RL's offset 0.2; contacts are a little soft.
    assert observation[1] == pytest.approx(3.5 - 0.1 - 0.2, abs=0.1)


def test_kitchen_shows_the_goals_of_its_tasks_and_pays_for_each_once() -> None:
    env = EnvSpec("kitchen-mixed-v0").make()
    observation, _ = env.reset(seed=0)
    simulator: Any = env.unwrapped
    goal = np.zeros(30)
    goal[[11, 12, 17, 18, 22]] = [-0.88, -0.01, -0.69, -0.05, -0.75]  # bottom burner, light, microwave
    goal[23:30] = [-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06]  # kettle
    np.testing.assert_array_equal(observation[30:], goal)
    np.testing.assert_allclose(observation[:30], simulator.data.qpos, atol=0.0101)  # noise: a tenth of at most 0.1
    assert np.abs(observation[9:30] - simulator.data.qpos[9:]).max() > 0
    total, ends = 0.0, []
    for joints in ([22], [11, 12, 17, 18], list(range(23, 30))):
        positions = simulator.data.qpos.copy()
        positions[joints] = goal[joints]
        simulator.robot_env.set_state(positions, np.zeros_like(simulator.data.qvel))
        _, reward, terminated, _, info = env.step(np.zeros(9, np.float32))
        total += float(reward)
        ends.append((terminated, info["success"]))
    assert total == 4
    assert ends == [(False, False), (False, False), (True, True)]


def test_gymnasiums_own_names_are_taken_and_actions_are_brought_to_one() -> None:
    expected, _ = EnvSpec("hopper-expert-v2").make().reset(seed=1)
    for name in ("Hopper-v4", "gymnasium/Hopper-v4"):
        np.testing.assert_array_equal(EnvSpec(name).make().reset(seed=1)[0], expected)
    pendulum = EnvSpec("Pendulum-v1").make()
    pendulum.reset(seed=0)
    pendulum.step(np.ones(1, np.float32))
    assert pendulum.unwrapped.last_u == pytest.approx(2.0)


def test_making_old_versions_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EnvSpec("hopper-medium-v2").make().reset(seed=0)
        EnvSpec("pen-human-v1").make().reset(seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hoper-medium-v2", "unknown D4RL environment 'hoper-medium-v2': did you mean 'hopper-medium-v2'"),
        ("kitchen-nearly-v0", "unknown D4RL environment 'kitchen-nearly-v0'"),
        ("Hoper-v4", "unknown Gymnasium environment 'Hoper-v4': did you mean 'Hopper-v4'"),
        ("CartPole-v1", r"CartPole-v1 takes Discrete\(2\), and only bounded continuous actions are supported"),
        ("antmaze-umaze-v2", r"antmaze-umaze-v2 has no observation of a goal; set task.goals=null"),
    ],
)
def test_unknown_names_and_goals_are_refused(name: str, problem: str) -> None:
    with pytest.raises(GtpVisionError, match=problem):
        EnvSpec(name, goals=name == "antmaze-umaze-v2").make()


@pytest.mark.parametrize("name", ["kitchen-complete-v0", "maze2d-umaze-v1", "pen-human-v1"])
def test_a_missing_extra_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(GtpVisionError, match=rf"{name} needs gymnasium_robotics, .*pip install 'gtp-vision\[d4rl\]'"):
        EnvSpec(name).make()


def test_names_are_told_from_ogbenchs() -> None:
    names = [f"{body}-{version}" for body, versions in NAMES.items() for version in versions]
    assert {EnvSpec(name).simulator.name for name in names} == {"d4rl"}
    assert find("antmaze-large-play-v2") == "antmaze-large-play"
    assert find("hopper-medium") == "hopper-medium"
    for name in ("antmaze-large-navigate-singletask-v0", "antmaze-medium-explore-v0", "pointmaze-medium-navigate-v0"):
        assert EnvSpec(name).simulator.name == "ogbench"
        assert find(name) is None
