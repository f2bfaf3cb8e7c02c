"""`gtp-vision bench encoders`: what frozen features save, and what our backbones cost beyond their layers."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from gtp_vision.bench.step import synthetic
from gtp_vision.config.schema import from_command_line
from gtp_vision.datasets.sources import batch_source
from gtp_vision.encoders import EncoderConfig, backbones
from gtp_vision.encoders.impala import Impala
from gtp_vision.training.build import Components, build
from gtp_vision.training.eager import Eager

BACKBONES = ("timm/tf_efficientnet_lite0", "resnet18")
_FRAMES, _SIDE = 800, 96
_BATCH, _LIVE_BATCH = 256, 32  # a live step of 256 takes ten seconds on two cores
_IMPALA = (3, 3, 64, 64)
_FORWARD = ("impala_small", "drq", *BACKBONES)
_FORWARD_BATCH = 64


def bench_encoders(
    *,
    rounds: int = 7,
    names: Sequence[str] = BACKBONES,
    batch: int = _BATCH,
    more: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Time training steps of `agent=gtp` on the CPU: on cached features, on states and on live frames; and IMPALA.

    * `cached_vs_state`: a step of batch 256 on the cached features of a frozen backbone, over a step of the same agent
      on states as wide as the features that its policy and critic get (512). Both draw and gather their batches. What
      the cached step does beside is the projection from the backbone's width, trained, in actor, critic and targets.
    * `live_vs_cached`: a step of batch 32 that looks at the frames (`encoder.cache=false`, no augmentation), one of
      96x96 pixels an observation, over the same step on cached features.
    * `impala_vs_bare`: forward and backward pass of IMPALA-small, from 256 stacks of uint8 frames (3, 3, 64, 64) as
      the sampler hands them out, over those of a bare `nn.Sequential` of the same layers, which is given floats that
      are scaled already, contiguous or channels last, whichever is faster.
    * `images_per_second`: stacks that each backbone's forward pass takes, without gradient.

    The first two are the worst over the backbones in `backbones`, which have each's milliseconds, too. They start from
    random weights: times do not depend on them.

    Args:
        rounds: in which every case has its turn; medians are told.
        names: of the backbones.
        batch: of the first.
        more: overrides of the configuration.
        progress: show a bar.

    Returns:
        JSON-able.
    """
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, _cache(Path(folder) / "cache"):
        bar = tqdm(total=len(names) + 2, desc="timing", disable=not progress)
        with bar:
            for name in names:
                found[name] = _steps(Path(folder), name, rounds, batch, more)
                bar.update()
            bare = _impala(rounds, batch)
            bar.update()
            forward = _forward(rounds)
            bar.update()
    return {
        "cached_vs_state": max(each["cached_vs_state"] for each in found.values()),
        "live_vs_cached": min(each["live_vs_cached"] for each in found.values()),
        **bare,
        "backbones": found,
        "images_per_second": forward,
        "rounds": rounds,
        "batch": batch,
        "live_batch": min(_LIVE_BATCH, batch),
        "threads": torch.get_num_threads(),
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"ms a step, medians of {results['rounds']} rounds in turn; CPU, threads: {results['threads']}"]
    lines.append(f"{'':<28}{'state':>9}{'cached':>9}{'ratio':>8}{'cached':>12}{'live':>9}{'ratio':>8}")
    for name, each in results["backbones"].items():
        lines.append(
            f"{name:<28}{each['state_ms']:>9.1f}{each['cached_ms']:>9.1f}{each['cached_vs_state']:>8.2f}"
            f"{each['cached_small_ms']:>12.1f}{each['live_ms']:>9.1f}{each['live_vs_cached']:>8.1f}"
        )
    lines.append(f"(batch {results['batch']} on the left, {results['live_batch']} on the right)")
    impala = results["impala_ms"]
    lines.append(
        f"impala_small forward and backward: {impala['ours']:.0f} ms; its bare layers {impala['channels_last']:.0f} "
        f"channels last, {impala['contiguous']:.0f} contiguous: {results['impala_vs_bare']:.2f}"
    )
    rates = (f"{name} {rate:.0f}" for name, rate in results["images_per_second"].items())
    return "\n".join([*lines, f"stacks a second, forward: {', '.join(rates)}"])


