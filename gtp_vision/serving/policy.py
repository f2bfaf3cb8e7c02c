"""A policy without its run: raw observations in, bounded actions in the robot's units out.

    policy = gtp_vision.load_policy(folder)
    action = policy.act({"front": frame, "state": state}, steps=2)

It needs no data set, no simulator and no training code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download

from gtp_vision.agents import Agent, acting_in, check_agent
from gtp_vision.agents.acting import Executor, FrameStack
from gtp_vision.agents.fast import FastPolicy
from gtp_vision.agents.joining import Known
from gtp_vision.agents.settings import CUT
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.core.units import to_policy
from gtp_vision.serving.doubt import SALT, Doubter, Reactor, check
from gtp_vision.serving.limits import DERIVATIVES, Limiter
from gtp_vision.serving.reactions import TELLS, Doubt, OnDoubt
from gtp_vision.serving.reference import Reference
from gtp_vision.serving.schema import Schema

_MAX_STEPS = 1000


class Session:
    """One robot's episodes: its frame stack, its action chunk and its noise; several sessions share a policy.

    Noise is a function of (seed, episode, step): the same observations are answered with the same actions. An episode
    is acted by `act` or by `plan`, not by both.

    Attributes:
        limiter: keeps actions within the policy's limits, and counts those it changes; None of a policy without any.
        doubt: of the last answer; None before the first one, and of a policy that does not know its data.
    """

    def __init__(self, policy: Policy, seed: int = 0, episode: int = 0) -> None:
        self.policy, self.seed = policy, seed
        self.limiter = None if policy.schema.limits is None else Limiter(policy.schema.limits)
        self.doubt: Doubt | None = None
        self._episode = episode - 1
        self.reset()

    def reset(self) -> None:
        """Start a new episode with the next observation."""
        self._episode += 1
        self._step = 0
        self._method = ""
        self._steps: int | None = None
        self._frames = FrameStack(self.policy.schema.frame_stack)
        self._last: np.ndarray | None = None  # plan, or action (1, A), as it was answered
        self._before = np.empty((0, self.policy.schema.actions), np.float32)  # actions executed before its first
        if self.limiter is not None:
            self.limiter.reset()
        self.doubt, self._doubter, self._reactor = None, self.policy.doubter(), Reactor(self.policy.on_doubt)
        config = self.policy.agent.config
        self._executor = Executor(
            lambda observation, noise, known=None: self.policy.fast.plan(observation, noise, self._steps, known=known),
            config.acting,
            config.action_chunk,
        )

    def act(
        self, observation: Mapping[str, Any], instruction: str | None = None, *, steps: int | None = None
    ) -> np.ndarray:
        """The next action, float32 (A,), in the robot's units, within its limits; K is the policy's own if None.

        The observation has the newest frame of each camera, uint8 (H, W, C), and each state, (D,); goals likewise. The
        instruction of a policy that takes one may also be in the observation, as `instruction`.

        Raises:
            GtpVisionError: an observation that does not fit the schema, or a K that does not fit the policy.
            DoubtError: the policy stopped because of doubt.
        """
        stacks, noise = self._push(_with(observation, instruction), steps, "act")
        with torch.no_grad():
            action = self._executor(stacks, noise)
        self._last = self._limited(action, None if self._last is None else self._last[0])
        return self._last[0].copy()

    def plan(
        self,
        observation: Mapping[str, Any],
        instruction: str | None = None,
        *,
        steps: int | None = None,
        executed: int | None = None,
        delay: int = 0,
    ) -> np.ndarray:
        """The next H actions, float32 (H, A); otherwise as `act`. Every call makes a new plan.

        Args:
            observation: as of `act`.
            instruction: as of `act`.
            steps: K; None is the policy's.
            executed: actions of the last plan that were executed when the observation was taken, counted from its first
                one, also where a delay froze that; 0 for the first plan of an episode. The plan continues the last one
                as `agent.acting.join` says, and limits hold across their border. None is not known: the plan stands
                for itself, and where H > 1 limits begin anew with it.
            delay: actions of the last plan that will be executed from the observation on until the answer arrives.
                The first `delay` actions of the answer are these, bit for bit.

        Raises:
            GtpVisionError: as `act`; or the last plan has not as many actions.
        """
        self._check_executed(executed, delay)
        stacks, noise = self._push(_with(observation, instruction), steps, "plan")
        rest = None if executed is None or self._last is None else self._last[executed:]
        known = None
        if rest is not None and len(rest) and self.policy.agent.config.acting.join != CUT:
            known = self._known(rest, delay)
        with torch.no_grad():
            chunk = self.policy.fast.plan(stacks, noise, self._steps, known=known)[0]
        if rest is None or self._last is None:
            if self.limiter is not None and len(chunk) > 1:
                self.limiter.reset()
            last = self._last[0] if self._last is not None and len(self._last) == 1 else None
            self._before, self._last = self._before[:0], self._limited(chunk, last)
        else:
            self._before = np.concatenate([self._before, self._last[:executed]])[-len(DERIVATIVES) :]
            done = np.concatenate([self._before, rest[:delay]])
            if self.limiter is not None:
                self.limiter.follow(done)
            last = done[-1] if len(done) else None
            self._last = np.concatenate([rest[:delay], self._limited(chunk[delay:], last)])
        return self._last.copy()

    def remaining(self, executed: int) -> int:
        """Actions of the last plan after its first `executed`; 0 if the episode has none."""
        return max(0, (0 if self._last is None else len(self._last)) - executed)

    def _check_executed(self, executed: int | None, delay: int) -> None:
        if executed is None and delay:
            raise GtpVisionError(f"delay={delay} is of the plan before: give executed, the actions of it that are done")
        if not 0 <= (executed or 0) <= self.remaining(0):
            raise GtpVisionError(
                f"executed={executed} must be between 0 and {self.remaining(0)}, the actions of the last plan"
            )
        remaining = self.remaining(executed or 0)
        if not 0 <= delay <= remaining:
            raise GtpVisionError(
                f"delay={delay} must be between 0 and {remaining}, the actions that remain of the last plan; ask for "
                f"the next one earlier, or train with a larger agent.action_chunk"
            )

    def _known(self, rest: np.ndarray, delay: int) -> Known:
        """What remains of the last plan, (O, A) in the robot's units, as a condition of the next one."""
        schema = self.policy.schema
        scaled = np.clip(to_policy(rest, schema.action_low, schema.action_high), -1, 1).astype(np.float32)
        return Known.of(torch.from_numpy(scaled)[None].to(self.policy.device), delay, schema.chunk)

    @property
    def place(self) -> tuple[int, int]:
        """Episode and step of the next observation, of which its noise is a function."""
        return self._episode, self._step

    @property
    def clamps(self) -> dict[str, int]:
        """Numbers of the last answer that limits changed, by `limits.CLAMPS`; empty of a policy without limits."""
        return {} if self.limiter is None else self.limiter.clamps

    def _limited(self, actions: torch.Tensor, last: np.ndarray | None) -> np.ndarray:
        """Actions (H, A) in [-1, 1] as the robot executes them; `last` (A,) is the one before, if it is known."""
        scaled = self.policy.schema.in_units(actions.cpu().numpy())
        scaled = self._reactor.changed(scaled, last)
        return scaled if self.limiter is None or not len(scaled) else self.limiter(scaled)

    def _push(
        self, observation: Mapping[str, Any], steps: int | None, method: str
    ) -> tuple[dict[str, torch.Tensor], EpisodeNoise]:
        """The observation with those before it, and the noise of its answer, whose doubt is measured."""
        self.policy.check_steps(steps)
        newest = self.policy.schema.check(observation)
        if self._method not in ("", method):
            raise GtpVisionError(f"this episode began with {self._method}, so {method} does not fit; call reset first")
        self._method, self._steps = method, steps
        self._frames.push({name: array[None] for name, array in newest.items()})
        device = self.policy.device
        key = [self._episode], [self._step]
        stacks, noise = self._frames.tensors(device), EpisodeNoise(self.seed, *key, device)
        self._step += 1
        if self._doubter is not None:
            with torch.no_grad():
                seen = stacks | self._doubter.features(stacks)
                has_moved = self._reactor.reaction != "hold"
                other = EpisodeNoise(self.seed ^ SALT, *key, device)
                signals = self._doubter.signals(newest, seen, other, has_moved=has_moved)
            self.doubt = self._reactor.doubt(signals)
            if self.doubt.reaction == "steps":
                self._steps = min(_MAX_STEPS, 2 * (steps or self.policy.schema.steps))
            stacks = seen if self.policy.takes_features else stacks
        return stacks, noise


