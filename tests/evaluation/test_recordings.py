"""What is asked about recordings, and the transitions as a policy meets them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.evaluation.recordings import OnRecordings, Question, observation_of, question_of


def test_marked_successes_are_asked_for_before_rewards() -> None:
    marked = make_store((4, 4), attributes={"episode_success": [True, False]})
    asked = question_of([marked, make_store((3,))], 0.9)
    assert asked is not None
    assert asked.measure == "success"
    assert asked.reward.tolist() == [0, 0, 1, 0, *[0] * 7]  # the fourth row has no outcome
    assert asked.terminal[2]
    assert "0.9^(T - 1)" in asked.meaning


def test_rewards_are_asked_for_where_no_success_is_known() -> None:
    asked = question_of([make_store((4, 4))], 0.9)
    assert asked is not None
    assert asked.measure == "return"


def test_nothing_is_asked_of_recordings_without_rewards() -> None:
    store = make_store((4, 4))
    assert question_of([replace(store, rewards=np.zeros(8, np.float32))], 0.9) is None


def test_a_discount_of_1_is_refused() -> None:
    with pytest.raises(GtpVisionError, match="below 1"):
        question_of([make_store((4, 4))], 1.0)


def test_transitions_lead_to_where_the_policy_plans_again() -> None:
    """Chunks of two actions: rows 0 to 2 of four; what the recording cut short is left out, but for a terminal."""
    store = make_store((4, 3), terminals={6})
    rewards = np.arange(7, dtype=np.float32)
    seen = OnRecordings(torch.zeros(7, 2), torch.zeros(7, 4, 2, 2), Sampler(store, 1, seed=0, n_step=2, action_chunk=2))
    asked = Question("return", 0.5, rewards, np.asarray(store.terminals, bool))
    found = seen.recorded(asked)
    assert found.rows.tolist() == [0, 1, 4, 5, 6]
    assert found.following[:3].tolist() == [2, 3, 6]
    assert found.reward.tolist() == [0 + 0.5, 1 + 1, 4 + 2.5, 5 + 3, 6]
    assert found.discount.tolist() == [0.25, 0.25, 0.25, 0, 0]
    assert found.episodes.tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(found.actions[0], store.actions[:2].flatten())
    assert found.policy.shape == (7, 4, 4)


def test_observations_are_those_of_batches_and_exist_for_last_rows() -> None:
    store = make_store((4, 3), cameras={"front": (6, 5, 3)})
    sampler = Sampler(store, 1, seed=0, frame_stack=2)
    batch = sampler.gather(np.array([0, 2, 5])).observation
    found = observation_of(sampler, np.array([0, 2, 5]))
    assert all(torch.equal(found[name], values) for name, values in batch.items())
    assert observation_of(sampler, np.array([6]))["front"].shape == (1, 2, 3, 6, 5)
