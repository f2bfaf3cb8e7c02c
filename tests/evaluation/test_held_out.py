import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import small_run
from stores import make_store

from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.evaluation.held_out import Draws, draws_of, rank_correlation, returns_to_go, steps_of, values_of
from gtp_vision.training.build import Components, build


def draws(drawn: torch.Tensor, recorded: torch.Tensor) -> Draws:
    return Draws(drawn, recorded, torch.ones(recorded.shape[:2], dtype=torch.bool))


def test_the_energy_score_has_its_closed_form_for_a_normal_distribution() -> None:
    """E|X| - E|X - X'| / 2 = sqrt(2 / pi) - 1 / sqrt(pi) of a standard normal X and a recorded 0."""
    drawn = torch.randn((2000, 64, 1, 1), generator=torch.Generator().manual_seed(0))
    found = draws(drawn, torch.zeros(2000, 1, 1)).energy().mean()
    assert found == pytest.approx(math.sqrt(2 / math.pi) - 1 / math.sqrt(math.pi), abs=3e-3)


def test_the_energy_score_prefers_both_modes_to_one_and_to_their_mean() -> None:
    """Recorded actions are -1 or 1 in all three dimensions."""
    random = torch.Generator().manual_seed(0)

    def mode(*shape: int) -> torch.Tensor:
        return (2.0 * torch.randint(2, (*shape, 1, 1), generator=random) - 1).expand(*shape, 1, 3)

    recorded = mode(4000)
    both = draws(mode(4000, 4), recorded)
    one = draws(torch.ones(4000, 4, 1, 3), recorded)
    between = draws(torch.zeros(4000, 4, 1, 3), recorded)
    assert both.energy().mean() == pytest.approx(0.5, abs=0.05)
    assert one.energy().mean() == pytest.approx(1, abs=0.05)
    assert between.energy().mean() == pytest.approx(1, abs=0.05)
    assert between.error().tolist() == [[1.0] * 3]


def test_actions_that_were_not_recorded_do_not_count() -> None:
    recorded, drawn = torch.zeros(2, 3, 2), torch.zeros(2, 4, 3, 2)
    drawn[:, :, 0, 1], drawn[:, :, 1] = 0.5, 9
    is_real = torch.tensor([[True, False, False], [True, False, False]])
    found = Draws(drawn, recorded, is_real)
    np.testing.assert_array_equal(found.error(), [[0, 0.5], [math.nan] * 2, [math.nan] * 2])
    np.testing.assert_allclose(found.energy(), [math.sqrt(0.125)] * 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store([12] * 4, terminals={11, 23}, cameras={"front": (12, 12, 3)})
    return native.write(tmp_path_factory.mktemp("data") / "data.h5", store)


def parts_of(path: Path, agent: str, *more: str) -> Components:
    return build(small_run(path, path.parent / "run", "task.observations=[state]", *more, agent=agent))


def test_draws_are_the_policys_own_and_a_function_of_their_arguments(path: Path) -> None:
    parts = parts_of(path, "gtp", "agent.action_chunk=3", "agent.acting.candidates=4")
    rows = parts.store.transitions[:40:3]
    assert steps_of(parts.agent) == (1, 2, 5)
    found = draws_of(parts.agent, parts.sampler, rows, (1, 2), "cpu")
    again = draws_of(parts.agent, parts.sampler, rows, (2,), "cpu")[2]
    assert found[2].drawn.shape == (len(rows), 4, 3, 2)
    torch.testing.assert_close(found[2].drawn, again.drawn, rtol=0, atol=0)
    assert not torch.equal(found[1].drawn, found[2].drawn)
    expected, is_real = parts.frames.chunks(rows)
    np.testing.assert_array_equal(found[1].recorded, parts.store.actions[expected])
    np.testing.assert_array_equal(found[1].is_real, is_real)


def test_a_policy_without_noise_draws_what_it_acts(path: Path) -> None:
    parts = parts_of(path, "td3_bc")
    rows = parts.store.transitions[:5]
    own = parts.agent.config.acting.steps
    assert steps_of(parts.agent) == (own,)
    found = draws_of(parts.agent, parts.sampler, rows, (own,), "cpu")[own]
    acted = parts.agent.plan(parts.sampler.gather(rows).observation, parts.stream(0))
    torch.testing.assert_close(found.drawn, acted[:, None].expand(-1, 4, -1, -1))


def test_relative_actions_are_compared_in_the_units_of_the_data(path: Path) -> None:
    parts = parts_of(path, "gtp_bc", "agent.representation.relative=['0:2=state[0:2]']")
    rows = parts.store.transitions[:5]
    found = draws_of(parts.agent, parts.sampler, rows, (2,), "cpu")[2]
    np.testing.assert_array_equal(found.recorded[:, 0], parts.store.actions[rows])
    assert found.drawn.shape == (5, 4, 1, 2)


def test_values_are_the_critics_of_recorded_actions(path: Path) -> None:
    parts = parts_of(path, "gtp")
    rows, agent = parts.store.transitions[:70], parts.agent
    batch = parts.sampler.gather(rows)
    expected = agent.critic(agent.actor_encoder(batch.observation), batch.action).mean(0)
    np.testing.assert_allclose(values_of(agent, parts.sampler, rows, "cpu"), expected.detach(), rtol=1e-5)


@pytest.mark.parametrize(("discount", "known"), [(0.5, [True] * 7 + [False] * 4), (1.0, [False] * 11)])
def test_returns_are_those_of_the_recording_as_far_as_it_goes(discount: float, known: list[bool]) -> None:
    """After the last row nothing is known; 0.5^4 is the first weight below a tenth."""
    store = make_store([12, 12], terminals={23})
    sampler = Sampler(store, 4, seed=0, discount=discount, reward_shift=1.0)
    found = returns_to_go(sampler, store.transitions)
    for row, value in zip(store.transitions, found, strict=True):
        end = 11 if row < 12 else 24
        rest = (np.asarray(store.rewards[row:end], np.float64) + 1) * discount ** np.arange(end - row)
        if row >= 12:
            assert value == pytest.approx(rest[:4].sum() if discount < 1 and len(rest) > 4 else rest.sum())
    assert np.isfinite(found[:11]).tolist() == known if discount == 1 else np.isfinite(found[:8]).all()


def test_rank_correlations() -> None:
    values = np.array([1.0, 2, 3, 9])
    assert rank_correlation(values, np.array([10.0, 20, 30, 40])) == pytest.approx(1)
    assert rank_correlation(values, np.array([4.0, 3, 2, math.nan])) == pytest.approx(-1)
    assert math.isnan(rank_correlation(values, np.array([1.0, 1, 1, 1])))
    assert math.isnan(rank_correlation(values[:2], values[:2]))
