from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store

from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store


@st.composite
def recordings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `make_store`: episodes of 1 to 7 frames, terminals and timeouts anywhere they may stand."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda all_: max(all_) > 1))
    frames = sum(lengths)
    last = [int(end) - 1 for end in np.cumsum(lengths)]
    return {
        "lengths": lengths,
        "terminals": draw(st.sets(st.integers(0, frames - 1), max_size=4)),
        "timeouts": draw(st.sets(st.sampled_from(last))),
        "seed": draw(st.integers(0, 9)),
    }


def episode(store: Store, row: int) -> tuple[int, int]:
    """First row and exclusive end of the row's episode, by looking at every episode."""
    start = 0
    for end in store.episode_ends.tolist():
        if row < end:
            return start, end
        start = end
    raise AssertionError(row)


def has_outcome(store: Store, row: int) -> bool:
    """Whether it is known what the row's action led to."""
    if row + 1 < episode(store, row)[1]:
        return True
    return bool(store.terminals[row]) and not store.timeouts[row]


def slow_return(
    store: Store, row: int, n_step: int, gamma: float, scale: float, shift: float
) -> tuple[float, float, int]:
    """The n-step return, the factor of the value after it and that value's row, one frame after the other."""
    total, factor = 0.0, 1.0
    for _ in range(n_step):
        total += factor * (float(store.rewards[row]) + shift) * scale
        if store.terminals[row]:
            return total, 0.0, row
        factor *= gamma
        row += 1
        if not has_outcome(store, row):
            break
    return total, factor, row


def sampled_rows(stack: torch.Tensor) -> np.ndarray:
    """The rows of a stacked `state`, whose first number is the row."""
    return stack[..., 0].numpy().astype(int)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    recordings(),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    st.sampled_from([(1.0, 0.0), (4.0, -0.5)]),
)
def test_a_batch_equals_a_walk_along_the_episode(
    recording: dict[str, Any], frame_stack: int, n_step: int, gamma: float, scale_shift: tuple[float, float]
) -> None:
    store, (scale, shift) = make_store(**recording), scale_shift
    rows = store.transitions
    assert rows.tolist() == [row for row in range(len(store)) if has_outcome(store, row)]
    settings = {"discount": gamma, "reward_scale": scale, "reward_shift": shift}
    sampler = Sampler(store, 4, 0, frame_stack=frame_stack, n_step=n_step, **settings)
    batch = sampler.gather(rows)
    totals, factors, ends = zip(*[slow_return(store, row, n_step, gamma, scale, shift) for row in rows], strict=True)
    np.testing.assert_allclose(batch.reward, totals, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch.discount, factors, rtol=1e-5, atol=1e-7)

    now, later = (sampled_rows(seen["state"]) for seen in (batch.observation, batch.next_observation))
    back = np.arange(frame_stack)[::-1]
    for row, end, stack, next_stack in zip(rows, ends, now, later, strict=True):
        first, stop = episode(store, row)
        np.testing.assert_array_equal(stack, np.maximum(first, row - back))
        assert first <= next_stack.min() <= next_stack.max() < stop
        if not store.terminals[row:end].any() and end != row:  # after a terminal the next observation is not used
            np.testing.assert_array_equal(next_stack, np.maximum(first, end - back))

    gathered = sampler.frames(np.repeat(rows, 2)).frames["state"][:, 0].int().tolist()
    assert sorted(gathered) == np.union1d(now, later).tolist(), "each distinct frame once"


def test_all_observations_of_a_batch_come_from_its_rows() -> None:
    store = make_store((4, 5), cameras={"front": (6, 5, 3), "wrist": (4, 4, 1)})
    sampler = Sampler(store, 8, 3, frame_stack=2)
    batch, rows = sampler.batch(0), sampler.rows(0)
    before = np.where(np.isin(rows, store.episode_starts), rows, rows - 1)
    for name in ("front", "wrist"):
        expected = store.observations[name][np.stack([before, rows], 1)].transpose(0, 1, 4, 2, 3)
        assert batch.observation[name].dtype == torch.uint8
        np.testing.assert_array_equal(batch.observation[name], expected)
    np.testing.assert_array_equal(batch.action, store.actions[rows])
    assert len(batch) == 8


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_states_reach_the_network_as_float32_whatever_float_the_file_holds(dtype: Any) -> None:
    states = make_store().observations["state"]
    sampler = Sampler(make_store(observations={"state": states.astype(dtype)}), 4, 0)
    batch = sampler.batch(0)
    assert batch.observation["state"].dtype == torch.float32
    np.testing.assert_allclose(batch.observation["state"][:, 0], states[sampler.rows(0)], rtol=1e-3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**9),
    world_size=st.sampled_from([1, 2, 3, 4, 6, 12, 24]),
    is_weighted=st.booleans(),
)
def test_ranks_share_one_batch(seed: int, step: int, world_size: int, is_weighted: bool) -> None:
    store = make_store((40, 60))
    store.weights = np.linspace(0, 1, 100) if is_weighted else None
    sampler = Sampler(store, 24, seed)
    parts = [sampler.rows(step, rank, world_size) for rank in range(world_size)]
    assert [len(part) for part in parts] == [24 // world_size] * world_size
    np.testing.assert_array_equal(np.concatenate(parts), Sampler(store, 24, seed).rows(step))
    others = (Sampler(store, 24, seed).rows(step + 1), Sampler(store, 24, seed + 1).rows(step))
    assert not any(np.array_equal(sampler.rows(step), other) for other in others)


def test_a_batch_that_cannot_be_divided_is_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match=r"batch of 10 .* 4 processes.*multiple of 4"):
        Sampler(make_store(), 10, 0).rows(0, 1, 4)


