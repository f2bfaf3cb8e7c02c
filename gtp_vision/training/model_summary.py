"""Summary of an agent's parameters: a table if only a part is trained, or if the backbones are large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from torch import nn

from gtp_vision.agents import Agent
from gtp_vision.config.schema import Config
from gtp_vision.encoders import Encoder
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.tuning import parameter_groups

_LARGE = 1_000_000  # parameters of a backbone
_ROWS = 14  # of a backbone; neighbors are merged if it has more

Part = tuple[str, list[nn.Parameter]]
"""A name and its parameters."""
Schedule = tuple[float, int]
"""A learning rate, and the training step before which it is 0."""


def counts(agent: Agent) -> dict[str, int]:
    """Numbers of `parameters`, without target networks, and of `trained_parameters`."""
    live = [parameter for _, parameters in _live(agent) for parameter in parameters]
    return {"parameters": _size(live), "trained_parameters": _size(p for p in live if p.requires_grad)}


def loaded(agent: Agent) -> list[str]:
    """A line on what was taken from each file of weights; none of a run that continues from a checkpoint."""
    found = [module.loaded for module in agent.modules() if isinstance(module, Backbone) and module.loaded]
    return [f"weights: {text}" for text in dict.fromkeys(found)]


def summary(agent: Agent, config: Config) -> str:
    """A table of parts with numbers of parameters and learning rates, or one line where all rates are equal.

    Encoders have equal architectures, as have their cameras' backbones, so a row includes those of all together.
    """
    live = _live(agent)
    own = {parameter for _, parameters in live for parameter in parameters}
    copies = [parameter for parameter in agent.parameters() if parameter not in own]
    trained = _size(parameter for parameter in own if parameter.requires_grad)
    memory = 4 * (_size(agent.parameters()) + 3 * trained) / 1e6  # float32; a gradient and two moments each
    towers = [module for module in agent.modules() if isinstance(module, Backbone)]
    large = max((_size(tower.parameters()) for tower in towers), default=0) > _LARGE
    groups = parameter_groups(agent, config.encoder)
    if config.encoder.tuning == "full" and not large and len(groups) == 1:
        return (
            f"{trained:,} trained parameters, learning rate {config.training.learning_rate:.2e}; {memory:,.0f} MB with "
            f"target networks, gradients and Adam's moments"
        )
    schedules: dict[nn.Parameter, Schedule] = {
        parameter: (config.training.learning_rate * group["scale"], group["after"])
        for group in groups
        for parameter in group["params"]
    }
    parts = [*_shortened(live, schedules), ("target networks", copies)]
    rows = [(name, *_numbers(parameters, schedules)) for name, parameters in parts if parameters]
    table = [
        (f"encoder.tuning={config.encoder.tuning}", "parameters", "trained", "learning rate"),
        *((name, f"{number:,}", f"{moved:,}", _format_rates(rates)) for name, number, moved, rates in rows),
        ("total", f"{_size(agent.parameters()):,}", f"{trained:,}", f"{memory:,.0f} MB with gradients and moments"),
    ]
    width = max(len(name) for name, *_ in table)
    return "\n".join(
        f"{name:<{width}}{number:>14}{moved:>14}  {rates}".rstrip() for name, number, moved, rates in table
    )


def _live(agent: Agent) -> list[Part]:
    """All parts except target networks: blocks of the backbones, fusion, policy, critic, the agent's other networks."""
    encoders = [
        (name, module)
        for name, module in agent.named_children()
        if isinstance(module, Encoder) and not name.endswith("_target")
    ]
    title = " + ".join(name for name, _ in encoders)
    parts: dict[str, list[nn.Parameter]] = {}
    for _, encoder in encoders:
        for tower in encoder.towers.values():
            assert isinstance(tower, Backbone)
            for name, parameters in _blocks(tower):
                parts.setdefault(f"{title}: {name}", []).extend(parameters)
        parts.setdefault(f"fusion of {title}", []).extend(encoder.fusion.parameters())
    for name, module in agent.named_children():
        if not isinstance(module, Encoder):
            parts[name] = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [(name, parameters) for name, parameters in parts.items() if parameters]


def _blocks(tower: Backbone) -> Iterator[Part]:
    """Blocks by their name in the backbone; blocks without one by those of their first and last module."""
    names = {module: name for name, module in tower.named_modules()}
    for number, block in enumerate(tower.blocks()):
        places = [names[part] for part in (block, *block.children()) if part in names]
        ends = [places[0]] if block in names else places[:1] + places[1:][-1:]
        yield " to ".join(ends) or f"block {number}", list(block.parameters())


def _shortened(parts: list[Part], schedules: Mapping[nn.Parameter, Schedule]) -> Iterator[Part]:
    """Merge neighboring parts of one owner where they are equal, and where they are too many."""
    for _, of_owner in groupby(parts, lambda part: part[0].partition(": ")[0]):
        equal = groupby(of_owner, lambda part: _numbers(part[1], schedules))
        rows = [_joined(list(group)) for _, group in equal]
        step = -(-len(rows) // _ROWS)
        for start in range(0, len(rows), step):
            yield _joined(rows[start : start + step])


def _joined(parts: list[Part]) -> Part:
    first, last = parts[0][0], parts[-1][0]
    name = f"{first.partition(' to ')[0]} to {last.partition(': ')[2].rpartition(' to ')[2]}"
    return first if len(parts) == 1 else name, [parameter for _, parameters in parts for parameter in parameters]


def _numbers(
    parameters: Iterable[nn.Parameter], schedules: Mapping[nn.Parameter, Schedule]
) -> tuple[int, int, list[Schedule]]:
    """Number of parameters, of trained ones, and their rates."""
    parameters = list(parameters)
    trained = [parameter for parameter in parameters if parameter in schedules]
    return _size(parameters), _size(trained), sorted({schedules[parameter] for parameter in trained})


def _format_rates(rates: list[Schedule]) -> str:
    """One rate or a range of rates, and the step from which they apply."""
    text = " to ".join(dict.fromkeys(f"{rate:.2e}" for rate, _ in (*rates[:1], *rates[-1:])))
    return f"{text} from step {rates[0][1]}" if rates and rates[0][1] else text


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
