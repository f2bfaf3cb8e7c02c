from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtp_vision.core.random import EpisodeNoise, RandomStream, counter_rng

SHAPES = st.lists(st.integers(1, 4), max_size=2)
DRAWS: dict[str, Callable[..., torch.Tensor]] = {
    "normal": lambda stream, rows, shape: stream.normal(rows, *shape),
    "uniform": lambda stream, rows, shape: stream.uniform(rows, *shape),
    "integers": lambda stream, rows, shape: stream.integers(7, rows, *shape),
}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**9),
    world_size=st.integers(1, 5),
    rows=st.integers(1, 6),
    draws=st.lists(st.tuples(st.sampled_from(sorted(DRAWS)), SHAPES), min_size=1, max_size=4),
)
def test_processes_together_use_the_numbers_of_one(
    seed: int, step: int, world_size: int, rows: int, draws: list[tuple[str, list[int]]]
) -> None:
    alone = RandomStream(seed, step)
    streams = [RandomStream(seed, step, rank=rank, world_size=world_size) for rank in range(world_size)]
    for kind, shape in draws:
        parts = [DRAWS[kind](stream, rows, shape) for stream in streams]
        assert all(part.shape == (rows, *shape) for part in parts)
        assert torch.equal(torch.cat(parts), DRAWS[kind](alone, rows * world_size, shape))


def test_steps_seeds_and_draws_share_no_numbers_and_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    streams = [RandomStream(seed, step) for seed in range(3) for step in range(5)]
    drawn = torch.stack([stream.normal(32) for stream in streams * 2])
    assert len(drawn.unique()) == drawn.numel()
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_have_their_law_and_type() -> None:
    stream = RandomStream(1, 2)
    normal, uniform, integers = stream.normal(20_000), stream.uniform(20_000), stream.integers(5, 20_000)
    assert (normal.dtype, uniform.dtype, integers.dtype) == (torch.float32, torch.float32, torch.int64)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    assert 0 <= float(uniform.min()) < 0.01
    assert 0.99 < float(uniform.max()) < 1
    np.testing.assert_allclose(integers.bincount() / len(integers), [0.2] * 5, atol=0.02)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} "):
        RandomStream(0, 0, rank=rank, world_size=world_size)


def of_episodes(episodes: list[int], steps: list[int]) -> EpisodeNoise:
    return EpisodeNoise(0, episodes, steps, torch.device("cpu"))


def test_noise_is_a_function_of_episode_and_step() -> None:
    both, one = of_episodes([4, 9], [2, 7]), of_episodes([9], [7])
    for draw in ("normal", "uniform"):  # several draws of an episode stand side by side
        assert torch.equal(getattr(both, draw)(6, 5)[3:], getattr(one, draw)(3, 5))
    assert torch.equal(both.integers(10, 4)[2:], one.integers(10, 2))
    assert len(of_episodes([9], [7]).normal(3, 5).unique(dim=0)) == 3
    assert not torch.equal(of_episodes([9], [8]).normal(1, 5), of_episodes([9], [7]).normal(1, 5))
    with pytest.raises(ValueError, match="5 rows cannot be shared by 2 episodes"):
        both.normal(5, 2)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_counter_generators_are_functions_of_their_key(key: list[int]) -> None:
    first = counter_rng(*key).random(8)
    np.testing.assert_array_equal(first, counter_rng(*key).random(8))
    assert not np.array_equal(first, counter_rng(key[0] + 1, *key[1:]).random(8))


def test_some_of_the_episodes_go_on_from_where_all_were() -> None:
    both, one = of_episodes([4, 9, 2], [2, 7, 0]), of_episodes([9], [7])
    both.normal(3, 5)
    one.normal(1, 5)
    some = both.select([1])
    assert (some.episodes, some.steps) == ([9], [7])
    following = some.normal(2, 5)
    assert torch.equal(following, one.normal(2, 5))
    assert torch.equal(both.select([1]).uniform(1), one.uniform(1)), "they share their place in the stream"
