"""Simulated robots: a process whose threads send observations to a server, each at a fixed rate.

    python -m gtp_vision.bench.robot ADDRESS ROBOTS COUNT RATE FOLDER

It does not import torch, as real robots do not. They share one process to leave the server as much of the machine's
cores as possible: real robots do not run on the server's machine.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision.serving.client import Client, ServerError

_OBSERVATIONS = 32  # repeated over and over
_PATIENCE = 60.0  # seconds for an answer


def random_observations(
    seed: int, cameras: Mapping[str, Any], states: Mapping[str, int]
) -> list[dict[str, np.ndarray]]:
    """Observations of a robot: random frames (H, W, C) uint8 and states (D,) float32."""
    random = np.random.default_rng(seed)
    return [
        {name: random.integers(0, 256, tuple(shape), np.uint8) for name, shape in cameras.items()}
        | {name: random.normal(size=width).astype(np.float32) for name, width in states.items()}
        for _ in range(_OBSERVATIONS)
    ]


def run_robot(address: str, seed: int, count: int, rate: float, out: Path) -> None:
    """Send `count` observations, `rate` a second, and write the answers.

    The npz `out` holds `actions` (count, H, A), NaN where none arrived, and in milliseconds (count,) `round_trip`,
    `act`, `queued`.
    """
    with Client(address, timeout=_PATIENCE) as robot:
        schema = robot.metadata
        observations = random_observations(seed, schema["cameras"], schema["states"])
        actions = np.full((count, schema["chunk"], schema["actions"]), np.nan, np.float32)
        times = np.full((3, count), np.nan)
        robot.reset(seed)
        start = time.perf_counter() + np.random.default_rng(seed).random() / rate  # robots are not synchronized
        for step in range(count):
            time.sleep(max(0.0, start + step / rate - time.perf_counter()))
            began = time.perf_counter()
            with contextlib.suppress(ServerError):
                answer = robot.infer(observations[step % _OBSERVATIONS])
                round_trip = 1e3 * (time.perf_counter() - began)
                timing = answer["server_timing"]
                actions[step], times[:, step] = answer["actions"], (round_trip, timing["infer_ms"], timing["queue_ms"])
    np.savez(out, actions=actions, round_trip=times[0], act=times[1], queued=times[2])


if __name__ == "__main__":
    address, robots, count, rate, folder = sys.argv[1:]
    threads = [
        threading.Thread(target=run_robot, args=(address, seed, int(count), float(rate), Path(folder) / f"{seed}.npz"))
        for seed in range(int(robots))
    ]
    gc.freeze()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
