"""Names, shapes and units of a policy's observations and actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.framing import FRAMES, Framing
from gtp_vision.core.names import GOAL, INSTRUCTION
from gtp_vision.core.units import in_units
from gtp_vision.datasets.instructions import TABLE, Instructions
from gtp_vision.serving.limits import Limits

_MAX_SIDE = 8192  # pixels
_MAX_WIDTH = 100_000  # numbers of a state, of an action
_MAX_LENGTH = 1000  # frames of a stack, actions of a chunk, jumps, candidates
NO_INSTRUCTIONS = "'{name}' is an instruction, and this policy was trained without any; leave it out"


@dataclass(frozen=True)
class Schema:
    """Observations and actions of a policy.

    Attributes:
        cameras: name to (H, W, C) of its uint8 frames. Names of goals begin with `goal/`.
        states: name to the width of its float vectors.
        frame_stack: frames that the policy sees at once; a session stacks them, an observation holds the newest one.
        action_low: of each action dimension, in the robot's units.
        action_high: likewise.
        chunk: H, actions that are planned at once.
        steps: K, the default number of steps of the sampler.
        candidates: actions of which the critic chooses one.
        agent: label, e.g. `gtp`.
        task: name of the task.
        frames: how the data's frames were cropped and resized; frames of the recorded size are made alike. The record
            of a `Framing`, or None.
        limits: of the actions as they are executed, within the bounds; None has none but these.
        instructions: record of the `Instructions` that the policy knows, whose vectors are its state `instruction`, or
            None.
    """

    cameras: Mapping[str, tuple[int, int, int]]
    states: Mapping[str, int]
    frame_stack: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    chunk: int
    steps: int
    candidates: int
    agent: str
    task: str
    frames: Mapping[str, Any] | None = None
    limits: Limits | None = None
    instructions: Mapping[str, Any] | None = None

    @property
    def actions(self) -> int:
        """Number A of action dimensions."""
        return len(self.action_low)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Observation name to the shape of one stacked observation, as agents are built: (T, C, H, W) or (T, D)."""
        frames = self.frame_stack
        images = {name: (frames, c, h, w) for name, (h, w, c) in self.cameras.items()}
        return {**images, **{name: (frames, width) for name, width in self.states.items()}}

    def record(self) -> dict[str, Any]:
        """As JSON-able values, in the order of observations."""
        return asdict(self)

    @staticmethod
    def of(stored: Any) -> Schema:
        """The schema of untrusted JSON.

        Raises:
            GtpVisionError: missing or invalid values, or numbers above the limits of this module.
        """
        try:
            schema = Schema(
                cameras={str(name): _frame_shape(shape) for name, shape in stored["cameras"].items()},
                states={str(name): _count(width, _MAX_WIDTH) for name, width in stored["states"].items()},
                frame_stack=_count(stored["frame_stack"], _MAX_LENGTH),
                action_low=tuple(float(x) for x in stored["action_low"]),
                action_high=tuple(float(x) for x in stored["action_high"]),
                chunk=_count(stored["chunk"], _MAX_LENGTH),
                steps=_count(stored["steps"], _MAX_LENGTH),
                candidates=_count(stored["candidates"], _MAX_LENGTH),
                agent=str(stored["agent"]),
                task=str(stored["task"]),
                frames=None if (framing := Framing.of(stored.get(FRAMES))) is None else framing.record(),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GtpVisionError(f"its schema is invalid ({type(error).__name__}: {error})") from error
        pairs = list(zip(schema.action_low, schema.action_high, strict=False))
        fits = len(schema.action_low) == len(schema.action_high) and 0 < schema.actions <= _MAX_WIDTH
        if not fits or not all(-math.inf < low <= high < math.inf for low, high in pairs):
            raise GtpVisionError("its schema has invalid action bounds")
        if not schema.cameras and not schema.states:
            raise GtpVisionError("its schema has neither cameras nor states")
        table = Instructions.of(stored.get(TABLE))
        if table is not None:
            schema = replace(schema, instructions=table.record())
            if schema.states.get(INSTRUCTION) != table.vectors.shape[1]:
                raise GtpVisionError(f"its state '{INSTRUCTION}' is not as wide as its instructions' vectors")
        if (limits := stored.get("limits")) is not None:
            schema = replace(schema, limits=Limits.of(limits, (schema.action_low, schema.action_high)))
        return schema

    @cached_property
    def table(self) -> Instructions | None:
        """The instructions that the policy knows; None of a policy that takes none."""
        return Instructions.of(self.instructions)

    @cached_property
    def framing(self) -> Framing | None:
        """How frames of the recorded size are cropped and resized."""
        return Framing.of(self.frames)

    @cached_property
    def recorded(self) -> dict[str, tuple[int, int, int]]:
        """Camera to (H, W, C) of the frames that were recorded, where `check` crops or resizes them."""
        found = {} if self.framing is None else self.framing.recorded
        return {name: found[own] for name in self.cameras if (own := name.removeprefix(GOAL)) in found}

    def check(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One observation as arrays: frames uint8 (H, W, C), states float32 (D,).

        An instruction may be a text.

        Raises:
            GtpVisionError: something is missing, unknown, of another type or shape, or not finite.
        """
        if not isinstance(observation, Mapping):
            raise GtpVisionError(f"the observation is a {type(observation).__name__}; give a dictionary of arrays")
        known = [*self.cameras, *self.states]
        for name in observation:
            if name not in known:
                if name == INSTRUCTION:
                    raise GtpVisionError(NO_INSTRUCTIONS.format(name=name))
                raise GtpVisionError(f"the observation holds an unknown name '{name}': {propose(str(name), known)}")
        arrays = {}
        for name in known:
            if name not in observation:
                if name == INSTRUCTION and self.table is not None:
                    raise GtpVisionError(needed(self.table))
                raise GtpVisionError(f"the observation lacks '{name}'; the policy needs {', '.join(known)}")
            value, is_camera = observation[name], name in self.cameras
            if isinstance(value, str) and name == INSTRUCTION and self.table is not None:
                value = self.table.vector(value)
            array = np.asarray(value)
            if is_camera and array.dtype != np.uint8:
                raise GtpVisionError(f"'{name}' is {array.dtype}; give raw frames, uint8 from 0 to 255")
            if not is_camera and array.dtype.kind not in "fiu":
                raise GtpVisionError(f"'{name}' is {array.dtype}; give numbers, float32")
            shape = self.cameras[name] if is_camera else (self.states[name],)
            if self.framing is not None and array.shape == self.recorded.get(name):
                array = self.framing(name.removeprefix(GOAL), array)
            if array.shape != shape:
                axes = " (height, width, channels)" if is_camera else ""
                raise GtpVisionError(f"'{name}' has shape {array.shape}; the policy was trained on {shape}{axes}")
            if not is_camera:
                array = array.astype(np.float32)
                if not np.isfinite(array).all():
                    raise GtpVisionError(f"'{name}' holds a number that is not finite; check the sensor")
            arrays[name] = array
        return arrays

    def in_units(self, actions: np.ndarray) -> np.ndarray:
        """Scale actions (..., A) from [-1, 1] to the robot's units, within its bounds: float32."""
        return in_units(actions, self.action_low, self.action_high).astype(np.float32)


def _frame_shape(shape: Any) -> tuple[int, int, int]:
    height, width, channels = (_count(x, _MAX_SIDE) for x in shape)
    return height, width, channels


def _count(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"{value!r} is not an integer from 1 to {most}")
    return value


def needed(table: Instructions) -> str:
    """What is said of an observation without an instruction, to a policy that needs one."""
    texts = ", ".join(f"'{text}'" for text in table.texts[:12]) + (", ..." if len(table.texts) > 12 else "")
    return f"the observation lacks '{INSTRUCTION}', what is to be done; give one of {texts}"
