"""What a fixed policy does on recordings: its features and actions at every row, and the transitions as it meets them.

Axes in names: U rows, N transitions, M actions of the policy, H executed actions of a chunk, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gtp_vision.agents import Agent
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import channels_first
from gtp_vision.datasets.inspection import success
from gtp_vision.datasets.rewards import rewarded
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import marks_of
from gtp_vision.evaluation.fqe import Recorded, recorded_returns

ACTIONS = 4
"""M, actions that the policy draws at each row."""
_PIECE = {True: 256, False: 4096}  # rows that are encoded at once, with and without cameras
_SALT = 1 << 40  # separates the policy's noise from that of training steps


@dataclass(frozen=True)
class Question:
    """What a value is of.

    Attributes:
        measure: `success` or `return`.
        discount: gamma per step, below 1.
        reward: float32 (U,), of each row.
        terminal: bool (U,), whether the task ends with the row.
    """

    measure: str
    discount: float
    reward: np.ndarray
    terminal: np.ndarray

    @property
    def meaning(self) -> str:
        """A sentence for people."""
        if self.measure == "success":
            return f"an episode that succeeds at step T counts {self.discount:g}^(T - 1), any other one 0"
        return f"sum over steps of {self.discount:g}^t times the recorded reward"


def question_of(stores: Sequence[Store], discount: float) -> Question | None:
    """What can be asked about recordings, one after another: success where they show one, else the return, or None.

    Raises GtpVisionError: a discount that is not below 1, with which values need not be finite.
    """
    if not 0 <= discount < 1:
        raise GtpVisionError(f"discount={discount:g} must be at least 0 and below 1; set --discount")
    terminal = np.concatenate([np.asarray(store.terminals, bool) for store in stores])
    solved = [_success_rows(store) for store in stores]
    if any(rows is not None for rows in solved):
        pairs = zip(stores, solved, strict=True)
        reached = np.concatenate([np.zeros(len(store), bool) if rows is None else rows for store, rows in pairs])
        return Question("success", discount, reached.astype(np.float32), terminal | reached)
    reward = np.concatenate([np.asarray(store.rewards, np.float32) for store in stores])
    return Question("return", discount, reward, terminal) if reward.any() else None


def _success_rows(store: Store) -> np.ndarray | None:
    """Bool (U,), rows at which an episode succeeds; None if the recordings do not say, or say so of none."""
    marks = marks_of(store)
    if True in marks and None not in marks:
        return rewarded(store, "sparse", 0).rewards > 0
    if not success(store)["rate"]:
        return None
    terminals = np.asarray(store.terminals, bool)
    return terminals if terminals.any() else np.asarray(store.rewards) > 0


@dataclass(frozen=True)
class OnRecordings:
    """A policy on recordings.

    Attributes:
        features: float32 (U, F), of the actor's encoder.
        plans: float32 (U, M, H, A), the actions that the policy would execute from each row on, in [-1, 1].
        sampler: of the recordings, whose return and chunk end where the policy would plan again.
    """

    features: torch.Tensor
    plans: torch.Tensor
    sampler: Sampler

    def recorded(self, question: Question) -> Recorded:
        """The transitions for fitted Q evaluation; those whose chunk the recording cut short are left out."""
        sampler = self.sampler
        store = replace(sampler.store, rewards=question.reward, terminals=question.terminal)
        sampler = replace(sampler, store=store, discount=question.discount)
        rows = store.transitions
        reward, discount, following = sampler.returns(rows)
        chunks, is_real = sampler.chunks(rows)
        whole = is_real.all(1) | (discount == 0)
        returns = recorded_returns(question.reward, question.terminal, store.last_outcomes, question.discount)
        rows, device = rows[whole], self.features.device

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        return Recorded(
            features=self.features,
            policy=self.plans.flatten(2),
            rows=tensor(rows),
            following=tensor(np.minimum(following[whole], len(store) - 1)),
            actions=tensor(np.asarray(store.actions[chunks[whole]], np.float32).reshape(len(rows), -1)),
            reward=tensor(reward[whole]),
            discount=tensor(discount[whole]),
            episodes=tensor(store.episode_of(rows)),
            returns=tensor(returns[rows].astype(np.float32)),
        )


def on_recordings(agent: Agent, store: Store, frame_stack: int, *, device: torch.device, seed: int) -> OnRecordings:
    """Let a policy act on every row of recordings, as it would be executed."""
    executed = executed_actions(agent)
    sampler = Sampler(store, 1, seed=seed, frame_stack=frame_stack, n_step=executed, action_chunk=executed)
    size = _PIECE[any(array.ndim == 4 for array in store.observations.values())]
    spans = [np.arange(start, min(start + size, len(store))) for start in range(0, len(store), size)]
    pieces = [act(agent, observation_of(sampler, rows), device, seed + int(rows[0])) for rows in spans]
    features, plans = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return OnRecordings(features, plans, sampler)


def executed_actions(agent: Agent) -> int:
    """H, the actions that are executed of a plan before the next one."""
    acting = agent.config.acting
    return 1 if acting.ensemble is not None else acting.execute or agent.config.action_chunk


def observation_of(sampler: Sampler, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """The stacked observations of rows (B,), with an outcome or not, as a `Batch` holds them."""
    windows = sampler.windows(rows)
    distinct, index = np.unique(windows, return_inverse=True)
    position = torch.from_numpy(index.reshape(windows.shape))
    stacked = {
        name: torch.from_numpy(np.asarray(array[distinct]))[position]
        for name, array in sampler.store.observations.items()
    }
    return {name: channels_first(x) if x.ndim == 5 else x.float() for name, x in stacked.items()}


@torch.no_grad()
def act(
    agent: Agent, observation: Mapping[str, torch.Tensor], device: torch.device, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, F) and the executed part of M plans (B, M, H, A) of stacked observations.

    Cameras are encoded once for all plans, except where acting asks the critic, whose encoder is another.
    """
    observation = {name: values.to(device) for name, values in observation.items()}
    encoder = agent.actor_encoder
    if not agent.config.acting.needs_critic:
        features = {name: encoder.camera_features(name, observation[name])[:, None] for name in encoder.cameras}
        observation = observation | features
    noises = (RandomStream(seed + _SALT, draw, device=device) for draw in range(ACTIONS))
    plans = [agent.plan(observation, noise)[:, : executed_actions(agent)] for noise in noises]
    return encoder(observation), torch.stack(plans, 1)
