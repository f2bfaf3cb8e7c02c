"""A policy with the interface of LeRobot's `PreTrainedPolicy` (v0.4), for its robots and its `predict_action`.

    policy = LeRobotPolicy(gtp_vision.load_policy("policy"))  # or LeRobotPolicy("ws://localhost:8000")
    action = predict_action(observation, policy, torch.device("cpu"), identity, identity, use_amp=False)

Preprocessor and postprocessor are `identity = lambda x: x`: the artifact takes observations and answers actions in the
robot's units, and scales them itself. LeRobot itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.serving.answer import PLAN
from gtp_vision.serving.client import Client
from gtp_vision.serving.policy import Policy, Session

_OBSERVATION, _IMAGES, _STATE = "observation.", "observation.images.", "observation.state"


class LeRobotPolicy:
    """Acts for robots whose observations are LeRobot's: `observation.images.NAME`, `observation.state`, ...

    Frames are (B, C, H, W), float32 in [0, 1] or uint8. `observation.NAME` is the policy's state NAME; those that are
    missing are in `observation.state`, one after another in the order of the schema. `task`, a text or one for each
    row, is the instruction of a policy that takes one. Other items are left out.

    Args:
        source: a loaded policy, or the address of a server, which acts for a batch of one.
        steps: K; None is the policy's. A server has its own.
        seed: of the noise.
        options: of `Client`.
    """

    name = "gtp-vision"

    def __init__(self, source: Policy | str, *, steps: int | None = None, seed: int = 0, **options: Any) -> None:
        self._policy = source if isinstance(source, Policy) else None
        self._steps, self._seed = steps, seed
        self._client: Client | None = None
        if isinstance(source, Policy):
            self._cameras, self._states = source.schema.cameras, dict(source.schema.states)
            self._is_instructed = source.schema.table is not None
        else:
            self._client = Client(source, **options)
            self._cameras, self._states = self._client.metadata["cameras"], dict(self._client.metadata["states"])
            self._is_instructed = self._client.metadata.get("instructions") is not None
        if self._is_instructed:
            del self._states[INSTRUCTION]
        self._sessions: list[Session] = []
        self._rest: list[np.ndarray] = []  # actions of the server's last plan that are still to be executed
        self._executed = 0  # of that plan
        if self._client is not None:
            self._client.reset(seed)

    def reset(self) -> None:
        """Start an episode."""
        self._rest, self._executed = [], 0
        for session in self._sessions:
            session.reset()
        if self._client is not None:
            self._client.reset()

    def close(self) -> None:
        """Close the connection to a server."""
        if self._client is not None:
            self._client.close()

    def eval(self) -> LeRobotPolicy:
        """The policy itself, as of a module."""
        return self

    def to(self, device: Any) -> LeRobotPolicy:
        """The policy itself: it computes where it was loaded, and takes and answers tensors of any device."""
        return self

    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next action, float32 (B, A), in the robot's units; plans are executed as the policy is configured.

        A server's plans are executed to their end. Raises GtpVisionError: an observation that does not fit.
        """
        observations, device = self._observations(batch)
        if self._client is None:
            return self._acted(Session.act, observations, device)
        if not self._rest:
            executed = self._executed if self._client.metadata["answer"] == PLAN else None
            self._rest = list(self._client.infer(observations[0], executed=executed)["actions"])
            self._executed = len(self._rest)
        return torch.from_numpy(self._rest.pop(0)[None]).to(device)

    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """The next plan, float32 (B, H, A); an episode is acted by this or by `select_action`, not by both."""
        observations, device = self._observations(batch)
        if self._client is None:
            return self._acted(Session.plan, observations, device)
        return torch.from_numpy(self._client.infer(observations[0])["actions"][None]).to(device)

    def _acted(
        self, act: Callable[..., np.ndarray], observations: Sequence[dict[str, Any]], device: torch.device
    ) -> Tensor:
        """What a session of each row answers; their seeds count on from the first one's."""
        if self._policy is not None and len(self._sessions) != len(observations):
            self._sessions = [self._policy.session(self._seed + row) for row in range(len(observations))]
        pairs = zip(self._sessions, observations, strict=True)
        return torch.from_numpy(np.stack([act(session, seen, steps=self._steps) for session, seen in pairs])).to(device)

    def _observations(self, batch: Mapping[str, Any]) -> tuple[list[dict[str, Any]], torch.device]:
        """The observation of each row of a batch in the policy's names."""
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        found = {name: self._of(tensors, name, f"{_IMAGES}{name}") for name in self._cameras}
        found = {name: _frames(values) for name, values in found.items()}
        own = [name for name in self._states if f"{_OBSERVATION}{name}" in tensors]
        found |= {name: tensors[f"{_OBSERVATION}{name}"] for name in own}
        if len(own) < len(self._states):
            names = [name for name in self._states if name not in own]
            widths = [self._states[name] for name in names]
            joined = self._of(tensors, " + ".join(names), _STATE)
            if joined.shape[-1] != sum(widths):
                raise GtpVisionError(
                    f"'{_STATE}' has {joined.shape[-1]} numbers, and the policy's states {', '.join(names)} have "
                    f"{sum(widths)}; send them as observation.NAME, or join them in this order"
                )
            found |= dict(zip(names, joined.split(widths, -1), strict=True))
        rows = {len(values) for values in found.values()}
        if len(rows) > 1 or (self._client is not None and rows != {1}):
            raise GtpVisionError(
                f"the batch has observations of {sorted(rows)} rows; give one row of each to a server, and as many of "
                f"each to a policy"
            )
        arrays = {name: values.cpu().numpy() for name, values in found.items()}
        observations: list[dict[str, Any]]
        observations = [{name: values[row] for name, values in arrays.items()} for row in range(rows.pop())]
        if self._is_instructed and "task" in batch:
            task = batch["task"]
            texts = [task] * len(observations) if isinstance(task, str) else list(task)
            for observation, text in zip(observations, texts, strict=True):
                observation[INSTRUCTION] = text
        return observations, next(iter(found.values())).device

    def _of(self, tensors: Mapping[str, Tensor], name: str, key: str) -> Tensor:
        if key not in tensors:
            raise GtpVisionError(
                f"'{key}', the policy's {name}, is missing from the batch, which holds {', '.join(tensors)}; rename "
                f"the robot's cameras and states"
            )
        return tensors[key]


def _frames(values: Tensor) -> Tensor:
    """Frames (B, C, H, W), float in [0, 1] or uint8, as uint8 (B, H, W, C)."""
    if values.dtype != torch.uint8:
        values = (values * 255).round().clamp(0, 255).to(torch.uint8)
    return values.movedim(-3, -1)
