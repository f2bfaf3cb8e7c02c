from pathlib import Path

import numpy as np
import pytest
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.split import MOST, divided, drawn, recorded_part
from gtp_vision.datasets.store import Store


def numbers(store: Store) -> list[int]:
    return list(range(store.episodes)) if store.numbers is None else store.numbers.tolist()


def marked(count: int, **attributes: object) -> Store:
    return make_store([4] * count, attributes=attributes)


def test_episodes_are_divided_whole_and_by_share_and_seed_alone() -> None:
    store = make_store([3, 4, 5, 6, 7] * 4)
    split = divided([store], group=None, share=0.25, seed=3)
    (training,), (held_out,) = split.training, split.held_out
    assert sorted(numbers(training) + numbers(held_out)) == list(range(20))
    assert split.origin == [{"path": "", "episodes": numbers(held_out), "how": "drawn"}]
    assert split.sentence == "5 episodes are held out to validate on (drawn), 15 train"
    for part in (training, held_out):
        for number, start, stop in zip(numbers(part), part.episode_starts, part.episode_ends, strict=True):
            first = store.episode_starts[number]
            np.testing.assert_array_equal(part.actions[start:stop], store.actions[first : store.episode_ends[number]])
    assert numbers(divided([store], group=None, share=0.25, seed=3).held_out[0]) == numbers(held_out)
    assert numbers(divided([store], group=None, share=0.25, seed=4).held_out[0]) != numbers(held_out)


@pytest.mark.parametrize(
    ("episodes", "share", "held_out"), [(5, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (9, 0.9, 8), (800, 0.1, MOST)]
)
def test_the_share_is_rounded_down_to_at_least_one_and_at_most_fifty(
    episodes: int, share: float, held_out: int
) -> None:
    assert len(drawn(marked(episodes), share, 0)) == held_out


@pytest.mark.parametrize(("episodes", "share"), [([0], 0.1), ([0, 1, 2, 3], 0.5), ([0] * 9 + [1, 2, 3, 4], 0.1)])
def test_few_different_episodes_all_train(episodes: list[int], share: float) -> None:
    split = divided([marked(5).subset(episodes)], group=None, share=share, seed=0)
    assert (split.training[0].episodes, split.held_out, split.origin) == (len(episodes), [], [])
    different = sum(episodes.count(episode) == 1 for episode in episodes)
    assert split.sentence == (
        f"no episode is held out to validate on: {different} different episodes, too few to hold one out"
    )


def test_nothing_is_held_out_where_nothing_is_wanted() -> None:
    store = marked(50)
    split = divided([store], group=None, share=0.0, seed=0)
    assert (split.training, split.held_out, split.sentence) == ([store], [], "")


@pytest.mark.parametrize("key", ["episode_tasks", "episode_success", "rewards"])
def test_each_kind_of_episode_has_its_share(key: str) -> None:
    kinds = np.arange(60) % 3 == 0
    if key == "rewards":
        rewards = np.zeros(240, np.float32)
        rewards[2::4] = kinds  # of the last row with an outcome
        store = make_store([4] * 60, rewards=rewards)
    else:
        store = marked(60, **{key: kinds.tolist()})
    assert kinds[drawn(store, 0.2, 1)].sum() == 4


def test_episodes_without_a_transition_are_not_drawn() -> None:
    store = make_store([1, 1, 1, 1, 4, 4, 4, 1, 1, 1])
    assert set(drawn(store, 0.9, 0)) < {4, 5, 6}


@pytest.mark.parametrize(
    ("group", "training", "held_out"),
    [
        (None, [0, 2, 3, 5], [1, 4]),
        ("train", [0, 2, 3], [1, 4]),
        ("half_train", [0, 2], [4]),
        ("valid", [1, 4], []),
    ],
)
def test_the_recorders_own_group_is_held_out(group: str | None, training: list[int], held_out: list[int]) -> None:
    filters = {"train": [0, 2, 3], "valid": [1, 4], "half_train": [0, 2], "half_valid": [4], "val": []}
    split = divided([marked(6, filters=filters)], group=group, share=0.1, seed=0)
    assert [numbers(store) for store in (*split.training, *split.held_out)] == [
        part for part in (training, held_out) if part
    ]


def test_ogbenchs_validation_file_is_held_out_and_all_of_the_other_trains(tmp_path: Path) -> None:
    steps = {"actions": np.zeros((8, 2), np.float32), "terminals": np.eye(1, 8, 7, dtype=np.float32)[0]}
    for name, shift in (("play-v0", 0.0), ("play-v0-val", 1.0)):
        np.savez(tmp_path / f"{name}.npz", observations=np.full((8, 3), shift, np.float32), **steps)
    path = tmp_path / "play-v0.npz"
    other = recorded_part(path, open_store)
    assert other is not None
    assert float(other.observations["state"][0, 0]) == 1
    split = divided([open_store(path)], group=None, share=0.1, seed=0, others=[other])
    assert (split.training[0].episodes, split.held_out) == (1, [other])
    assert split.origin[0]["how"] == "its validation file"
    assert recorded_part(tmp_path / "play-v0-val.npz", open_store) is None


def test_a_copy_of_a_held_out_episode_does_not_train(tmp_path: Path) -> None:
    store = marked(10)
    path = native.write(tmp_path / "a.h5", store)
    again = open_store(path).subset([7, 3, 1, 9, 5, 0])
    split = divided([open_store(path), again], group=None, share=0.1, seed=0)
    hidden = {number for part in split.held_out for number in numbers(part)}
    assert len(hidden) in (1, 2)
    for part in split.training:
        assert not hidden & set(numbers(part))
    assert "left out of training" in split.sentence
    with pytest.raises(GtpVisionError, match=r"all episodes are copies of held-out ones.*task\.validation=0"):
        divided([store], group=None, share=0.1, seed=0, others=[store])
