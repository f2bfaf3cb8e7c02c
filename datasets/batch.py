"""The batch that agents take, and the two forms in which its frames may travel to the device.

    Batch     stacked observations: what losses see, on every device, compiled, and mapped over seeds
    Frames    each distinct frame once, with the windows that stack them: less to copy to a GPU
    Rows      row numbers alone, where all frames are on the device

All three are pytrees of tensors, so loaders, CUDA graphs and `torch.func.vmap` take them as they are.
Axes in names: B batch, T frames of a stack, H actions of a chunk, A action dimensions, U distinct frames.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import torch
from torch.utils import _pytree as pytree

from gtp_vision.core.names import GOAL

Tree = TypeVar("Tree")


class _Tensors:
    """A dataclass whose fields are tensors, dictionaries of tensors, or None."""

    def __init_subclass__(cls) -> None:
        def flatten(value: Any) -> tuple[list[Any], list[str]]:
            held = {field.name: getattr(value, field.name) for field in fields(value)}
            held = {name: x for name, x in held.items() if x is not None}
            return list(held.values()), list(held)

        pytree.register_pytree_node(cls, flatten, lambda values, names: cls(**dict(zip(names, values, strict=True))))

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return pytree.tree_map(lambda x: x.to(device), self)


@dataclass(frozen=True)
class Batch(_Tensors):
    """A batch of transitions.

    Attributes:
        observation: name to images uint8 (B, T, C, H, W) or states float32 (B, T, D), oldest frame first; with goals
            also `goal/<name>`, shaped alike. Reward and discount are of this goal.
        next_observation: the same n steps later, with the same goal.
        actions: float32 (B, H, A), the action of each row and of the H - 1 rows that follow it.
        action_mask: bool (B, H), False where the episode had no further action and the last one is repeated.
        reward: float32 (B,), the n-step return sum_k gamma^k r_k up to the terminal or the episode's end.
        discount: float32 (B,), gamma^n times mask: the factor of the next value; 0 after a terminal.
        policy_goal: `goal/<name>` as in `observation`, of the goal that the policy is to reach; None where it is the
            same.
        way_point: the same of a frame on the way to that goal; None without one.
    """

    observation: dict[str, torch.Tensor]
    next_observation: dict[str, torch.Tensor]
    actions: torch.Tensor
    action_mask: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    policy_goal: dict[str, torch.Tensor] | None = None
    way_point: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return int(self.actions.shape[0])

    @property
    def action(self) -> torch.Tensor:
        """float32 (B, A), the action of each row."""
        return self.actions[:, 0]


@dataclass(frozen=True)
class Frames(_Tensors):
    """A batch in which each distinct frame stands once.

    Attributes:
        frames: observation name to (U, ...): images uint8 (U, H, W, C), states (U, D). Names that begin with `goal/`
            hold frames of goals where these differ from the observations'.
        window: int64 (B, T), which frames make each observation, oldest first.
        next_window: int64 (B, T), the same for the observation n steps later.
        actions: as `Batch`.
        action_mask: as `Batch`.
        reward: as `Batch`.
        discount: as `Batch`.
        goal_window: int64 (B, G, T), the frames that each row is to reach, as `Sampler.gather` takes them, T times
            each, as a simulator shows them; None without goals.
    """

    frames: dict[str, torch.Tensor]
    window: torch.Tensor
    next_window: torch.Tensor
    actions: torch.Tensor
    action_mask: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    goal_window: torch.Tensor | None = None

    def batch(self, take: Any = torch.index_select) -> Batch:
        """The stacked batch, by tensor operations on the frames' device; a host may have a faster `take`."""
        frames = {name: x for name, x in self.frames.items() if not name.startswith(GOAL)}
        goal, *further = [{}]
        if self.goal_window is not None:
            goals = {GOAL + name: self.frames.get(GOAL + name, x) for name, x in frames.items()}
            goal, *further = [_stacked(goals, window, take) for window in self.goal_window.unbind(1)]
        return Batch(
            _stacked(frames, self.window, take) | goal,
            _stacked(frames, self.next_window, take) | goal,
            self.actions,
            self.action_mask,
            self.reward,
            self.discount,
            *further,
        )


@dataclass(frozen=True)
class Rows(_Tensors):
    """The rows (B,) of a batch, and those that they are to reach, (B,) or (B, G), where the device has all frames."""

    rows: torch.Tensor
    goal_rows: torch.Tensor | None = None


def channels_first(images: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, C) to (B, T, C, H, W), as a view."""
    return images.permute(0, 1, 4, 2, 3)


def _stacked(frames: dict[str, torch.Tensor], window: torch.Tensor, take: Any) -> dict[str, torch.Tensor]:
    index = window.flatten()
    stacked = {name: take(x, 0, index).unflatten(0, window.shape) for name, x in frames.items()}
    stacked = {name: x.float() if x.dtype == torch.float16 else x for name, x in stacked.items()}
    return {name: channels_first(x) if x.ndim == 5 else x for name, x in stacked.items()}
