"""`gtp-vision bench step`: what a training step and an action cost with each engine, and where the time goes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from gtp_vision.agents.fast import FastPolicy
from gtp_vision.bench.baseline import STEPS_K, ratios
from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.core.compile import has_compiler
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.arrays import Array
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sources import batch_source_of_seeds
from gtp_vision.datasets.store import Store
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.eager import Eager
from gtp_vision.training.engines import Engine, Functional
from gtp_vision.training.seeds import seeds_of

_STATE = ["task=own", "task.frame_stack=1", "task.observations=[state]", "encoder=state", "encoder.share=true"]
_PIXELS = ["task=own", "task.frame_stack=3", "task.observations=[camera]", "encoder=impala_small"]
_NETWORKS = [  # Diffusion-QL's, which the paper's code began from
    *("agent.policy.hidden=[256,256,256]", "agent.policy.activation=mish", "agent.policy.architecture=mlp"),
    *("agent.critic.hidden=[256,256,256]", "agent.critic.activation=mish", "agent.critic.layer_norm=false"),
]
_AGENTS = ("gtp", "gtp_bc", "diffusion_ql", "fql", "iql", "td3_bc")
_FEATURES, _ACTIONS = 29, 8  # AntMaze's
_ACTS = 10  # a round
_RATES_MS = 200  # for which a rate of the machine is measured


def bench_step(*, rounds: int = 15, engines: Sequence[str] = (), progress: bool = True) -> dict[str, Any]:
    """Time training steps and actions of GTP on the device that Accelerate chooses.

    States are AntMaze's, networks 3 x 256, K = 5 in the target; frames are 3 stacks of 64x64x3 for an IMPALA-small,
    in batches of 256 on a GPU and of 32 on a CPU.

    * `engines`: by name, `step_ms` at batch 256, `step_ms_32` at batch 32 and `pixels_ms`; on data that is at hand.
    * `best_vs_eager` and `best_vs_eager_32`: how many times faster the best engine is.
    * `seeds`: by number, the time of so many seeds side by side over that of one, at batch 256 in the last of eager,
      compile and graph that there is, and `seeds_32` at batch 32; `seeds_vs_eager` and `seeds_vs_eager_32` over one in
      the eager engine.
    * `data_wait`: the share of a training loop that waits for data, of states and of frames.
    * `act_ms`: by engine and K, of one action for one observation.
    * `parts`: of an eager step, alone: losses with their backward passes, Adam, targets.
    * `floor`: multiplications counted and bytes that must move at least, what the device reaches in both, and the
      share of the best step's time that they explain.
    * `agents`: eager `step_ms` of several agents.
    * `gap`: the largest relative difference from the eager engine: of losses of single runs and of seeds side by side,
      and of actions.
    * `ratios`: what `compare` looks at; lower is better.

    Times are medians over rounds in which everything has its turn.

    Args:
        rounds: how many.
        engines: besides eager; all that this machine has, if none is named.
        progress: show a bar.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic(Path(folder) / "data.h5", state=_FEATURES, actions=_ACTIONS)
        bench = _Bench(path, rounds, engines)
        with tqdm(total=rounds + 1, desc="compiling", unit="round", disable=not progress) as bar:
            for turn in range(rounds + 1):  # the first one warms up, and compiles
                bench.round(keep=turn > 0)
                bar.set_description("timing")
                bar.update()
        return bench.told()


