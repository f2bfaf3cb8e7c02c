"""Actions as the policy sees them: rotations against SciPy's, relative poses against their formulas, and back."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gtp_vision.agents.representation import Representation, reaches
from gtp_vision.agents.settings import RepresentationConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.rotations import KINDS, from_6d, to_6d

ROWS, H = 200, 4
SCIPY: dict[str, Any] = {
    "quaternion_wxyz": lambda r: r.as_quat(scalar_first=True),
    "quaternion_xyzw": lambda r: r.as_quat(),
    "axis_angle": lambda r: r.as_rotvec(),
    "euler_xyz": lambda r: r.as_euler("xyz"),
    "matrix": lambda r: r.as_matrix().reshape(-1, 9),
    "6d": lambda r: r.as_matrix()[:, :2].reshape(-1, 6),
}


def rotations(count: int, seed: int) -> Rotation:
    return Rotation.random(count, random_state=seed)


def tensor(values: np.ndarray, *shape: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(*shape, values.shape[-1])


@pytest.mark.filterwarnings("ignore:Gimbal lock")
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_are_those_of_scipy(kind: str) -> None:
    turns = [[0, 0, 0], [np.pi, 0, 0], [0, np.pi / 2, 0], [0, -np.pi / 2, 0], [0, 0, -np.pi], [1e-5, 0, 0]]
    given = Rotation.concatenate([rotations(4994, 0), Rotation.from_rotvec(turns)])
    _, to_matrix, from_matrix = KINDS[kind]
    numbers = tensor(SCIPY[kind](given), 5000)
    np.testing.assert_allclose(to_matrix(numbers), given.as_matrix(), atol=2e-6)
    back = to_matrix(from_matrix(tensor(given.as_matrix().reshape(-1, 9), 5000).unflatten(-1, (3, 3))))
    np.testing.assert_allclose(back, given.as_matrix(), atol=1e-5)
    np.testing.assert_allclose(from_6d(3 * to_6d(back)), back, atol=1e-5)


def poses(kind: str, seed: int, rows: int) -> np.ndarray:
    """Positions and rotations of two arms, each with a gripper between them."""
    random = np.random.default_rng(seed)
    arms = [
        np.concatenate([random.normal(size=(rows, 3)), SCIPY[kind](rotations(rows, seed + arm))], 1) for arm in (0, 1)
    ]
    return np.concatenate([arms[0], random.uniform(size=(rows, 1)), arms[1]], 1)


def two_arms(kind: str, **more: Any) -> tuple[Representation, torch.Tensor, dict[str, torch.Tensor], int]:
    width = 3 + KINDS[kind][0]
    actions = poses(kind, 0, ROWS * H)
    state = np.concatenate([poses(kind, 7, ROWS), np.zeros((ROWS, 1))], 1)
    spans = [(0, 3), (3, width), (width + 1, width + 4), (width + 4, 2 * width + 1)]
    config = RepresentationConfig(
        rotations=[f"{first}:{stop}={kind}" for first, stop in spans[1::2]],
        relative=[f"{first}:{stop}=arms[{first}:{stop}]" for first, stop in spans],
        **more,
    )
    made = Representation(config, 2 * width + 1, {"arms": (2, state.shape[1]), "front": (2, 3, 8, 8)})
    frames = tensor(np.stack([np.random.default_rng(0).normal(size=state.shape), state], 1), ROWS, 2)
    low, high = actions.min(0), actions.max(0)
    for (first, stop), reach in reaches(config).items():
        low[first:stop], high[first:stop] = -reach, reach
    made.file_low.copy_(torch.tensor(low))
    made.file_high.copy_(torch.tensor(high))
    return made, tensor(2 * (actions - low) / (high - low) - 1, ROWS, H), {"arms": frames}, width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("frame", ["world", "wrist"])
def test_random_poses_come_back(kind: str, chain: bool, frame: str) -> None:
    made, actions, observation, _ = two_arms(kind, chain=chain, frame=frame)
    raw = made.in_file_units(actions)
    seen = made.relative(raw, observation)
    made.low.copy_(seen.flatten(0, 1).amin(0))
    made.high.copy_(seen.flatten(0, 1).amax(0))
    plan = made.encode(actions, observation)
    assert plan.shape == (ROWS, H, made.width) == (ROWS, H, 19)
    assert plan.abs().max() <= 1
    back = made.in_file_units(made.decode(plan, observation))
    for first in (3, made.file_low.shape[0] - KINDS[kind][0]):
        columns = slice(first, first + KINDS[kind][0])
        to_matrix = KINDS[kind][1]
        np.testing.assert_allclose(to_matrix(back[..., columns]), to_matrix(raw[..., columns]), atol=1e-5)
        np.testing.assert_allclose(back[..., first - 3 : first], raw[..., first - 3 : first], atol=1e-5)
    flat = made.decode(plan[:3], {"arms": observation["arms"][:3].flatten(1)[:, None]})  # as cached features have it
    np.testing.assert_allclose(flat, made.decode(plan, observation)[:3], atol=1e-6)


def test_relative_poses_are_those_of_umi() -> None:
    """inverse(T_state) T_action of 4x4 matrices, and differences in the robot's axes."""
    made, actions, observation, _ = two_arms("axis_angle", frame="wrist")
    raw, state = made.in_file_units(actions), observation["arms"][:, -1]
    seen = made.relative(raw, observation)

    def matrices(pose: np.ndarray) -> np.ndarray:
        found = np.tile(np.eye(4), (*pose.shape[:-1], 1, 1))
        found[..., :3, 3] = pose[..., :3]
        found[..., :3, :3] = (
            Rotation.from_rotvec(pose[..., 3:].reshape(-1, 3)).as_matrix().reshape(*pose.shape[:-1], 3, 3)
        )
        return found

    for at, place in ((slice(0, 6), slice(0, 9)), (slice(7, 13), slice(10, 19))):
        expected = np.linalg.inv(matrices(state[:, None, at].numpy())) @ matrices(raw[..., at].numpy())
        np.testing.assert_allclose(seen[..., place][..., :3], expected[..., :3, 3], atol=1e-5)
        np.testing.assert_allclose(seen[..., place][..., 3:], expected[..., :2, :3].reshape(ROWS, H, 6), atol=1e-5)
    np.testing.assert_array_equal(seen[..., 9], raw[..., 6])
    steps = two_arms("axis_angle", chain=True)[0].relative(raw, observation)
    np.testing.assert_allclose(steps[:, 1:, :3], (raw[:, 1:] - raw[:, :-1])[..., :3], atol=1e-5)
    np.testing.assert_allclose(steps[:, 0, :3], (raw[:, 0] - state[:, :13])[..., :3], atol=1e-5)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "form": ({"rotations": ["3=axis_angle"]}, "'3=axis_angle' is not FIRST:STOP=KIND"),
    "kind": ({"rotations": ["3:6=axisangle"]}, "'axisangle' is not a kind of rotation: did you mean 'axis_angle'"),
    "width": ({"rotations": ["3:7=axis_angle"]}, "has 4 columns, and axis_angle has 3"),
    "state": ({"relative": ["0:3=eef_poss"]}, "no state 'eef_poss': did you mean 'eef_pos'"),
    "columns of the state": ({"relative": ["0:7=qpos[4:11]"]}, "does not fit: the state has 8 columns"),
    "no rotation": ({"relative": ["3:6=eef_pos axis_angle"]}, "a rotation is also named"),
    "overlap": ({"rotations": ["3:6=axis_angle"], "relative": ["0:4=qpos[0:4]"]}, "the columns 3:6 overlap others"),
    "outside": ({"rotations": ["6:9=axis_angle"]}, "or are not among the 7 of actions"),
}


@pytest.mark.parametrize(("settings", "words"), SETTINGS.values(), ids=SETTINGS)
def test_columns_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(GtpVisionError) as error:
        Representation(RepresentationConfig(**settings), 7, {"eef_pos": (1, 3), "qpos": (1, 8)})
    assert words in str(error.value)


@pytest.mark.parametrize("kind", ["quaternion_wxyz", "matrix"])
def test_rotations_that_are_none_are_refused(kind: str) -> None:
    made, actions, observation, _ = two_arms(kind)
    made.check_unit(actions, observation)
    with pytest.raises(GtpVisionError, match=r"actions are not rotations of the kind .* in agent\.representation"):
        made.check_unit(actions * 0.5, observation)
    with pytest.raises(GtpVisionError, match=r"the state 'arms' are not rotations"):
        made.check_unit(actions, {"arms": 2 * observation["arms"]})
