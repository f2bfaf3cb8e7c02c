"""`gtp-vision bench profile`: the cost of a gradient step and of an action, for every agent on the same networks.

Published numbers: GTP's paper (Feng et al., ICML 2026), 2M steps of batch 256 on an RTX 4090.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from gtp_vision import agents
from gtp_vision.agents import AGENTS, AgentConfig
from gtp_vision.agents.eda import AlignmentSettings
from gtp_vision.bench.recordings import noise_store
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.progress import Progress
from gtp_vision.core.random import RandomStream
from gtp_vision.core.timing import Work, median_ms
from gtp_vision.core.worker_pool import WorkerPool
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.encoders import EncoderConfig


@dataclass(frozen=True)
class Network:
    """The networks of all agents, for policies and critics."""

    hidden: tuple[int, ...]  # widths of the hidden layers
    activation: str  # between them
    layer_norm: bool  # in the critics


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
_FLOW_MAP_STEPS = (1, 2, 5)
_BATCH, _FEATURES, _ACTIONS = 256, 29, 8  # AntMaze's
_ACTS, _MEMORY_STEPS = 10, 2  # actions in each round; Adam keeps all its state from the second step on
_NAMES = tuple(name for name, agent in AGENTS.items() if not agent.goals)  # a goal would be one more observation
_MAX_SECONDS = 3.0  # of one agent's steps or actions, before it sits out the remaining rounds


def bench_profile(
    *,
    rounds: int = 15,
    names: Sequence[str] = _NAMES,
    networks: Mapping[str, Network] = NETWORKS,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure time and memory of agents on the CPU: each with its preset, all with the same networks.

    Without other `names`, of all agents that need no goals.

    * `step_ms`: of a gradient step on one batch of 256: forward and backward passes, Adam, targets; without
      Accelerate, which only forwards the calls. BDM's is a step of its alignment, not of the cloning before.
    * `act_ms`: by number of steps, of one action for one observation and without other candidates; the preset's
      number of steps, for flow maps 1, 2 and 5.
    * `act_ms_candidates`: by number of candidates, where the preset has several, in the preset's number of steps.
    * `params`: how many numbers are trained, those of the policy, the critic and the improvement.
    * `peak_mb`: by how much building the agent and two steps raise the peak resident memory of a separate process
      with one thread that has trained a tiny one before.

    Times are medians over interleaved rounds; agents whose steps take seconds sit out some of them.

    Returns:
        JSON-able: `networks`, by title `agents`, which holds the above by name, and `ratios`, GTP's times to its
        rivals' (as far as measured); the first network's `agents` and `ratios`; `published`, by agent the `hours`
        of 2M steps and `act_ms`, by K; and what it was measured with.
    """
    configs = {(title, name): agent_config(name, network) for title, network in networks.items() for name in names}
    peaks = dict(zip(configs, _peaks(list(configs.values()), progress), strict=True))
    results = {}
    for title in networks:
        trainings = {name: _Training(configs[title, name]) for name in names}
        works = {(name, *key): work for name, training in trainings.items() for key, work in training.works().items()}
        ms = median_ms(works, rounds, max_seconds=_MAX_SECONDS, label=f"timing {title}", progress=progress)
        costs = {
            name: training.costs(name, ms) | {"peak_mb": peaks[title, name]} for name, training in trainings.items()
        }
        results[title] = {"agents": costs, "ratios": _ratios(costs)}
    return {
        **next(iter(results.values())),
        "networks": results,
        "published": {name: PUBLISHED[name] for name in names if name in PUBLISHED},
        "rounds": rounds,
        "batch": _BATCH,
        "features": _FEATURES,
        "actions": _ACTIONS,
        "threads": torch.get_num_threads(),
    }


def agent_config(name: str, network: Network) -> AgentConfig:
    """The preset of an agent, with the networks that all agents share."""
    config = from_command_line(["task=demo", f"agent={name}"]).agent
    shared: dict[str, Any] = {"hidden": list(network.hidden), "activation": network.activation}
    improvement = config.improvement
    if isinstance(improvement, AlignmentSettings):
        improvement = replace(improvement, pretrain_steps=0)
    return replace(
        config,
        policy=replace(config.policy, architecture="mlp", **shared),
        critic=replace(config.critic, layer_norm=network.layer_norm, **shared),
        improvement=improvement,
    )


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    published = results["published"]
    lines = [
        f"batch {results['batch']}, {results['features']} features, {results['actions']} actions; medians of at most "
        f"{results['rounds']} interleaved rounds; CPU, threads: {results['threads']}",
        "in brackets the published numbers: hours of 2M steps (of GTP with K = 2 and 5), and ms an action (RTX 4090)",
    ]
    for title, network in results["networks"].items():
        head = f"{title:<15}{'step ms':>9}{'to D-QL':>9}{'':17}{'K: ms an action':<38}{'of N':<14}"
        lines += ["", f"{head}{'params':>8}{'MB':>7}"]
        diffusion_ql = network["agents"].get("diffusion_ql", {}).get("step_ms")
        for name, agent in network["agents"].items():
            paper = published.get(name, {})
            relative = f"{agent['step_ms'] / diffusion_ql:.2f}" if diffusion_ql else ""
            hours = f" ({', '.join(f'{h} h' for h in paper['hours'].values())})" if paper else ""
            acts = ", ".join(
                f"{k}: {ms:.2f}" + (f" ({paper['act_ms'][k]:.2f})" if k in paper.get("act_ms", {}) else "")
                for k, ms in agent["act_ms"].items()
            )
            candidates = ", ".join(f"{n}: {ms:.2f}" for n, ms in agent.get("act_ms_candidates", {}).items())
            lines.append(
                f"{name:<15}{agent['step_ms']:>9.1f}{relative:>9}{hours:<17}{acts:<38}{candidates:<14}"
                f"{agent['params'] / 1e6:>7.2f}M{agent['peak_mb']:>7.0f}"
            )
        lines += [f"{key.replace('_', ' ')}: {ratio:.2f}" for key, ratio in network["ratios"].items()]
    return "\n".join(lines)


