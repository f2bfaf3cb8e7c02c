"""Replay of recordings: what a policy answers to the observations that robots sent, beside what they were answered.

With the artifact that answered, every answer is compared bit for bit: noise is a function of seed, episode and step.
With another artifact or K the differences are measured; each answer is to a recorded observation, not to what its own
actions would have led to.

Axes in names: N answers, H actions of a plan, A action dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.replay_store import ReplayStore
from gtp_vision.evaluation import moments
from gtp_vision.serving.answer import Answered, answer
from gtp_vision.serving.artifact import identity, load_policy
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.recording import Recording, read

QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass
class _Pairs:
    """Recorded and replayed answers, and where they are from."""

    files: list[Recording] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    recorded: list[Answered] = field(default_factory=list)
    replayed: list[Answered] = field(default_factory=list)


def replay(
    folder: Path,
    artifact: Path,
    *,
    steps: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[list[str]]]:
    """Answer the observations of a recording again.

    Args:
        folder: of `serve --record`, or one of its files.
        artifact: the policy; with the one that answered, answers are compared bit for bit.
        steps: K; None is the recorded K for the artifact that answered, and another artifact's own.
        device: as `load_policy` takes it; None is as recorded.
        engine: likewise.
        progress: whether to show it.

    Returns:
        JSON-able: `answers` N, `is_same` whether artifact and K are those that answered, `equal` how many answers have
        the same bits, `first_difference`; by action dimension `differences`, the quantiles of the largest difference in
        a plan, in the robot's units; `clamps` and `doubt`, recorded and replayed; `moments` that differ most. Then the
        pictures of each moment's cameras, as `data:` URIs.

    Raises:
        GtpVisionError: no recordings, recordings from before answers were recorded, or a policy with other cameras,
            states or actions.
    """
    folder = Path(folder).expanduser()
    store = ReplayStore(folder)
    paths = [folder] if folder.is_file() else [store.path(number) for number in store.numbers()]
    if not paths:
        raise GtpVisionError(f"{folder} holds no recordings; make some with: gtp-vision serve --record {folder}")
    first = read(paths[0])
    policy = load_policy(artifact, device=device or first.served.device, engine=engine or first.served.engine)
    policy.check_steps(steps)
    own, threads = identity(artifact), torch.get_num_threads()
    pairs, skipped, is_same = _Pairs(), list[str](), True
    sessions: dict[int, Session] = {}
    torch.set_num_threads(first.served.threads)
    try:
        for path in Progress(paths, desc="replay", unit=" files", disable=not progress):
            recording = read(path)
            _check(recording, policy)
            is_own = recording.served.artifact == own
            policy.react(replace(policy.on_doubt, reaction=recording.served.on_doubt if is_own else "none"))
            is_same = is_same and is_own and steps in (None, *set(recording.counts["steps"].tolist()))
            played = list(_play(recording, policy, sessions, steps, is_own=is_own))
            if len(played) < len(recording) - bool(recording.counts["step"][0]):  # a part repeats the row before it
                skipped.append(path.name)
            pairs.files.append(recording)
            for row, again in played:
                pairs.file.append(len(pairs.files) - 1)
                pairs.row.append(row)
                pairs.recorded.append(recording.answered(row))
                pairs.replayed.append(again)
    finally:
        torch.set_num_threads(threads)
    if not pairs.row:
        raise GtpVisionError(f"{folder}: no answer can be replayed, as the first part of each episode is missing")
    found, pictures = _compared(pairs, policy)
    served = first.served
    return {
        "recordings": str(folder),
        "policy": str(artifact),
        "files": len(paths),
        "skipped": skipped,
        "is_same": is_same,
        "recorded_with": {"torch": served.torch, "engine": served.engine, "threads": served.threads},
        "replayed_with": {"torch": torch.__version__, "engine": policy.fast.engine, "threads": served.threads},
        **found,
    }, pictures


def _check(recording: Recording, policy: Policy) -> None:
    """Refuse a policy that needs other observations, or has other actions."""
    schema, held = policy.schema, {*recording.store.observations, *recording.goals}
    if missing := [name for name in (*schema.cameras, *schema.states) if name not in held]:
        raise GtpVisionError(
            f"{recording.path} holds {', '.join(sorted(held))} and not '{missing[0]}', which the policy needs; replay "
            f"a policy of these cameras and states"
        )
    if (actions := recording.actions.shape[2]) != schema.actions:
        raise GtpVisionError(
            f"{recording.path} holds actions of {actions} numbers and the policy answers {schema.actions}; replay a "
            f"policy of the same robot"
        )


def _play(
    recording: Recording, policy: Policy, sessions: dict[int, Session], steps: int | None, *, is_own: bool
) -> Iterator[tuple[int, Answered]]:
    """The rows of a file and what the policy answers to them.

    A long episode is in several files, whose sessions are kept by client; a part without those before it is left out.
    """
    counts, names = recording.counts, [*policy.schema.cameras, *policy.schema.states]
    for row in range(len(recording)):
        seed, episode, step = (int(counts[name][row]) for name in ("seed", "episode", "step"))
        if step == 0:
            sessions[recording.client] = policy.session(seed, episode)
        session = sessions.get(recording.client)
        if session is None or session.seed != seed or session.place != (episode, step):
            continue  # also the first row of a part, which is the last of the part before
        seen, old = recording.observation(row), recording.answered(row)
        fits = is_own or (old.executed or 0) + old.delay <= policy.schema.chunk
        try:
            again = answer(
                session,
                {name: seen[name] for name in names},
                recording.served.answer,
                steps=old.steps if steps is None and is_own else steps,
                executed=old.executed if fits else None,
                delay=old.delay if fits else 0,
            )
        except GtpVisionError as error:
            raise GtpVisionError(f"{recording.path}: {error}") from error
        yield row, again


def _compared(pairs: _Pairs, policy: Policy) -> tuple[dict[str, Any], list[list[str]]]:
    both = list(zip(pairs.recorded, pairs.replayed, strict=True))
    equal = np.array([_bits(old) == _bits(new) for old, new in both])
    largest = np.stack([_difference(old.actions, new.actions) for old, new in both])  # (N, A)
    span = np.subtract(policy.schema.action_high, policy.schema.action_low)
    share = (largest / np.where(span > 0, span, 1.0)).max(1)
    files, rows = np.array(pairs.file), np.array(pairs.row)
    worst = moments.apart(np.argsort(-share, kind="stable"), rows, files) if not equal.all() else []
    first = int(np.argmin(equal))
    results = {
        "answers": len(both),
        "equal": int(equal.sum()),
        "first_difference": None if equal.all() else _place(pairs, first) | {"size": float(largest[first].max())},
        "differences": np.quantile(largest, QUANTILES, axis=0).T.tolist(),
        "clamps": {"recorded": _clamps(pairs.recorded), "replayed": _clamps(pairs.replayed)},
        "doubt": {"recorded": _doubt(pairs.recorded), "replayed": _doubt(pairs.replayed)},
        "moments": [
            moments.place_of(pairs.files[files[place]].store, int(rows[place]))
            | _place(pairs, place)
            | {
                "difference": largest[place].tolist(),
                "recorded": both[place][0].actions[0].tolist(),
                "replayed": both[place][1].actions[0].tolist(),
            }
            for place in worst
        ],
    }
    return results, [moments.pictures(pairs.files[files[place]].store, int(rows[place])) for place in worst]


def _bits(answered: Answered) -> tuple[tuple[int, ...], bytes]:
    return answered.actions.shape, answered.actions.tobytes()


def _difference(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The largest difference (A,) of two plans, over the actions that both have."""
    both = min(len(old), len(new))
    return np.abs(old[:both].astype(np.float64) - new[:both]).max(0)


def _place(pairs: _Pairs, place: int) -> dict[str, Any]:
    return {"file": pairs.files[pairs.file[place]].path.name, "step": pairs.recorded[place].step}


def _clamps(answers: Sequence[Answered]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in answers:
        total.update(each.clamps)
    return dict(total)


def _doubt(answers: Sequence[Answered]) -> dict[str, Mapping[str, float]]:
    """Median and 99 % quantile of each measure, of the answers that have it."""
    found = dict[str, Mapping[str, float]]()
    for name in sorted({name for each in answers for name in each.doubt}):
        values = np.array([each.doubt.get(name, np.nan) for each in answers])
        if np.isfinite(values).any():
            median, high = np.nanquantile(values, (0.5, 0.99))
            found[name] = {"median": float(median), "99 %": float(high)}
    return found
