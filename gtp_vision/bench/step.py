"""`gtp-vision bench step`: the cost of a training step and of an action by engine, and where the time goes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from gtp_vision.agents.fast import FastPolicy
from gtp_vision.bench import cameras
from gtp_vision.bench.baseline import STEPS_K, ratios
from gtp_vision.bench.recordings import write_noise
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.overrides import quoted
from gtp_vision.config.schema import Config
from gtp_vision.core.compile import has_compiler
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.random import RandomStream
from gtp_vision.core.timing import Work, median_ms, seconds, synchronize
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.loader import Loader
from gtp_vision.datasets.sources import batch_source_of_seeds
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.eager import Eager
from gtp_vision.training.engines import Engine, Functional
from gtp_vision.training.seeds import seeds_of

_STATE = [
    "task=own",
    "task.validation=0",
    "task.frame_stack=1",
    "task.observations=[state]",
    "encoder=state",
    "encoder.share=true",
]
_PIXELS = ["task=own", "task.validation=0", "task.frame_stack=3", "task.observations=[camera]", "encoder=impala_small"]
_NETWORKS = [  # Diffusion-QL's, which the paper's code began from
    *("agent.policy.hidden=[256,256,256]", "agent.policy.activation=mish", "agent.policy.architecture=mlp"),
    *("agent.critic.hidden=[256,256,256]", "agent.critic.activation=mish", "agent.critic.layer_norm=false"),
]
_AGENTS = ("gtp", "gtp_bc", "diffusion_ql", "fql", "iql", "td3_bc")
_ALTERNATING = ("gtp", "gtp_bc")
_FEATURES, _ACTIONS = 29, 8  # AntMaze's
_ACTS = 10  # in each round
_RATES_MS = 200  # for which a rate of the machine is measured
_BATCHES = {256: "", 32: "_32"}  # batch size to the suffix of its results


def bench_step(*, rounds: int = 15, engines: Sequence[str] = (), progress: bool = True) -> dict[str, Any]:
    """Time training steps and actions of GTP on the device that Accelerate chooses.

    States are AntMaze's, networks 3 x 256; frames are 3 stacks of 64x64x3 for an IMPALA-small,
    in batches of 256 on a GPU and of 32 on a CPU.

    * `engines`: by name, `step_ms` at batch 256, `step_ms_32` at batch 32 and `pixels_ms`, without loading data.
    * `best_vs_eager` and `best_vs_eager_32`: how many times faster the best engine is.
    * `seeds`: by number, the time of so many seeds side by side over that of one, at batch 256 in the last available
      of eager, compile and graph, and `seeds_32` at batch 32; `seeds_vs_eager` and `seeds_vs_eager_32` over one in
      the eager engine.
    * `data_wait`: the share of a training loop that waits for data, of states and of frames.
    * `act_ms`: by engine and K, of one action for one observation.
    * `parts`: of an eager step, alone: losses with their backward passes, Adam, targets.
    * `floor`: multiplications counted and bytes that must move at least, what the device reaches in both, and the
      share of the best step's time that they explain.
    * `agents`: eager `step_ms` of several agents.
    * `alternate`: the time of two with `agent.policy.alternate` over that without.
    * `gap`: the largest relative difference from the eager engine: of losses of single runs and of seeds side by side,
      and of actions.
    * `two_cameras`: training from two cameras with a ResNet-18, see `bench.cameras`.
    * `ratios`: what `compare` looks at; lower is better.

    Times are medians over interleaved rounds.
    `engines` are timed besides eager; by default all that this machine has.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_noise(Path(folder) / "data.h5", state=_FEATURES, actions=_ACTIONS)
        bench = _Bench(path, engines)
        ms = median_ms(bench.works, rounds, device=bench.device, label="timing", progress=progress)
        results = bench.results({key: round(value, 4) for key, value in ms.items()}, rounds)
    with WorkerPool(1) as pool:
        return results | {"two_cameras": pool.submit(cameras.two_cameras, cameras.SIDE, cameras.OPTIONS).result()}


