from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_policies import observations, untrained
from small_runs import PIXELS, small_run
from two_tasks import LEFT, RIGHT, two_tasks, write_text_encoder, write_two_tasks

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.instructions import Instructions, table_of
from gtp_vision.serving import graphs
from gtp_vision.serving.answer import ACTION, Answered
from gtp_vision.serving.artifact import load_policy
from gtp_vision.serving.export import export
from gtp_vision.serving.lerobot import LeRobotPolicy
from gtp_vision.serving.players import Local
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.protocol import Reader, packed
from gtp_vision.serving.recorder import Recorder
from gtp_vision.serving.recording import Served
from gtp_vision.serving.rehearse import rehearse
from gtp_vision.serving.schema import Schema
from gtp_vision.serving.warm_start import open_source
from gtp_vision.training import trainer
from gtp_vision.training.build import build

KNOWN = Instructions.made([LEFT, RIGHT])


def instructed() -> Policy:
    """An untrained policy that knows two instructions."""
    return untrained(states={"arm": 5, "instruction": 2}, instructions=KNOWN.record())


def of_robot(policy: Policy) -> dict[str, np.ndarray]:
    """What a robot sends besides the instruction."""
    seen = observations(policy.schema, 1)[0]
    return {name: array for name, array in seen.items() if name != "instruction"}


def test_an_instruction_is_a_text_an_observation_or_its_vector() -> None:
    policy = instructed()
    seen = of_robot(policy)
    ways = [
        policy.session().act(seen, LEFT),
        policy.session().act({**seen, "instruction": LEFT}),
        policy.session().act({**seen, "instruction": np.float32([1, 0])}),
        policy.session().plan(seen, LEFT)[0],
    ]
    for way in ways:
        np.testing.assert_array_equal(way, ways[0])
    assert not np.array_equal(policy.session().act(seen, RIGHT), ways[0])


def test_none_an_unknown_one_and_one_too_many_are_refused_in_a_sentence() -> None:
    policy = instructed()
    seen = of_robot(policy)
    with pytest.raises(GtpVisionError, match=r"lacks 'instruction'.*give one of 'go to the left', 'go to the right'$"):
        policy.act(seen)
    with pytest.raises(GtpVisionError, match=r"'go to the lfet' is not an instruction.*did you mean 'go to the left'"):
        policy.act(seen, "go to the lfet")
    with pytest.raises(GtpVisionError, match=r"'instruction' is an instruction, and this policy.*leave it out$"):
        untrained().act(seen, LEFT)


def test_messages_hold_an_instruction_or_openpis_prompt() -> None:
    reader = Reader({}, {"arm": 2, "instruction": 2}, instructions=KNOWN)
    arm = np.zeros(2, np.float32)
    for name in ("instruction", "prompt"):
        request = reader.read(packed({"arm": arm, name: RIGHT}))
        assert request.observation is not None
        assert request.observation["instruction"].tolist() == [0, 1]
    with pytest.raises(GtpVisionError, match="lacks 'instruction'"):
        reader.read(packed({"arm": arm}))
    for wrong in ("go up", "x" * 10_000, 3, [1], {"a": 1}, b"\xff\xfe"):
        with pytest.raises(GtpVisionError):
            reader.read(packed({"arm": arm, "prompt": wrong}))
    with pytest.raises(GtpVisionError, match=r"'prompt' is an instruction.*without any.*--ignore prompt"):
        Reader({}, {"arm": 2}).read(packed({"arm": arm, "prompt": RIGHT}))
    ignoring = Reader({}, {"arm": 2}, ignored=["prompt"])
    assert ignoring.read(packed({"arm": arm, "prompt": RIGHT})).observation is not None


def test_a_lerobot_batch_holds_its_task() -> None:
    policy = instructed()
    seen = of_robot(policy)
    batch = {
        "observation.images.front": torch.from_numpy(seen["front"]).movedim(-1, 0)[None],
        "observation.state": torch.from_numpy(seen["arm"])[None],
    }
    for task in (LEFT, [LEFT]):
        action = LeRobotPolicy(policy).select_action(batch | {"task": task})
        np.testing.assert_array_equal(action[0].numpy(), policy.session().act(seen, LEFT))


