"""Rotations as numbers of several kinds, and as matrices: on tensors, so that graphs and compiled steps hold them.

Kornia converts. Axes are those of SciPy: Euler angles turn about the fixed axes x, y, z in this order (`"xyz"`), in
radians; a matrix is row by row; 6-D is its first two rows (Zhou et al., CVPR 2019; UMI, diffusion_policy).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.geometry import conversions
from torch.nn.functional import normalize


def to_6d(matrix: torch.Tensor) -> torch.Tensor:
    """Matrices (..., 3, 3) to their first two rows, (..., 6)."""
    return matrix[..., :2, :].flatten(-2)


def from_6d(numbers: torch.Tensor) -> torch.Tensor:
    """The rotations (..., 3, 3) closest to two rows (..., 6), by Gram and Schmidt."""
    first, second = numbers[..., :3], numbers[..., 3:]
    first = normalize(first, dim=-1)
    second = normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -2)


def _from_euler(angles: torch.Tensor) -> torch.Tensor:
    return conversions.quaternion_to_rotation_matrix(
        torch.stack(conversions.quaternion_from_euler(*angles.unbind(-1)), -1)
    )


def _to_euler(matrix: torch.Tensor) -> torch.Tensor:
    """Angles by arc tangents, which near +-90 degrees of pitch are exact where Kornia's arc sine is not."""
    flat = torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    is_locked = flat < 1e-6  # roll and yaw turn about the same axis
    roll = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2]).masked_fill(is_locked, 0)
    locked_yaw = torch.atan2(-matrix[..., 0, 1], matrix[..., 1, 1])
    yaw = torch.where(is_locked, locked_yaw, torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    return torch.stack([roll, torch.atan2(-matrix[..., 2, 0], flat), yaw], -1)


Convert = Callable[[torch.Tensor], torch.Tensor]
KINDS: dict[str, tuple[int, Convert, Convert]] = {
    "quaternion_wxyz": (4, conversions.quaternion_to_rotation_matrix, conversions.rotation_matrix_to_quaternion),
    "quaternion_xyzw": (
        4,
        lambda q: conversions.quaternion_to_rotation_matrix(q.roll(1, -1)),
        lambda m: conversions.rotation_matrix_to_quaternion(m).roll(-1, -1),
    ),
    "axis_angle": (3, conversions.axis_angle_to_rotation_matrix, conversions.rotation_matrix_to_axis_angle),
    "euler_xyz": (3, _from_euler, _to_euler),
    "matrix": (9, lambda numbers: numbers.unflatten(-1, (3, 3)), lambda matrix: matrix.flatten(-2)),
    "6d": (6, from_6d, to_6d),
}
"""Width of each kind, and the functions to matrices (..., 3, 3) and back."""