def _steps(folder: Path, name: str, rounds: int, batch: int, more: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of training steps with one backbone."""
    width = EncoderConfig().features
    data = folder / "frames.h5"
    if not data.exists():
        synthetic(data, _FRAMES, _SIDE, width)

    def run(size: int, *overrides: str) -> tuple[Eager, Components]:
        common = ["task=own", f"task.dataset={data}", "task.frame_stack=1", "agent=gtp", f"run_dir={folder}/run"]
        config = from_command_line([*common, "training.device=cpu", f"training.batch_size={size}", *more, *overrides])
        parts = build(config)
        return Eager(batch_source(parts.sampler, parts.accelerator.device), config, parts), parts

    # Of impala_small's preset all that is left is an encoder each for actor and critic.
    frozen = ["task.observations=[camera]", "encoder=impala_small", f"encoder.name={name}", "encoder.tuning=frozen"]
    still = ["encoder.augmentation.shift=0"]
    small = min(_LIVE_BATCH, batch)
    cases = {
        "state": run(batch, "task.observations=[state]", "encoder=state", "encoder.share=false"),
        "cached": run(batch, *frozen, *still),
        "cached_small": run(small, *frozen, *still),
        "live": run(small, *frozen, *still, "encoder.cache=false"),
    }

    def step(engine: Eager, turn: int) -> None:
        engine.step(turn, engine.source.fetch(turn))

    ms = _interleaved({case: partial(step, engine) for case, (engine, _) in cases.items()}, rounds)
    features = cases["cached"][1].sampler.store.observations["camera"]
    return {
        **{f"{case}_ms": round(value, 2) for case, value in ms.items()},
        "cached_vs_state": round(ms["cached"] / ms["state"], 3),
        "live_vs_cached": round(ms["live"] / ms["cached_small"], 2),
        "width": features.shape[1],
        "dtype": str(features.dtype),
    }


def _impala(rounds: int, batch: int) -> dict[str, Any]:
    torch.manual_seed(0)
    ours = Impala("impala_small", _IMPALA)
    frames, channels, height, width = _IMPALA
    recorded = torch.randint(0, 256, (batch, frames, height, width, channels), dtype=torch.uint8)
    stacks = recorded.permute(0, 1, 4, 2, 3)  # as `Batch.observation` hands them out

    def bare(memory_format: torch.memory_format) -> Callable[[int], None]:
        layers = nn.Sequential(*copy.deepcopy(ours.layers), nn.ReLU(), nn.Flatten())
        layers.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's stubs
        given = ours.normalized(stacks).flatten(1, 2).contiguous(memory_format=memory_format)
        return lambda _: _both_ways(layers, given)

    works = {
        "ours": lambda _: _both_ways(ours, stacks),
        "channels_last": bare(torch.channels_last),
        "contiguous": bare(torch.contiguous_format),
    }
    ms = _interleaved(works, rounds)
    return {
        "impala_vs_bare": round(ms["ours"] / min(ms["channels_last"], ms["contiguous"]), 3),
        "impala_ms": {name: round(value, 1) for name, value in ms.items()},
    }


def _both_ways(module: nn.Module, given: torch.Tensor) -> None:
    module.zero_grad(set_to_none=True)
    module(given).sum().backward()


def _forward(rounds: int) -> dict[str, float]:
    images = torch.randint(0, 256, (_FORWARD_BATCH, 1, 3, _SIDE, _SIDE), dtype=torch.uint8)

    def forward(name: str) -> Callable[[int], None]:
        backbone = backbones.create((1, 3, _SIDE, _SIDE), EncoderConfig(name=name)).eval()
        return torch.no_grad()(lambda _: backbone(images))

    ms = _interleaved({name: forward(name) for name in _FORWARD}, rounds)
    return {name: round(1e3 * _FORWARD_BATCH / value, 1) for name, value in ms.items()}


def _interleaved(works: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, over rounds in which each has its turn; one more round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work(turn)
            spent[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """A cache of our own, so that nothing of the bench stays."""
    before = os.environ.get("GTP_VISION_CACHE")
    os.environ["GTP_VISION_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["GTP_VISION_CACHE"]
        if before is not None:
            os.environ["GTP_VISION_CACHE"] = before
