"""Actions as the policy sees them: rotations as 6-D, poses relative to the state; and back, as the file has them.

    data     actions in [-1, 1] of the file's bounds  ->  file's units  ->  relative, 6-D  ->  [-1, 1]: losses, critic
    acting   the policy's [-1, 1]  ->  relative, 6-D  ->  file's units  ->  [-1, 1] of the file's bounds

All of it is inside the agent, so that evaluations, artifacts and graphs act in the file's units without knowing of it.
The state is the newest frame of an observation: all actions of a chunk are relative to where it was planned, as UMI's
(Chi et al., RSS 2024), or with `chain` to the action before. In the frame `wrist` the action T of the base B is
inverse(B) T, for positions that stand right before their rotation; in `world` the positions are subtracted, and the
rotation is R inverse(R_B). Axes in names: B batch, H actions of a chunk, A the file's columns, P the policy's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gtp_vision.agents.settings import RepresentationConfig
from gtp_vision.core.errors import GtpVisionError, propose

_ROTATION = re.compile(r"(\d+):(\d+)=(\w+)")
_RELATIVE = re.compile(r"(\d+):(\d+)=([^\[\s]+)(?:\[(\d+):(\d+)\])?(?: (\w+))?")
_KEY = "agent.representation"
_UNIT = 1e-2  # by which rotations may differ from unit ones: recorders round
Values = list[torch.Tensor]
"""Of each part: vectors (B, H, K) or matrices (B, H, 3, 3)."""


@dataclass(frozen=True)
class _Part:
    """Columns `start` to `stop - 1` of actions: a rotation of a kind, or numbers; and the state that they begin at."""

    start: int
    stop: int
    kind: str | None = None
    state: str | None = None
    columns: slice | None = None
    state_kind: str | None = None

    @property
    def width(self) -> int:
        """Of the policy's columns."""
        return self.stop - self.start if self.kind is None else 6


