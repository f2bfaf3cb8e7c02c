import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_policies import knowing, observations, untrained

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.serving import artifact
from gtp_vision.serving.doubt import Doubter
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reference import MOST_ROWS, REFERENCE, Nearest, Reference, scale_of_features


@pytest.fixture(scope="module")
def policy() -> Policy:
    return knowing(untrained("agent=gtp_bc"))


@pytest.mark.parametrize("width", [8, 600])
def test_the_edge_holds_most_of_what_is_alike_and_nothing_of_what_is_not(width: int) -> None:
    noise = torch.Generator().manual_seed(0)
    mixture = torch.randn(10, width, generator=noise)  # features vary in fewer ways than they have numbers

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, 10, generator=noise) @ mixture

    known = rows(500)
    nearest = Nearest(known, scale_of_features(known))
    edge = float(nearest(rows(500)).quantile(0.95))
    assert edge == pytest.approx(float(nearest.own(np.arange(500)).quantile(0.95)), rel=0.2), "each beside the others"
    assert 0.9 < float((nearest(rows(500)) <= edge).float().mean()) < 0.99
    away = rows(100) + 20 * torch.randn(100, width, generator=noise)
    assert float((nearest(away) > edge).float().mean()) == 1


def test_a_recorded_row_is_compared_with_other_episodes() -> None:
    known = torch.tensor([[0.0], [0.1]] * 3 + [[5.0], [5.1]])
    own = Nearest(known, torch.ones(1)).own(np.repeat([0, 1, 2, 3], 2))
    torch.testing.assert_close(own, torch.tensor([5.0, 4.9] * 3 + [5.0, 5.1]))
    assert len(Nearest(known, torch.ones(1)).own(np.zeros(8))) == 0


def test_a_reference_is_read_as_it_was_written(policy: Policy, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    read = artifact.load_policy(folder)
    assert read.reference is not None
    assert policy.reference is not None
    assert (read.reference.thresholds, read.on_doubt) == (policy.reference.thresholds, policy.on_doubt)
    for seen in observations(policy.schema, 3, seed=9):
        np.testing.assert_array_equal(read.act(seen), policy.act(seen))
        assert read.doubt is not None
        assert policy.doubt is not None
        assert read.doubt.signals == pytest.approx(policy.doubt.signals, rel=2e-2), "half precision"


def damaged(change: Callable[[dict[str, torch.Tensor], dict[str, dict[str, float]]], None], folder: Path) -> None:
    tensors = load_file(folder / REFERENCE)
    numbers = {"still": {"front": 1.0}, "edges": {"front": 1.0, "arm": 1.0}, "thresholds": {}}
    change(tensors, numbers)
    save_file(tensors, folder / REFERENCE, {"numbers": json.dumps(numbers)})
    write_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, numbers: tensors.update(more=torch.zeros(3)), "not of the policy"),
        (lambda tensors, numbers: tensors.pop("states/arm"), "not of the policy"),
        (lambda tensors, numbers: tensors.update({"states/arm": torch.zeros(40, 6)}), "not of the policy"),
        (lambda tensors, numbers: tensors.update(actions=torch.zeros(MOST_ROWS + 1, 2)), "not of the policy"),
        (lambda tensors, numbers: tensors.update(actions=torch.zeros(40, 2).long()), "float16 and float32"),
        (lambda tensors, numbers: tensors["actions"].fill_(torch.nan), "not finite"),
        (lambda tensors, numbers: numbers["edges"].update(arm=0.0), "damaged"),
        (lambda tensors, numbers: numbers["edges"].pop("front"), "lacks numbers"),
        (lambda tensors, numbers: numbers.pop("still"), "damaged"),
    ],
)
def test_an_untrusted_reference_is_checked(policy: Policy, tmp_path: Path, change: object, message: str) -> None:
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    damaged(change, folder)  # type: ignore[arg-type]
    with pytest.raises(GtpVisionError, match=message):
        artifact.load_policy(folder)


def test_a_reference_that_is_missing_or_too_large_is_named(policy: Policy, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    path = folder / REFERENCE
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(GtpVisionError, match=f"{REFERENCE} is missing"):
        artifact.load_policy(folder)
    path.write_bytes(whole + bytes(9 << 20))
    write_manifest(folder)
    with pytest.raises(GtpVisionError, match="more than 8 MB"):
        artifact.load_policy(folder)


def still(policy: Policy, reference: Reference, frames: list[int], moved: list[bool]) -> list[float]:
    """The signal of a camera that shows numbered frames."""
    doubter = Doubter(policy.agent, reference, ("still",))
    seen = observations(policy.schema, 10)
    signals = [
        doubter.signals(seen[frame], {}, noise=None, has_moved=has_moved)  # type: ignore[arg-type]
        for frame, has_moved in zip(frames, moved, strict=True)
    ]
    return [each["still front"] for each in signals]


def test_a_camera_is_frozen_when_it_stands_still_for_longer_than_in_the_data(policy: Policy) -> None:
    assert policy.reference is not None
    moved = [True] * 8
    found = still(policy, policy.reference, [0, 1, 2, 2, 2, 3, 4, 4], moved)
    assert [value > 1 for value in found] == [False, False, False, True, True, False, False, True]
    often = replace(policy.reference, still={"front": 3.0})
    found = still(policy, often, [0, 0, 0, 1, 1, 1, 1, 2], moved)
    assert [value > 1 for value in found] == [False, False, False, False, False, False, True, False]
    at_rest = [True, *[False] * 7]
    assert max(still(policy, policy.reference, [0] * 8, at_rest)) == 0, "an arm that is held sees the same frame"