class _Training:
    """An agent, its optimizer and one batch."""

    def __init__(self, config: AgentConfig, batch_size: int = _BATCH) -> None:
        torch.manual_seed(0)
        encoder = EncoderConfig(name="state", share=True)
        self.config = config
        self.agent = agents.create({"state": (1, _FEATURES)}, _ACTIONS, config, encoder)
        self.parameters = [p for p in self.agent.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters)
        store = noise_store(2000, state=_FEATURES, actions=_ACTIONS)
        chunk = agents.actions_needed(config, n_step=1)
        self.batch = Sampler(store, batch_size, seed=0, action_chunk=chunk).batch(0)
        self.steps = 0

    def step(self) -> None:
        self.agent.begin(self.steps)
        loss, _ = self.agent(self.batch, RandomStream(0, self.steps), self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.agent.update_targets()
        self.steps += 1

    def works(self) -> dict[tuple[int, ...], Work]:
        """A step under (), and actions under (K, number of candidates)."""
        acting = self.config.acting
        keys = [(k, 1) for k in (_FLOW_MAP_STEPS if self.config.policy.family == "gtp" else (acting.steps,))]
        keys += [(acting.steps, acting.candidates)] if acting.candidates > 1 else []
        observation, noise = {name: x[:1] for name, x in self.batch.observation.items()}, RandomStream(1, 0)

        actor = deepcopy(self.agent).eval()  # as it is served and evaluated

        def act(k: int, candidates: int, _: None) -> None:
            actor.act(observation, noise, k, replace(acting, candidates=candidates))

        acts: dict[tuple[int, ...], Work] = {(k, n): Work(partial(act, k, n), timed=_ACTS) for k, n in keys}
        return {(): Work(lambda _: self.step()), **acts}

    def costs(self, name: str, ms: Mapping[Any, float]) -> dict[str, Any]:
        """What `bench_profile` measures of an agent, but for `peak_mb`, from its median milliseconds."""
        acts = {key[1:]: round(value, 3) for key, value in ms.items() if key[0] == name and key[1:]}
        candidates = {n: value for (_, n), value in acts.items() if n > 1}
        return {
            "step_ms": round(ms[name,], 2),
            "act_ms": {k: value for (k, n), value in acts.items() if n == 1},
            **({"act_ms_candidates": candidates} if candidates else {}),
            "params": sum(p.numel() for p in self.parameters),
        }


def _ratios(costs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    times = {name: {"step": agent["step_ms"], **agent["act_ms"]} for name, agent in costs.items()}
    return {
        key: round(times["gtp"][ours] / times[rival][theirs], 3)
        for key, ours, rival, theirs in _RATIOS
        if {"gtp", rival} <= costs.keys()
    }


def _peaks(configs: Sequence[AgentConfig], progress: bool) -> list[float]:
    """`peak_mb` of each configuration, in as many processes at once as there are cores."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the libraries are loaded once for all of them
    with WorkerPool(os.cpu_count() or 1, mp_context=context, max_tasks_per_child=1) as pool:
        peaks = pool.map(_peak_mb, configs)
        return list(Progress(peaks, "measuring memory", len(configs), unit="agent", disable=not progress))


def _peak_mb(config: AgentConfig) -> float:
    torch.set_num_threads(1)
    hidden = [8 for _ in config.policy.hidden]
    tiny = replace(config, policy=replace(config.policy, hidden=hidden), critic=replace(config.critic, hidden=hidden))
    before = _peak_bytes(tiny, batch_size=8)  # with the libraries' code loaded
    return round((_peak_bytes(config, _BATCH) - before) / 1e6, 1)


def _peak_bytes(config: AgentConfig, batch_size: int) -> int:
    """The peak resident memory of this process after training an agent."""
    training = _Training(config, batch_size)
    for _ in range(_MEMORY_STEPS):
        training.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
