from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store
from torch.utils import _pytree as pytree

from gtp_vision.datasets.batch import Batch, Rows
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.goals import ACTOR_GOALS, HindsightGoals, RoleGoals
from gtp_vision.datasets.placement import place
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.sources import BatchSource, FramesSource, HostSource, ResidentSource, SeedsSource, batch_source
from gtp_vision.datasets.store import Store

CPU = torch.device("cpu")
KINDS = ("host", "frames", "resident")
LONG: dict[str, Any] = {"frame_stack": 3, "n_step": 4, "action_chunk": 3, "reward_scale": 3.0, "reward_shift": -0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "long": LONG,
    "short stack": LONG | {"frame_stack": 1},
    "short return": LONG | {"n_step": 1},
    "roles": {"frame_stack": 2, "goals": RoleGoals(HindsightGoals(), ACTOR_GOALS, ahead=3)},
    "goals": {"frame_stack": 2, "goals": HindsightGoals(), "reward_shift": 0.7, "reward_scale": 0.1},
}


def source(kind: str, store: Store, seed: int = 0, **settings: Any) -> BatchSource:
    if kind == "resident":
        return ResidentSource(Sampler(place(store, CPU, "device")[0], 24, seed, **settings), CPU)
    return {"host": HostSource, "frames": FramesSource}[kind](Sampler(store, 24, seed, **settings))


def assert_equal(batch: Batch, expected: Batch) -> None:
    (leaves, structure), (wanted, wanted_structure) = pytree.tree_flatten(batch), pytree.tree_flatten(expected)
    assert structure == wanted_structure
    for x, other in zip(leaves, wanted, strict=True):
        assert (x.dtype, x.shape) == (other.dtype, other.shape)
        assert torch.equal(x, other)


@pytest.fixture
def store() -> Store:
    return make_store((9, 1, 14, 6), terminals={4, 9, 23}, timeouts={8}, cameras={"front": (5, 4, 3)})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_makes_the_samplers_batch_bit_for_bit(store: Store, kind: str, settings: dict[str, Any]) -> None:
    store.weights = np.linspace(0, 1, len(store))
    made, sampler = source(kind, store, **settings), Sampler(store, 24, 0, **settings)
    for step, rank in ((0, 0), (7, 1)):
        expected = sampler.batch(step, rank, 2)
        assert len(expected) == 12
        assert_equal(made.batch(made.fetch(step, rank, 2)), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
def test_arithmetic_on_the_device_equals_the_hosts_for_every_recording(
    data: st.DataObject, frame_stack: int, n_step: int, action_chunk: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda all_: max(all_) > 1))
    ends = np.cumsum(lengths)
    recorded = make_store(
        lengths,
        terminals=data.draw(st.sets(st.integers(0, int(ends[-1]) - 1), max_size=4)),
        timeouts=data.draw(st.sets(st.sampled_from((ends - 1).tolist()))),
    )
    law = {"frame_stack": frame_stack, "n_step": n_step, "action_chunk": action_chunk, "discount": 0.9}
    rows = recorded.transitions
    expected = Sampler(recorded, 24, 0, **law).gather(rows)
    assert_equal(source("resident", recorded, **law).batch(Rows(torch.from_numpy(rows))), expected)


def test_fetched_frames_have_room_for_rows_that_share_none() -> None:
    for frame_stack, n_step in ((3, 2), (2, 3), (1, 1)):
        sampler = Sampler(make_store((4000,)), 8, 0, frame_stack=frame_stack, n_step=n_step)
        rows = np.arange(100, 4000, 500)
        full, padded = sampler.frames(rows), sampler.frames(rows, padded=True)
        assert len(full.frames["state"]) == len(padded.frames["state"]) == sampler.most_frames(8)


def test_resident_sources_ship_row_numbers_alone(store: Store) -> None:
    assert len(pytree.tree_leaves(source("resident", store).fetch(0))) == 1
    fetched = source("resident", store, goals=HindsightGoals()).fetch(0)
    assert fetched.goal_rows is not None
    assert len(pytree.tree_leaves(fetched)) == 2


def test_the_source_stacks_as_near_to_the_frames_as_the_device_allows(tmp_path: Path) -> None:
    mapped = native.read(native.write(tmp_path / "data.h5", make_store()))
    assert isinstance(batch_source(Sampler(mapped, 4, 0), CPU), HostSource)
    assert isinstance(batch_source(Sampler(mapped, 4, 0), torch.device("cuda")), FramesSource)
    placed = place(mapped, CPU, "device")[0]
    assert isinstance(batch_source(Sampler(placed, 4, 0), CPU), ResidentSource)


@pytest.mark.parametrize("settings", [LONG, SETTINGS["goals"], SETTINGS["roles"]], ids=["long", "goals", "roles"])
@pytest.mark.parametrize("kind", KINDS)
def test_seeds_side_by_side_get_the_batches_of_each_alone(store: Store, kind: str, settings: dict[str, Any]) -> None:
    alone = [source(kind, store, seed, **settings) for seed in (3, 5, 8)]
    together = SeedsSource(alone)
    mapped = torch.func.vmap(together.batch)(together.fetch(2))
    for index, one in enumerate(alone):
        assert_equal(pytree.tree_map(lambda x, i=index: x[i], mapped), one.batch(one.fetch(2)))


@pytest.mark.compiles
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_one_graph_of_fixed_shapes(store: Store, kind: str, several: bool) -> None:
    law = LONG | {"goals": HindsightGoals()}
    made: BatchSource = (
        SeedsSource([source(kind, store, s, **law) for s in (0, 1)]) if several else source(kind, store, **law)
    )
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def run(fetched: Any) -> list[torch.Tensor]:
        batch = made.batch(fetched)
        return [x.clone() for x in (*batch.observation.values(), *batch.next_observation.values(), batch.reward)]

    whole = torch.func.vmap(run) if several else run
    compiled = torch.compile(whole, fullgraph=True, dynamic=False, backend=backend)
    for step in range(3):
        fetched = made.fetch(step)
        for x, expected in zip(compiled(fetched), whole(fetched), strict=True):
            assert torch.equal(x, expected)
    assert len(graphs) == 1