class _Bench:
    """Everything that is timed, ready to take steps."""

    def __init__(self, path: Path, rounds: int, engines: Sequence[str]) -> None:
        self._path, self._rounds = path, rounds
        first = self._build(_STATE, "agent=gtp", "training.batch_size=256")
        self._device = first.accelerator.device
        cuda = self._device.type == "cuda"
        there = [*(["compile"] if cuda or has_compiler() else []), *(["graph"] if cuda else [])]
        for name in engines:
            if name not in (*there, "eager"):
                raise GtpVisionError(f"--engines {name}: {propose(name, [*there, 'eager'])}, on {self._device}")
        self._names = ["eager", *(name for name in there if not engines or name in engines)]
        self._count = 8 if cuda else 4
        self._pixel_batch = 256 if cuda else 32
        self._fallbacks: list[str] = []
        self._spent: dict[tuple[str, ...], list[float]] = {}
        self._runs: dict[tuple[str, ...], Callable[[], float]] = {}
        for name in self._names:
            for batch in (256, 32):
                self._add(("engine", name, str(batch)), name, _STATE, f"training.batch_size={batch}")
            self._add(("engine", name, "pixels"), name, _PIXELS, f"training.batch_size={self._pixel_batch}")
        for batch in (256, 32):
            more = [f"training.batch_size={batch}", f"training.seeds={self._count}"]
            self._add(("seeds", str(batch)), self._names[-1], _STATE, *more)
        for agent in _AGENTS:
            self._add(("agent", agent), "eager", _STATE, f"agent={agent}", "training.batch_size=256")
        self._actors = {name: FastPolicy(first.agent, engine=name) for name in self._names}
        self._seen = {"state": torch.zeros(1, 1, _FEATURES, device=self._device)}
        for name in self._names:
            self._add_acts(name)
        self._parts = first

    def round(self, *, keep: bool) -> None:
        """Everything has a turn."""
        for key, run in self._runs.items():
            spent = run()
            if keep:
                self._spent.setdefault(key, []).append(1e3 * spent)
        for name, seconds in _parts_of(self._parts, self._device).items():
            if keep:
                self._spent.setdefault(("part", name), []).append(1e3 * seconds)

    def told(self) -> dict[str, Any]:
        """The results."""
        ms = {key: round(statistics.median(spent), 4) for key, spent in self._spent.items()}
        engines = {
            name: {
                "step_ms": ms["engine", name, "256"],
                "step_ms_32": ms["engine", name, "32"],
                "pixels_ms": ms["engine", name, "pixels"],
            }
            for name in self._names
        }
        fastest = {key: min(engine[key] for engine in engines.values()) for key in engines["eager"]}
        single = engines[self._names[-1]]  # the engine that runs the seeds
        count, seeds, seeds_32 = str(self._count), ms["seeds", "256"], ms["seeds", "32"]
        act_ms = {name: {str(k): ms["act", name, str(k)] for k in STEPS_K} for name in self._names}
        agents = {agent: ms["agent", agent] for agent in _AGENTS}
        results: dict[str, Any] = {
            "engines": engines,
            "best_vs_eager": round(engines["eager"]["step_ms"] / fastest["step_ms"], 3),
            "best_vs_eager_32": round(engines["eager"]["step_ms_32"] / fastest["step_ms_32"], 3),
            "best_vs_eager_pixels": round(engines["eager"]["pixels_ms"] / fastest["pixels_ms"], 3),
            "seeds": {count: round(seeds / single["step_ms"], 3)},
            "seeds_32": {count: round(seeds_32 / single["step_ms_32"], 3)},
            "seeds_vs_eager": {count: round(seeds / engines["eager"]["step_ms"], 3)},
            "seeds_vs_eager_32": {count: round(seeds_32 / engines["eager"]["step_ms_32"], 3)},
            "act_ms": act_ms,
            "parts": {key[1]: value for key, value in ms.items() if key[0] == "part"},
            "agents": agents,
            "data_wait": {
                "state": self._waits(_STATE, 256, 40),
                "pixels": self._waits(_PIXELS, self._pixel_batch, 10),
            },
            "floor": self._floor(fastest["step_ms"]),
            "gap": self._gap(),
            "fallbacks": self._fallbacks,
            "pixel_batch": self._pixel_batch,
            "rounds": self._rounds,
            "device": torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "resident_mb": round(psutil.Process().memory_info().rss / 1e6),
        }
        return results | {"ratios": ratios(results)}

    def _build(self, base: Sequence[str], *more: str) -> Components:
        return build(self._config(base, *more))

    def _config(self, base: Sequence[str], *more: str) -> Config:
        fixed = ["training.eval_episodes=0", "run_dir=unused", f"task.dataset={self._path}", "task.name=bench"]
        return from_command_line([*base, *_NETWORKS, *fixed, *more])

    def _engine(self, name: str, base: Sequence[str], *more: str) -> Engine:
        config = self._config(base, *more)
        configs = seeds_of(config)
        first = build(configs[0])
        members = [first, *(components_for_seed(first, other) for other in configs[1:])]
        source = batch_source_of_seeds([member.sampler for member in members], first.accelerator.device)
        if name == "eager" and len(members) == 1:
            return Eager(source, config, first)
        return Functional(source, config, members, name, self._note)

    def _note(self, line: str) -> None:
        if line.startswith("engine: eager"):  # it had to give up
            self._fallbacks.append(line)

    def _add(self, key: tuple[str, ...], name: str, base: Sequence[str], *more: str) -> None:
        engine = self._engine(name, base, *more)
        fetched = engine.source.fetch(0).to(self._device)
        steps = iter(range(10**9))

        def run() -> float:
            return _timed(lambda: engine.step(next(steps), fetched), self._device)

        self._runs[key] = run

    def _add_acts(self, name: str) -> None:
        policy, observation = self._actors[name], self._seen
        noise = RandomStream(0, 0, device=self._device)

        def act(k: int) -> float:
            policy.act(observation, noise, k)  # what the steps before have pushed out of the caches comes back
            spent = [_timed(lambda: policy.act(observation, noise, k), self._device) for _ in range(_ACTS)]
            return statistics.median(spent)

        for k in STEPS_K:
            self._runs["act", name, str(k)] = partial(act, k)

    def _waits(self, base: Sequence[str], batch: int, steps: int) -> float:
        """The share of a loop of steps, as training runs it, in which data is waited for."""
        engine = self._engine(self._names[-1], base, f"training.batch_size={batch}")
        with Loader(engine.source, start=0, stop=steps + 2, device=self._device) as loader:
            began = waited = 0.0
            for step, fetched in enumerate(loader):
                if step == 2:  # the first ones compile
                    _settle(self._device)
                    began, waited = time.perf_counter(), loader.waited
                engine.step(step, fetched)
            _settle(self._device)
            return round((loader.waited - waited) / (time.perf_counter() - began), 4)

    def _floor(self, step_ms: float) -> dict[str, float]:
        """Products and bytes of a state step at batch 256, against what the device reaches."""
        parts = self._parts
        with FlopCounterMode(display=False) as counter:
            loss, _ = parts.agent(parts.batch(0), parts.stream(0), 0)
            loss.backward()
        trained = sum(p.numel() for group in parts.optimizer.param_groups for p in group["params"])
        # Forward and backward passes read the parameters; Adam reads and writes them and two moments, and reads
        # gradients that were written; slow copies are read and written.
        moved_bytes = 4 * trained * (2 + 6 + 2 + 2)
        flops, rates = counter.get_total_flops(), _rates(self._device)
        floor_ms = 1e3 * (flops / (1e9 * rates["gflops"]) + moved_bytes / (1e9 * rates["copy_gb_s"]))
        matrix_ms = flops / (1e6 * rates["gflops"])
        return {
            "gflop": round(flops / 1e9, 3),
            "mbytes": round(moved_bytes / 1e6, 2),
            **{name: round(rate, 1) for name, rate in rates.items()},
            "floor_ms": round(floor_ms, 4),
            "fraction": round(floor_ms / step_ms, 3),
            "matrix_fraction": round(matrix_ms / step_ms, 3),
        }

    def _gap(self) -> dict[str, float]:
        """How far, relatively, what each engine computes is from what the eager one does, at most."""
        gaps: dict[str, float] = {}
        _, *fast = self._names
        for case, base in {"state": _STATE, "pixels": _PIXELS}.items():
            eager = self._losses("eager", base)
            gaps |= {f"{name} {case}": _apart(self._losses(name, base), eager) for name in fast}
            if base is _STATE:  # seed 0 is the run that it is alone
                last = self._names[-1]
                gaps[f"{last} seeds"] = _apart(self._losses(last, base, "training.seeds=2"), eager)
        acts = {name: self._actions(name) for name in self._names}
        return gaps | {f"{name} acting": _apart(acts[name], acts["eager"]) for name in fast}

    def _actions(self, name: str) -> list[float]:
        actor = self._actors[name]
        acts = [actor.act(self._seen, RandomStream(1, k, device=self._device), k) for k in STEPS_K]
        if actor.engine != name:  # it had to give up
            self._fallbacks.append(actor.told)
        return [float(value) for act in acts for value in act.flatten()]

    def _losses(self, name: str, base: Sequence[str], *more: str) -> list[float]:
        engine = self._engine(name, base, "training.batch_size=32", *more)
        fetched = [engine.source.fetch(step).to(self._device) for step in range(3)]
        return [float(engine.step(step, each)[0]["loss"]) for step, each in enumerate(fetched)]


