"""What would go wrong on the robot, from the evidence of a rehearsal: causes first, one sentence each with its cure.

A fault of the observations changes the actions, too, so actions are judged only where the observations are sound. All
comparisons are made for each of several groups of episodes, and a finding needs most of them.

Axes in names: E groups of episodes, T steps, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gtp_vision.serving.corrections import FOLLOWS, Correction, correlation, lag_of, of_actions, units_of
from gtp_vision.serving.schema import Schema

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""Wrong motion of the robot; worse motion; what limits the judgement."""
_MOST = 0.8  # of the groups that must agree
_EDGE = 1.0  # distance from the training data, of the median frame: the 95 % quantile of other recordings
_OUTSIDE = 1.25  # distance from which no fault that is known needs to explain it
_BLIND = 2.0  # distance from which the policy acts on what it has never seen
_NEARER = 0.75  # of the distance: a correction must leave less,
_ALIKE = 0.88  # and of that of mean frames
_CONTRARY = 0.1  # likeness below minus which a correction of mean frames needs only to leave less
_BETTER = 0.8  # of the squared distance between recorded and predicted actions, likewise;
_MATCHES = 0.6  # of that of a single dimension
_TIE = 0.02  # of correlations
_LATE, _MOST_LATE = 0.05, 0.5  # share of answers that take longer than a control period
_CLAMPED = 0.02  # share of numbers that limits change
_JUMP = 2.0  # mean squared step at the borders of chunks, over that inside
_DOUBTED = 0.2  # share of answers above the threshold of doubt
_FEW_STEPS, _FEW_EPISODES = 100, 3
_DARK = 8  # of 255: the spread of a camera that sees nothing


@dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        severity: of `SEVERITIES`.
        kind: one word for programs.
        subject: camera, state, or `actions`, `answers`, `data`, `policy`.
        sentence: what, with the numbers that show it.
        cure: the setting or command that cures it.
    """

    severity: str
    kind: str
    subject: str
    sentence: str
    cure: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.sentence}; {self.cure}"


@dataclass(frozen=True)
class Pictures:
    """Mean frames of a camera in each group beside training's.

    Attributes:
        distances: in gray levels, (E,), as they are (None) and after each correction.
        likeness: of what a correction changes in them and in training's, (E,): below 0 it is undone by the correction.
    """

    distances: Mapping[Correction | None, np.ndarray]
    likeness: Mapping[Correction, np.ndarray]


@dataclass(frozen=True)
class Evidence:
    """What a rehearsal measured.

    Attributes:
        schema: of the policy.
        episodes: int (T,), number of each step's episode.
        groups: int (T,), number of each step's group of whole episodes.
        recorded: float64 (T, A), the robot's actions, in its units.
        answered: float64 (T, A), what the policy or its server answered to the same observations, within limits.
        predicted: float64 (T, A), the mean of what it may answer to them; of a server its answers.
        spread: float64 (A,), deviation of the actions in training.
        is_answer: bool (T,), whether a step's action is the first of an answer.
        seconds: float64 (N,), of each answer.
        clamps: numbers that limits changed, by limit, and in all.
        clamped: int (A,), the same by dimension; None of a server.
        doubts: each answer's doubt, 1 at its threshold, and its cause.
        distances: camera or state to the median distance from the training data in each group, (E,), as it is (None)
            and after each correction; empty without a reference.
        pictures: camera to its mean frames; only of backbones that hold training's.
        still: camera to the longest run of equal frames in each group (E,), and in training.
        levels: camera to the largest deviation of a frame's pixels, 0 to 255.
        rate: actions a second of the robot, None if unknown.
        data_rate: of the data, None if unknown.
        has_server: whether a server answered.
        found: what was seen before anything could be played, or while it was.
    """

    schema: Schema
    episodes: np.ndarray
    groups: np.ndarray
    recorded: np.ndarray
    answered: np.ndarray
    predicted: np.ndarray
    spread: np.ndarray
    is_answer: np.ndarray
    seconds: np.ndarray
    clamps: Mapping[str, int]
    clamped: np.ndarray | None
    doubts: list[tuple[float, str]]
    distances: Mapping[str, Mapping[Correction | None, np.ndarray]]
    pictures: Mapping[str, Pictures]
    still: Mapping[str, tuple[np.ndarray, float | None]]
    levels: Mapping[str, float]
    rate: float | None
    data_rate: float | None
    has_server: bool
    found: list[Finding] = field(default_factory=list)


def findings(evidence: Evidence) -> list[Finding]:
    """All findings, the most severe first, causes before effects."""
    found = [*evidence.found, *(finding for judge in _INPUTS for finding in judge(evidence))]
    judges = _OTHERS if any(finding.severity != NOTE for finding in found) else (_actions, *_OTHERS)
    found += [finding for judge in judges for finding in judge(evidence)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))  # stable: causes stay first


def _unlit(evidence: Evidence) -> Iterator[Finding]:
    for name, level in evidence.levels.items():
        if level < _DARK:
            sentence = f"camera '{name}' shows nothing: its pixels differ by {level:.1f} of 255 at most"
            yield Finding(ERROR, "black", name, sentence, "check its cap, cable and driver")


def _frozen(evidence: Evidence) -> Iterator[Finding]:
    for name, (runs, known) in evidence.still.items():
        if evidence.levels.get(name, 255.0) < _DARK or known is None:
            continue
        if _mostly(runs > max(2 * known, known + 5)):
            sentence = (
                f"camera '{name}' is frozen: {np.median(runs):.0f} equal frames in a row, in training {known:.0f}"
            )
            yield Finding(ERROR, "frozen", name, sentence, "check that the driver delivers a new frame for every step")


def _misread(evidence: Evidence) -> Iterator[Finding]:
    """Cameras and states that are nearer to the training data after a correction, or far from it after each."""
    found = []
    for name in {**evidence.pictures, **evidence.distances}:
        what = f"{'camera' if name in evidence.schema.cameras else 'state'} '{name}'"
        distances, pictures = evidence.distances.get(name, {}), evidence.pictures.get(name, Pictures({}, {}))
        far = bool(distances) and is_far(distances[None])
        contrary = [key for key, likeness in pictures.likeness.items() if _mostly(likeness < -_CONTRARY)]
        of_mean = _best(pictures.distances, _ALIKE, contrary)
        of_each = _best(distances, _NEARER) if far else None
        of_each = of_each if of_each is not None and of_each[2] < _OUTSIDE else None
        if evidence.levels.get(name, 255.0) < _DARK:
            continue
        if (best := of_mean or of_each) is not None:
            correction, before, after = best
            unit = "(gray levels of the mean frame)" if of_mean else "(near is below 1)"
            numbers = f"{before:.1f} from the training data, corrected {after:.1f} {unit}"
            severity = WARNING if correction.kind == "brightness" and not far else ERROR
            finding = Finding(severity, correction.kind, name, f"{what} {correction.what}: {numbers}", correction.cure)
            found.append((before / after, finding))
        elif far and _mostly(distances[None] > _OUTSIDE):
            before = float(np.median(distances[None]))
            sentence = f"{what} shows what training data do not: {before:.1f} from them (near is below 1)"
            cure = "look for what covers, moves or changes it (gtp-vision data view), or train on such episodes"
            found.append((0.0, Finding(ERROR if before > _BLIND else WARNING, "unlike", name, sentence, cure)))
    yield from (finding for _, finding in sorted(found, key=lambda pair: -pair[0]))


def _best(
    distances: Mapping[Correction | None, np.ndarray], share: float, others: Sequence[Correction] = ()
) -> tuple[Correction, float, float] | None:
    """The correction that leaves least of those that leave less than a share in most groups, and the medians around it.

    `others` need to leave less than now only.
    """
    corrected = {key: x for key, x in distances.items() if key is not None}
    good = [key for key, x in corrected.items() if _is_less(x, distances[None], 1.0 if key in others else share)]
    best = min(good, key=lambda key: float(np.median(corrected[key])), default=None)
    if best is None:
        return None
    return best, float(np.median(distances[None])), max(1e-6, float(np.median(corrected[best])))


def _actions(evidence: Evidence) -> Iterator[Finding]:
    """The correction of the recorded actions that brings most agreement with the policy's."""
    recorded, predicted = evidence.recorded, evidence.predicted

    def errors(actions: np.ndarray) -> np.ndarray:
        """Squared distance from the policy's actions in each group, (E, A), on the steps that have an action."""
        return _by_group(((actions - predicted) / evidence.spread) ** 2, evidence.groups)

    def is_better(corrected: np.ndarray) -> np.ndarray:
        return _is_less(errors(corrected), errors(recorded), _MATCHES) & (correlation(corrected, predicted) > FOLLOWS)

    if (units := units_of(recorded, evidence.spread)) is not None:
        yield Finding(ERROR, units.kind, "actions", f"the robot's actions {units.what}, by their range", units.cure)
        return
    candidates = of_actions(recorded, predicted, evidence.spread, evidence.episodes, is_better)
    best: tuple[float, Correction, np.ndarray, np.ndarray] | None = None
    for correction, corrected, dims in candidates:
        known = np.where(np.isfinite(corrected), recorded, np.nan)
        after, before = errors(corrected)[:, dims].sum(1), errors(known)[:, dims].sum(1)
        gain = float(np.mean(before - after))
        found, follows = (correlation(each, predicted)[dims] for each in (known, corrected))
        is_known = (follows > FOLLOWS).any() and follows.mean() > found.mean() - _TIE
        if is_known and _is_less(after, before, _BETTER) and (best is None or gain > best[0]):
            best = gain, correction, found, follows
    if best is not None:
        _, correction, found, follows = best
        sentence = (
            f"the robot's actions {correction.what}: their correlation with the policy's is {found.mean():.2f}, "
            f"corrected {follows.mean():.2f}"
        )
        yield Finding(ERROR, correction.kind, "actions", sentence, correction.cure)
    elif late := lag_of(recorded, predicted, evidence.spread, evidence.episodes, evidence.groups):
        sentence = f"the robot's actions {late[0].what}: paired so, {late[1]:.0%} of their distance is left"
        yield Finding(ERROR, late[0].kind, "actions", sentence, late[0].cure)


