"""A training step as one function of tensors, of one agent or of several that are trained side by side.

    (parameters, moments, batch, noise, learning rates) -> metrics, and parameters and moments moved in place

It computes what `eager.Eager` computes, but reads no module that changes and no generator, so that it can be compiled
as a whole, captured in a CUDA graph, and mapped over seeds (`torch.func.vmap`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.optim.adam import adam

from gtp_vision.agents import Agent
from gtp_vision.agents.improvement import Metrics
from gtp_vision.core.distributed import mean_over_processes
from gtp_vision.core.random import Draw, NoiseRecorder, NoiseSource, NoiseTape
from gtp_vision.core.tied import places_beside
from gtp_vision.datasets.sources import BatchSource
from gtp_vision.models.networks import followed
from gtp_vision.training.guard import (
    NONFINITE,
    apply_if_finite,
    is_nonfinite,
    optimizer_moments,
    spread_nonfinite,
)

Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """What a step reads and moves; of several agents each tensor has a first axis of seeds (but for `steps`).

    Attributes:
        trained: by name in the agent.
        held: all other parameters and buffers of the agent, by name.
        shared: names of those `held` that several agents have together, without an axis of seeds.
        mean: Adam's first moments of `trained`.
        square: Adam's second moments of `trained`.
        steps: Adam's count of steps for each of `trained`, ().
    """

    trained: Tensors
    held: Tensors
    shared: frozenset[str]
    mean: Tensors
    square: Tensors
    steps: Tensors

    def axes(self) -> dict[str, int | None]:
        """The axis of seeds of each of `held`, of several agents."""
        return {name: None if name in self.shared else 0 for name in self.held}


def state_of(agents: Sequence[Agent], optimizers: Sequence[torch.optim.Optimizer]) -> State:
    """The agents' own tensors, so that whoever looks at an agent or its optimiser sees what a step has moved.

    Of several agents, the tensors are stacked, and the agents' parameters become views of them; but what they all
    hold in the same memory stays there.
    """
    first, optimizer = agents[0], optimizers[0]
    for other in optimizers:
        optimizer_moments(other)
        for parameter, own in other.state.items():  # an eager run keeps the count of steps on the CPU
            own["step"] = own["step"].to(parameter.device)
    names = {parameter: name for name, parameter in first.named_parameters()}
    trained = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    tensors = [_own(agent) for agent in agents]
    shared = {name for name, own in tensors[0].items() if _same([each[name] for each in tensors])}
    joined = {
        name: _joined([each[name] for each in (tensors[:1] if name in shared else tensors)]) for name in tensors[0]
    }
    moments = {
        moment: {
            name: _joined([opt.state[each[name]][moment] for opt, each in zip(optimizers, tensors, strict=True)])
            for name in trained
        }
        for moment in ("exp_avg", "exp_avg_sq")
    }
    steps = {name: optimizer.state[tensors[0][name]]["step"] for name in trained}
    if len(agents) > 1:
        for index, (opt, own) in enumerate(zip(optimizers, tensors, strict=True)):
            for name, whole in joined.items():
                if name not in shared:
                    own[name].data = whole[index]
            for name in trained:
                stacked = {moment: wholes[name][index] for moment, wholes in moments.items()}
                opt.state[own[name]].update(stacked, step=steps[name])
    return State(
        {name: joined[name] for name in trained},
        {name: whole for name, whole in joined.items() if name not in set(trained)},
        frozenset(shared),
        moments["exp_avg"],
        moments["exp_avg_sq"],
        steps,
    )


def _own(agent: Agent) -> Tensors:
    """Parameters and buffers by name, without the constants that every agent makes itself."""
    stored = agent.state_dict()
    return {name: x for name, x in [*agent.named_parameters(), *agent.named_buffers()] if name in stored}


def _same(tensors: Sequence[torch.Tensor]) -> bool:
    return len(tensors) > 1 and len({tensor.data_ptr() for tensor in tensors}) == 1 and tensors[0].numel() > 0


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.stack([tensor.detach() for tensor in tensors])


class StepFunction:
    """The step of one stage (see `Agent.stage`), for which `step` stands.

    Of several agents the first computes the losses; its own tensors are not read. `draws` is the noise that a step
    draws, `idle` the parameters that get no gradient and that Adam leaves alone, as in the eager engine; `awake` says
    which of the optimizer's groups are trained in this stage, `clip` the largest gradient norm of these. Of several
    `processes` each has its share of the batch, and gradients are their means, by one reduction of all. Tensors,
    batches and noise have a first axis of seeds where `held` gives that of each tensor of `State.held`.
    """

    def __init__(
        self,
        agent: Agent,
        optimizer: torch.optim.Optimizer,
        source: BatchSource,
        draws: Sequence[Draw],
        idle: Collection[str],
        *,
        step: int,
        awake: Sequence[bool],
        clip: float | None,
        skips: bool = False,
        processes: int = 1,
        held: Mapping[str, int | None] | None = None,
    ) -> None:
        self.agent, self.source, self.draws, self.clip, self.skips = agent, source, tuple(draws), clip, skips
        self._step, self._processes = step, processes
        names = {parameter: name for name, parameter in agent.named_parameters()}
        own = ([names[parameter] for parameter in group["params"]] for group in optimizer.param_groups)
        self.groups = [[name for name in group if name not in idle] for group in own]
        self.clipped = [name for group, on in zip(self.groups, awake, strict=True) if on for name in group]
        first = optimizer.param_groups[0]
        self.decays = [group["weight_decay"] for group in optimizer.param_groups]
        self.betas, self.eps = first["betas"], first["eps"]
        self.follows, self._beside = _follows(agent), places_beside(agent)
        self.gradients: Callable = self._gradients
        if held is not None:
            self.gradients = vmap(self._gradients, in_dims=(0, dict(held), 0, 0))

    def __call__(self, state: State, fetched: Any, noise: list[torch.Tensor], rates: list[torch.Tensor]) -> Metrics:
        """One step: moves `state` and returns metrics, () or (S,).

        `noise` is a tensor for each of `draws`, `rates` the learning rate () of each of the optimizer's groups, and the
        rate () at which the average of the acting weights follows.
        """
        with torch.no_grad():
            gradients, metrics = self.gradients(state.trained, state.held, fetched, noise)
            if self.skips:
                slow = [pair[0] for _, averaged, copied in self.follows for pair in [*averaged, *copied]]
                moved = [*state.trained.values(), *state.mean.values(), *state.square.values()]
                moved += [(state.trained | state.held)[name] for name in slow]
                apply_if_finite(metrics[NONFINITE], lambda: moved, lambda: self._move(state, gradients, rates))
            else:
                self._move(state, gradients, rates)
        return metrics

    def _move(self, state: State, gradients: Tensors, rates: list[torch.Tensor]) -> None:
        """Adam, and the targets that follow."""
        # Adam's counts and rates are tensors, which a captured step reads anew; on a CPU eager Adam wants numbers.
        on_device = torch.compiler.is_compiling() or rates[0].device.type != "cpu"
        *own, average = rates
        for names, rate, decay in zip(self.groups, own, self.decays, strict=True):
            adam(
                [state.trained[name] for name in names],
                [gradients[name] for name in names],
                [state.mean[name] for name in names],
                [state.square[name] for name in names],
                [],
                [state.steps[name] for name in names],
                foreach=True,
                capturable=on_device,
                fused=False,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=rate if on_device else float(rate),
                weight_decay=decay,
                eps=self.eps,
                maximize=False,
                decoupled_weight_decay=True,
            )
        every = state.trained | state.held
        for tau, averaged, copied in self.follows:
            slow_ones, fast_ones = [every[slow] for slow, _ in averaged], [every[fast] for _, fast in averaged]
            if tau is None and on_device:
                torch._foreach_lerp_(slow_ones, fast_ones, [average.expand_as(x) for x in slow_ones])
            elif averaged:
                torch._foreach_lerp_(slow_ones, fast_ones, float(average) if tau is None else tau)
            for slow, fast in copied:
                every[slow].copy_(every[fast])

    def _gradients(
        self, trained: Tensors, held: Tensors, fetched: Any, noise: list[torch.Tensor]
    ) -> tuple[Tensors, Metrics]:
        """The gradients of one agent's loss, clipped, and metrics."""
        batch = self.source.batch(fetched)

        def loss(parameters: Tensors) -> tuple[torch.Tensor, Metrics]:
            tensors, inputs = parameters | held, (batch, NoiseTape(self.draws, noise), self._step)
            tensors |= {name: tensors[first] for name, first in self._beside.items()}
            value, metrics = functional_call(self.agent, tensors, inputs, tie_weights=False)
            spreads = self.skips and self._processes > 1
            return (spread_nonfinite(value) if spreads else value), metrics

        gradients, (_, metrics) = grad_and_value(loss, has_aux=True)(trained)
        if self._processes > 1:
            gradients = mean_over_processes(gradients)
        total = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()
        metrics = metrics | {NONFINITE: is_nonfinite(metrics["loss"], total)}
        if self.clip is not None:  # as torch.nn.utils.clip_grad_norm_
            norm = torch.stack([gradients[name].square().sum() for name in self.clipped]).sum().sqrt()
            factor = (self.clip / (norm + 1e-6)).clamp_max(1)
            gradients = gradients | {name: factor * gradients[name] for name in self.clipped}
            metrics = metrics | {"gradient_norm": norm}
        return gradients, metrics


