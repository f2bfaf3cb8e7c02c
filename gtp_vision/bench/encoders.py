"""`gtp-vision bench encoders`: what frozen features save, and what our backbones cost beyond their layers."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gtp_vision.bench.recordings import write_noise
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.core.progress import Progress
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.datasets.sources import batch_source
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import EncoderConfig, backbones
from gtp_vision.encoders.impala import Impala
from gtp_vision.training.build import build
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
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Time training steps of `agent=gtp` on the CPU: on cached features, on states and on live frames; and IMPALA.

    * `cached_vs_state`: a step of batch 256 on the cached features of a frozen backbone, over a step of the same agent
      on states as wide as the features that its policy and critic get (512). Both draw and gather their batches. The
      cached step also computes the trained projection from the backbone's width, in actor, critic and targets.
    * `live_vs_cached`: a step of batch 32 on frames (`encoder.cache=false`, no augmentation), one of 96x96 pixels an
      observation, over the same step on cached features.
    * `impala_vs_bare`: forward and backward pass of IMPALA-small, from 256 stacks of uint8 frames (3, 3, 64, 64) as
      the sampler returns them, over those of a bare `nn.Sequential` of the same layers on floats that are scaled
      already, contiguous or channels last, whichever is faster.
    * `images_per_second`: stacks that each backbone's forward pass takes, without gradient.

    The first two are the worst over the backbones; `backbones` has the milliseconds of each. They start from random
    weights, which do not change the times.

    Returns:
        JSON-able.
    """
    results: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        _temporary_cache(Path(folder) / "cache"),
        Progress(total=len(names) + 2, desc="timing", disable=not progress) as bar,
    ):
        data = write_noise(Path(folder) / "frames.h5", frames=_FRAMES, side=_SIDE, state=EncoderConfig().features)
        for name in names:
            results[name] = _time_steps(data, name, rounds, batch, overrides)
            bar.update()
        impala = _time_impala(rounds, batch)
        bar.update()
        forward = _time_forward(rounds)
        bar.update()
    return {
        "cached_vs_state": max(times["cached_vs_state"] for times in results.values()),
        "live_vs_cached": min(times["live_vs_cached"] for times in results.values()),
        **impala,
        "backbones": results,
        "images_per_second": forward,
        "rounds": rounds,
        "batch": batch,
        "live_batch": min(_LIVE_BATCH, batch),
        "threads": torch.get_num_threads(),
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = [f"ms a step, medians of {results['rounds']} interleaved rounds; CPU, threads: {results['threads']}"]
    lines.append(f"{'':<28}{'state':>9}{'cached':>9}{'ratio':>8}{'cached':>12}{'live':>9}{'ratio':>8}")
    for name, times in results["backbones"].items():
        lines.append(
            f"{name:<28}{times['state_ms']:>9.1f}{times['cached_ms']:>9.1f}{times['cached_vs_state']:>8.2f}"
            f"{times['cached_small_ms']:>12.1f}{times['live_ms']:>9.1f}{times['live_vs_cached']:>8.1f}"
        )
    lines.append(f"(batch {results['batch']} on the left, {results['live_batch']} on the right)")
    impala = results["impala_ms"]
    lines.append(
        f"impala_small forward and backward: {impala['ours']:.0f} ms; its bare layers {impala['channels_last']:.0f} "
        f"channels last, {impala['contiguous']:.0f} contiguous: {results['impala_vs_bare']:.2f}"
    )
    rates = (f"{name} {rate:.0f}" for name, rate in results["images_per_second"].items())
    return "\n".join([*lines, f"stacks a second, forward: {', '.join(rates)}"])


def _time_steps(data: Path, name: str, rounds: int, batch: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of training steps with one backbone."""
    common = [
        "task=own",
        "task.validation=0",
        quoted("task.dataset", data),
        "task.frame_stack=1",
        "agent=gtp",
        "run_dir=unused",
    ]
    common += ["training.device=cpu"]

    def step(batch_size: int, *options: str) -> tuple[Work, Store]:
        config = from_command_line([*common, f"training.batch_size={batch_size}", *overrides, *options])
        parts, steps = build(config), count()
        engine = Eager(batch_source(parts.sampler, parts.accelerator.device), config, parts)
        work = Work(lambda number: engine.step(number, engine.source.fetch(number)), lambda: next(steps))
        return work, parts.sampler.store

    # Of impala_small's preset only the separate encoders of actor and critic remain.
    frozen = ["task.observations=[camera]", "encoder=impala_small", f"encoder.name={name}", "encoder.tuning=frozen"]
    frozen += ["encoder.augmentation.shift=0"]
    small = min(_LIVE_BATCH, batch)
    cases = {
        "state": step(batch, "task.observations=[state]", "encoder=state", "encoder.share=false"),
        "cached": step(batch, *frozen),
        "cached_small": step(small, *frozen),
        "live": step(small, *frozen, "encoder.cache=false"),
    }
    ms = median_ms({case: work for case, (work, _) in cases.items()}, rounds)
    features = cases["cached"][1].observations["camera"]
    return {
        **{f"{case}_ms": round(value, 2) for case, value in ms.items()},
        "cached_vs_state": round(ms["cached"] / ms["state"], 3),
        "live_vs_cached": round(ms["live"] / ms["cached_small"], 2),
        "width": features.shape[1],
        "dtype": str(features.dtype),
    }


def _time_impala(rounds: int, batch: int) -> dict[str, Any]:
    torch.manual_seed(0)
    ours = Impala("impala_small", _IMPALA)
    frames, channels, height, width = _IMPALA
    recorded = torch.randint(0, 256, (batch, frames, height, width, channels), dtype=torch.uint8)
    stacks = recorded.permute(0, 1, 4, 2, 3)  # the layout of a batch

    def both_passes(module: nn.Module, inputs: torch.Tensor) -> Work:
        def run(_: None) -> None:
            module.zero_grad(set_to_none=True)
            module(inputs).sum().backward()

        return Work(run)

    def bare(memory_format: torch.memory_format) -> Work:
        layers = nn.Sequential(*copy.deepcopy(ours.layers), nn.ReLU(), nn.Flatten())
        layers.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's stubs
        return both_passes(layers, ours.normalized(stacks).flatten(1, 2).contiguous(memory_format=memory_format))

    works = {
        "ours": both_passes(ours, stacks),
        "channels_last": bare(torch.channels_last),
        "contiguous": bare(torch.contiguous_format),
    }
    ms = median_ms(works, rounds)
    return {
        "impala_vs_bare": round(ms["ours"] / min(ms["channels_last"], ms["contiguous"]), 3),
        "impala_ms": {name: round(value, 1) for name, value in ms.items()},
    }


def _time_forward(rounds: int) -> dict[str, float]:
    images = torch.randint(0, 256, (_FORWARD_BATCH, 1, 3, _SIDE, _SIDE), dtype=torch.uint8)

    def forward(name: str) -> Callable[[None], object]:
        backbone = backbones.create((1, 3, _SIDE, _SIDE), EncoderConfig(name=name)).eval()
        return torch.no_grad()(lambda _: backbone(images))

    ms = median_ms({name: Work(forward(name)) for name in _FORWARD}, rounds)
    return {name: round(1e3 * _FORWARD_BATCH / value, 1) for name, value in ms.items()}


@contextmanager
def _temporary_cache(folder: Path) -> Iterator[None]:
    """Keep the features out of the user's cache."""
    before = os.environ.get("GTP_VISION_CACHE")
    os.environ["GTP_VISION_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["GTP_VISION_CACHE"]
        if before is not None:
            os.environ["GTP_VISION_CACHE"] = before
