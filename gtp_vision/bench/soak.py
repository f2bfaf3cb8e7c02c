"""Robots that come and go for minutes: whether a server's answers stay right, and its memory the same."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gtp_vision.bench.robot import random_observations
from gtp_vision.bench.serve import server_of, untrained_artifact
from gtp_vision.serving.client import Client, ServerError

_LIFE = (5, 60)  # observations of a robot until it disconnects
_SETTLED = 0.1  # share of the time after which memory counts: caches and buffers have their size
_COUNTED = ("connections", "answers", "wrong", "refused")


def bench_soak(
    folder: Path | None = None,
    *,
    minutes: float,
    clients: int = 8,
    rate: float = 10.0,
    record: bool = False,
    limits: bool = False,
) -> dict[str, Any]:
    """Let robots connect, act for a few seconds and disconnect, again and again, and measure the server's memory.

    A robot repeats its episode, so each answer is compared with that of the first time. Arguments as of `bench_serve`.

    Returns:
        JSON-able: `minutes`, `connections`, `answers`, `wrong`, `refused`; and `memory`, MB that belong to the server
        alone (USS) `start`, after a tenth of the time, and `end`; with `record` those of the recording process, too.
    """
    with tempfile.TemporaryDirectory(prefix="gtp-vision-soak-") as scratch:
        served = folder or untrained_artifact(Path(scratch) / "policy", limits=limits)
        seconds = 60 * minutes
        with (
            server_of(served, 2 * clients, Path(scratch) / "recorded" if record else None) as (address, server),
            ThreadPoolExecutor(clients) as pool,
        ):
            lives = [pool.submit(_live, address, seed, time.monotonic() + seconds, rate) for seed in range(clients)]
            time.sleep(_SETTLED * seconds)
            start = _memory(server.pid)
            counts = sum((life.result() for life in lives), Counter[str]())
            end = _memory(server.pid)
    memory = {name: {"start": start[name], "end": end.get(name)} for name in start}
    return {"minutes": minutes, **{name: counts[name] for name in _COUNTED}, "memory": memory}


def _live(address: str, seed: int, deadline: float, rate: float) -> Counter[str]:
    """One robot after another at the same place, until the deadline."""
    lengths, first, counts = np.random.default_rng(seed), list[np.ndarray](), Counter[str]()
    while time.monotonic() < deadline:
        with Client(address, timeout=60) as robot:
            counts["connections"] += 1
            seen = random_observations(seed, robot.metadata["cameras"], robot.metadata["states"])
            robot.reset(seed)
            for step in range(int(lengths.integers(*_LIFE))):
                try:
                    actions = robot.infer(seen[step % len(seen)])["actions"]
                except ServerError:
                    counts["refused"] += 1
                    break  # a step of the policy is missing, so the following answers are others
                counts["answers"] += 1
                if step == len(first):
                    first.append(actions)
                counts["wrong"] += not np.array_equal(actions, first[step])
                time.sleep(1 / rate)
    return counts


def _memory(process: int) -> dict[str, float]:
    """MB that belong to the server and to its recording process alone."""
    server = psutil.Process(process)
    found = {"server": server.memory_full_info().uss / 1e6}
    others = [child.memory_full_info().uss / 1e6 for child in server.children(recursive=True)]
    return found | ({"recording": max(others)} if others else {})


def table(results: Mapping[str, Any]) -> str:
    """The counts, and the memory at both ends."""
    counts = ", ".join(f"{results[name]} {name}" for name in _COUNTED)
    memory = (f"{name}: {of['start']:.1f} MB, at the end {of['end']:.1f} MB" for name, of in results["memory"].items())
    return "\n".join([f"{results['minutes']:g} minutes: {counts}", *memory])
