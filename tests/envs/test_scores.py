import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs.d4rl import NAMES
from gtp_vision.envs.scores import REFERENCE, has_reference, normalised


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hopper-medium-replay-v2", -20.272305, 3234.3),
        ("ant-expert", -325.6, 3879.7),
        ("antmaze-large-diverse-v2", 0.0, 1.0),
        ("pen-human-v1", 96.262799, 3076.8331017826877),
        ("maze2d-large-dense-v1", 30.569041, 303.4857382709002),
    ],
)
def test_random_scores_0_and_the_expert_100(name: str, low: float, high: float) -> None:
    assert [normalised(name, value) for value in (low, (low + high) / 2, high)] == pytest.approx([0, 50, 100])
    assert normalised(name, high + 1) > 100


def test_every_name_of_d4rl_has_reference_returns_and_every_reference_serves_a_name() -> None:
    assert all(has_reference(f"{body}-{version}") for body, versions in NAMES.items() for version in versions)
    assert all(any(body.startswith(key) for body in NAMES) for key in REFERENCE)
    assert all(low < high for low, high in REFERENCE.values())


@pytest.mark.parametrize(
    "name", ["Hopper-v4", "antmaze-medium-navigate-singletask-v0", "cube-single-play-v0", "hopper-medium-v3"]
)
def test_a_name_without_reference_returns_says_so(name: str) -> None:
    assert not has_reference(name)
    with pytest.raises(GtpVisionError, match=f"{name} has no reference returns; report the return itself"):
        normalised(name, 1.0)
