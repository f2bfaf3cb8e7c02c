import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.envs.d4rl import NAMES
from gtp_vision.envs.scores import REFERENCE, has_reference, normalised


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hopper-medium-replay-v2", -20.272305, 3234.3),
        ("halfcheetah-medium-v0", -280.178953, 12135.0),
        ("ant-expert-v2", -325.6, 3879.7),
        ("antmaze-large-diverse-v2", 0.0, 1.0),
        ("pen-human-v1", 96.262799, 3076.8331017826877),
        ("maze2d-umaze-v1", 23.85, 161.86),
        ("maze2d-large-dense-v1", 30.569041, 303.4857382709002),
    ],
)
def test_random_scores_0_and_the_expert_100(name: str, low: float, high: float) -> None:
    assert normalised(name, low) == 0
    assert normalised(name, high) == pytest.approx(100)
    assert normalised(name, (low + high) / 2) == pytest.approx(50)


def test_a_published_return_has_its_published_score() -> None:
    """Hopper's return of 1607.0138475 is half way, worked out by hand; an expert may be beaten."""
    assert normalised("hopper-medium-v2", 1607.0138475) == pytest.approx(50)
    assert normalised("kitchen-complete-v0", 3) == 75
    assert normalised("hopper-medium-v2", 4000) > 100


def test_the_version_and_the_kind_of_data_change_no_score() -> None:
    scores = {normalised(f"hopper-{kind}{version}", 1000) for kind in ("medium", "expert") for version in ("", "-v0")}
    assert len(scores) == 1


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