def test_a_recording_names_the_task_and_another_one_begins_an_episode(tmp_path: Path) -> None:
    policy = instructed()
    served = Served("0" * 64, ACTION, "eager", "cpu", 1, "2")
    recorder = Recorder(tmp_path / "recorded", policy.schema, served, 1 << 30)
    session = policy.session()
    for step, text in enumerate([LEFT, LEFT, LEFT, RIGHT, RIGHT, RIGHT]):
        seen = policy.schema.check({**of_robot(policy), "instruction": text})
        answered = Answered(session.act(seen)[None], 0, 0, step, 2)
        recorder.add(0, seen, answered, float(step), float(step))
    recorder.close()
    joined = open_store(tmp_path / "recorded")
    assert (joined.attributes["tasks"], joined.attributes["episode_tasks"]) == ([LEFT, RIGHT], [0, 1])
    stores = [open_store(path) for path in sorted((tmp_path / "recorded").glob("*.h5"))]
    assert [store.attributes["tasks"] for store in stores] == [[LEFT], [RIGHT]]
    assert [np.asarray(store.observations["instruction"])[0].tolist() for store in stores] == [[1, 0], [0, 1]]


@pytest.mark.trains
def test_an_artifact_holds_its_sentences_and_new_ones_are_added_by_the_encoder(tmp_path: Path) -> None:
    source = write_text_encoder(tmp_path / "encoder")
    data = write_two_tasks(tmp_path / "two.h5")
    text = ("task.instructions=text", f"task.text_encoder={source}", "training.steps=3", "training.checkpoint_every=3")
    trainer.train(small_run(data, tmp_path / "run", *PIXELS, *text, agent="gtp_bc"), progress=False)
    export(tmp_path / "run", tmp_path / "plain", on_doubt=None)
    new = "go to the left with the blue cup"
    export(tmp_path / "run", tmp_path / "more", on_doubt=None, instructions=[new])
    for path in (*source.iterdir(),):
        path.unlink()  # acting needs no text encoder
    plain, more = load_policy(tmp_path / "plain"), load_policy(tmp_path / "more")
    assert more.schema.table is not None
    assert more.schema.table.texts == (LEFT, RIGHT, new)
    seen = {"front": np.full((12, 12, 3), 90, np.uint8)}
    np.testing.assert_array_equal(plain.act(seen, LEFT), more.act(seen, LEFT))
    with pytest.raises(GtpVisionError, match=r"blue cup' is not .*--instruction TEXT .*encoder"):
        plain.act(seen, new)
    assert np.isfinite(more.act(seen, new)).all()
    sampler = graphs.sampler_of(more)
    other = sampler.inputs | {"instruction": sampler.inputs["instruction"] + 1}
    assert not torch.equal(sampler(*sampler.inputs.values()), sampler(*other.values()))
    found = rehearse(plain, open_store(data), Local(plain), episodes=2)
    assert not [finding for finding in found.findings if finding.subject in ("observations", "instruction")]
    native.write(
        tmp_path / "new.h5", replace(two_tasks(), attributes={"tasks": [LEFT, "go up"], "episode_tasks": [0, 1] * 10})
    )
    with pytest.raises(GtpVisionError, match="'go up' is not an instruction"):
        rehearse(plain, open_store(tmp_path / "new.h5"), Local(plain), episodes=2)
    begun = open_source(str(tmp_path / "more"))
    config = begun.new_run([f"task.dataset={data}", f"run_dir={tmp_path / 'next'}"])
    kept = table_of(build(config, source=begun).record.attributes)
    assert kept is not None
    assert kept.texts == (LEFT, RIGHT, new)


def test_a_damaged_table_is_refused() -> None:
    record = instructed().schema.record()
    for wrong in (
        {"texts": [], "encoder": None, "vectors": None},
        {"texts": [LEFT], "encoder": None, "vectors": None},
        {"texts": [LEFT, 3], "encoder": None, "vectors": None},
        {"texts": [LEFT, RIGHT], "encoder": "x", "vectors": "no base64"},
        {"texts": [LEFT, RIGHT], "encoder": "x", "vectors": "AHwAfAB8AHw="},
        {"texts": [f"{number}" for number in range(2000)], "encoder": None},
        [1],
    ):
        with pytest.raises(GtpVisionError, match="instructions"):
            Schema.of(record | {"instructions": wrong})
    assert Schema.of(record).table is not None
