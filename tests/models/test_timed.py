import copy
import warnings

import pytest
import torch
from learning import A, F

from gtp_vision.core.random import RandomStream
from gtp_vision.models import GTPPolicy, PolicyConfig


@pytest.fixture
def actor() -> GTPPolicy:
    torch.manual_seed(0)
    return GTPPolicy(F, A, PolicyConfig(hidden=[16, 16], sigma_max=10))


@pytest.mark.parametrize("rows", [1, 5])
def test_a_time_for_all_rows_equals_a_time_for_each(actor: GTPPolicy, rows: int) -> None:
    observed, x = actor.observe(torch.randn(rows, F)), torch.randn(rows, A)
    for t, s in ((10.0, 0.25), (0.25, 0.0), (0.25, 0.25)):
        each = actor.evaluate(observed, x, torch.full((rows,), t), torch.full((rows,), s))
        for _ in range(2):  # made, then kept
            torch.testing.assert_close(actor.evaluate(observed, x, t, s), each)


def test_times_are_embedded_once_for_all_actions(actor: GTPPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = []
    plain = actor.embed.forward
    monkeypatch.setattr(actor.embed, "forward", lambda t: embedded.append(len(t)) or plain(t))
    for step in range(3):
        actor.sample(torch.zeros(7, F), 2, RandomStream(0, step))
    assert embedded == [1] * 4  # from sigma_max to sigma_last, from there to 0
    actor.denoise(actor.observe(torch.zeros(7, F)), torch.zeros(7, A), torch.ones(7))
    assert embedded[4:] == [7]  # t and s are the same


def test_cached_embeddings_are_not_saved_and_follow_the_parameters(actor: GTPPolicy) -> None:
    names, features = set(actor.state_dict()), torch.randn(4, F)
    with torch.inference_mode():
        before = actor.sample(features, 2, RandomStream(0, 0))
    assert set(actor.state_dict()) == names
    copied = copy.deepcopy(actor)
    with torch.no_grad():
        for one, other in zip(actor.parameters(), copied.parameters(), strict=True):
            one.mul_(0.5)
            other.mul_(0.5)
    fresh = GTPPolicy(F, A, actor.config)
    fresh.load_state_dict(actor.state_dict())
    after = fresh.sample(features, 2, RandomStream(0, 0))
    assert not torch.allclose(before, after)
    for kept in (actor, copied):
        assert torch.equal(kept.sample(features, 2, RandomStream(0, 0)), after)


def test_the_number_of_cached_embeddings_is_limited(actor: GTPPolicy) -> None:
    for rows in range(1, 80):
        actor.sample(torch.zeros(rows, F), 2, RandomStream(0, 0))
    rows_kept = [embedding.shape[0] for _, embedding in actor._kept.values()]
    assert rows_kept == [rows for rows in range(48, 80) for _ in range(2)], "the last 64, two for each number of rows"


@pytest.mark.compiles
def test_compiled_code_caches_nothing_and_gives_the_same_actions(actor: GTPPolicy) -> None:
    features, z = torch.randn(4, F), torch.randn(4, A)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        compiled = torch.compile(actor.sample_from, fullgraph=True, backend="aot_eager")(features, z, 3)
    assert not actor._kept
    torch.testing.assert_close(compiled, actor.sample_from(features, z, 3))
    assert actor._kept
