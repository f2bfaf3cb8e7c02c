"""`gtp-vision bench profile`: what a gradient step and an action cost, for every agent on the same networks.

Published numbers: GTP's paper (Feng et al., ICML 2026), 2M steps of batch 256 on an RTX 4090.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gtp_vision import agents
from gtp_vision.agents import AGENTS, AgentConfig
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.random import RandomStream
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.encoders import EncoderConfig


@dataclass(frozen=True)
class Network:
    """What all agents are given alike, for policies and critics.

    Attributes:
        hidden: widths of the hidden layers.
        activation: between them.
        layer_norm: in the critics.
    """

    hidden: tuple[int, ...]
    activation: str
    layer_norm: bool


NETWORKS = {  # Diffusion-QL's and FQL's own
    "3x256 mish": Network((256,) * 3, "mish", layer_norm=False),
    "4x512 gelu": Network((512,) * 4, "gelu", layer_norm=True),
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "diffusion_ql": {"hours": {5: 7.1}, "act_ms": {5: 1.16}},
    "consistency_ac": {"hours": {2: 3.7}, "act_ms": {2: 0.55}},
    "fql": {"hours": {1: 10.0}, "act_ms": {1: 0.36}},
    "gtp": {"hours": {2: 3.8, 5: 4.3}, "act_ms": {2: 0.67, 5: 0.94}},
}
_RATIOS = (
    ("gtp_step_vs_diffusion_ql", "step", "diffusion_ql", "step"),
    ("gtp_act_2_vs_diffusion_ql", 2, "diffusion_ql", 5),
    ("gtp_act_1_vs_fql", 1, "fql", 1),
)
_MAP_STEPS = (1, 2, 5)  # of a flow map, which acts in any number
_BATCH, _FEATURES, _ACTIONS = 256, 29, 8  # AntMaze's
_FRAMES, _EPISODE = 2000, 200
_ACTS, _MEMORY_STEPS = 10, 2  # actions a round; Adam keeps everything from the second step on
_ENOUGH_SECONDS, _LEAST_ROUNDS = 6.0, 2  # an agent that has taken so long sits out the rounds after these


def bench_profile(
    *,
    rounds: int = 15,
    names: Sequence[str] = tuple(AGENTS),
    networks: Mapping[str, Network] = NETWORKS,
    progress: bool = True,
) -> dict[str, Any]:
    """Time and weigh agents, composed as their presets say but all of the same networks, on the CPU.

    * `step_ms`: of a gradient step on one batch of 256: forward and backward passes, Adam, targets; without
      Accelerate, which passes the calls on. BDM's is a step of its alignment, not of the cloning before.
    * `act_ms`: by number of steps, of one action for one observation and without other candidates; the preset's
      number of steps, for flow maps 1, 2 and 5.
    * `act_ms_candidates`: by number of candidates, where the preset chooses among several, in its number of steps.
    * `params`: how many numbers are trained, those of the policy, the critic and the improvement.
    * `peak_mb`: by how much building the agent and two steps raise the highest resident memory of a process of
      their own, with one thread, that has trained a tiny one before.

    Times are medians over rounds in which every agent has its turn; those of seconds a step have fewer rounds.

    Args:
        rounds: the most.
        names: of agents.
        networks: by title; the first one's results also stand on top.
        progress: show a bar.

    Returns:
        JSON-able: `networks`, by title `agents`, which holds the above by name, and `ratios`, GTP's times to its
        rivals' (as far as measured); the first network's `agents` and `ratios`; `published`, by agent the `hours`
        of 2M steps and `act_ms`, by K; and what it was measured with.
    """
    configs = {(title, name): configuration(name, network) for title, network in networks.items() for name in names}
    turns = rounds + 1  # the first warms up
    with tqdm(total=len(configs) + turns * len(networks), disable=not progress) as bar:
        peaks = dict(zip(configs, _peaks(list(configs.values()), bar), strict=True))
        found = {}
        for title in networks:
            bar.set_description(f"timing {title}")
            costs = {name: _Cost(configs[title, name]) for name in names}
            for turn in range(turns):
                for cost in costs.values():
                    if turn <= _LEAST_ROUNDS or cost.seconds < _ENOUGH_SECONDS:
                        cost.measure(keep=turn > 0)
                bar.update()
            told = {name: cost.told() | {"peak_mb": peaks[title, name]} for name, cost in costs.items()}
            found[title] = {"agents": told, "ratios": _ratios(told)}
    return {
        **next(iter(found.values())),
        "networks": found,
        "published": {name: PUBLISHED[name] for name in names if name in PUBLISHED},
        "rounds": rounds,
        "batch": _BATCH,
        "features": _FEATURES,
        "actions": _ACTIONS,
        "threads": torch.get_num_threads(),
    }


def configuration(name: str, network: Network) -> AgentConfig:
    """The preset of an agent, with the networks of all."""
    config = from_command_line(["task=demo", f"agent={name}"]).agent
    alike: dict[str, Any] = {"hidden": list(network.hidden), "activation": network.activation}
    config.policy = replace(config.policy, architecture="mlp", **alike)
    config.critic = replace(config.critic, layer_norm=network.layer_norm, **alike)
    config.improvement = replace(config.improvement, pretrain_steps=0)
    return config


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    published = results["published"]
    lines = [
        f"batch {results['batch']}, {results['features']} features, {results['actions']} actions; medians of at most "
        f"{results['rounds']} rounds in turn; CPU, threads: {results['threads']}",
        "in brackets what was published: hours of 2M steps (of GTP with K = 2 and 5), and ms an action (RTX 4090)",
    ]
    for title, found in results["networks"].items():
        head = f"{title:<15}{'step ms':>9}{'to D-QL':>9}{'':17}{'K: ms an action':<38}{'of N':<14}"
        lines += ["", f"{head}{'params':>8}{'MB':>7}"]
        slowest = found["agents"].get("diffusion_ql", {}).get("step_ms")
        for name, agent in found["agents"].items():
            paper = published.get(name, {})
            relative = f"{agent['step_ms'] / slowest:.2f}" if slowest else ""
            hours = f" ({', '.join(f'{h} h' for h in paper['hours'].values())})" if paper else ""
            acts = ", ".join(
                f"{k}: {ms:.2f}" + (f" ({paper['act_ms'][k]:.2f})" if k in paper.get("act_ms", {}) else "")
                for k, ms in agent["act_ms"].items()
            )
            chosen = ", ".join(f"{n}: {ms:.2f}" for n, ms in agent.get("act_ms_candidates", {}).items())
            lines.append(
                f"{name:<15}{agent['step_ms']:>9.1f}{relative:>9}{hours:<17}{acts:<38}{chosen:<14}"
                f"{agent['params'] / 1e6:>7.2f}M{agent['peak_mb']:>7.0f}"
            )
        lines += [f"{key.replace('_', ' ')}: {ratio:.2f}" for key, ratio in found["ratios"].items()]
    return "\n".join(lines)


class _Training:
    """An agent, its optimiser and one batch."""

    def __init__(self, config: AgentConfig, batch_size: int = _BATCH) -> None:
        torch.manual_seed(0)
        encoder = EncoderConfig(name="state", share=True)
        self.agent = agents.create({"state": (1, _FEATURES)}, _ACTIONS, config, encoder)
        self.trained = [p for p in self.agent.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained)
        chunk = agents.actions_needed(config, n_step=1)
        self.batch = Sampler(_recording(), batch_size, seed=0, action_chunk=chunk).batch(0)
        self.steps = 0

    def step(self) -> None:
        self.agent.begin(self.steps)
        loss, _ = self.agent(self.batch, RandomStream(0, self.steps), self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.agent.update_targets()
        self.steps += 1


class _Cost:
    """What an agent's steps and actions take, round by round.

    Attributes:
        seconds: of all rounds.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._training, self._config = _Training(config), config
        own = config.acting
        self._acts = [(k, 1) for k in (_MAP_STEPS if config.policy.family == "gtp" else (own.steps,))]
        self._acts += [(own.steps, own.candidates)] if own.candidates > 1 else []
        self._observation = {name: x[:1] for name, x in self._training.batch.observation.items()}
        self._noise = RandomStream(1, 0)
        self._step_ms: list[float] = []
        self._act_ms: dict[tuple[int, int], list[float]] = {kind: [] for kind in self._acts}
        self.seconds = 0.0

    def measure(self, *, keep: bool) -> None:
        """One round: a step, and some actions of each kind."""
        began = time.perf_counter()
        self._training.step()
        step = time.perf_counter() - began
        acts = {kind: [self._act(*kind) for _ in range(_ACTS)] for kind in self._acts}
        self.seconds += time.perf_counter() - began
        if keep:
            self._step_ms.append(1e3 * step)
            for kind, spent in acts.items():
                self._act_ms[kind].append(1e3 * statistics.median(spent))

    def told(self) -> dict[str, Any]:
        """Medians over the rounds, and the number of trained parameters."""
        ms = {kind: round(statistics.median(spent), 3) for kind, spent in self._act_ms.items()}
        chosen = {n: ms[k, n] for k, n in ms if n > 1}
        return {
            "step_ms": round(statistics.median(self._step_ms), 2),
            "act_ms": {k: ms[k, n] for k, n in ms if n == 1},
            **({"act_ms_candidates": chosen} if chosen else {}),
            "params": sum(p.numel() for p in self._training.trained),
        }

    def _act(self, steps: int, candidates: int) -> float:
        self._config.acting = replace(self._config.acting, candidates=candidates)  # which the agent looks at
        began = time.perf_counter()
        self._training.agent.act(self._observation, self._noise, steps)
        return time.perf_counter() - began


