import json
from dataclasses import replace

import numpy as np
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import ALL, Framing
from gtp_vision.serving.schema import Schema

FRAMING = Framing({ALL: (6, 8)}, (20, 24), recorded={"front": (30, 40, 3)})
SCHEMA = Schema(
    cameras={"front": (6, 8, 3), "goal/front": (6, 8, 3)},
    states={},
    frame_stack=1,
    action_low=(-1.0,),
    action_high=(1.0,),
    chunk=1,
    steps=1,
    candidates=1,
    agent="gtp",
    task="pick",
    frames=FRAMING.record(),
)


def test_frames_of_the_recorded_size_are_made_as_the_data_were() -> None:
    schema = Schema.of(json.loads(json.dumps(SCHEMA.record())))
    assert schema == replace(SCHEMA)
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    seen = schema.check({"front": frames[0], "goal/front": frames[1]})
    np.testing.assert_array_equal(np.stack(list(seen.values())), FRAMING("front", frames))
    np.testing.assert_array_equal(schema.check(seen)["front"], seen["front"])
    with pytest.raises(GtpVisionError, match=r"shape \(30, 41, 3\); the policy was trained on \(6, 8, 3\)"):
        schema.check({"front": np.zeros((30, 41, 3), np.uint8), "goal/front": frames[1]})


def test_artifacts_without_a_framing_are_read() -> None:
    stored = SCHEMA.record()
    del stored["frames"]
    assert Schema.of(stored).frames is None
    with pytest.raises(GtpVisionError, match="'frames' is invalid"):
        Schema.of(SCHEMA.record() | {"frames": {"sizes": 1}})