def _late(evidence: Evidence) -> Iterator[Finding]:
    if evidence.rate is None:
        sentence = "the robot's rate is unknown, so late answers are not judged"
        yield Finding(NOTE, "rate_unknown", "answers", sentence, "give --rate with the actions a second")
        return
    period, share = 1 / evidence.rate, float((evidence.seconds > 1 / evidence.rate).mean())
    if share > _LATE:
        severity = SEVERITIES[
            int(share <= _MOST_LATE) + int(not evidence.has_server)
        ]  # the robot's computer may differ
        who = "the server's answers" if evidence.has_server else "the policy's answers on this machine"
        sentence = (
            f"{share:.0%} of {who} take longer than the {1e3 * period:.0f} ms of a step at {evidence.rate:g} Hz "
            f"(median {1e3 * np.median(evidence.seconds):.0f} ms)"
        )
        cure = "take fewer jumps (--steps 1), --engine compile or ONNX, or execute chunks and send executed"
        yield Finding(severity, "late", "answers", sentence, cure)


def _rate(evidence: Evidence) -> Iterator[Finding]:
    trained = None if evidence.schema.limits is None else evidence.schema.limits.rate
    for name, rate in (("the data are recorded", evidence.data_rate), ("the robot acts", evidence.rate)):
        if trained and rate and abs(np.log(rate / trained)) > 0.1:
            sentence = f"{name} at {rate:g} Hz, the policy was trained at {trained:g} Hz"
            yield Finding(WARNING, "rate", "data", sentence, f"run the robot at {trained:g} Hz, or train at its rate")
            return


