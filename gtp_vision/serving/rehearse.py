"""Rehearsal: recorded episodes played through a policy or its server, and what would go wrong on the robot.

    recordings -> play, at the robot's rate where a server answers -> Evidence -> findings

The recordings are the robot's own: ten episodes that somebody drives by hand, or demonstrations that were held out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gtp_vision.agents.acting import FrameStack
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.names import GOAL
from gtp_vision.core.progress import Progress
from gtp_vision.datasets.instructions import named_tasks, texts_of
from gtp_vision.datasets.rate import known_rate
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.store import Store
from gtp_vision.evaluation.recordings import act
from gtp_vision.serving.calibration import longest_still
from gtp_vision.serving.corrections import Correction, as_bright, of_brightness, of_camera, of_state
from gtp_vision.serving.findings import ERROR, NOTE, SEVERITIES, Evidence, Finding, Pictures, findings, is_far
from gtp_vision.serving.players import Player, Step
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema

EPISODES = 10
_GROUPS = 10
_FRAMES = 40  # of each camera whose features are compared, spread over all episodes
_ENCODED = 32  # stacks that are encoded at once
_SPREAD = 0.01  # of a dimension's bounds: the least deviation of its actions


@dataclass(frozen=True)
class Rehearsal:
    """The findings, the most severe first, and what they were found in."""

    findings: list[Finding]
    evidence: Evidence | None

    @property
    def has_error(self) -> bool:
        """Whether the robot would move wrongly."""
        return any(finding.severity == ERROR for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        counts = Counter(finding.severity for finding in self.findings)
        found: dict[str, Any] = {f"{severity}s": counts[severity] for severity in SEVERITIES}
        found["findings"] = [asdict(finding) for finding in self.findings]
        if (evidence := self.evidence) is not None:
            found |= {"episodes": len(np.unique(evidence.episodes)), "steps": len(evidence.episodes)}
            quantiles = np.quantile(1e3 * evidence.seconds, (0.5, 0.99))
            found |= {"rate": evidence.rate, "median_ms": float(quantiles[0]), "p99_ms": float(quantiles[1])}
            found |= {"clamps": dict(evidence.clamps), "has_server": evidence.has_server}
            found["distances"] = {name: float(np.median(of[None])) for name, of in evidence.distances.items()}
        return found


def rehearse(
    policy: Policy,
    store: Store,
    player: Player,
    *,
    rate: float | None = None,
    episodes: int = EPISODES,
    progress: bool = False,
) -> Rehearsal:
    """Play recorded episodes, and say what would go wrong on the robot.

    Args:
        policy: the artifact, with whose reference the recordings are compared.
        store: the recordings, as `open_store` reads them: with actions in the units of their file.
        player: what answers, the policy itself or a server.
        rate: of the robot, actions a second; None is the artifact's, or else the data's.
        episodes: most episodes that are played, spread evenly.
        progress: show a bar.

    Raises:
        GtpVisionError: an invalid rate, recordings that hold no action, a server that is gone.
    """
    if not (rate is None or 0 < rate < 1e5):
        raise GtpVisionError(f"--rate {rate:g} must be the number of actions a second")
    if policy.schema.table is not None and named_tasks(store.attributes, store.episodes):
        store = policy.schema.table.shown(store, texts_of(store))
    if faults := _misfits(store, policy.schema):
        return Rehearsal(faults, None)
    played = np.flatnonzero(store.last_outcomes >= store.episode_starts)
    if not len(played):
        raise GtpVisionError(f"{store.path} holds no action to compare with; record whole episodes")
    chosen = played[np.unique(np.linspace(0, len(played) - 1, min(episodes, len(played))).astype(int))]
    data_rate = known_rate(store.attributes)
    limits = policy.schema.limits
    rate = rate or (limits.rate if limits is not None else None) or data_rate
    rehearsal = _Rehearsing(policy, store, player, rate)
    for number in Progress(chosen.tolist(), "rehearsing", disable=not progress):
        rehearsal.play(number)
    evidence = rehearsal.evidence(rate, data_rate)
    return Rehearsal(findings(evidence), evidence)


def _misfits(store: Store, schema: Schema) -> list[Finding]:
    """What of the data the policy cannot take at all."""
    found = []
    if store.action_dim != schema.actions:
        sentence = f"the data have {store.action_dim} actions, the policy answers {schema.actions}"
        found.append(Finding(ERROR, "actions", "actions", sentence, "choose another policy, or record these actions"))
    try:
        schema.check(_observation(store, schema, 0, 0))
    except GtpVisionError as error:
        cure = f"name it by --map THEIRS=OURS (the data hold {', '.join(store.observations)}), or record it so"
        found.append(Finding(ERROR, "observations", "data", str(error), cure))
    return found


def _observation(store: Store, schema: Schema, row: int, last: int) -> dict[str, np.ndarray]:
    """What a robot would send at a row, with the episode's last frame as its goal."""
    names = {name: (name if name in store.observations else name.removeprefix(GOAL)) for name in _names(schema)}
    return {
        name: np.asarray(store.observations[own][last if name.startswith(GOAL) else row])
        for name, own in names.items()
        if own in store.observations
    }


