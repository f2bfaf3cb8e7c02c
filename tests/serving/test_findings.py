"""Findings by the evidence: each fault is named first, with numbers and a cure; sound evidence has none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gtp_vision.serving.corrections import Correction
from gtp_vision.serving.findings import ERROR, NOTE, WARNING, Evidence, Pictures, findings
from gtp_vision.serving.limits import Limits
from gtp_vision.serving.schema import Schema

SCHEMA = Schema(
    cameras={"front": (16, 16, 3), "wrist": (16, 16, 3)},
    states={"arm": 3},
    frame_stack=1,
    action_low=(-2.0,) * 4,
    action_high=(2.0,) * 4,
    chunk=4,
    steps=2,
    candidates=1,
    agent="gtp",
    task="test",
    limits=Limits.position([-2.0] * 4, [2.0] * 4, 20.0),
)
MIRRORED, SWAPPED = (Correction(kind, f"is {kind}", "cure") for kind in ("mirrored", "swapped"))
NEAR, FAR = np.full(8, 0.6), np.full(8, 4.0)


def sound(**changed: Any) -> Evidence:
    """Evidence of 8 episodes of 40 steps; the policy follows dimensions 0, 1 and the gripper, 3, and 2 is noise."""
    random = np.random.default_rng(0)
    time, phase = np.arange(40)[:, None], random.uniform(0, 6, (8, 1, 3))
    moves = np.sin(phase + time * random.uniform(0.3, 0.5, (8, 1, 3))).reshape(320, 3)
    moves[:, 2] = random.normal(size=320)
    recorded = np.concatenate([moves, np.sign(moves[:, :1] + 0.1)], 1)
    predicted = recorded + np.array([0.3, 0.3, 0, 0.1]) * random.normal(size=(320, 4))
    predicted[:, 2] = 0.1 * random.normal(size=320)
    episodes = np.repeat(np.arange(8), 40)
    fields: dict[str, Any] = {
        **{"schema": SCHEMA, "episodes": episodes, "groups": episodes, "recorded": recorded, "answered": predicted},
        **{"predicted": predicted, "spread": recorded.std(0), "is_answer": np.arange(320) % 4 == 0, "clamps": {}},
        **{"seconds": np.full(80, 0.01), "clamped": np.zeros(4), "doubts": [(0.4, "map")] * 80},
        "distances": {
            "front": {None: NEAR, MIRRORED: FAR, SWAPPED: FAR},
            "wrist": {None: NEAR, MIRRORED: NEAR * 0.9, SWAPPED: FAR},
            "arm": {None: NEAR},
        },
        "pictures": {"front": Pictures({None: NEAR * 10, MIRRORED: FAR * 10}, {MIRRORED: NEAR})},
        **{"still": {"front": (np.full(8, 2), 2.0)}, "levels": {"front": 40.0, "wrist": 30.0}},
        **{"rate": 20.0, "data_rate": 20.0, "has_server": True},
    }
    return Evidence(**(fields | changed))


def acted(change: Callable[[np.ndarray], np.ndarray]) -> Evidence:
    evidence = sound()
    return replace(evidence, recorded=change(evidence.recorded))


def test_sound_evidence_has_no_finding() -> None:
    assert findings(sound()) == []


@pytest.mark.parametrize(
    ("kind", "says", "evidence"),
    [
        ("units", "degrees", acted(lambda x: x * (180 / np.pi))),
        ("units", "0.25 times", acted(lambda x: x * 0.25)),
        ("sign", "dimension 1 is inverted", acted(lambda x: x * np.array([1, -1, 1, 1]))),
        ("gripper", "dimension 3 is inverted", acted(lambda x: x * np.array([1, 1, 1, -1]))),
        ("order", "[1, 0, 2, 3]", acted(lambda x: x[:, [1, 0, 2, 3]])),
        ("lag", "1 step later", acted(lambda x: np.roll(x, 1, 0))),
        (
            "absolute",
            "absolute",
            acted(lambda x: np.cumsum(x, 0) * np.array([1, 1, 1, 0]) + x * np.array([0, 0, 0, 1])),
        ),
    ],
)
def test_faults_of_actions_are_errors(kind: str, says: str, evidence: Evidence) -> None:
    first = findings(evidence)[0]
    assert (first.severity, first.kind, first.subject) == (ERROR, kind, "actions")
    assert says in first.sentence
    assert first.cure in str(first)


@pytest.mark.parametrize(
    ("severity", "kind", "changed"),
    [
        (ERROR, "mirrored", {"distances": {"front": {None: FAR, MIRRORED: NEAR, SWAPPED: FAR * 0.9}}}),
        (ERROR, "mirrored", {"pictures": {"front": Pictures({None: FAR, MIRRORED: NEAR}, {})}}),
        (ERROR, "mirrored", {"pictures": {"front": Pictures({None: FAR, MIRRORED: FAR * 0.95}, {MIRRORED: -NEAR})}}),
        (ERROR, "unlike", {"distances": {"front": {None: FAR, MIRRORED: FAR * 1.1}}}),
        (WARNING, "unlike", {"distances": {"arm": {None: NEAR * 2.5}}}),
        (ERROR, "frozen", {"still": {"front": (np.full(8, 40), 2.0)}}),
        (ERROR, "black", {"levels": {"front": 1.0}}),
        (ERROR, "late", {"seconds": np.full(80, 0.07)}),
        (WARNING, "late", {"seconds": np.where(np.arange(80) < 8, 0.07, 0.01)}),
        (WARNING, "clamped", {"clamps": {"speed": 90}, "clamped": np.array([0, 90, 0, 0])}),
        (WARNING, "doubt", {"doubts": [(1.5, "camera front")] * 80}),
        (WARNING, "rate", {"data_rate": 10.0}),
        (NOTE, "rate_unknown", {"rate": None}),
        (NOTE, "short", {"episodes": np.zeros(320, int)}),
    ],
)
def test_other_faults_are_named_with_their_severity(severity: str, kind: str, changed: dict[str, Any]) -> None:
    (first,) = findings(sound(**changed))
    assert (first.severity, first.kind) == (severity, kind)


def test_a_cause_is_named_before_what_follows_from_it() -> None:
    evidence = replace(acted(lambda x: -x), distances={"front": {None: FAR, MIRRORED: NEAR}}, doubts=[(2.0, "map")] * 9)
    assert [finding.kind for finding in findings(evidence)] == ["mirrored", "doubt"]


def test_one_odd_episode_is_not_a_fault() -> None:
    odd = np.where(np.arange(8) == 0, 9.0, 0.6)
    assert findings(sound(distances={"front": {None: odd, MIRRORED: NEAR}})) == []


def test_jumps_at_the_borders_of_chunks_are_found_and_steps_inside_are_not() -> None:
    evidence = sound()
    jumping = evidence.answered + 0.8 * (np.arange(320) // 4 % 2)[:, None]
    (found,) = findings(replace(evidence, answered=jumping))
    assert (found.severity, found.kind) == (WARNING, "jumps")
    assert "join=rtc" in found.cure
