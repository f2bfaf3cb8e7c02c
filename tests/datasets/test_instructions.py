from dataclasses import replace

import numpy as np
import pytest
import torch
from stores import make_store
from torch.utils import _pytree as pytree

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Lookup, Segmented, gather, view
from gtp_vision.datasets.goals import ACTOR_GOALS
from gtp_vision.datasets.instructions import MOST, Instructions, texts_of
from gtp_vision.datasets.placement import place
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.sources import FramesSource, HostSource, ResidentSource
from gtp_vision.datasets.store import Store, mix

KNOWN = Instructions.made(["close it", "open it", "reach"])
CPU = torch.device("cpu")


def shown(lengths: tuple[int, ...] = (6, 4, 7)) -> Store:
    """Episodes of three tasks, in another order than the table's."""
    return KNOWN.shown(make_store(lengths), ["reach", "close it", "open it"])


def test_a_lookup_is_indexed_as_the_array_that_it_stands_for() -> None:
    random = np.random.default_rng(0)
    looked_up = Lookup(random.normal(size=(3, 2)).astype(np.float32), random.integers(0, 3, 11).astype(np.int32))
    whole = np.asarray(looked_up)
    for rows in (3, -1, slice(2, 7), np.array([4, 4, 9]), np.array([[1, 8], [4, 0]]), np.arange(11) % 3 == 0):
        np.testing.assert_array_equal(looked_up[rows], whole[rows])
    np.testing.assert_array_equal(gather(looked_up, np.array([1, 1, 5])), whole[[1, 1, 5]])
    joined = Segmented([whole[:4], view(looked_up, 2, 9), Segmented([looked_up])])
    expected = np.concatenate([whole[:4], whole[2:9], whole])
    np.testing.assert_array_equal(gather(joined, np.arange(22)), expected)
    np.testing.assert_array_equal(np.asarray(view(joined, 3, 15)), expected[3:15])
    assert [type(segment) for segment in view(joined, 3, 15).segments] == [np.ndarray, Lookup, Lookup], "not copied"


@pytest.mark.parametrize("goals", [None, ACTOR_GOALS], ids=["alone", "goals"])
def test_all_forms_of_a_batch_have_the_instruction_of_the_row(goals: object) -> None:
    store = shown()
    sampler = Sampler(store, batch_size=12, seed=3, frame_stack=2, n_step=2, goals=goals)  # type: ignore[arg-type]
    placed = place(store, CPU, "device")[0]
    assert placed.observations["instruction"].tensor.shape == (3, 3), "the table, not its rows"  # type: ignore[union-attr]
    resident = ResidentSource(replace(sampler, store=placed), CPU)
    whole = sampler.batch(0)
    for source in (HostSource(sampler), FramesSource(sampler), resident):
        found = source.batch(source.fetch(0))
        pytree.tree_map(torch.testing.assert_close, found, whole)
    row = sampler.rows(0)
    expected = np.eye(3, dtype=np.float32)[np.array([2, 0, 1])[store.episode_of(row)]]
    np.testing.assert_array_equal(whole.observation["instruction"].numpy(), expected[:, None].repeat(2, 1))


def test_parts_of_a_store_keep_their_instructions() -> None:
    part = shown().subset([2, 0])
    np.testing.assert_array_equal(np.asarray(part.observations["instruction"]).argmax(1), [1] * 7 + [2] * 6)
    both = mix([shown(), part], [1, 1])
    assert len(both.observations["instruction"]) == 17 + 13


def test_a_table_is_the_same_after_it_was_kept_and_new_texts_follow() -> None:
    def encode(texts: object) -> np.ndarray:
        return np.array([[len(text), 1.0, -2.0] for text in texts])  # type: ignore[attr-defined]

    made = Instructions.made(["go", "stay here"], "words", encode)
    np.testing.assert_allclose(np.square(made.vectors).mean(1), 1, rtol=1e-2)
    for table in (made, KNOWN):
        again = Instructions.of(table.record())
        assert again is not None
        assert (again.texts, again.encoder) == (table.texts, table.encoder)
        np.testing.assert_array_equal(again.vectors, table.vectors)
    more = made.extended(["go", "turn"], encode)
    assert more.texts == ("go", "stay here", "turn")
    np.testing.assert_array_equal(more.vectors[:2], made.vectors)
    assert made.extended(["stay here"]) is made
    assert KNOWN.extended(["turn"]).vectors.shape == (4, 4)
    assert (made.text(made.vectors[1]), made.text(made.vectors[1] + 1)) == ("stay here", None)
    with pytest.raises(GtpVisionError, match="answers 2 features, and words"):
        made.extended(["turn"], lambda texts: np.ones((1, 2)))


def test_texts_that_are_missing_or_too_many_are_refused() -> None:
    with pytest.raises(GtpVisionError, match="does not name the task of each episode"):
        texts_of(make_store(attributes={"tasks": ["a"], "episode_tasks": [0, 1]}))
    with pytest.raises(GtpVisionError, match=f"{MOST + 1} different instructions, and at most {MOST}"):
        Instructions.made([str(number) for number in range(MOST + 1)])
    with pytest.raises(GtpVisionError, match=r"'reech' is not an instruction.*'reach'"):
        KNOWN.shown(make_store(), ["reach", "reech"])