def _joined(stacks: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([each[name] for each in stacks]) for name in stacks[0]}


def _names(schema: Schema) -> list[str]:
    return [*schema.cameras, *schema.states]


class _Rehearsing:
    """Plays episodes and keeps what is judged."""

    def __init__(self, policy: Policy, store: Store, player: Player, rate: float | None) -> None:
        self._policy, self._store, self._player = policy, store, player
        self._period = 1 / rate if player.has_server and rate else 0.0
        self._steps: list[Step] = []
        self._rows: list[np.ndarray] = []
        self._stacks: list[dict[str, torch.Tensor]] = []  # of each episode, of every camera and state
        self._still: dict[str, list[int]] = {name: [] for name in self._cameras}
        self._levels = dict.fromkeys(self._cameras, 0.0)
        self._predicted: list[np.ndarray] = []  # of each episode, (T, A)

    @property
    def _cameras(self) -> list[str]:
        return [name for name in self._policy.schema.cameras if not name.startswith(GOAL)]

    def play(self, number: int) -> None:
        """Play an episode, at the robot's rate if a server answers."""
        store, schema = self._store, self._policy.schema
        rows = np.arange(store.episode_starts[number], store.last_outcomes[number] + 1)
        last = int(store.episode_ends[number]) - 1
        kept = set(np.linspace(0, len(rows) - 1, min(len(rows), max(4, _FRAMES // _GROUPS))).astype(int).tolist())
        frames, stacks = FrameStack(schema.frame_stack), list[dict[str, torch.Tensor]]()
        first = len(self._steps)
        self._player.reset()
        start = time.perf_counter()
        for step, row in enumerate(rows.tolist()):
            observation = schema.check(_observation(store, schema, row, last))
            if self._period:
                time.sleep(max(0.0, start + step * self._period - time.perf_counter()))
            self._steps.append(self._player(observation))
            frames.push({name: array[None] for name, array in (observation | self._others(row)).items()})
            stacks.append(frames.tensors())
            for name in self._cameras:
                self._levels[name] = max(self._levels[name], float(observation[name].std()))
        episode = store.subset([number])
        for name in self._cameras:
            self._still[name].append(longest_still(episode, episode.observations[name]))
        self._rows.append(rows)
        if self._player.has_server:
            self._predicted.append(np.stack([step.action for step in self._steps[first:]]))
        else:
            own = [{name: each[name] for name in _names(schema)} for each in stacks]
            parts = [_joined(own[start : start + _ENCODED]) for start in range(0, len(own), _ENCODED)]
            self._predicted += [self._mean_action(part, number) for part in parts]
        self._stacks.append(_joined([stack for step, stack in enumerate(stacks) if step in kept]))

    def _mean_action(self, stacks: Mapping[str, torch.Tensor], seed: int) -> np.ndarray:
        """The mean (B, A) of the policy's answers to observations: of one draw alone the noise would be judged, too."""
        plans = act(self._policy.agent, stacks, self._policy.device, seed)[1]
        return self._policy.schema.in_units(plans[:, :, 0].mean(1).cpu().numpy())

    def _others(self, row: int) -> dict[str, np.ndarray]:
        """Cameras of the data that the policy has not, in whose frames one of its own may be."""
        shapes = set(self._policy.schema.cameras.values())
        names = self._store.observations.keys() - set(_names(self._policy.schema))
        others = {name: np.asarray(self._store.observations[name][row]) for name in sorted(names)}
        return {name: frame for name, frame in others.items() if frame.dtype == np.uint8 and frame.shape in shapes}

    def evidence(self, rate: float | None, data_rate: float | None) -> Evidence:
        """All that was measured."""
        policy, steps, schema = self._policy, self._steps, self._policy.schema
        lengths = [len(rows) for rows in self._rows]
        group_of = np.arange(len(lengths)) * min(_GROUPS, len(lengths)) // len(lengths)
        groups = np.repeat(group_of, lengths)
        answered = np.stack([step.action for step in steps]).astype(np.float64)
        recorded = in_file_units(self._store, np.concatenate(self._rows)).astype(np.float64)
        reference = policy.reference
        spread = answered.std(0) if reference is None else reference.actions.cpu().double().numpy().std(0)
        bounds = np.array(schema.action_high) - np.array(schema.action_low)
        answers = [step for step in steps if step.is_answer]
        clamped = [step.changed for step in steps if step.changed is not None]
        found = []
        if reference is None:
            sentence = "the artifact does not know its training data, so cameras and states are not judged"
            found.append(Finding(NOTE, "reference", "policy", sentence, "export its run again, where its data lie"))
        if goals := [name for name in _names(schema) if name.startswith(GOAL) and name not in self._store.observations]:
            sentence = f"the data hold no '{goals[0]}', so the last frame of each episode was the goal"
            found.append(Finding(NOTE, "goal", goals[0], sentence, "send the goal with every observation"))
        still = {
            name: (_by(np.array(runs), group_of, np.max), None if reference is None else reference.still[name])
            for name, runs in self._still.items()
        }
        return Evidence(
            schema=schema,
            episodes=np.repeat(np.arange(len(lengths)), lengths),
            groups=groups,
            recorded=recorded,
            answered=answered,
            predicted=np.concatenate(self._predicted).astype(np.float64),
            spread=np.maximum(spread, np.where(bounds > 0, _SPREAD * bounds, 1.0)),
            is_answer=np.array([step.is_answer for step in steps]),
            seconds=np.array([step.seconds for step in answers]),
            clamps=sum((Counter(step.clamps) for step in steps), Counter()),
            clamped=np.sum(clamped, 0) if clamped else None,
            doubts=[step.doubt for step in answers if step.doubt is not None],
            distances={} if reference is None else dict(self._distances(group_of)),
            pictures=dict(self._pictures(group_of)),
            still=still,
            levels=self._levels,
            rate=rate,
            data_rate=data_rate,
            has_server=self._player.has_server,
            found=found,
        )

    def _distances(self, group_of: np.ndarray) -> Iterator[tuple[str, dict[Correction | None, np.ndarray]]]:
        """Each camera's and state's distance from the training data by group (E,), and if it is far, corrected."""
        reference, schema = self._policy.reference, self._policy.schema
        assert reference is not None
        groups = np.repeat(group_of, [len(next(iter(own.values()))) for own in self._stacks])
        values = _joined(self._stacks)
        for name in self._cameras:
            stacks = values[name]

            def of_frames(held: torch.Tensor, name: str = name) -> np.ndarray:
                return _by(reference.camera_distance(name, self._features(name, held)), groups, np.median)

            found: dict[Correction | None, np.ndarray] = {None: of_frames(stacks)}
            if is_far(found[None]):
                found |= {key: of_frames(x) for key, x in (*of_camera(stacks), *of_brightness(stacks))}
                found |= {key: of_frames(x) for key, x in self._exchanged(name, values)}
            yield name, found
        for name in (name for name in schema.states if not name.startswith(GOAL)):
            rows, known = values[name][:, -1], reference.states[name].cpu().numpy()

            def of_rows(held: np.ndarray | torch.Tensor, name: str = name) -> np.ndarray:
                return _by(reference.state_distance(name, torch.as_tensor(held).float()), groups, np.median)

            found = {None: of_rows(rows)}
            if is_far(found[None]):
                found |= {key: of_rows(x) for key, x in of_state(name, rows.numpy(), known)}
                found |= {key: of_rows(x[:, -1]) for key, x in self._exchanged(name, values)}
            yield name, found

    def _pictures(self, group_of: np.ndarray) -> Iterator[tuple[str, Pictures]]:
        """The mean frame of each group beside training's, which a backbone may hold."""
        groups = torch.from_numpy(np.repeat(group_of, [len(next(iter(own.values()))) for own in self._stacks]))
        encoder, values = self._policy.agent.actor_encoder, _joined(self._stacks)
        means = {
            name: torch.stack([x[groups == group, -1:].float().mean(0) for group in groups.unique()])
            for name, x in values.items()
            if x.dtype == torch.uint8
        }
        for name in self._cameras:
            tower = encoder.tower(name)
            known, mine = tower.mean.cpu().float(), means[name]
            if not tower.uses_mean_frame or encoder.config.share_cameras or known.shape != mine.shape[2:]:
                continue
            if float(known.std()) == 0:
                continue
            turned = list(of_camera(mine))
            held = {None: mine - known} | {key: x - known for key, x in (*turned, *self._exchanged(name, means))}
            held |= {key: mine - x for key, x in as_bright(known)}
            changed = {key: (mine - x, known - y) for (key, x), (_, y) in zip(turned, of_camera(known), strict=True)}
            yield (
                name,
                Pictures(
                    {key: x.abs().mean((1, 2, 3, 4)).double().numpy() for key, x in held.items()},
                    {
                        key: torch.cosine_similarity(x.flatten(1), y.flatten()).numpy()
                        for key, (x, y) in changed.items()
                    },
                ),
            )

    def _exchanged(self, name: str, values: Mapping[str, torch.Tensor]) -> Iterator[tuple[Correction, torch.Tensor]]:
        """What the data hold under other names, in this one's place."""
        for other, rows in values.items():
            if other != name and not other.startswith(GOAL) and rows.shape[1:] == values[name].shape[1:]:
                back = f" --map {name}={other}" if other in _names(self._policy.schema) else ""
                what = f"is exchanged: what the data call '{other}' fits it"
                cure = f"exchange them (gtp-vision serve --map {other}={name}{back})"
                yield Correction("swapped", what, cure), rows

    @torch.no_grad()
    def _features(self, name: str, stacks: torch.Tensor) -> torch.Tensor:
        encoder, device = self._policy.agent.actor_encoder, self._policy.device
        return torch.cat([encoder.camera_features(name, some.to(device)) for some in stacks.split(_ENCODED)])


def _by(values: Any, groups: np.ndarray, reduce: Any) -> np.ndarray:
    """A number for each group, (E,)."""
    values = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, np.float64)
    return np.array([reduce(values[groups == group]) for group in np.unique(groups)])


def table(rehearsal: Rehearsal) -> str:
    """The findings as text, a line each."""
    counts = rehearsal.record()
    head = f"{counts['errors']} errors, {counts['warnings']} warnings, {counts['notes']} notes"
    if (evidence := rehearsal.evidence) is not None:
        head += f" in {counts['episodes']} episodes of {counts['steps']} steps"
        head += "" if evidence.rate is None else f" at {evidence.rate:g} Hz"
    return "\n".join([head, *map(str, rehearsal.findings)])
