"""How fast videos are unpacked into the cache, how much room their frames take there, and batches without it."""

from __future__ import annotations

import os
import shutil
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from gtp_vision.core.framing import ALL, Framing
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.datasets.formats import lerobot_writer, open_store, video
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store

FRAMES, SHAPE, SIZE = 400, (480, 640, 3), 224
"""Frames of each of two cameras, as recorded, and the side to which they are resized."""


def unpacking(folder: Path, *, rounds: int = 3, frames: int = FRAMES) -> dict[str, float]:
    """Open a new LeRobot folder of two cameras with `task.image_size`, as training does the first time.

    Returns:
        `frames_per_s`; `vs_one_core`, how many times faster that is than the same decoder, whose frames are read and
        resized one by one, on one core, as in one process; `vs_frame_by_frame`, than that with a core for each of
        both; `cache_ratio`, bytes of the cache over those of the resized frames.
    """
    path, framing = lerobot_writer.write(folder / "videos", _scenes(frames)), Framing({ALL: (SIZE, SIZE)})
    caches = (folder / f"cache_{number}" for number in count())
    cache = folder / "none"

    def fresh() -> None:
        nonlocal cache
        shutil.rmtree(cache, ignore_errors=True)
        cache = next(caches)
        os.environ["GTP_VISION_CACHE"] = str(cache)

    def frame_by_frame() -> None:
        for file in path.rglob("*.mp4"):
            with video.decoding(file, SHAPE) as decoded:
                for frame in decoded:
                    framing("", frame)

    def on_one_core() -> None:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})  # the decoder's process inherits it
        try:
            frame_by_frame()
        finally:
            os.sched_setaffinity(0, cores)

    before = os.environ.get("GTP_VISION_CACHE")
    try:
        works = {
            "ours": Work(lambda _: open_store(path, framing=framing), fresh),
            "frame by frame": Work(lambda _: frame_by_frame()),
            "one core": Work(lambda _: on_one_core()),
        }
        ms = median_ms(works, rounds)
        taken = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    finally:
        os.environ.pop("GTP_VISION_CACHE")
        if before is not None:
            os.environ["GTP_VISION_CACHE"] = before
    return {
        "frames_per_s": round(2 * frames / ms["ours"] * 1e3, 1),
        "vs_one_core": round(ms["one core"] / ms["ours"], 2),
        "vs_frame_by_frame": round(ms["frame by frame"] / ms["ours"], 2),
        "cache_ratio": round(taken / (2 * frames * SIZE * SIZE * 3), 3),
    }


def seeking(folder: Path, *, rounds: int = 3, frames: int = FRAMES, batches: int = 4) -> dict[str, float]:
    """Draw batches of 64 rows, with their next observations, of the cameras of `unpacking` at 224x224.

    Returns:
        Batches a second from frames that were unpacked, and from their videos (`task.video=seek`) with a keyframe every
        2 and every 30 frames; `vs_unpacked_2` and `vs_unpacked_30`, how many times longer these take.
    """
    path, framing = lerobot_writer.write(folder / "seeking", _scenes(frames)), Framing({ALL: (SIZE, SIZE)})
    far = Path(shutil.copytree(path, folder / "seeking_30"))
    for file in far.rglob("*.mp4"):
        near = path / file.relative_to(far)
        with video.decoding(near, SHAPE) as decoded, video.encoding(file, SHAPE, 30, keyframes=30) as write:
            for frame in decoded:
                write(frame[None])
    steps, works = count(), dict[str, Work]()
    for name, source, how in (("unpacked", path, "unpacked"), ("2", path, "seek"), ("30", far, "seek")):
        sampler = Sampler(open_store(source, framing=framing, video=how), 64, seed=0)
        works[name] = Work(partial(_batch, sampler), partial(next, steps), 1, batches)
    ms = median_ms(works, rounds)
    return {f"{name}_per_s": round(1e3 / value, 2) for name, value in ms.items()} | {
        f"vs_unpacked_{name}": round(ms[name] / ms["unpacked"], 1) for name in ("2", "30")
    }


def _batch(sampler: Sampler, step: int) -> None:
    sampler.frames(sampler.rows(step))


def _scenes(frames: int) -> Store:
    """Two views of a soft texture that moves, with the noise of a camera."""
    rng, (height, width, _) = np.random.default_rng(0), SHAPE
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    texture = np.asarray(coarse.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)).astype(np.float32)
    noise = rng.normal(0, 3, SHAPE).astype(np.float32)
    cameras = {name: np.empty((frames, *SHAPE), np.uint8) for name in ("front", "wrist")}
    for phase, camera in enumerate(cameras.values()):
        for row in range(frames):
            angle = row / 50 + phase
            top, left = int(height / 2 * (1 + np.sin(angle))), int(width / 2 * (1 + np.cos(1.3 * angle)))
            camera[row] = np.clip(texture[top : top + height, left : left + width] + noise, 0, 255)
    is_last = np.arange(frames) == frames - 1
    return Store(
        observations={**cameras, "state": rng.standard_normal((frames, 7), np.float32)},
        actions=rng.uniform(-1, 1, (frames, 7)).astype(np.float32),
        rewards=np.zeros(frames, np.float32),
        terminals=np.zeros(frames, bool),
        timeouts=is_last,
        episode_ends=np.array([frames]),
        attributes={"fps": 30},
    )
