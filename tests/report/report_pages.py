"""Shared by tests of reports: run folders as training writes them, and a parsed page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import yaml
from pages import Page
from PIL import Image

from gtp_vision.report import build_report

HOSTILE = '<script>alert("x")</script><img src="http://example.org/x.png" onerror="y">'
MakeRun = Callable[..., Path]


def make_run(
    folder: Path,
    mp4: bytes,
    *,
    agent: str = "gtp",
    seed: int = 0,
    shade: int = 0,
    outcomes: str = "sfsfff",
    finished: bool = True,
    curves: bool = False,
) -> Path:
    """A run folder as `gtp-vision train` writes it; an unfinished one stops after the second evaluation.

    Without `curves` only the last values are logged, so that a report draws nothing and is quick.
    """
    (folder / "images").mkdir(parents=True)
    config = {
        "name": "demo",
        "seed": seed,
        "task": {"name": "reach-pixels", "env": "Reach-v0", "dataset": "demo/reach-v1", "frame_stack": 3},
        "agent": {"name": agent, "improvement": {"name": "none" if agent.endswith("_bc") else "advantage"}},
        "encoder": {"name": "impala"},
        "training": {"steps": 1500, "batch_size": 32},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines: list[dict[str, Any]] = []
    for step in range(100, 1600 if finished else 1100, 100):
        times = {"seconds": step / 10, "time/data_ms": 1.25, "time/update_ms": 90.0 + step % 200}
        lines.append({"step": step, "train/actor_loss": 1 / step, "train/q_mean": -step / 10, **times})
        if step % 500 == 0:
            measured = {"eval/success": step / 2000, "eval/return": -20.5, "eval/length": 50.25}
            lines.append({"step": step, **measured, "eval/seconds": 31.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[0 if curves else -2 :]))
    Image.fromarray(np.full((8, 16, 3), shade, np.uint8)).save(folder / "images" / "first_batch.png")
    for step, letters in ((500, "f"), (1500, outcomes if finished else "")):
        for number, letter in enumerate(letters):
            outcome = {"s": "success", "f": "failure"}[letter]
            video = folder / "videos" / f"step_{step}" / f"episode_{number:03d}_{outcome}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            video.write_bytes(mp4)
    if finished:
        last = {"step": 1500, "episodes": 20, "success": 0.85, "success_interval": [0.64, 0.95]}
        last |= {"return": -1030.04, "length": 48.0, "seconds": 60.1}
        results = {"task": "reach-pixels", "agent": agent, "encoder": "impala", "seed": seed, "steps": 1500}
        results |= {"train_seconds": 140.2, "eval_seconds": 180.3, "parameters": 1234567, "device": "cpu"}
        results |= {"versions": {"torch": "2.13.0"}, "evaluations": [last], "last": last}
        results |= {"mean_last_3": {"success": 0.7333, "return": -40.0}, "best": last | {"step": 1000, "success": 0.9}}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def build(*runs: Path, title: str = "A report", **options: Any) -> Page:
    return Page(build_report(list(runs), runs[0].parent / "out" / "report.html", title=title, **options))


def edit_results(run: Path, **changes: Any) -> None:
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | changes))


def add_metrics(run: Path, *added: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in added)


def a_video(path: Path) -> bytes:
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    frames[:, :, :32] = np.arange(0, 256, 32, dtype=np.uint8)[:, None, None, None]
    iio.imwrite(path, frames, fps=10)
    return path.read_bytes()
