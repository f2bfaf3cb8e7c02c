"""What a training step on frames will take, before it is taken: from its operations on tensors without numbers."""

from __future__ import annotations

import copy
import itertools
import statistics
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from gtp_vision.core.distributed import local_only
from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.timing import seconds
from gtp_vision.datasets.placement import free_memory
from gtp_vision.datasets.sources import batch_source
from gtp_vision.training.build import Components
from gtp_vision.training.functional import recorded_step

_SIDE = 512  # of the matrices whose product shows how fast the device is
_SAID = 1e9  # bytes from which on a step is worth a line


@dataclass(frozen=True)
class StepCost:
    """The cost of a step of `rows` rows, uncompiled: bytes that the losses keep for their gradients, and operations."""

    rows: int
    bytes: int
    flops: int

    def sentence(self, device: torch.device) -> str:
        """For the log; empty where a step is small."""
        if self.bytes < _SAID:
            return ""
        matrix = torch.ones(_SIDE, _SIDE, device=device)
        took = statistics.median(seconds(lambda: matrix @ matrix, device) for _ in range(9))
        least = self.flops / (2 * _SIDE**3) * took
        return (
            f"a step of {self.rows} rows: about {self.bytes / 1e9:.2g} GB of memory and {self.flops / 1e9:,.0f} Gflop, "
            f"at least {least:,.0f} s here"
        )


def step_cost(parts: Components) -> StepCost | None:
    """Count what the first step takes; None where no frames are seen, or an operation cannot be followed so.

    Raises:
        GtpVisionError: it needs more memory than is free.
    """
    accelerator, sampler = parts.accelerator, parts.sampler
    if not any(array.ndim == 4 for array in sampler.store.observations.values()):
        return None
    device, processes = accelerator.device, accelerator.num_processes
    try:
        cost = _counted(parts, sampler.batch_size)
    except Exception as error:  # of an operation without a rule for such tensors; training itself does not need one
        accelerator.print(f"the memory of a step is not known: {first_line(error)}")
        return None
    free = free_memory(device) // (1 if device.type == "cuda" else processes)
    if cost.bytes <= free:
        return cost
    fitting, each = sampler.batch_size, 2 * parts.share(0)[1]  # an even number of rows for each process
    while fitting and _counted(parts, fitting).bytes > free:
        fitting = fitting // 2 // each * each
    raise GtpVisionError(
        f"a step of {cost.rows} rows needs about {cost.bytes / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are "
        f"free; set {f'training.batch_size={fitting}, or ' if fitting else ''}training.accumulate=4 (the same step in "
        f"parts), encoder.recompute=16 (a third more time), smaller frames (task.image_size) or encoder.tuning=frozen"
    )


def _counted(parts: Components, batch_size: int) -> StepCost:
    """The cost of this process's share of a batch."""
    accelerator, kept = parts.accelerator, dict[int, torch.Tensor]()
    rank, processes = parts.share(0)  # a process, or the first of its micro-batches

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage gets its address
        return tensor.detach()  # else an output that is kept for its own gradient would keep itself

    # A copy that holds the same tensors: what it keeps for later steps will have no numbers.
    held = itertools.chain(parts.agent.parameters(), parts.agent.buffers())
    agent = copy.deepcopy(parts.agent, {id(tensor): tensor for tensor in held})
    source = batch_source(replace(parts.sampler, batch_size=batch_size), accelerator.device)
    fetched = source.fetch(0, rank, processes)
    with local_only(), FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounterMode(display=False) as counter:
        moved = pytree.tree_map(lambda x: fake.from_tensor(x).to(accelerator.device), fetched)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            recorded_step(agent, source, moved, parts.stream(0, 0), 0)
    needed = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    kept.clear()  # the graph of what was left out holds `keep`, which holds the graph
    return StepCost(batch_size // processes, needed, counter.get_total_flops())
