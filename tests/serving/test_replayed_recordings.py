import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pages import Page
from running import Running
from small_policies import knowing, observations, untrained, write

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving import artifact
from gtp_vision.serving.answer import ACTION, PLAN, answer
from gtp_vision.serving.client import Client
from gtp_vision.serving.limits import Limits
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reactions import OnDoubt
from gtp_vision.serving.recorder import Recorder
from gtp_vision.serving.recording import Served
from gtp_vision.serving.replay import replay
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings

pytestmark = pytest.mark.processes
STEPS = 12
ANSWERS = {PLAN: 3 * STEPS, ACTION: 2 * STEPS}


def limited(*overrides: str) -> Policy:
    """A policy of plans of four actions, of which three are executed, whose speed and acceleration are limited."""
    policy = untrained("agent=gtp_bc", "agent.action_chunk=4", "agent.acting.execute=3", *overrides)
    limits = replace(Limits.position((-3.0, 0.0), (1.0, 250.0), 10.0), speed=(5.0, None), acceleration=(40.0, None))
    return Policy(policy.agent, replace(policy.schema, limits=limits), policy.card)


def record(folder: Path, served: Path, kind: str) -> Path:
    """Two robots at once, of which one has two episodes, and with plans one that says what it executed."""
    policy = artifact.load_policy(served)
    how = Served(artifact.identity(served), kind, "eager", "cpu", torch.get_num_threads(), torch.__version__)
    recorder = Recorder(folder, policy.schema, how, 10_000_000, longest=5_000)
    running = Running(Server(policy, Settings(port=0, answer=kind, timeout=60), recorder=recorder))
    try:
        with Client(running.address, timeout=60) as one, Client(running.address, timeout=60) as other:
            one.reset(seed=5)
            for step, seen in enumerate(observations(policy.schema, STEPS)):
                one.infer(seen)
                other.infer(seen, reset=step == 3)
    finally:
        running.end()
    session = policy.session(3)
    for step, seen in enumerate(observations(policy.schema, STEPS) if kind == PLAN else ()):
        late = {"executed": 2, "delay": 1} if step else {"executed": 0}
        recorder.add(99, seen, answer(session, seen, kind, **late), 0.0, 0.0)
    recorder.close()
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = limited("agent.acting.join=rtc")
    return write(tmp_path_factory.mktemp("replay") / "policy", made, *dict(made.agent.named_children()))


@pytest.fixture(scope="module", params=[PLAN, ACTION])
def recorded(policy: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / request.param, policy, request.param)


def test_the_artifact_that_answered_answers_the_same_again(
    recorded: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(list(recorded.glob("*.h5"))) > 3, "long episodes are in several files"
    assert main(["replay", str(recorded), "--policy", str(policy), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answers"], found["equal"], found["is_same"]) == (
        ANSWERS[recorded.name],
        ANSWERS[recorded.name],
        True,
    )
    assert found["clamps"]["recorded"] == found["clamps"]["replayed"]
    assert found["clamps"]["replayed"]["speed"] > 0
    assert not recorded.with_name(f"{recorded.name}.replay.html").exists()


def test_an_answer_that_differs_is_named(
    recorded: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in recorded.glob("*.h5"):
        (changed / path.name).write_bytes(path.read_bytes())
    with h5py.File(changed / "000001.h5", "a") as file:
        file["answers/actions"][2, 0, 1] += 0.5
        step = int(file["answers/counts"][2, 2])
    assert main(["replay", str(changed), "--policy", str(policy)]) == 1
    said = capsys.readouterr().out
    count = ANSWERS[recorded.name]
    assert f"{count - 1} of {count} answers bit-equal; the first difference: 000001.h5, step {step}" in said
    assert (tmp_path / "changed.replay.html").exists()


def test_reactions_to_doubt_are_replayed(tmp_path: Path) -> None:
    known = knowing(untrained("agent=gtp_bc", action_low=(-3.0, -2.0)), OnDoubt(after=2, actions=("delta",)), 1e-6)
    known.save_pretrained(tmp_path / "policy")
    policy = artifact.load_policy(tmp_path / "policy")
    policy.react(replace(policy.on_doubt, reaction="hold"))
    how = Served(artifact.identity(tmp_path / "policy"), ACTION, "eager", "cpu", 1, torch.__version__, "hold")
    recorder, session = Recorder(tmp_path / "held", policy.schema, how, 10_000_000), policy.session(3)
    for seen in observations(policy.schema, 5):
        recorder.add(1, seen, answer(session, seen, ACTION), 0.0, 0.0)
    recorder.close()
    found, _ = replay(tmp_path / "held", tmp_path / "policy", progress=False)
    assert (found["equal"], found["answers"]) == (5, 5)
    assert session.doubt is not None
    assert session.doubt.reaction == "hold"


def test_another_artifact_or_k_is_compared(recorded: Path, policy: Path, tmp_path: Path) -> None:
    same, _ = replay(recorded, policy, steps=1, progress=False)
    assert not same["is_same"]
    assert same["equal"] < same["answers"]
    other = untrained("agent=gtp_bc", "agent.policy.hidden=[8]")  # plans of one action, without limits
    path = write(tmp_path / "other", other, *dict(other.agent.named_children()))
    assert main(["replay", str(recorded), "--policy", str(path), "--page", str(tmp_path / "page.html")]) == 0
    found, pictures = replay(recorded, path, progress=False)
    assert found["answers"] == ANSWERS[recorded.name]
    assert (np.diff(found["differences"], axis=1) >= 0).all(), "quantiles of each action"
    worst = found["moments"][0]
    assert np.abs(np.subtract(worst["recorded"], worst["replayed"])).max() <= max(worst["difference"]) + 1e-6
    assert [len(each) for each in pictures] == [1] * len(found["moments"])
    page = Page(tmp_path / "page.html")
    assert f"speed {found['clamps']['recorded']['speed']} 0" in page.text
    assert f"{worst['file']}, step {worst['step']}" in page.text
    assert [image["src"] for image in page.all("img")] == [picture for each in pictures for picture in each]


def test_what_cannot_be_replayed(recorded: Path, policy: Path, tmp_path: Path) -> None:
    wrist = untrained("agent=gtp_bc", cameras={"wrist": (16, 12, 3)})
    other = write(tmp_path / "other", wrist, *dict(wrist.agent.named_children()))
    with pytest.raises(GtpVisionError, match="holds arm, front and not 'wrist', which the policy needs"):
        replay(recorded, other, progress=False)
    with pytest.raises(GtpVisionError, match="holds no recordings"):
        replay(tmp_path, policy, progress=False)
    part = next(path for path in sorted(recorded.glob("*.h5")) if h5py.File(path)["answers/counts"][0, 2] > 0)
    with pytest.raises(GtpVisionError, match="the first part of each episode is missing"):
        replay(part, policy, progress=False)
