"""What is refused before a run is built."""

import pytest

from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.training.build import build


def test_networks_larger_than_the_memory_are_refused_before_they_are_made() -> None:
    config = from_command_line(["task=demo", "agent.policy.hidden=[1000000000000,1000000000000]"])
    with pytest.raises(GtpVisionError, match=r"the networks would take .* GB, and .* GB are free"):
        build(config)