def _apart(values: Sequence[float], eager: Sequence[float]) -> float:
    return max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(values, eager, strict=True))


def _parts_of(parts: Components, device: torch.device) -> dict[str, float]:
    """Seconds of the parts of an eager step."""
    agent, batch = parts.agent, parts.batch(0)
    stream = parts.stream(0)
    with torch.no_grad():
        q = agent.critic_loss(agent.loss_inputs(batch, stream, 0))[1]

    def critic() -> None:
        agent.critic_loss(agent.loss_inputs(batch, stream, 0))[0].backward()

    def actor() -> None:
        agent.actor_loss(replace(agent.loss_inputs(batch, stream, 0), q=q))[0].backward()

    works: dict[str, Callable[[], Any]] = {
        "critic": critic,
        "actor": actor,
        "adam": parts.optimizer.step,
        "targets": agent.update_targets,
    }
    return {name: _timed(work, device) for name, work in works.items()}


def _rates(device: torch.device) -> dict[str, float]:
    """What the device reaches, in billions a second: operations of matrix products, bytes read and written in copies.

    On a CPU the products are as large as a step's; one of those does not fill a GPU, whose rate is that of large ones.
    """
    a, b = torch.randn(256, 256, device=device), torch.randn(256, 256, device=device)
    if device.type == "cuda":
        a, b = torch.randn(8192, 8192, device=device), torch.randn(8192, 8192, device=device)
    wide, other = torch.randn(1 << 26, device=device), torch.empty(1 << 26, device=device)
    product = _often(lambda: torch.mm(a, b), device)
    copy = _often(lambda: other.copy_(wide), device)
    return {"gflops": 2 * len(a) ** 3 / product / 1e9, "copy_gb_s": 2 * wide.nbytes / copy / 1e9}


def _often(work: Callable[[], Any], device: torch.device) -> float:
    """The median of seconds over as many calls as fit into a moment."""
    spent = [_timed(work, device) for _ in range(3)]
    while sum(spent) < _RATES_MS / 1e3:
        spent.append(_timed(work, device))
    return statistics.median(spent[2:])


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    _settle(device)
    began = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic(path: Path, frames: int = 4000, side: int = 64, state: int = 0, actions: int = 5) -> Path:
    """Write a data set of noise: the time of a step does not depend on what it shows.

    Args:
        path: the file to be.
        frames: a multiple of 200, the frames of an episode.
        side: height and width of the camera, in pixels.
        state: dimensions of a state beside the camera; 0 for none.
        actions: dimensions of the action.
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
            actions=rng.uniform(-1, 1, (frames, actions)).astype(np.float32),
            rewards=rng.normal(size=frames).astype(np.float32),
            terminals=np.zeros(frames, bool),
            timeouts=timeouts,
            episode_ends=ends,
        ),
    )


_EPISODE = 200
