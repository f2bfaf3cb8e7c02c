"""Rehearsals of an untrained policy that knows its data, on scenes in which a bright square moves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import Running
from small_policies import untrained

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.split import Split
from gtp_vision.datasets.store import Store
from gtp_vision.serving import artifact
from gtp_vision.serving.calibration import reference_of
from gtp_vision.serving.client import Client
from gtp_vision.serving.findings import ERROR
from gtp_vision.serving.players import Local, Remote, connected
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.rehearse import Rehearsal, rehearse
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings
from gtp_vision.training.data import TaskData

STEPS = 12


def scenes(episodes: int, seed: int) -> Store:
    """Two cameras that see a square move before walls of their own, and its place as the state."""
    random, rows = np.random.default_rng(seed), episodes * STEPS
    place = np.concatenate([random.integers(1, 6, 2) + np.arange(STEPS)[:, None] % 5 for _ in range(episodes)])
    frames = {}
    for name, red in (("front", 200), ("wrist", 20)):
        walls = np.zeros((16, 16, 3), np.uint8)
        walls[:, :5], walls[:4, :, 0], walls[12:, 8:, 2] = (30, 90, 60), red, 250 - red
        frames[name] = np.repeat(walls[None], rows, 0)
        for row, (x, y) in enumerate(place):
            frames[name][row, y : y + 4, x + 4 : x + 8] = (250, 240, 90)
    ends = np.arange(1, episodes + 1) * STEPS
    timeouts = np.isin(np.arange(rows), ends - 1)
    state = np.concatenate([place, place[:, :1] * 0.01 + 1], 1).astype(np.float32)
    actions = random.uniform(-1, 1, (rows, 2)).astype(np.float32)
    observations = {**frames, "arm": state}
    return Store(observations, actions, np.zeros(rows, np.float32), np.zeros(rows, bool), timeouts, ends, {"fps": 50})


@pytest.fixture(scope="module")
def policy() -> Policy:
    plain = untrained(
        "agent=gtp_bc",
        cameras={"front": (16, 16, 3), "wrist": (16, 16, 3)},
        states={"arm": 3},
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
    )
    known = TaskData(scenes(20, 0), scenes(8, 1), Split([], [], [], ""))
    reference, _ = reference_of(plain.agent, known, plain.schema.frame_stack, 0)
    return Policy(plain.agent, plain.schema, plain.card, reference=reference)


def rehearsed(policy: Policy, **observations: np.ndarray) -> Rehearsal:
    store = scenes(6, 2)
    return rehearse(policy, replace(store, observations=store.observations | observations), Local(policy))


def names(rehearsal: Rehearsal) -> list[tuple[str, str]]:
    return [(finding.kind, finding.subject) for finding in rehearsal.findings if finding.severity == ERROR]


def test_sound_recordings_raise_no_alarm(policy: Policy) -> None:
    found = rehearsed(policy)
    assert names(found) == []
    assert not found.has_error
    assert found.record()["steps"] == 6 * (STEPS - 1)


def test_a_swapped_camera_is_named_with_the_setting_that_cures_it(policy: Policy) -> None:
    held = scenes(6, 2).observations
    found = rehearsed(policy, front=np.asarray(held["wrist"]), wrist=np.asarray(held["front"]))
    assert {("swapped", "front"), ("swapped", "wrist")} <= set(names(found))
    assert "--map wrist=front --map front=wrist" in str(found.findings)


@pytest.mark.parametrize("kind", ["colors", "upside_down", "frozen", "black", "units"])
def test_a_planted_fault_is_named_first(policy: Policy, kind: str) -> None:
    held = {name: np.asarray(rows) for name, rows in scenes(6, 2).observations.items()}
    first = np.arange(6 * STEPS) // STEPS * STEPS
    planted = {
        "colors": {"front": held["front"][..., ::-1].copy()},
        "upside_down": {"wrist": held["wrist"][:, ::-1].copy()},
        "frozen": {"front": held["front"][first]},
        "black": {"wrist": 0 * held["wrist"]},
        "units": {"arm": 1000 * held["arm"]},
    }[kind]
    found = names(rehearsed(policy, **planted))
    assert found[0] == (kind, next(iter(planted)))


def test_a_camera_under_another_name_in_the_data_is_found(policy: Policy) -> None:
    held = scenes(6, 2).observations
    found = rehearsed(policy, front=np.asarray(held["wrist"]), rgb=np.asarray(held["front"]))
    assert ("swapped", "front") in names(found)
    assert "--map rgb=front" in str(found.findings)


def test_what_the_policy_cannot_take_is_said_before_anything_is_played(policy: Policy) -> None:
    store = scenes(3, 2)
    found = rehearse(policy, store.select(["front", "arm"]), Local(policy))
    assert names(found) == [("observations", "data")]
    assert "lacks 'wrist'" in str(found.findings[0])
    found = rehearse(policy, replace(store, actions=store.actions[:, :1]), Local(policy))
    assert names(found) == [("actions", "actions")]


def test_an_artifact_without_a_reference_says_what_is_not_judged(policy: Policy) -> None:
    old = Policy(policy.agent, policy.schema, policy.card)
    assert "reference" in [finding.kind for finding in rehearse(old, scenes(6, 2), Local(old)).findings]


def test_where_the_data_hold_no_goal_the_last_frame_is_it() -> None:
    policy = untrained(
        "agent=gtp_bc", states={"arm": 3, "goal/arm": 3}, action_low=(-1.0, -1.0), action_high=(1.0, 1.0)
    )
    store = scenes(3, 2)
    fitting = {"arm": store.observations["arm"], "front": np.asarray(store.observations["front"])[:, :, :12].copy()}
    found = rehearse(policy, replace(store, observations=fitting), Local(policy)).findings
    assert ("note", "goal") in [(finding.severity, finding.kind) for finding in found]


def test_a_server_is_asked_at_the_robots_rate_and_answers_as_the_policy(policy: Policy) -> None:
    running = Running(Server(policy, Settings(port=0)))
    try:
        with connected(running.address, policy.schema) as server:
            found = rehearse(policy, scenes(2, 2), server, rate=2000.0)
        with Client(running.address) as client:
            remote, session = Remote(client), policy.session()
            remote.reset()
            session.reset()
            observation = {name: np.asarray(rows[0]) for name, rows in scenes(1, 2).observations.items()}
            np.testing.assert_array_equal(remote(observation).action, session.plan(observation)[0])
        other = replace(policy.schema, action_high=(2.0, 2.0))
        with pytest.raises(GtpVisionError, match="serves another policy"), connected(running.address, other):
            pass
    finally:
        running.end()
    assert found.evidence is not None
    assert found.evidence.has_server
    assert "late" in [finding.kind for finding in found.findings]
    with pytest.raises(GtpVisionError, match="cannot be used"), connected(running.address, policy.schema):
        pass


def test_the_command_says_what_is_wrong_by_its_status(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = tmp_path / "policy", scenes(6, 2)
    folder.mkdir()
    parts = [name for name, _ in policy.agent.named_children()]
    artifact.write(folder, policy.agent, policy.schema, policy.card, parts, policy.reference)
    recorded = native.write(tmp_path / "recorded.h5", store)
    exchanged = ["--map", "wrist=front", "--map", "front=wrist"]
    assert main(["rehearse", str(folder), str(recorded), "--json", "--rate", "0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 0
    assert main(["rehearse", str(folder), str(recorded), *exchanged]) == 1
    assert "error: camera" in capsys.readouterr().out
    assert main(["rehearse", str(folder), str(recorded), "--rate", "-1"]) == 2
    assert "--rate -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--token-file", "token"], "--token-file is for a server; add --server URL"),
        (["--server", "ws://localhost:1", "--steps", "1"], "the server has its own; leave them out"),
        (["--server", "ws://localhost:1", "--seed", "0"], "the server has its own; leave them out"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "policy", "recorded.h5", *options]) == 2
    assert sentence in capsys.readouterr().err
