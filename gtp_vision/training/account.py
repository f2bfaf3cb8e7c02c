"""How much each episode of a run's data helps: by the held-out loss, by its own error, and by the critic."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gtp_vision import agents
from gtp_vision.agents.improvement import Improvement
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.labels import labels_path, set_group
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.success import marks_of
from gtp_vision.evaluation.held_out import draws_of
from gtp_vision.evaluation.influence import advantages, agreements
from gtp_vision.training.build import goals_of
from gtp_vision.training.data import kept_scale, open_split, paths_of
from gtp_vision.training.evaluate import restore

_ROWS = 32  # of each episode, spread evenly
_FAR = 5.0  # median deviations above the median, about 3.4 of a normal law's


def account(folder: Path, which: str = "last") -> dict[str, Any]:
    """Judge each training episode of a run by its checkpoint `which`.

    Returns:
        `run`, `checkpoint`, how many episodes are `held_out`, and `episodes`, the worst first: `data`, `episode` (its
        number in the file), `frames`, `success` (None if not marked), `error` (energy score of the policy's actions
        beside the recorded ones), `agreement` with the held-out gradients (see `evaluation.influence`), `advantage`
        (None without a critic), and `harms`: an error far above the median, and agreement or advantage below 0. An
        error alone may be that of a rare way to succeed.

    Raises:
        GtpVisionError: as `restore`; the data are missing or have no held-out episodes.
    """
    config, trained = restore(folder, which)
    data = open_split(config, kept_scale(config, trained.record))
    if data.held_out is None:
        raise GtpVisionError(
            f"{folder} holds out no episode (task.validation={config.task.validation:g}), by which others could be "
            f"judged; train a run with task.validation=0.1"
        )
    agent, device, task = trained.agent, trained.accelerator.device, config.task
    if type(agent.improvement).policy_features is not Improvement.policy_features:
        raise GtpVisionError(
            f"{folder}: the policy of agent={config.agent.name} acts on way points, which recorded episodes do not "
            f"hold; judge them by a run of agent=gcbc or gtp_bc"
        )
    names = list(trained.record.observations)
    sampler, held_out = (
        Sampler(
            store.select(names),
            batch_size=1,
            seed=config.seed,
            frame_stack=task.frame_stack,
            n_step=task.n_step,
            action_chunk=agents.actions_needed(config.agent, task.n_step),
            goals=goals_of(config),
            discount=task.discount,
            reward_scale=task.reward_scale,
            reward_shift=task.reward_shift,
        )
        for store in (data.training, data.held_out)
    )
    store = sampler.store
    own, others = _rows_of(store), [rows for rows in _rows_of(held_out.store) if len(rows)]
    judged = [episode for episode, rows in enumerate(own) if len(rows)]
    rows = np.concatenate([own[episode] for episode in judged])
    of = store.episode_of(rows)
    agreement = agreements(agent, sampler, [own[episode] for episode in judged], held_out, others, device)
    k = agent.config.acting.steps
    energies = draws_of(agent, sampler, rows, (k,), device)[k].energy()
    gains = advantages(agent, sampler, rows, device) if agent.judges_actions else None
    error = np.array([energies[of == episode].mean() for episode in judged])
    advantage = None if gains is None else np.array([gains[of == episode].mean() for episode in judged])
    far = np.median(error) + _FAR * np.median(np.abs(error - np.median(error)))
    places = [
        (path, number, mark)
        for path, part in zip(paths_of(config), data.split.training, strict=True)
        for number, mark in zip(
            range(part.episodes) if part.numbers is None else part.numbers.tolist(), marks_of(part), strict=True
        )
    ]
    lengths = np.diff(store.episode_ends, prepend=0)
    episodes: list[dict[str, Any]] = [
        {
            "data": str(places[episode][0]),
            "episode": int(places[episode][1]),
            "frames": int(lengths[episode]),
            "success": places[episode][2],
            "error": float(error[n]),
            "agreement": float(agreement[n]),
            "advantage": None if advantage is None else float(advantage[n]),
            "harms": bool(error[n] > far and (agreement[n] < 0 or (advantage is not None and advantage[n] < 0))),
        }
        for n, episode in enumerate(judged)
    ]
    episodes.sort(key=lambda found: (not found["harms"], -found["error"]))
    return {"run": str(folder), "checkpoint": which, "held_out": len(others), "episodes": episodes}


def _rows_of(store: Store) -> list[np.ndarray]:
    """Rows of each episode that have an outcome, spread evenly; none of an episode without any."""
    homes = store.episode_of(store.transitions)
    bounds = np.searchsorted(homes, np.arange(store.episodes + 1))
    own = [store.transitions[start:end] for start, end in pairwise(bounds)]
    return [rows[np.unique(np.linspace(0, len(rows) - 1, _ROWS).astype(int))] if len(rows) else rows for rows in own]


def name_group(folder: Path, found: Mapping[str, Any], name: str) -> list[str]:
    """Name the episodes that do not harm, in the labels of each data set, for `task.filter`; return sentences.

    Held-out episodes are in it, too; episodes that the run filtered out are not.

    Raises:
        GtpVisionError: a name that labels have already, or labels that cannot be written.
    """
    if not name.isidentifier() or name in ("success", "failed", "labelled"):
        raise GtpVisionError(f"--group {name} cannot name a group; choose one word, e.g. helps")
    config = restore(folder, found["checkpoint"])[0]
    chosen = None if config.task.labels is None else Path(config.task.labels).expanduser()
    sentences = []
    for path in paths_of(config):
        whole = open_store(path, config.task.env, config.task.features, labels=chosen, video=config.task.video)
        group = config.task.filter
        kept = whole if group is None else whole.filtered(group)
        numbers = range(whole.episodes) if kept.numbers is None else kept.numbers.tolist()
        harmful = {each["episode"] for each in found["episodes"] if each["harms"] and each["data"] == str(path)}
        file = labels_path(path, chosen)
        by = f"account of {folder.name}, {found['checkpoint']}"
        set_group(file, whole, name, [number for number in numbers if number not in harmful], by)
        sentences.append(
            f"{file}: group '{name}' has {len(numbers) - len(harmful)} of {len(numbers)} episodes; train with "
            f"task.filter={name}"
        )
    return sentences


def table(found: Mapping[str, Any], worst: int) -> str:
    """The worst episodes as a table, and how many harm."""
    several = len({each["data"] for each in found["episodes"]}) > 1
    lines = [f"{'episode':>10} {'frames':>7} {'success':>8} {'error':>8} {'agreement':>10} {'advantage':>10}"]
    for each in found["episodes"][:worst]:
        success = {True: "yes", False: "no", None: "-"}[each["success"]]
        advantage = "-" if each["advantage"] is None else f"{each['advantage']:.3g}"
        name = f"  {Path(each['data']).name}" if several else ""
        lines.append(
            f"{each['episode']:>10} {each['frames']:>7} {success:>8} {each['error']:>8.3f} {each['agreement']:>10.3f} "
            f"{advantage:>10}{'  harms' if each['harms'] else ''}{name}"
        )
    harmful = sum(each["harms"] for each in found["episodes"])
    lines.append(
        f"{harmful} of {len(found['episodes'])} training episodes harm: an error far above the median, and an "
        "agreement or advantage below 0"
    )
    return "\n".join(lines)
