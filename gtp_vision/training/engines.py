"""How a training step is run: the same numbers, within rounding, at different costs.

    eager     autograd, PyTorch's optimiser and DistributedDataParallel, as Accelerate wraps them; always works
    compile   the step as one function of tensors (`functional.StepFunction`), compiled
    graph     that, captured once in a CUDA graph and replayed

Several agents side by side (`training.seeds`) are always a function of tensors, mapped over seeds; `eager` does not
compile it.

`compile` and `graph` prove themselves on the first steps of the very run: each is taken twice, from the same state with
the same batch and noise, by the function as it is and by the function made fast, and both must move alike. So what
compiled code would have to check at each step (that nothing but tensors' values has changed) shows as a difference.
Several processes take the same engine, and step back together: in each a step waits for the sums of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from gtp_vision.agents.improvement import Metrics
from gtp_vision.config.schema import Config
from gtp_vision.core.compile import Captured, compiled, has_compiler
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.random import NoiseTape
from gtp_vision.datasets.sources import BatchSource, batch_source_of_seeds
from gtp_vision.training.build import Components
from gtp_vision.training.eager import Eager, average_rate, learning_rate
from gtp_vision.training.functional import State, StepFunction, Tensors, recorded_step, state_of
from gtp_vision.training.guard import NONFINITE

Tell = Callable[[str], None]
_ENGINES = ("eager", "compile", "graph")
_COMPILED = ("cpu", "cuda")
_PAYS = 10_000  # steps from which on compiling on a CPU, which takes half a minute, saves time
_STAGES = 4  # each is compiled separately
_PROOF_STEPS = 3
# Largest relative differences of losses and Adam's moments. Products of TF32 and BF16 round to 3 digits, in an order
# that compiling changes.
_TOLERANCE = {"float32": 1e-3, "tf32": 3e-2, "bf16": 3e-2}
# Adam moves by about the learning rate whatever the gradient's size, also where it is nothing but rounding.
_MOVE_TOLERANCE = 0.3


class Engine(Protocol):
    """Runs steps of runs side by side; of several, what `source` fetches has a first axis of runs."""

    name: str
    source: BatchSource

    def step(self, step: int, fetched: Any) -> list[Metrics]:
        """Training step `step`, from 0, of every run; metrics of each, on the device."""


class Functional:
    """Steps as functions of tensors; the parameters of several runs become views of stacked tensors.

    `name` is what is done to the function: nothing (eager), compile or graph. If that fails, or moves otherwise than
    the function itself, further steps are eager and `tell` gets a sentence. With `required`, moving otherwise is a
    GtpVisionError.
    """

    def __init__(
        self,
        source: BatchSource,
        config: Config,
        members: Sequence[Components],
        name: str,
        tell: Tell,
        backend: Any = "inductor",
        *,
        required: bool = False,
    ) -> None:
        self.source, self.name, self._tell = source, name, tell
        self._device = members[0].accelerator.device
        self._backend = _Backend(backend, self._device)
        self._required, self._told = required, False
        self._config, self._members = config, members
        self._state = state_of([m.agent for m in members], [m.optimizer for m in members])
        groups = members[0].optimizer.param_groups
        self._rates = [torch.zeros((), device=self._device) for _ in range(len(groups) + 1)]
        self._functions: dict[Hashable, _Stage] = {}

    def step(self, step: int, fetched: Any) -> list[Metrics]:
        """One step of every run."""
        for member in self._members:
            member.agent.begin(step)
        base = learning_rate(self._config, step)
        for rate, group in zip(self._rates, self._members[0].optimizer.param_groups, strict=False):
            rate.fill_(base * group["scale"] * (step >= group["after"]))
        self._rates[-1].fill_(average_rate(self._config, step))
        stage = self._stage(step, fetched)
        metrics = self._run(stage, fetched, self._noise(stage.function, step))
        if len(self._members) == 1:
            return [metrics]
        return [{name: value[index] for name, value in metrics.items()} for index in range(len(self._members))]

    def _run(self, stage: _Stage, fetched: Any, noise: list[torch.Tensor]) -> Metrics:
        arguments = (self._state, fetched, noise, self._rates)
        if self.name == "eager":
            return stage.function(*arguments)
        if stage.unproven == 0:
            return stage.run(*arguments)
        before = _copies(self._state)
        expected = {name: value.clone() for name, value in stage.function(*arguments).items()}
        wanted = _copies(self._state)
        _restore(self._state, before)
        try:
            metrics = stage.run(*arguments)
        except Exception as error:  # whatever a compiler may raise
            self._backend.agree(False)
            return self._step_back(f"does not work here: {first_line(error, 2)}", wanted, expected)
        fault = ""
        if not bool(expected[NONFINITE].any()):
            largest, move = _differences(self._state, before, wanted, metrics["loss"], expected["loss"])
            tolerance = _TOLERANCE[self._config.training.precision]
            if not (largest <= tolerance and move <= _MOVE_TOLERANCE):  # NaN is a difference, too
                fault = (
                    f"moves otherwise than eager here, by {largest:.1g} of losses and gradients (at most "
                    f"{tolerance:g}) and {move:.1g} of the step (at most {_MOVE_TOLERANCE:g})"
                )
            stage.largest = max(stage.largest, largest)
        if any_rank(bool(fault), device=self._device)[0]:
            fault = fault or "moves otherwise than eager in another process"
            if self._required:
                raise GtpVisionError(f"training.engine={self.name} {fault}; set training.engine=eager")
            return self._step_back(fault, wanted, expected)
        stage.unproven -= 1
        if stage.unproven == 0 and not self._told:
            within = max(stage.largest, torch.finfo(torch.float32).eps)
            self._tell(f"engine: {self.name}, equal to eager on {_PROOF_STEPS} steps within {within:.0e}")
            self._told = True
        return metrics

    def _step_back(self, fault: str, wanted: Sequence[Tensors], metrics: Metrics) -> Metrics:
        """Continue in eager from the step that it has taken."""
        self._tell(f"engine: eager, because training.engine={self.name} {fault}")
        self.name = "eager"
        _restore(self._state, wanted)
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
                processes=first.accelerator.num_processes,
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
        run = compiled(function, self._backend.of_a_function())  # a stage's function always fits
        return Graph(run) if self.name == "graph" else run


class _Backend:
    """A compiler's backend that compiles in all processes or in none: else some would wait for the others for ever."""

    def __init__(self, backend: Any, device: torch.device) -> None:
        from torch._dynamo.backends.registry import lookup_backend  # an import of seconds, for compiled steps only

        self._compile, self._device = lookup_backend(backend), device
        self._agreed = True

    def of_a_function(self) -> Callable[..., Any]:
        """The backend for the next function."""
        self._agreed = False
        return self._compiled

    def agree(self, works: bool) -> None:
        """Take part once a function in the others' question whether it can be compiled; RuntimeError if not by all."""
        if not self._agreed:
            self._agreed = True
            if any_rank(not works, device=self._device)[0] and works:
                raise RuntimeError("another process cannot compile it")

    def _compiled(self, *arguments: Any, **options: Any) -> Any:
        try:
            run = self._compile(*arguments, **options)
        except Exception:
            self.agree(False)
            raise
        self.agree(True)
        return run