def _follows(agent: Agent) -> list[tuple[float | None, list[tuple[str, str]], list[tuple[str, str]]]]:
    """By rate (None: the average's): the names of averaged and of copied tensors, each with the one that it follows."""
    names = {id(tensor): name for name, tensor in [*agent.named_parameters(), *agent.named_buffers()]}
    follows: list[tuple[float | None, list[tuple[str, str]], list[tuple[str, str]]]] = []
    for slow, fast, rate in agent.targets():
        averaged, copied = ([(names[id(a)], names[id(b)]) for a, b in pairs] for pairs in followed(slow, fast))
        if averaged or copied:
            follows.append((rate, averaged, copied))
    if pairs := agent.average_pairs():
        follows.append((None, [(names[id(a)], names[id(b)]) for a, b in pairs], []))
    return follows


def recorded_step(
    agent: Agent, source: BatchSource, fetched: Any, noise: NoiseSource, step: int
) -> tuple[list[Draw], set[str]]:
    """The noise that the agent's step `step` draws, and the names of the parameters that get no gradient in it.

    Its losses are computed once, and nothing is kept of them.
    """
    recorder = NoiseRecorder(noise)
    buffers = {name: buffer.clone() for name, buffer in agent.named_buffers()}
    buffers |= {name: buffers[first] for name, first in places_beside(agent).items() if first in buffers}
    trained = {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        loss, _ = functional_call(agent, buffers, (source.batch(fetched), recorder, step), tie_weights=False)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return recorder.draws, {name for name, x in zip(trained, gradients, strict=True) if x is None}
