"""`gtp-vision bench step`: where a training step's time goes, and what memory it takes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from gtp_vision.config import Config, from_command_line
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training.parts import Parts, build

_CASES = {
    "demo": ["task=demo", "training=demo", "agent=gtp_demo", "encoder=demo"],
    "batch 256, 3x64x64x3": ["task=demo", "agent=gtp", "encoder=impala_small", "task.frame_stack=3"],
}
_EPISODE = 200


def bench_step(*, rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Time the parts of a step for each case, interleaved, on the device that Accelerate chooses.

    The parts are measured alone: `data` draws and gathers a batch; `critic` and `actor` are the forward and
    backward passes of their losses (the actor's includes the advantage weights); `optimizer` is Adam's step;
    `targets` the Polyak update; `step` is the whole as training runs it, without the loader's thread.

    Args:
        rounds: how often each case is timed; the medians are returned.
        progress: show a bar.

    Returns:
        Case to milliseconds of each part, and resident memory in MB.
    """
    spent: dict[str, dict[str, list[float]]] = {case: {} for case in _CASES}
    with tempfile.TemporaryDirectory() as folder:
        frames = synthetic(Path(folder) / "frames.h5")
        built: dict[str, tuple[Config, Parts]] = {}
        for case, overrides in _CASES.items():
            extra = [f"task.dataset={frames}"] if case != "demo" else []
            config = from_command_line([*overrides, *extra, f"run_dir={folder}/{len(built)}"])
            built[case] = (config, build(config))
        for turn in tqdm(range(rounds + 1), desc="timing", unit="round", disable=not progress):
            for case, (config, parts) in built.items():
                for part, seconds in _time(config, parts, turn).items():
                    if turn:  # the first round warms up
                        spent[case].setdefault(part, []).append(1e3 * seconds)
        device = str(parts.accelerator.device)
    return {
        "unit": "ms",
        "device": device,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "cases": {
            case: {part: round(statistics.median(values), 2) for part, values in times.items()}
            for case, times in spent.items()
        },
        "resident_mb": round(psutil.Process().memory_info().rss / 1e6),
    }


def table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    cases = results["cases"]
    names = list(next(iter(cases.values())))
    lines = [f"{'ms, median of ' + str(results['rounds']):<22}" + "".join(f"{name:>11}" for name in names)]
    lines += [f"{case:<22}" + "".join(f"{times[name]:>11.1f}" for name in names) for case, times in cases.items()]
    lines.append(f"{results['device']}, {results['threads']} threads, {results['resident_mb']} MB resident")
    return "\n".join(lines)


def _time(config: Config, parts: Parts, step: int) -> dict[str, float]:
    device, agent = parts.accelerator.device, parts.agent
    told: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        _settle(device)
        started = time.perf_counter()
        made = work()
        _settle(device)
        told[name] = time.perf_counter() - started
        return made

    batch = timed("data", lambda: parts.sampler.batch(step).to(device))
    stream = parts.stream(step)

    def critic() -> None:
        parts.accelerator.backward(agent.critic_loss(agent.see(batch, stream))[0])

    def actor() -> None:
        parts.accelerator.backward(agent.improvement.loss(agent, replace(agent.see(batch, stream), q=judged))[0])

    with torch.no_grad():
        judged = agent.critic_loss(agent.see(batch, stream))[1]

    def whole() -> None:
        loss, _ = parts.module(parts.sampler.batch(step).to(device), parts.stream(step))
        parts.optimizer.zero_grad(set_to_none=True)
        parts.accelerator.backward(loss)
        parts.optimizer.step()
        agent.update_targets()

    timed("critic", critic)
    timed("actor", actor)
    timed("optimizer", parts.optimizer.step)
    timed("targets", agent.update_targets)
    timed("step", whole)
    return told


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic(path: Path, frames: int = 4000, side: int = 64, state: int = 0) -> Path:
    """Write a data set of noise: the time of a step does not depend on what it shows.

    Args:
        path: the file to be.
        frames: a multiple of 200, the frames of an episode.
        side: height and width of the camera, in pixels.
        state: dimensions of a state beside the camera; 0 for none.
    """
    rng = np.random.default_rng(0)
    ends = np.arange(_EPISODE, frames + 1, _EPISODE)
    timeouts = np.zeros(frames, bool)
    timeouts[ends - 1] = True
    observations: dict[str, Array] = {"camera": rng.integers(0, 256, (frames, side, side, 3), np.uint8)}
    if state:
        observations["state"] = rng.standard_normal((frames, state), np.float32)
    return native.write(
        path,
        Store(
            observations=observations,
            actions=rng.uniform(-1, 1, (frames, 5)).astype(np.float32),
            rewards=rng.normal(size=frames).astype(np.float32),
            terminals=np.zeros(frames, bool),
            timeouts=timeouts,
            episode_ends=ends,
        ),
    )