@dataclass
class _Stage:
    """The step of a stage: the function, the same made fast, for how many steps that is to be compared, and results."""

    function: StepFunction
    run: Callable[..., Metrics]
    unproven: int = _PROOF_STEPS
    largest: float = 0.0


def choose(config: Config, members: Sequence[Components], tell: Tell) -> Engine:
    """The engine that `training.engine` names, or the best for where this runs; errors as `check`."""
    first = members[0]
    if len(members) > 1 and first.accelerator.device.type not in _COMPILED:
        raise GtpVisionError(
            f"training.seeds={len(members)} trains side by side on {' or '.join(_COMPILED)}, and this is "
            f"{first.accelerator.device}; set training.seeds=1, or training.device=cpu"
        )
    source = batch_source_of_seeds([member.sampler for member in members], first.accelerator.device)
    name, why = check(config, first)
    several = f", {len(members)} seeds side by side" if len(members) > 1 else ""
    tell(f"engine: {name}{f' ({why})' if why else ''}{several}")
    if name == "eager" and len(members) == 1:
        return Eager(source, config, first)
    return Functional(source, config, members, name, tell, required=config.training.engine != "auto")


def check(config: Config, parts: Components) -> tuple[str, str]:
    """The engine for a configuration, the same in all processes, and why it is that.

    Raises:
        GtpVisionError: this machine or these settings do not allow `training.engine`, or not in all processes.
    """
    asked, fault = config.training.engine, next(_faults(config, parts), "")
    name, why = (asked, "") if asked != "auto" else _best(config, parts)
    device = parts.accelerator.device
    failed, is_asked, *chosen = any_rank(bool(fault), asked != "auto", *(name == n for n in _ENGINES), device=device)
    if fault:
        raise GtpVisionError(f"training.engine={asked} {fault}; set training.engine=auto")
    if failed or (sum(chosen) > 1 and is_asked):
        raise GtpVisionError(
            f"training.engine={asked} is {name} in this process and another engine, or none, in others; start all with "
            "the same settings, and with a C++ compiler on each machine or training.engine=eager"
        )
    return (name, why) if sum(chosen) == 1 else ("eager", "not every process can compile")