class Representation(nn.Module):
    """The conversion between a file's actions and a policy's.

    Args:
        config: which columns.
        actions: A, the file's columns.
        shapes: observation name to the shape of one stacked observation.

    Raises:
        GtpVisionError: columns or states that do not exist, overlap, or do not fit each other.

    Attributes:
        width: P, the policy's columns.
        file_low, file_high: (A,), what -1 and 1 of the file's actions are; saved with the weights.
        low, high: (P,), what -1 and 1 of the policy's are.
    """

    file_low: torch.Tensor
    file_high: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, config: RepresentationConfig, actions: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.config = config
        self._widths = {name: shape[-1] for name, shape in shapes.items() if len(shape) == 2}
        self._parts = _parts(config, actions, self._widths)
        self.width = sum(part.width for part in self._parts)
        for name, width in (("file_low", actions), ("file_high", actions), ("low", self.width), ("high", self.width)):
            self.register_buffer(name, torch.full((width,), -1.0 if name.endswith("low") else 1.0))

    @property
    def states(self) -> list[str]:
        """Names of the states that actions are relative to."""
        return list(dict.fromkeys(part.state for part in self._parts if part.state is not None))

    def encode(self, actions: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Actions (B, H, A) of the file, in [-1, 1], to the policy's (B, H, P), in [-1, 1]."""
        return _to_unit(self.relative(self.in_file_units(actions), observation), self.low, self.high)

    def decode(self, plan: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The policy's actions (B, H, P), in [-1, 1], to the file's (B, H, A), in [-1, 1]."""
        actions = self.absolute(_from_unit(plan, self.low, self.high), observation)
        return _to_unit(actions, self.file_low, self.file_high)

    def relative(self, actions: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Actions (B, H, A) in the file's units to the policy's columns (B, H, P), not scaled."""
        from gtp_vision.core import rotations  # kornia, a slow import that few runs need

        own = [_read(part.kind, actions[..., part.start : part.stop]) for part in self._parts]
        bases = self._bases(observation)
        if self.config.chain:
            bases = [None if b is None else torch.cat([b, x[:, :-1]], 1) for b, x in zip(bases, own, strict=True)]
        columns = []
        for index, part in enumerate(self._parts):
            value, base = own[index], bases[index]
            frame = self._frame(index, bases)
            if base is not None and part.kind is None:
                value = value - base if frame is None else _turned(frame.mT, value - base)
            elif base is not None:
                value = base.mT @ value if self.config.frame == "wrist" else value @ base.mT
            columns.append(value if part.kind is None else rotations.to_6d(value))
        return torch.cat(columns, -1)

    def absolute(self, numbers: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The inverse of `relative`: (B, H, P) to (B, H, A)."""
        from gtp_vision.core import rotations

        pieces = numbers.split([part.width for part in self._parts], -1)
        values = [x if part.kind is None else rotations.from_6d(x) for part, x in zip(self._parts, pieces, strict=True)]
        bases = self._bases(observation)
        if self.config.chain:
            steps = []
            for step in range(numbers.shape[1]):
                made = self._composed([value[:, step : step + 1] for value in values], bases)
                bases = [None if base is None else x for base, x in zip(bases, made, strict=True)]
                steps.append(made)
            values = [torch.cat(of_part, 1) for of_part in zip(*steps, strict=True)]
        else:
            values = self._composed(values, bases)
        return torch.cat([_written(part.kind, x) for part, x in zip(self._parts, values, strict=True)], -1)

    def check_unit(self, actions: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> None:
        """Raise a GtpVisionError if rotations of actions (B, H, A) in [-1, 1], or of states, are none."""
        actions = self.in_file_units(actions)
        for part in self._parts:
            where = f"columns {part.start}:{part.stop} of actions"
            _check_rotation(part.kind, actions[..., part.start : part.stop], where)
            if part.state is not None:
                _check_rotation(part.state_kind, self._state(part, observation), f"the state '{part.state}'")

    def in_file_units(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (..., A) in [-1, 1] in the units of the file."""
        return _from_unit(actions, self.file_low, self.file_high)

    def _state(self, part: _Part, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The newest frame of a part's state, (B, 1, K); stacks may be (B, T, D) or (B, 1, T D)."""
        assert part.state is not None
        assert part.columns is not None
        state = observation[part.state].float()
        return state.reshape(len(state), -1, self._widths[part.state])[:, -1:, part.columns]

    def _bases(self, observation: Mapping[str, torch.Tensor]) -> list[torch.Tensor | None]:
        return [
            None if part.state is None else _read(part.state_kind, self._state(part, observation))
            for part in self._parts
        ]

    def _frame(self, index: int, bases: list[torch.Tensor | None]) -> torch.Tensor | None:
        """The matrices whose axes a relative position has: the base of the rotation right behind it, in `wrist`."""
        part, following = self._parts[index], self._parts[index + 1 : index + 2]
        is_position = part.kind is None and part.stop - part.start == 3 and self.config.frame == "wrist"
        return bases[index + 1] if is_position and following and following[0].kind is not None else None

    def _composed(self, values: Values, bases: list[torch.Tensor | None]) -> Values:
        """What relative values stand for."""
        made = []
        for index, (part, value, base) in enumerate(zip(self._parts, values, bases, strict=True)):
            frame = self._frame(index, bases)
            if base is not None and part.kind is None:
                value = base + (value if frame is None else _turned(frame, value))
            elif base is not None:
                value = base @ value if self.config.frame == "wrist" else value @ base
            made.append(value)
        return made


def reaches(config: RepresentationConfig) -> dict[tuple[int, int], float]:
    """The largest number that each rotation's columns (start, stop) may hold: pi for angles, else 1."""
    found = [match for match in map(_ROTATION.fullmatch, config.rotations) if match]
    return {(int(m[1]), int(m[2])): math.pi if m[3] in ("axis_angle", "euler_xyz") else 1.0 for m in found}


def _read(kind: str | None, numbers: torch.Tensor) -> torch.Tensor:
    if kind is None:
        return numbers
    from gtp_vision.core import rotations

    return rotations.KINDS[kind][1](numbers)


def _written(kind: str | None, value: torch.Tensor) -> torch.Tensor:
    if kind is None:
        return value
    from gtp_vision.core import rotations

    return rotations.KINDS[kind][2](value)


def _to_unit(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Numbers to [-1, 1], which low and high become; 0 where these are one."""
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return torch.where(high > low, 2 * (values - low) / span - 1, torch.zeros_like(values)).clamp(-1, 1)


def _from_unit(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The inverse of `_to_unit`."""
    return low + (values + 1) / 2 * (high - low)


def _turned(matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return (matrix @ vectors[..., None])[..., 0]


def _check_rotation(kind: str | None, numbers: torch.Tensor, where: str) -> None:
    if kind is None or not (kind.startswith("quaternion") or kind == "matrix"):
        return
    if kind == "matrix":
        matrix = numbers.unflatten(-1, (3, 3))
        error = (matrix @ matrix.mT - torch.eye(3, device=matrix.device)).abs().amax((-2, -1))
        error = torch.maximum(error, (torch.linalg.det(matrix) - 1).abs())
    else:
        error = (numbers.norm(dim=-1) - 1).abs()
    if bool((error > _UNIT).any()):
        raise GtpVisionError(
            f"{where} are not rotations of the kind {kind} (off by {float(error.max()):.3g}); name the right columns "
            f"and kind in {_KEY}"
        )


def _parts(config: RepresentationConfig, actions: int, states: Mapping[str, int]) -> list[_Part]:
    """All columns of actions in order, as the settings divide them."""
    kinds: dict[tuple[int, int], str] = {}
    for text in config.rotations:
        found = _ROTATION.fullmatch(text)
        if found is None:
            raise GtpVisionError(f"{_KEY}.rotations: {text!r} is not FIRST:STOP=KIND, e.g. 3:7=quaternion_xyzw")
        columns = (int(found[1]), int(found[2]))
        kinds[columns] = _kind(found[3], columns[1] - columns[0], text, "rotations")
    bases: dict[tuple[int, int], _Part] = {}
    for text in config.relative:
        found = _RELATIVE.fullmatch(text)
        if found is None:
            raise GtpVisionError(
                f"{_KEY}.relative: {text!r} is not FIRST:STOP=STATE, e.g. 0:3=eef_pos or 0:7=qpos[0:7]"
            )
        columns, state = (int(found[1]), int(found[2])), found[3]
        if state not in states:
            raise GtpVisionError(f"{_KEY}.relative: there is no state '{state}': {propose(state, states)}")
        chosen = slice(int(found[4] or 0), int(found[5] or states[state]))
        kind, width = kinds.get(columns), chosen.stop - chosen.start
        state_kind = None if kind is None else _kind(found[6] or kind, width, text, "relative")
        if chosen.stop > states[state] or (kind is None and (width != columns[1] - columns[0] or found[6])):
            raise GtpVisionError(
                f"{_KEY}.relative: {text!r} does not fit: the state has {states[state]} columns, of which as many are "
                f"needed as of actions; a rotation is also named in {_KEY}.rotations"
            )
        bases[columns] = _Part(*columns, kind, state, chosen, state_kind)
    named = {columns: bases.get(columns, _Part(*columns, kind)) for columns, kind in kinds.items()} | bases
    parts, at = [], 0
    for start, stop in sorted(named):
        if not at <= start < stop <= actions:
            raise GtpVisionError(
                f"{_KEY}: the columns {start}:{stop} overlap others, or are not among the {actions} of actions"
            )
        parts += [_Part(at, start)] * (at < start) + [named[start, stop]]
        at = stop
    return parts + [_Part(at, actions)] * (at < actions)


def _kind(name: str, width: int, text: str, key: str) -> str:
    from gtp_vision.core import rotations

    if name not in rotations.KINDS:
        raise GtpVisionError(f"{_KEY}.{key}: '{name}' is not a kind of rotation: {propose(name, rotations.KINDS)}")
    if rotations.KINDS[name][0] != width:
        raise GtpVisionError(f"{_KEY}.{key}: {text!r} has {width} columns, and {name} has {rotations.KINDS[name][0]}")
    return name