def _clamped(evidence: Evidence) -> Iterator[Finding]:
    by_limit, numbers = sum(evidence.clamps.values()), evidence.answered.size  # several limits may change a number
    changed = by_limit if evidence.clamped is None else int(evidence.clamped.sum())
    if changed > _CLAMPED * numbers:
        limit = max(evidence.clamps, key=lambda name: evidence.clamps[name])
        of = "" if evidence.clamped is None else f", most in dimension {int(evidence.clamped.argmax())}"
        sentence = f"limits changed {changed} of {numbers} numbers, most by {limit}{of}"
        cure = "raise that limit (gtp-vision export --limits), or look why the policy is that fast"
        yield Finding(WARNING, "clamped", "actions", sentence, cure)


def _jumps(evidence: Evidence) -> Iterator[Finding]:
    """Steps at the borders of chunks that are larger than inside."""
    same = np.diff(evidence.episodes) == 0
    moves = (np.diff(evidence.answered, axis=0) / evidence.spread)[same]
    moves = (moves[:, [len(np.unique(column)) > 2 for column in evidence.answered.T]] ** 2).sum(1)
    border = evidence.is_answer[1:][same]
    if border.all() or not border.any() or not moves.size:
        return
    ratio = float(moves[border].mean() / max(moves[~border].mean(), 1e-12))
    if ratio > _JUMP:
        sentence = f"actions jump where a chunk begins: the mean squared step is {ratio:.1f} times that inside chunks"
        cure = "export with agent.acting.join=rtc, or with agent.acting.ensemble=0.1"
        yield Finding(WARNING, "jumps", "actions", sentence, cure)


def _doubted(evidence: Evidence) -> Iterator[Finding]:
    above = [because for doubt, because in evidence.doubts if doubt > 1]
    if len(above) > _DOUBTED * max(1, len(evidence.doubts)):
        cause = max(set(above), key=above.count)
        sentence = (
            f"the policy doubts {len(above) / len(evidence.doubts):.0%} of its answers, mostly because of {cause}"
        )
        cure = "look at these frames, and choose what to do: gtp-vision serve --on-doubt"
        yield Finding(WARNING, "doubt", "policy", sentence, cure)


def _short(evidence: Evidence) -> Iterator[Finding]:
    episodes, steps = len(np.unique(evidence.episodes)), len(evidence.episodes)
    if episodes < _FEW_EPISODES or steps < _FEW_STEPS:
        sentence = f"{episodes} episode(s) of {steps} steps in all are little evidence"
        yield Finding(
            NOTE, "short", "data", sentence, f"record {_FEW_EPISODES} episodes and {_FEW_STEPS} steps or more"
        )


def is_far(distances: np.ndarray) -> bool:
    """Whether a camera or state is far from the training data in most groups, (E,)."""
    return _mostly(distances > _EDGE)


Judge = Callable[[Evidence], Iterator[Finding]]
_INPUTS: tuple[Judge, ...] = (_unlit, _frozen, _misread)
_OTHERS: tuple[Judge, ...] = (_late, _rate, _clamped, _jumps, _doubted, _short)


def _mostly(holds: np.ndarray) -> bool:
    """Whether most groups (E,) agree."""
    return bool(holds.size) and float(holds.mean()) >= _MOST


def _is_less(after: np.ndarray, before: np.ndarray, share: float) -> np.ndarray:
    """Whether numbers (E, ...) are less in most groups, and together less than a share of those before: (...)."""
    return ((after < before).mean(0) >= _MOST) & (after.mean(0) < share * before.mean(0))


def _by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means (E, A) of values (T, A) over the steps of each group that have one."""
    known = np.isfinite(values)
    parts = [(np.where(known, values, 0)[rows].sum(0), known[rows].sum(0)) for rows in _rows_of(groups)]
    return np.stack([total / np.maximum(count, 1) for total, count in parts])


def _rows_of(groups: np.ndarray) -> list[np.ndarray]:
    return [groups == group for group in np.unique(groups)]