def test_a_chunk_is_the_actions_that_follow_and_is_padded_at_the_episodes_end() -> None:
    store = make_store((5, 4), terminals={8})  # the first episode's last row has no outcome, the second ends in one
    batch = Sampler(store, 1, 0, action_chunk=3).gather(np.array([0, 2, 3, 5, 7, 8]))
    rows = [[0, 1, 2], [2, 3, 3], [3, 3, 3], [5, 6, 7], [7, 8, 8], [8, 8, 8]]
    real = [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(batch.actions, store.actions[rows])
    np.testing.assert_array_equal(batch.action_mask, np.array(real, bool))
    np.testing.assert_array_equal(batch.action, store.actions[[0, 2, 3, 5, 7, 8]])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_goals_are_drawn_for_the_batch_and_shown_as_a_repeated_frame(world_size: int) -> None:
    store = make_store((9, 11), cameras={"front": (4, 4, 3)})
    sampler = Sampler(store, 16, 0, frame_stack=2, goals=HindsightGoals())
    wanted = sampler.goal_rows(3)
    assert wanted is not None
    parts = [sampler.batch(3, rank, world_size) for rank in range(world_size)]
    for shown in ([b.observation for b in parts], [b.next_observation for b in parts]):
        assert list(shown[0]) == ["front", "state", "goal/front", "goal/state"]
        states = np.concatenate([seen["goal/state"] for seen in shown])
        np.testing.assert_array_equal(states, store.observations["state"][wanted][:, None].repeat(2, 1))
        frames = np.concatenate([seen["goal/front"] for seen in shown])
        np.testing.assert_array_equal(frames[:, 0].transpose(0, 2, 3, 1), store.observations["front"][wanted])
        np.testing.assert_array_equal(frames[:, 1], frames[:, 0])


def test_rewards_are_those_of_goals_and_the_files_are_left_aside() -> None:
    store = make_store((5, 4), terminals={3, 8})
    rows, goals = np.array([1, 1, 3, 3, 8]), np.array([1, 4, 3, 2, 6])
    batch = Sampler(store, 1, 0, goals=HindsightGoals(), discount=0.9).gather(rows, goals)
    np.testing.assert_array_equal(batch.reward, [0, -1, 0, -1, -1])
    np.testing.assert_allclose(batch.discount, [0, 0.9, 0, 0.9, 0.9], rtol=1e-6)
    now, following = (seen["state"][:, 0, 0] for seen in (batch.observation, batch.next_observation))
    np.testing.assert_array_equal(now, rows)
    np.testing.assert_array_equal(following, [2, 2, 3, 3, 8], "what ended elsewhere stays there, and costs on")
    made = Sampler(store, 1, 0, goals=HindsightGoals(), reward_shift=1, reward_scale=10).gather(rows, goals)
    np.testing.assert_array_equal(made.reward, [10, 0, 10, 0, 0])


@pytest.mark.parametrize("weights", [None, [1.0, 0, 2, 50, 0, 0, 5, 50]])
def test_rows_are_drawn_by_their_weights(weights: list[float] | None) -> None:
    store = make_store((4, 4))
    store.weights = None if weights is None else np.array(weights)
    drawn = np.bincount(np.concatenate([Sampler(store, 1000, 0).rows(step) for step in range(8)]), minlength=8)
    shares = np.array(weights or [1.0] * 8) * (np.arange(8) % 4 < 3)  # the last rows have no outcome
    assert drawn / 8000 == pytest.approx(shares / shares.sum(), abs=0.02)
