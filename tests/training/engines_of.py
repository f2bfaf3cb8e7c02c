"""Runs side by side and the engines that take their steps, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gtp_vision.config.schema import Config
from gtp_vision.datasets.sources import batch_source, batch_source_of_seeds
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.eager import Eager
from gtp_vision.training.engines import Engine, Functional
from gtp_vision.training.seeds import seeds_of

CPU = torch.device("cpu")


def members_of(config: Config) -> list[Components]:
    """The runs of all seeds of a configuration."""
    alone = seeds_of(config)
    first = build(alone[0])
    return [first, *(components_for_seed(first, other) for other in alone[1:])]


def only_compiling(line: str) -> None:
    assert line.startswith(("compiling the step", "engine: compile, equal to eager", "engine: graph, equal to eager"))


def engine_of(
    kind: str,
    config: Config,
    members: Sequence[Components],
    backend: Any = "aot_eager",
    tell: Callable[[str], None] = only_compiling,
) -> Engine:
    """Eager steps, steps as a function, or that function compiled by a backend."""
    if kind == "eager":
        return Eager(batch_source(members[0].sampler, CPU), config, members[0])
    source = batch_source_of_seeds([member.sampler for member in members], CPU)
    name = "eager" if kind == "function" else "compile"
    return Functional(source, config, members, name, tell, backend=backend)
