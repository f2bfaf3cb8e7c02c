import numpy as np
import pytest

from gtp_vision.bench.doubt import other_camera, table
from gtp_vision.envs import EnvSpec, close

LIFT = {"agentview_image": (84, 84, 3), "object": (10,)}


def test_another_camera_takes_the_place_of_the_first() -> None:
    other = other_camera(EnvSpec("robosuite/Lift", env_args={"env_name": "Lift"}, shown=LIFT))
    assert other is not None
    assert list((other.shown or {}).items()) == [("frontview_image", (84, 84, 3)), ("object", (10,))]
    assert other_camera(EnvSpec("robosuite/Lift", env_args={"env_name": "Lift"}, shown={"object": (10,)})) is None
    assert other_camera(EnvSpec("Hopper-v4")) is None


@pytest.mark.simulates
def test_ogbench_renders_from_another_camera() -> None:
    spec = EnvSpec("visual-puzzle-3x3-play-singletask-task1-v0", shown={"camera": (64, 64, 3)})
    other = other_camera(spec)
    assert other is not None
    env = other.make()
    try:
        seen, own = env.reset(seed=7)[0], env.unwrapped.render()  # type: ignore[attr-defined]
    finally:
        close(env)
    assert seen.shape == own.shape == (64, 64, 3)
    assert np.abs(seen.astype(int) - own).mean() > 10


def test_the_table_says_what_doubt_tells_and_costs_in_success() -> None:
    areas = {"doubt": 0.97, "camera front": 0.98, "map": 0.6}
    held_out = {"frames": 443, "thresholds": {"camera front": 1.5, "map": 0.4}, "auroc": {"occlusion": areas}}
    results = {"run": "run", "episodes": 100, "reaction": "hold", "after": 3, "held_out": held_out, "beyond": 0.02}
    text = table(results | {"other_camera": None, "reacting": 2, "success": 0.9, "success_reacting": 0.89})
    assert [line.split()[-1] for line in text.splitlines()[1:5]] == ["occlusion", "0.970", "0.980", "0.600"]
    assert "success 90.0%; with 'hold' after 3 doubtful answers 89.0% (2 episodes have a reaction)" in text
    assert "another camera" not in text