def _recording() -> Store:
    """Noise: the time of a step does not depend on what was recorded."""
    rng = np.random.default_rng(0)
    ends = np.arange(_EPISODE, _FRAMES + 1, _EPISODE)
    timeouts = np.zeros(_FRAMES, bool)
    timeouts[ends - 1] = True
    return Store(
        observations={"state": rng.standard_normal((_FRAMES, _FEATURES), np.float32)},
        actions=rng.uniform(-1, 1, (_FRAMES, _ACTIONS)).astype(np.float32),
        rewards=rng.standard_normal(_FRAMES, np.float32),
        terminals=np.zeros(_FRAMES, bool),
        timeouts=timeouts,
        episode_ends=ends,
    )


def _ratios(told: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    times = {name: {"step": agent["step_ms"], **agent["act_ms"]} for name, agent in told.items()}
    return {
        key: round(times["gtp"][ours] / times[rival][theirs], 3)
        for key, ours, rival, theirs in _RATIOS
        if {"gtp", rival} <= told.keys()
    }


def _peaks(configs: Sequence[AgentConfig], bar: tqdm) -> list[float]:
    """`peak_mb` of each, as many processes side by side as there are cores."""
    bar.set_description("weighing")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the libraries are loaded once for all of them
    peaks = []
    with WorkerPool(os.cpu_count() or 1, mp_context=context, max_tasks_per_child=1) as pool:
        for peak in pool.map(_peak_mb, configs):
            peaks.append(peak)
            bar.update()
    return peaks


def _peak_mb(config: AgentConfig) -> float:
    torch.set_num_threads(1)
    tiny = [8 for _ in config.policy.hidden]
    small = replace(config, policy=replace(config.policy, hidden=tiny), critic=replace(config.critic, hidden=tiny))
    before = _highest_after(small, batch_size=8)  # which has read the libraries' code from the disk
    return round((_highest_after(config, _BATCH) - before) / 1e6, 1)


def _highest_after(config: AgentConfig, batch_size: int) -> int:
    """The highest resident memory of this process, in bytes, once it has trained an agent."""
    training = _Training(config, batch_size)
    for _ in range(_MEMORY_STEPS):
        training.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
