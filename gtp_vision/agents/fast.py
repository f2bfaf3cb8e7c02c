"""Low-latency acting: an agent's plan as one compiled function, for robots that wait for a single action.

    eager     `Agent.plan` as it is; always works
    compile   the whole plan (encoder, K steps, choice among candidates) compiled, once for each K
    graph     the compiled plan, captured in a CUDA graph and replayed

Noise is drawn before the compiled part, by the given generator, in the order in which `Agent.plan` draws it:
all engines answer the same noise with the same action, within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import astuple
from typing import NamedTuple

import torch

from gtp_vision.agents.acting import Observation
from gtp_vision.agents.base import Agent
from gtp_vision.agents.joining import Known
from gtp_vision.agents.settings import ActingConfig
from gtp_vision.core.compile import Captured, compiled, has_compiler
from gtp_vision.core.errors import GtpVisionError, first_line, propose
from gtp_vision.core.random import Draw, NoiseRecorder, NoiseSource, NoiseTape, RandomStream

ENGINES = ("auto", "eager", "compile", "graph")
_MAX_COMPILED = 8  # compiled plans kept, of different K, acting settings or shapes


class CompiledPlan(NamedTuple):
    """A compiled plan: the noise it needs, and the function of contiguous observations, noise and `Known`, if any."""

    draws: tuple[Draw, ...]
    run: Callable[..., torch.Tensor]


class FastPolicy:
    """An agent's `plan` and `act`, fast for few observations at once.

    A plan is compiled at its first call, which takes seconds: for each K, each `ActingConfig` and each shape of
    observations. It reads the agent's weights at every call; they may be trained or loaded meanwhile, in place, but
    not moved to another device or precision. Other settings of the agent are read once.

    Args:
        agent: the agent that acts.
        engine: auto, eager, compile or graph; auto is graph on a GPU, else compile.
        batch: observations a call; with another number of them the agent acts eagerly.
        backend: of torch.compile.

    Attributes:
        engine: the engine in use: eager where the requested one is not available.
        status: the engine, and why it is not the requested one.

    Raises:
        GtpVisionError: an unknown engine.
    """

    def __init__(self, agent: Agent, *, engine: str = "auto", batch: int = 1, backend: str = "inductor") -> None:
        if engine not in ENGINES:
            raise GtpVisionError(f"engine={engine} is unknown: {propose(engine, ENGINES)}")
        self.agent, self.batch, self._backend = agent, batch, backend
        self._device = next(agent.parameters()).device
        self._plans: dict[Hashable, CompiledPlan] = {}
        cuda = self._device.type == "cuda"
        if engine == "auto":
            engine = "graph" if cuda else "compile"
        self.engine, self.status = engine, f"acting: {engine}"
        if engine == "graph" and not cuda:
            self._fall_back(f"a CUDA graph needs a GPU, and the agent is on {self._device}")
        elif engine == "compile" and not cuda and backend == "inductor" and not has_compiler():
            self._fall_back("found no C++ compiler (install g++ or clang++)")

    def plan(
        self,
        observation: Observation,
        noise: NoiseSource,
        steps: int | None = None,
        acting: ActingConfig | None = None,
        known: Known | None = None,
    ) -> torch.Tensor:
        """Action chunks (B, H, A) in [-1, 1]; arguments as `Agent.plan`."""
        if self.engine == "eager" or any(len(x) != self.batch for x in observation.values()):
            return self.agent.plan(observation, noise, steps, acting, known)
        acting = self.agent.config.acting if acting is None else acting
        steps = acting.steps if steps is None else steps
        shapes = ((name, x.shape, x.dtype, x.device) for name, x in observation.items())
        key = (steps, astuple(acting), known is None, *shapes)
        # The compiled code checks no shape, stride or device; the key and this line do.
        inputs = {name: x.contiguous() for name, x in observation.items()}
        with torch.no_grad():
            if key in self._plans:
                draws, run = self._plans[key]
                return run(inputs, NoiseTape.draw(draws, noise), *_given(known))
            return self._compile(key, inputs, noise, steps, acting, known)

    def act(
        self,
        observation: Observation,
        noise: NoiseSource,
        steps: int | None = None,
        acting: ActingConfig | None = None,
    ) -> torch.Tensor:
        """The first action (B, A) of each plan."""
        return self.plan(observation, noise, steps, acting)[:, 0]

    def _compile(
        self,
        key: Hashable,
        observation: dict[str, torch.Tensor],
        noise: NoiseSource,
        steps: int,
        acting: ActingConfig,
        known: Known | None,
    ) -> torch.Tensor:
        """Plan once, and keep the compiled function for the next calls."""
        agent, recorder = self.agent, NoiseRecorder(RandomStream(0, 0, device=self._device))
        agent.plan(observation, recorder, steps, acting, known)  # raises for invalid settings, and records the draws
        draws = tuple(recorder.draws)
        drawn = NoiseTape.draw(draws, noise)

        def plan(
            observation: dict[str, torch.Tensor], drawn: list[torch.Tensor], known: Known | None = None
        ) -> torch.Tensor:
            return agent.plan(observation, NoiseTape(draws, drawn), steps, acting, known)

        # `plan` above makes the checks that matter; on a CPU, kernels are called from C++, one after the other.
        options = {"cpp_wrapper": True} if self._backend == "inductor" and self._device.type == "cpu" else {}
        training = agent.training
        agent.eval()  # while it is traced: the compiled function acts in evaluation mode from here on
        try:
            run = compiled(plan, self._backend, **options)
            if self.engine == "graph":
                graph = Captured(run, observation, drawn, *_given(known))
                run = lambda *arguments: graph(*arguments).clone()  # noqa: E731
            actions = run(observation, drawn, *_given(known))
        except Exception as error:  # compilers raise anything
            self._fall_back(f"engine={self.engine} does not work here: {first_line(error, 2)}")
            return plan(observation, drawn, known)
        finally:
            agent.train(training)
        while len(self._plans) >= _MAX_COMPILED:
            self._plans.pop(next(iter(self._plans)))  # the oldest
        self._plans[key] = CompiledPlan(draws, run)
        return actions

    def _fall_back(self, reason: str) -> None:
        self.engine, self.status = "eager", f"acting: eager, because {reason}"
        self._plans.clear()


def _given(known: Known | None) -> tuple[Known, ...]:
    """As the last argument of a compiled plan, which has none where nothing is known."""
    return () if known is None else (known,)
