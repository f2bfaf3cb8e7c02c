"""A policy as a robot uses it, in this process or behind a server: an observation in, the action of one step out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from websockets.exceptions import WebSocketException

from gtp_vision.core.errors import GtpVisionError, first_line, reason
from gtp_vision.evaluation.recordings import executed_actions
from gtp_vision.serving.client import Client, ServerError
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema

_SHARED = ("cameras", "states", "action_low", "action_high", "frame_stack")  # of a server's metadata and a schema


class Step(NamedTuple):
    """A step of a robot.

    Attributes:
        action: float32 (A,), what it executes.
        is_answer: whether the action is the first of an answer, of which are `seconds`, `clamps` and `doubt`.
        seconds: until the answer was there.
        clamps: numbers that limits changed, by limit.
        changed: int (A,), the same by dimension; None where that is not known.
        doubt: 1 at its threshold, and its cause; None of a policy that has none.
    """

    action: np.ndarray
    is_answer: bool = False
    seconds: float = 0.0
    clamps: Mapping[str, int] = {}
    changed: np.ndarray | None = None
    doubt: tuple[float, str] | None = None


class Player(Protocol):
    """What answers, and whether it is a server, which is asked at the robot's rate."""

    has_server: bool

    def reset(self) -> None:
        """Start an episode."""

    def __call__(self, observation: Mapping[str, np.ndarray]) -> Step:
        """The next step."""


class Local:
    """A policy in this process, which from now on only tells its doubt; `steps` is K, None the policy's."""

    has_server = False

    def __init__(self, policy: Policy, steps: int | None = None, seed: int = 0) -> None:
        policy.react(replace(policy.on_doubt, reaction="none"))
        self._session, self._steps, self._execute = policy.session(seed), steps, executed_actions(policy.agent)
        self._step = 0

    def reset(self) -> None:
        """Start an episode."""
        self._session.reset()
        self._step = 0

    def __call__(self, observation: Mapping[str, np.ndarray]) -> Step:
        """The next step."""
        session, began = self._session, time.perf_counter()
        action = session.act(observation, steps=self._steps)
        seconds, is_answer = time.perf_counter() - began, self._step % self._execute == 0
        self._step += 1
        changed = None if session.limiter is None else session.limiter.changed
        doubt = None if session.doubt is None else (session.doubt.value, session.doubt.because)
        return Step(action, is_answer, seconds, session.clamps, changed, doubt)


class Remote:
    """A server's client that executes each answer to its end before it asks again."""

    has_server = True

    def __init__(self, client: Client) -> None:
        self._client, self._done = client, 0
        self._plan = np.empty((0, 0), np.float32)

    def reset(self) -> None:
        """Start an episode."""
        self._client.reset()
        self._plan = self._plan[:0]

    def __call__(self, observation: Mapping[str, np.ndarray]) -> Step:
        """The next step."""
        if self._done < len(self._plan):
            self._done += 1
            return Step(self._plan[self._done - 1])
        executed = len(self._plan) if len(self._plan) > 1 else None
        began = time.perf_counter()
        try:
            answer = self._client.infer(observation, executed=executed)
            seconds, self._done = time.perf_counter() - began, 1
            self._plan = np.asarray(answer["actions"], np.float32).reshape(-1, self._client.metadata["actions"])
            clamps = {str(name): int(count) for name, count in answer.get("clamps", {}).items()}
            doubt = (float(answer["doubt"]), str(answer["because"])) if "doubt" in answer else None
            return Step(self._plan[0], True, seconds, clamps, doubt=doubt)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"not an answer of this protocol ({first_line(error)})") from error


@contextmanager
def connected(url: str, schema: Schema, token: str | None = None) -> Iterator[Remote]:
    """A server of an artifact with this schema.

    Raises:
        GtpVisionError: no server there, one of another policy, or one that refuses an observation or is lost meanwhile.
    """
    try:
        with Client(url, token) as client:
            for name in _SHARED:
                theirs, ours = client.metadata.get(name), getattr(schema, name)
                if _plain(theirs) != _plain(ours):
                    raise GtpVisionError(
                        f"{url} serves another policy: its {name} are {str(theirs)[:80]}, the artifact's are "
                        f"{str(ours)[:80]}; give the artifact that it serves"
                    )
            yield Remote(client)
    except ServerError as error:
        raise GtpVisionError(f"{url} answered with an error: {error}") from error
    except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
        raise GtpVisionError(f"{url} cannot be used ({reason(error)}); start it by gtp-vision serve") from error


def _plain(value: object) -> object:
    """Tuples as the lists that they are in messages."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
