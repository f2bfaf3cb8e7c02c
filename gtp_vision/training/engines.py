"""How a training step is run: the same numbers, within rounding, at different costs.

    eager     autograd, PyTorch's optimiser and DistributedDataParallel, as Accelerate wraps them; always works
    compile   the step as one function of tensors (`functional.StepFunction`), compiled
    graph     that, captured once in a CUDA graph and replayed

Several agents side by side (`training.seeds`) are always a function of tensors, mapped over seeds; `eager` does not
compile it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from gtp_vision.agents.base import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.core.compile import Captured, compiled, has_compiler
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.random import NoiseTape
from gtp_vision.datasets.sources import BatchSource, batch_source_of_seeds
from gtp_vision.training.build import Components
from gtp_vision.training.eager import Eager, learning_rate
from gtp_vision.training.functional import State, StepFunction, recorded_step, state_of

Tell = Callable[[str], None]
_PAYS = 10_000  # steps from which on compiling on a CPU, which takes half a minute, saves time
_STAGES = 4  # each is compiled separately


class Engine(Protocol):
    """Runs steps of runs side by side; of several, what `source` fetches has a first axis of runs."""

    name: str
    source: BatchSource

    def step(self, step: int, fetched: Any) -> list[Metrics]:
        """Training step `step`, from 0, of every run; metrics of each, on the device."""


class Functional:
    """Steps as functions of tensors; the parameters of several runs become views of stacked tensors.

    `name` is what is done to the function: nothing (eager), compile or graph. If that fails, `tell` gets a sentence.
    """

    def __init__(
        self,
        source: BatchSource,
        config: Config,
        members: Sequence[Components],
        name: str,
        tell: Tell,
        backend: str = "inductor",
    ) -> None:
        self.source, self.name, self._tell, self._backend = source, name, tell, backend
        self._config, self._members = config, members
        self._state = state_of([m.agent for m in members], [m.optimizer for m in members])
        device = members[0].accelerator.device
        self._rates = [torch.zeros((), device=device) for _ in members[0].optimizer.param_groups]
        self._functions: dict[Hashable, _Stage] = {}

    def step(self, step: int, fetched: Any) -> list[Metrics]:
        """One step of every run."""
        for member in self._members:
            member.agent.begin(step)
        base = learning_rate(self._config, step)
        for rate, group in zip(self._rates, self._members[0].optimizer.param_groups, strict=True):
            rate.fill_(base * group["scale"] * (step >= group["after"]))
        stage = self._stage(step, fetched)
        metrics = self._run(stage, fetched, self._noise(stage.function, step))
        if len(self._members) == 1:
            return [metrics]
        return [{name: value[index] for name, value in metrics.items()} for index in range(len(self._members))]

    def _run(self, stage: _Stage, fetched: Any, noise: list[torch.Tensor]) -> Metrics:
        try:
            metrics = stage.run(self._state, fetched, noise, self._rates)
        except Exception as error:  # whatever a compiler may raise; nothing has moved then
            if stage.proven or self.name == "eager":
                raise
            self._tell(f"engine: eager, because training.engine={self.name} does not work here: {first_line(error, 2)}")
            self.name, stage.run = "eager", stage.function
            return stage.run(self._state, fetched, noise, self._rates)
        stage.proven = True
        return metrics

    def _noise(self, function: StepFunction, step: int) -> list[torch.Tensor]:
        drawn = [NoiseTape.draw(function.draws, member.stream(step)) for member in self._members]
        return drawn[0] if len(drawn) == 1 else [torch.stack(each) for each in zip(*drawn, strict=True)]

    def _stage(self, step: int, fetched: Any) -> _Stage:
        first = self._members[0]
        awake = tuple(step >= group["after"] for group in first.optimizer.param_groups)
        key = first.agent.stage(step), awake
        if key not in self._functions:
            several = len(self._members) > 1
            one = pytree.tree_map(lambda x: x[0], fetched) if several else fetched
            function = StepFunction(
                first.agent,
                first.optimizer,
                self.source,
                *recorded_step(first.agent, self.source, one, first.stream(step), step),
                step=step,
                awake=awake,
                clip=self._config.training.clip_gradient,
                skips=self._config.training.on_nonfinite == "skip",
                held=self._state.axes() if several else None,
            )
            while len(self._functions) >= _STAGES:  # one that ended long ago
                self._functions.pop(next(iter(self._functions)))
            self._functions[key] = _Stage(function, self._made(function))
        return self._functions[key]

    def _made(self, function: StepFunction) -> Callable[..., Metrics]:
        if self.name == "eager":
            return function
        self._tell("compiling the step, which takes about half a minute")
        run = compiled(function, self._backend)  # a stage's function always fits
        return Graph(run) if self.name == "graph" else run


@dataclass
class _Stage:
    """The step of a stage: the function, the same made fast, and whether that has worked."""

    function: StepFunction
    run: Callable[..., Metrics]
    proven: bool = False


def choose(config: Config, members: Sequence[Components], tell: Tell) -> Engine:
    """The engine that `training.engine` names, or the best for where this runs; errors as `check`."""
    first = members[0]
    source = batch_source_of_seeds([member.sampler for member in members], first.accelerator.device)
    check(config, first)
    name, why = (config.training.engine, "") if config.training.engine != "auto" else _best(config, first)
    several = f", {len(members)} seeds side by side" if len(members) > 1 else ""
    tell(f"engine: {name}{f' ({why})' if why else ''}{several}")
    if name == "eager" and len(members) == 1:
        return Eager(source, config, first)
    return Functional(source, config, members, name, tell)


def check(config: Config, parts: Components) -> None:
    """Refuse an engine that this machine or these settings do not allow."""
    for fault in _faults(config, parts):
        raise GtpVisionError(f"training.engine={config.training.engine} {fault}; set training.engine=auto")


def _best(config: Config, parts: Components) -> tuple[str, str]:
    """The fastest engine that is safe here, and why it is that."""
    processes, cuda = parts.accelerator.num_processes, parts.accelerator.device.type == "cuda"
    if processes > 1:
        return "eager", f"{processes} processes"
    if _changes(config, parts):
        return "eager", "the augmentation's strength changes with every step"
    if _counts(parts):
        return "eager", "batch normalisation moves its statistics while it computes"
    if cuda:
        return "graph", ""
    if not has_compiler():
        return "eager", "a C++ compiler is missing"
    if config.training.steps < _PAYS:
        return "eager", f"compiling takes half a minute, which pays from {_PAYS} steps on: training.engine=compile"
    return "compile", ""


def _faults(config: Config, parts: Components) -> Iterator[str]:
    """Why the requested engine cannot run here."""
    name, processes = config.training.engine, parts.accelerator.num_processes
    if name in ("auto", "eager"):
        return
    if processes > 1:
        yield f"runs in one process, and there are {processes}"
    if _changes(config, parts):
        yield "compiles a step again when it changes, and encoder.augmentation.warmup_steps changes every step"
    if _counts(parts):
        yield "makes a step a function, and encoder.batch_norm=train moves statistics while it computes"
    if name == "graph" and parts.accelerator.device.type != "cuda":
        yield f"captures a CUDA graph, and training runs on {parts.accelerator.device}"
    if name == "compile" and parts.accelerator.device.type == "cpu" and not has_compiler():
        yield "needs a C++ compiler, and there is none on the PATH (g++ or clang++)"


def _changes(config: Config, parts: Components) -> bool:
    """Whether the losses of early steps are all different functions."""
    warmup = config.encoder.augmentation.warmup_steps
    return warmup > _STAGES and len({parts.agent.stage(step) for step in range(_STAGES + 1)}) > _STAGES


def _counts(parts: Components) -> bool:
    """Whether a batch normalisation is trained: it writes where functions may not."""
    return any(isinstance(module, _BatchNorm) and module.training for module in parts.agent.modules())


class Graph:
    """A step captured in a CUDA graph; it must not touch the host."""

    def __init__(self, run: Callable[..., Metrics]) -> None:
        self._run = run
        self._captured: Captured | None = None

    def __call__(self, state: State, fetched: Any, noise: list[torch.Tensor], rates: list[torch.Tensor]) -> Metrics:
        """The step; the caller may keep what it returns."""
        if self._captured is None:
            before = [tensor.clone() for tensor in _tensors(state)]
            try:
                self._captured = Captured(lambda batch, drawn: self._run(state, batch, drawn, rates), fetched, noise)
            finally:  # undo what warming up has moved
                for tensor, kept in zip(_tensors(state), before, strict=True):
                    tensor.copy_(kept)
        metrics: Metrics = self._captured(fetched, noise)
        values = torch.stack([value.float() for value in metrics.values()])
        return dict(zip(metrics, values.unbind(), strict=True))


def _tensors(state: State) -> list[torch.Tensor]:
    return [
        tensor
        for part in (state.trained, state.held, state.mean, state.square, state.steps)
        for tensor in part.values()
    ]
