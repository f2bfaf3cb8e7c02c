"""Robots for measurements: a process whose threads show a server one observation after another, at their own pace.

    python -m gtp_vision.bench.robot ADDRESS ROBOTS COUNT RATE FOLDER

It imports no torch, as robots do not. They share a process to leave the server what they can of the machine's cores,
which real ones do not share with it.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import connect

from gtp_vision.serving.protocol import packed, unpacked
from gtp_vision.serving.scheduling import go_first

_KINDS = 32  # observations, over and over


def observations(seed: int, cameras: Mapping[str, Any], states: Mapping[str, int]) -> list[dict[str, np.ndarray]]:
    """What the robot of a seed sees: random frames (H, W, C) uint8 and states (D,) float32."""
    random = np.random.default_rng(seed)
    return [
        {name: random.integers(0, 256, tuple(shape), np.uint8) for name, shape in cameras.items()}
        | {name: random.normal(size=width).astype(np.float32) for name, width in states.items()}
        for _ in range(_KINDS)
    ]


def ask(address: str, seed: int, count: int, rate: float, out: Path) -> None:
    """Ask `count` times, `rate` times a second, and write what came.

    Args:
        address: of the server.
        seed: of the episode's noise and of what is seen.
        count: observations.
        rate: of them a second.
        out: npz to write: `actions` (count, H, A), NaN where none came, and in milliseconds (count,) `round_trip`,
            `act`, `queued`.
    """
    with connect(address, compression=None, max_size=None) as connection:
        told = unpacked(_bytes(connection.recv()))
        seen = observations(seed, told["cameras"], told["states"])
        actions = np.full((count, told["chunk"], told["actions"]), np.nan, np.float32)
        times = np.full((3, count), np.nan)
        connection.send(packed({"seed": seed}))
        connection.recv()
        start = time.perf_counter() + np.random.default_rng(seed).random() / rate  # robots do not march in step
        for step in range(count):
            time.sleep(max(0.0, start + step / rate - time.perf_counter()))
            began = time.perf_counter()
            connection.send(packed(seen[step % _KINDS]))
            answer = connection.recv()
            spent = 1e3 * (time.perf_counter() - began)
            if isinstance(answer, bytes):
                found = unpacked(answer)
                actions[step] = found["actions"]
                times[:, step] = spent, found["server_timing"]["infer_ms"], found["server_timing"]["queue_ms"]
    np.savez(out, actions=actions, round_trip=times[0], act=times[1], queued=times[2])


def _bytes(message: str | bytes) -> bytes:
    assert isinstance(message, bytes), message
    return message


if __name__ == "__main__":
    place, robots, count, rate, folder = sys.argv[1:]
    threads = [
        threading.Thread(target=ask, args=(place, seed, int(count), float(rate), Path(folder) / f"{seed}.npz"))
        for seed in range(int(robots))
    ]
    go_first()  # as robots do, which wait for no policy's core
    gc.freeze()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