class _Bench:
    """The engines and agents to time."""

    def __init__(self, path: Path, engines: Sequence[str]) -> None:
        self._path = path
        self._eager = self._build(_STATE, "agent=gtp", "training.batch_size=256")
        self.device = self._eager.accelerator.device
        cuda = self.device.type == "cuda"
        available = [*(["compile"] if cuda or has_compiler() else []), *(["graph"] if cuda else [])]
        for name in engines:
            if name not in (*available, "eager"):
                raise GtpVisionError(f"--engines {name}: {propose(name, [*available, 'eager'])}, on {self.device}")
        self._names = ["eager", *(name for name in available if not engines or name in engines)]
        self._seeds = 8 if cuda else 4
        self._pixel_batch = 256 if cuda else 32
        self._fallbacks: list[str] = []
        self._observation = {"state": torch.zeros(1, 1, _FEATURES, device=self.device)}
        self._actors = {name: FastPolicy(self._eager.agent, engine=name) for name in self._names}
        self.works = self._step_works() | self._act_works() | self._part_works()

    def results(self, ms: Mapping[tuple[str, ...], float], rounds: int) -> dict[str, Any]:
        """What `bench_step` returns, from the median milliseconds of `works`."""
        engines = {
            name: {f"step_ms{suffix}": ms["engine", name, str(batch)] for batch, suffix in _BATCHES.items()}
            | {"pixels_ms": ms["engine", name, "pixels"]}
            for name in self._names
        }
        eager, single = engines["eager"], engines[self._names[-1]]  # the last engine runs the seeds
        fastest = {key: min(engine[key] for engine in engines.values()) for key in eager}
        results: dict[str, Any] = {"engines": engines}
        for case in ("step_ms", "step_ms_32", "pixels_ms"):
            name = case.replace("step_ms", "").replace("pixels_ms", "_pixels")
            results[f"best_vs_eager{name}"] = round(eager[case] / fastest[case], 3)
        for batch, suffix in _BATCHES.items():
            seeds = ms["seeds", str(batch)]
            results[f"seeds{suffix}"] = {str(self._seeds): round(seeds / single[f"step_ms{suffix}"], 3)}
            results[f"seeds_vs_eager{suffix}"] = {str(self._seeds): round(seeds / eager[f"step_ms{suffix}"], 3)}
        results |= {
            "act_ms": {name: {str(k): ms["act", name, str(k)] for k in STEPS_K} for name in self._names},
            "parts": {key[1]: value for key, value in ms.items() if key[0] == "part"},
            "agents": {agent: ms["agent", agent] for agent in _AGENTS},
            "alternate": {a: round(ms["alternating", a] / ms["agent", a], 3) for a in _ALTERNATING},
            "data_wait": {
                "state": self._data_wait(_STATE, 256, 40),
                "pixels": self._data_wait(_PIXELS, self._pixel_batch, 10),
            },
            "floor": self._floor(fastest["step_ms"]),
            "gap": self._gap(),
            "fallbacks": self._fallbacks,
            "pixel_batch": self._pixel_batch,
            "rounds": rounds,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "resident_mb": round(psutil.Process().memory_info().rss / 1e6),
        }
        return results | {"ratios": ratios(results)}

    def _step_works(self) -> dict[tuple[str, ...], Work]:
        works: dict[tuple[str, ...], Work] = {}
        for name in self._names:
            for batch in _BATCHES:
                works["engine", name, str(batch)] = self._step(name, _STATE, f"training.batch_size={batch}")
            works["engine", name, "pixels"] = self._step(name, _PIXELS, f"training.batch_size={self._pixel_batch}")
        for batch in _BATCHES:
            options = [f"training.batch_size={batch}", f"training.seeds={self._seeds}"]
            works["seeds", str(batch)] = self._step(self._names[-1], _STATE, *options)
        for agent in _AGENTS:
            works["agent", agent] = self._step("eager", _STATE, f"agent={agent}", "training.batch_size=256")
        for agent in _ALTERNATING:
            options = [f"agent={agent}", "agent.policy.alternate=true", "training.batch_size=256"]
            works["alternating", agent] = self._step("eager", _STATE, *options)
        return works

    def _act_works(self) -> dict[tuple[str, ...], Work]:
        noise = RandomStream(0, 0, device=self.device)

        def act(name: str, k: int, _: None) -> None:
            self._actors[name].act(self._observation, noise, k)

        keys = [(name, k) for name in self._names for k in STEPS_K]
        return {("act", name, str(k)): Work(partial(act, name, k), untimed=1, timed=_ACTS) for name, k in keys}

    def _part_works(self) -> dict[tuple[str, ...], Work]:
        """The parts of an eager step."""
        agent, batch, stream = self._eager.agent, self._eager.batch(0), self._eager.stream(0)
        with torch.no_grad():
            q = agent.critic_loss(agent.loss_inputs(batch, stream, 0))[1]
        parts: dict[str, Callable[[], object]] = {
            "critic": lambda: agent.critic_loss(agent.loss_inputs(batch, stream, 0))[0].backward(),
            "actor": lambda: agent.actor_loss(replace(agent.loss_inputs(batch, stream, 0), q=q))[0].backward(),
            "adam": self._eager.optimizer.step,
            "targets": agent.update_targets,
        }
        return {("part", name): Work(partial(_call, part)) for name, part in parts.items()}

    def _build(self, base: Sequence[str], *options: str) -> Components:
        return build(self._config(base, *options))

    def _config(self, base: Sequence[str], *options: str) -> Config:
        fixed = ["training.eval_episodes=0", "run_dir=unused", quoted("task.dataset", self._path), "task.name=bench"]
        return from_command_line([*base, *_NETWORKS, *fixed, *options])

    def _engine(self, name: str, base: Sequence[str], *options: str) -> Engine:
        config = self._config(base, *options)
        configs = seeds_of(config)
        first = build(configs[0])
        members = [first, *(components_for_seed(first, other) for other in configs[1:])]
        source = batch_source_of_seeds([member.sampler for member in members], first.accelerator.device)
        if name == "eager" and len(members) == 1:
            return Eager(source, config, first)
        return Functional(source, config, members, name, self._note_fallback)

    def _note_fallback(self, line: str) -> None:
        if line.startswith("engine: eager"):
            self._fallbacks.append(line)

    def _step(self, name: str, base: Sequence[str], *options: str) -> Work:
        engine, steps = self._engine(name, base, *options), count()
        fetched = engine.source.fetch(0).to(self.device)
        return Work(lambda step: engine.step(step, fetched), lambda: next(steps))

    def _data_wait(self, base: Sequence[str], batch: int, steps: int) -> float:
        """The share of a training loop's time that waits for data."""
        engine = self._engine(self._names[-1], base, f"training.batch_size={batch}")
        with Loader(engine.source, start=0, stop=steps + 2, device=self.device) as loader:
            began = waited = 0.0
            for step, fetched in enumerate(loader):
                if step == 2:  # the first steps compile
                    synchronize(self.device)
                    began, waited = time.perf_counter(), loader.waited
                engine.step(step, fetched)
            synchronize(self.device)
            return round((loader.waited - waited) / (time.perf_counter() - began), 4)

    def _floor(self, step_ms: float) -> dict[str, float]:
        """Products and bytes of a state step at batch 256, against what the device reaches."""
        with FlopCounterMode(display=False) as counter:
            self._eager.agent(self._eager.batch(0), self._eager.stream(0), 0)[0].backward()
        parameters = sum(p.numel() for group in self._eager.optimizer.param_groups for p in group["params"])
        # Forward and backward passes read the parameters; Adam reads and writes them and two moments, and reads
        # gradients that were written; slow copies are read and written.
        moved_bytes = 4 * parameters * (2 + 6 + 2 + 2)
        flops, rates = counter.get_total_flops(), _rates(self.device)
        products_ms = flops / (1e6 * rates["gflops"])
        floor_ms = products_ms + moved_bytes / (1e6 * rates["copy_gb_s"])
        return {
            "gflop": round(flops / 1e9, 3),
            "mbytes": round(moved_bytes / 1e6, 2),
            **{name: round(rate, 1) for name, rate in rates.items()},
            "floor_ms": round(floor_ms, 4),
            "fraction": round(floor_ms / step_ms, 3),
            "matrix_fraction": round(products_ms / step_ms, 3),
        }

    def _gap(self) -> dict[str, float]:
        """The largest relative difference between each engine's numbers and the eager engine's."""
        gaps: dict[str, float] = {}
        last, fast = self._names[-1], self._names[1:]
        for case, base in {"state": _STATE, "pixels": _PIXELS}.items():
            eager = self._losses("eager", base)
            gaps |= {f"{name} {case}": _difference(self._losses(name, base), eager) for name in fast}
            if base is _STATE:  # seed 0 side by side with another equals the run of seed 0 alone
                gaps[f"{last} seeds"] = _difference(self._losses(last, base, "training.seeds=2"), eager)
        actions = {name: self._actions(name) for name in self._names}
        return gaps | {f"{name} acting": _difference(actions[name], actions["eager"]) for name in fast}

    def _actions(self, name: str) -> list[float]:
        actor = self._actors[name]
        actions = [actor.act(self._observation, RandomStream(1, k, device=self.device), k) for k in STEPS_K]
        if actor.engine != name:
            self._fallbacks.append(actor.status)
        return [float(value) for action in actions for value in action.flatten()]

    def _losses(self, name: str, base: Sequence[str], *options: str) -> list[float]:
        engine = self._engine(name, base, "training.batch_size=32", *options)
        fetched = [engine.source.fetch(step).to(self.device) for step in range(3)]
        return [float(engine.step(step, inputs)[0]["loss"]) for step, inputs in enumerate(fetched)]


def _call(function: Callable[[], object], _: None) -> None:
    function()


def _difference(values: Sequence[float], eager: Sequence[float]) -> float:
    return max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(values, eager, strict=True))


def _rates(device: torch.device) -> dict[str, float]:
    """What the device reaches, in billions a second: operations of matrix products, bytes read and written in copies.

    On a CPU the products are as large as a step's; a GPU needs larger ones to be busy.
    """
    size = 8192 if device.type == "cuda" else 256
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    source, target = torch.randn(1 << 26, device=device), torch.empty(1 << 26, device=device)
    product = _median_seconds(lambda: torch.mm(a, b), device)
    copy = _median_seconds(lambda: target.copy_(source), device)
    return {"gflops": 2 * size**3 / product / 1e9, "copy_gb_s": 2 * source.nbytes / copy / 1e9}


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median over as many calls as fit into a moment."""
    times = [seconds(work, device) for _ in range(3)]
    while sum(times) < _RATES_MS / 1e3:
        times.append(seconds(work, device))
    return statistics.median(times[2:])