def _best(config: Config, parts: Components) -> tuple[str, str]:
    """The fastest engine that is safe here, and why it is that."""
    if (device := parts.accelerator.device).type not in _COMPILED:
        return "eager", f"steps are compiled for {' and '.join(_COMPILED)}, and this is {device.type}"
    processes, cuda = parts.accelerator.num_processes, parts.accelerator.device.type == "cuda"
    if _changes(config, parts):
        return "eager", "the augmentation's strength changes with every step"
    if _counts(parts):
        return "eager", "batch normalisation moves its statistics while it computes"
    if config.training.accumulate > 1:
        return "eager", "training.accumulate computes micro-batches one after the other"
    if config.encoder.recompute is not None:
        return "eager", "encoder.recompute computes activations again"
    if cuda and processes == 1:
        return "graph", ""
    if not cuda and not has_compiler():
        return "eager", "a C++ compiler is missing"
    if not cuda and config.training.steps < _PAYS:
        return "eager", f"compiling takes half a minute, which pays from {_PAYS} steps on: training.engine=compile"
    return "compile", ""


def _faults(config: Config, parts: Components) -> Iterator[str]:
    """Why the requested engine cannot run here."""
    name = config.training.engine
    if name in ("auto", "eager"):
        return
    if _changes(config, parts):
        yield "compiles a step again when it changes, and encoder.augmentation.warmup_steps changes every step"
    if _counts(parts):
        yield "makes a step a function, and encoder.batch_norm=train moves statistics while it computes"
    if config.training.accumulate > 1:
        yield "makes a step a function of its whole batch, which training.accumulate splits"
    if config.encoder.recompute is not None:
        yield "makes a step a function, whose activations encoder.recompute cannot compute again"
    if name == "compile" and parts.accelerator.device.type not in _COMPILED:
        yield f"compiles for {' and '.join(_COMPILED)}, and training runs on {parts.accelerator.device}"
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
            before = _copies(state)
            try:
                self._captured = Captured(lambda batch, drawn: self._run(state, batch, drawn, rates), fetched, noise)
            finally:  # undo what warming up has moved
                _restore(state, before)
        metrics: Metrics = self._captured(fetched, noise)
        values = torch.stack([value.float() for value in metrics.values()])
        return dict(zip(metrics, values.unbind(), strict=True))


def _parts(state: State) -> list[Tensors]:
    return [state.trained, state.held, state.mean, state.square, state.steps]


def _copies(state: State) -> list[Tensors]:
    return [{name: tensor.detach().clone() for name, tensor in part.items()} for part in _parts(state)]


def _restore(state: State, copies: Sequence[Tensors]) -> None:
    with torch.no_grad():
        for part, kept in zip(_parts(state), copies, strict=True):
            for name, tensor in part.items():
                tensor.copy_(kept[name])


def _differences(
    state: State, before: Sequence[Tensors], wanted: Sequence[Tensors], loss: torch.Tensor, expected: torch.Tensor
) -> tuple[float, float]:
    """How far a step's state is from the wanted one, relative to it: of losses and moments, and of what has moved.

    Each is the largest over the agent's networks, so that the large gradients of one do not hide another's.
    """
    losses = (loss - expected).abs() / expected.abs().clamp_min(1e-2)
    parts = list(zip(_parts(state), wanted, before, strict=True))
    moments = [_by_network(now, then, {}) for now, then, _ in parts[2:4]]
    moves = [_by_network(now, then, start) for now, then, start in parts[:2]]
    largest = torch.stack([losses.max(), *itertools.chain(*moments)]).max()
    return float(largest), float(torch.stack([*itertools.chain(*moves)]).max())


def _by_network(now: Tensors, wanted: Tensors, start: Tensors) -> Iterator[torch.Tensor]:
    """|now - wanted| / |wanted - start|, or with no start / |wanted|, of each of the agent's modules: (), several."""
    named = sorted(name for name, tensor in now.items() if tensor.is_floating_point())
    for _, names in itertools.groupby(named, lambda name: name.partition(".")[0]):
        members = list(names)
        ours, theirs = (torch.cat([part[name].flatten() for name in members]) for part in (now, wanted))
        moved = theirs - torch.cat([start[name].flatten() for name in members]) if start else theirs
        rounding = 1e-6 * theirs.norm()
        yield (ours - theirs).norm() / moved.norm().maximum(rounding).clamp_min(1e-30)
