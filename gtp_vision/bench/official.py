"""Our FQL's step against that of its authors' code in JAX, from a checkout and an environment that the user names.

`benchmarks/peers/fql.py --time` waits in a process of its own, so that both take turns on the same cores.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gtp_vision.bench.recordings import write_noise
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.core.compile import has_compiler
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.datasets.sources import batch_source
from gtp_vision.training.build import build
from gtp_vision.training.eager import Eager
from gtp_vision.training.engines import Functional

NETWORKS = {"3x128": (128,) * 3, "4x512": (512,) * 4}
_AS_OFFICIAL = (
    *("agent=fql", "encoder=state", "encoder.share=true", "encoder.standardize=none", "task.frame_stack=1"),
    *("agent.policy.activation=gelu_tanh", "agent.policy.input_gain=1"),
    *("agent.critic.activation=gelu_tanh", "agent.critic.norm_after=true", "training.batch_size=256"),
)
_STEPS = 5  # of each turn


def official_fql(checkout: Path, python: Path, *, rounds: int = 15, progress: bool = True) -> dict[str, Any]:
    """Time steps of 256 rows of 29 states and 8 actions, equal networks and threads, medians of interleaved rounds.

    Returns by network: `official_ms`, `ms` by our engine, and `vs_official`, our best engine's over theirs.

    Raises:
        GtpVisionError: this is not a clone; the driver refuses the checkout, or its environment.
    """
    driver = Path("benchmarks/peers/fql.py")
    if not driver.is_file():
        raise GtpVisionError(f"{driver} is not here; run this in a clone of gtp-vision")
    names = ["eager", *(["compile"] if has_compiler() else [])]
    works: dict[tuple[str, str], Work] = {}
    with ExitStack() as stack:
        data = write_noise(Path(stack.enter_context(TemporaryDirectory())) / "fql.h5", state=29, actions=8)
        for title, hidden in NETWORKS.items():
            widths = ",".join(map(str, hidden))
            command = [str(python), str(driver), "--checkout", str(checkout), "--time", "--hidden", widths]
            process = subprocess.Popen(
                [*command, "--threads", str(torch.get_num_threads())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)
            works[title, "official"] = Work(partial(_ask, process, _STEPS), units=_STEPS)
            _ask(process, None)
            for name in names:
                works[title, name] = _our_work(name, data, widths)
        ms = median_ms(works, rounds, label="timing FQL", progress=progress)
    found = {}
    for title in NETWORKS:
        ours = {name: round(ms[title, name], 3) for name in names}
        official = ms[title, "official"]
        ratio = round(min(ours.values()) / official, 3)
        found[title] = {"official_ms": round(official, 3), "ms": ours, "vs_official": ratio}
    return found


def line(results: dict[str, Any]) -> str:
    """The results as a line of text."""
    each = [f"{title} {r['vs_official']:.2f} ({r['official_ms']:.1f} ms)" for title, r in results.items()]
    return f"our FQL's step, best engine, over official FQL's in JAX: {', '.join(each)}"


def _our_work(name: str, data: Path, widths: str) -> Work:
    nets = [f"agent.policy.hidden=[{widths}]", f"agent.critic.hidden=[{widths}]"]
    fixed = [
        "task=own",
        "task.validation=0",
        "task.observations=[state]",
        quoted("task.dataset", data),
        "run_dir=unused",
    ]
    config = from_command_line([*fixed, *_AS_OFFICIAL, *nets, "training.eval_episodes=0"])
    parts = build(config)
    source = batch_source(parts.sampler, parts.accelerator.device)
    engine: Any = Eager(source, config, parts)
    if name != "eager":
        engine = Functional(source, config, [parts], name, lambda _: None)
    fetched, steps = source.fetch(0).to(parts.accelerator.device), count()
    return Work(lambda _: [engine.step(next(steps), fetched) for _ in range(_STEPS)], units=_STEPS)


def _ask(process: subprocess.Popen[str], steps: int | None, _: object = None) -> None:
    """Let the driver take so many steps; with None, wait until it is ready."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    if steps is not None:
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
    if not process.stdout.readline():
        said = process.stderr.read().strip().splitlines()
        raise GtpVisionError(f"official FQL cannot be timed: {said[-1] if said else 'the driver ended'}")
