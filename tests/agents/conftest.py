"""What the agents' tests share."""

import pytest
from stores import make_store

from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler


@pytest.fixture
def batch() -> Batch:
    """Twelve transitions with cameras and states, some terminal, and each row's next action."""
    store = make_store((9, 11), cameras={"front": (12, 12, 3)}, terminals={4, 12})
    return Sampler(store, 12, 0, frame_stack=2, action_chunk=2).gather(store.transitions[:12])
