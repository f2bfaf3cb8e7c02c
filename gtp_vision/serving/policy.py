"""A policy on its own: raw observations in, bounded actions in the robot's units out.

    policy = gtp_vision.load_policy(folder)
    action = policy.act({"front": frame, "state": state}, steps=2)

Nothing here knows data sets, simulators or training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download

from gtp_vision.agents import Agent, acting_in, check_agent
from gtp_vision.agents.acting import Executor
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.core.compile import first_words
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.batch import channels_first
from gtp_vision.serving.schema import Schema, is_goal

_MOST_STEPS = 1000


class Session:
    """One robot's way through its episodes: the newest frames, the chunk it is in, and its noise.

    Noise is a function of (seed, episode, step): the same observations are answered with the same actions. An episode
    is acted by `act` or by `plan`, not by both.

    Args:
        policy: whose weights it uses; several sessions share them.
        seed: of its noise.
    """

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.policy, self.seed = policy, seed
        self._episode = -1
        self.reset()

    def reset(self) -> None:
        """A new episode begins with the next observation."""
        self._episode += 1
        self._step = 0
        self._by = ""
        self._history: dict[str, np.ndarray] = {}
        self._steps: int | None = None
        agent = self.policy.agent
        self._executor = Executor(
            lambda observation, noise: self.policy.fast.plan(observation, noise, self._steps),
            agent.config.acting,
            agent.config.action_chunk,
        )

    def act(self, observation: Mapping[str, Any], *, steps: int | None = None) -> np.ndarray:
        """The next action.

        Args:
            observation: the newest of each, raw: frames uint8 (H, W, C), states (D,); goals, where there are, too.
            steps: K; None is the policy's own.

        Returns:
            float32 (A,), in the robot's units, within its bounds.

        Raises:
            GtpVisionError: an observation that the policy was not trained on, or a K that it cannot act in.
        """
        seen, noise = self._next(observation, steps, "act")
        with torch.no_grad():
            action = self._executor(seen, noise)
        return self.policy.schema.in_units(action[0].cpu().numpy())

    def plan(self, observation: Mapping[str, Any], *, steps: int | None = None) -> np.ndarray:
        """The next H actions, float32 (H, A); otherwise as `act`. Every call plans anew."""
        seen, noise = self._next(observation, steps, "plan")
        with torch.no_grad():
            chunk = self.policy.fast.plan(seen, noise, steps)
        return self.policy.schema.in_units(chunk[0].cpu().numpy())

    def _next(
        self, observation: Mapping[str, Any], steps: int | None, by: str
    ) -> tuple[dict[str, torch.Tensor], EpisodeNoise]:
        self.policy.check_steps(steps)
        found = self.policy.schema.check(observation)
        if self._by not in ("", by):
            raise GtpVisionError(f"this episode was begun by {self._by} and cannot go on by {by}; call reset first")
        self._by, self._steps = by, steps
        frames = self.policy.schema.frame_stack
        for name, array in found.items():
            before = self._history.get(name)
            if before is None or is_goal(name):  # an episode begins as if it had stood still
                self._history[name] = np.repeat(array[None], frames, 0)
            else:
                before[:-1] = before[1:].copy()
                before[-1] = array
        device = self.policy.device
        seen = {name: torch.from_numpy(stack[None].copy()).to(device) for name, stack in self._history.items()}
        noise = EpisodeNoise(self.seed, [self._episode], [self._step], device)
        self._step += 1
        return {name: channels_first(x) if x.ndim == 5 else x for name, x in seen.items()}, noise


class Policy(PyTorchModelHubMixin):
    """Weights and schema of a trained agent.

    `policy.push_to_hub("me/policy")` and `Policy.from_pretrained("me/policy")` are the Hugging Face hub's; what
    travels is the artifact, and it is looked at as any stranger's.

    Args:
        agent: in the state in which it acts.
        schema: what it is shown and answers.
        card: what is known of its making, see `artifact`.
        engine: see `FastPolicy`: eager is ready at once, compile and graph take seconds at the first action.

    Attributes:
        device: where it computes.
    """

    def __init__(self, agent: Agent, schema: Schema, card: Mapping[str, Any], engine: str = "eager") -> None:
        self.agent, self.schema, self.card = agent.eval(), schema, dict(card)
        self.fast = FastPolicy(agent, engine=engine)
        self.device = next(agent.policy.parameters()).device
        self._fits: set[int] = set()  # numbers of jumps that were found to fit
        self._own = Session(self)
        self._hub_mixin_config = None  # the artifact's own files say it all

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Policy:  # type: ignore[override]
        """The policy of a folder or of a repository on the hub.

        Args:
            name: folder, or `owner/name`.
            options: `device` and `engine` as `load_policy` takes them; `revision`, `token`, ... as the hub does.

        Raises:
            GtpVisionError: it cannot be had, or is no artifact, see `load_policy`.
        """
        try:
            return super().from_pretrained(name, **options)
        except (OSError, ValueError) as error:
            raise GtpVisionError(f"{name} cannot be had from the hub ({first_words(error)}); check its name") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        from gtp_vision.serving import artifact

        parts = [name for name, _ in self.agent.named_children()]
        artifact.write(save_directory, self.agent, self.schema, self.card, parts)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str = "cpu",
        engine: str = "eager",
    ) -> Policy:
        from gtp_vision.serving import artifact

        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=artifact.FILES,
                )
            )
        return artifact.load_policy(folder, device=device, engine=engine)

    def act(self, observation: Mapping[str, Any], *, steps: int | None = None) -> np.ndarray:
        """The next action of the policy's own session, see `Session.act`."""
        return self._own.act(observation, steps=steps)

    def plan(self, observation: Mapping[str, Any], *, steps: int | None = None) -> np.ndarray:
        """The next chunk of the policy's own session, see `Session.plan`."""
        return self._own.plan(observation, steps=steps)

    def reset(self) -> None:
        """A new episode of the policy's own session."""
        self._own.reset()

    def session(self, seed: int = 0) -> Session:
        """A robot of its own, with the same weights."""
        return Session(self, seed)

    def check(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Schema.check`."""
        return self.schema.check(observation)

    def check_steps(self, steps: int | None) -> None:
        """Refuse a K that the policy cannot act in.

        Raises:
            GtpVisionError: no whole number of at least 1, or another number of jumps than the agent was made for.
        """
        if steps is None:
            return
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= _MOST_STEPS:
            raise GtpVisionError(f"steps={steps!r} is no number of jumps from 1 to {_MOST_STEPS}")
        if steps not in self._fits:
            check_agent(acting_in(self.agent.config, steps), steps_key="steps")
            self._fits.add(steps)