class Policy(PyTorchModelHubMixin):
    """Weights and schema of a trained agent.

    `policy.push_to_hub("me/policy")` and `Policy.from_pretrained("me/policy")` use the Hugging Face hub; they transfer
    the artifact, which is checked as any untrusted one. `card` is provenance, see `artifact`. `engine` is that of
    `FastPolicy`: eager is ready at once, compile and graph take seconds at the first action. `reference` is what it
    knows of the data that it was trained on, None of an artifact without; `on_doubt` what its new episodes do about
    doubt, which `react` changes.
    """

    def __init__(
        self,
        agent: Agent,
        schema: Schema,
        card: Mapping[str, Any],
        engine: str = "eager",
        reference: Reference | None = None,
        on_doubt: OnDoubt | None = None,
    ) -> None:
        self.agent, self.schema, self.card = agent.eval(), schema, dict(card)
        self.fast = FastPolicy(agent, engine=engine)
        self.device = next(agent.policy.parameters()).device
        self.reference = None if reference is None else reference.to(self.device)
        # Compiled code encodes frames with the rest; a critic sees them through an encoder of its own.
        self.takes_features = self.fast.engine == "eager" and not agent.config.acting.needs_critic
        self._valid_steps: set[int] = set()
        self._hub_mixin_config = None  # the artifact's own files are enough
        self.on_doubt = TELLS
        self.react(on_doubt or TELLS)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Policy:  # type: ignore[override]
        """Load the policy of a folder or of `owner/name` on the hub; errors as `load_policy`.

        Options are `device` and `engine` as `load_policy` takes them; `revision`, `token`, ... as the hub does.
        """
        try:
            return super().from_pretrained(name, **options)
        except (OSError, ValueError) as error:
            raise GtpVisionError(f"{name}: the download failed ({first_line(error, 2)}); check the name") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        from gtp_vision.serving import artifact

        parts = [name for name, _ in self.agent.named_children()]
        artifact.write(save_directory, self.agent, self.schema, self.card, parts, self.reference, self.on_doubt)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str = "cpu", engine: str = "eager", **hub: Any) -> Policy:
        from gtp_vision.serving import artifact

        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, allow_patterns=artifact.FILES, **hub))
        return artifact.load_policy(folder, device=device, engine=engine)

    def act(
        self, observation: Mapping[str, Any], instruction: str | None = None, *, steps: int | None = None
    ) -> np.ndarray:
        """The next action of the policy's own session, see `Session.act`."""
        return self._session.act(observation, instruction, steps=steps)

    def plan(
        self,
        observation: Mapping[str, Any],
        instruction: str | None = None,
        *,
        steps: int | None = None,
        executed: int | None = None,
        delay: int = 0,
    ) -> np.ndarray:
        """The next chunk of the policy's own session, see `Session.plan`."""
        return self._session.plan(observation, instruction, steps=steps, executed=executed, delay=delay)

    def reset(self) -> None:
        """Start a new episode of the policy's own session."""
        self._session.reset()

    @property
    def doubt(self) -> Doubt | None:
        """Doubt in the last answer of the policy's own session."""
        return self._session.doubt

    @property
    def clamps(self) -> dict[str, int]:
        """What limits changed of the last answer of the policy's own session, see `Session.clamps`."""
        return self._session.clamps

    def session(self, seed: int = 0, episode: int = 0) -> Session:
        """A new session with the same weights, in an episode of this number."""
        return Session(self, seed, episode)

    def react(self, settings: OnDoubt) -> None:
        """Choose what is done about doubt from each session's next episode on; the policy's own session is a new one.

        Raises:
            GtpVisionError: a reaction that has no meaning for this policy, or an artifact without calibrated doubt.
        """
        check(settings, self.agent, self.schema)
        if settings.reaction != "none" and self.doubter() is None:
            raise GtpVisionError(
                f"this artifact holds no calibrated doubt, so it cannot react to it ({settings.reaction}); export its "
                f"run again where its data can be read"
            )
        self.on_doubt = settings
        self._session = Session(self)

    def doubter(self) -> Doubter | None:
        """What measures the doubt of one robot's answers; None of an artifact without calibrated signals."""
        if self.reference is None or not self.reference.thresholds:
            return None
        return Doubter(self.agent, self.reference, self.on_doubt.signals)

    def check_steps(self, steps: int | None) -> None:
        """Refuse a K that is not an integer from 1 to 1000, or not the fixed number of the agent."""
        if steps is None:
            return
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= _MAX_STEPS:
            raise GtpVisionError(f"steps={steps!r} must be an integer from 1 to {_MAX_STEPS}")
        if steps not in self._valid_steps:
            check_agent(acting_in(self.agent.config, steps), steps_key="steps")
            self._valid_steps.add(steps)


def _with(observation: Mapping[str, Any], instruction: str | None) -> Mapping[str, Any]:
    return observation if instruction is None else {**observation, INSTRUCTION: instruction}
