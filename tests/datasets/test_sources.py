from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtp_vision.datasets.formats import native
from gtp_vision.datasets.goals import HindsightGoals
from gtp_vision.datasets.placement import place
from gtp_vision.datasets.sampler import Sampler, Transitions
from gtp_vision.datasets.sources import (
    BatchSource,
    CompactSource,
    HostSource,
    ResidentSource,
    StackedSource,
    batch_source,
)
from gtp_vision.datasets.store import Store

MakeStore = Callable[..., Store]
CPU = torch.device("cpu")
KINDS = ("host", "compact", "resident")
LONG: dict[str, Any] = {"frame_stack": 3, "n_step": 4, "action_chunk": 3, "reward_scale": 3.0, "reward_shift": -0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "long": LONG,
    "short stack": LONG | {"frame_stack": 1},
    "short return": LONG | {"n_step": 1},
    "goals": {"frame_stack": 2, "goals": HindsightGoals(), "reward_shift": 0.7, "reward_scale": 0.1},
}


def source(kind: str, store: Store, seed: int = 0, **settings: Any) -> BatchSource:
    """A source of 24 transitions a step."""
    if kind == "resident":
        store = place(store, CPU, "device")[0]
    sampler = Sampler(store, 24, seed, **settings)
    return (
        ResidentSource(sampler, CPU)
        if kind == "resident"
        else {"host": HostSource, "compact": CompactSource}[kind](sampler)
    )


def assert_equal(some: Transitions, others: Transitions) -> None:
    """All tensors are, to the bit."""
    assert list(some.tensors()) == list(others.tensors())
    for name, x in some.tensors().items():
        other = others.tensors()[name]
        assert (x.dtype, x.shape) == (other.dtype, other.shape), name
        assert torch.equal(x, other), name


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store((9, 1, 14, 6), terminals={4, 9, 23}, timeouts={8}, cameras={"front": (5, 4, 3)})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_transitions_are_those_of_the_samplers_batch_to_the_bit(
    store: Store, kind: str, settings: dict[str, Any]
) -> None:
    store.weights = np.linspace(0, 1, len(store))
    made, sampler = source(kind, store, **settings), Sampler(store, 24, 0, **settings)
    for step in (0, 7):
        for rank in range(2):
            expected = sampler.batch(step, rank, 2).stacked()
            assert len(expected) == 12
            assert_equal(made.transitions(made.inputs(step, rank, 2)), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
def test_arithmetic_on_the_device_is_that_of_the_host_for_every_recording(
    make_store: MakeStore, data: st.DataObject, frame_stack: int, n_step: int, action_chunk: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda all_: max(all_) > 1))
    ends = np.cumsum(lengths)
    recorded = make_store(
        lengths,
        terminals=data.draw(st.sets(st.integers(0, int(ends[-1]) - 1), max_size=4)),
        timeouts=data.draw(st.sets(st.sampled_from((ends - 1).tolist()))),
    )
    law = {"frame_stack": frame_stack, "n_step": n_step, "action_chunk": action_chunk, "discount": 0.9}
    made = source("resident", recorded, **law)
    rows = recorded.transitions
    expected = Sampler(recorded, 24, 0, **law).gather(rows).stacked()
    assert_equal(made.transitions({"rows": torch.from_numpy(rows)}), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_that_were_made_ahead_are_shown_as_they_are(make_store: MakeStore, kind: str) -> None:
    rng = np.random.default_rng(0)
    features = {name: rng.standard_normal((12, 6)).astype(np.float16) for name in ("front", "goal/front")}
    recorded = make_store(observations=features)
    law = {"goals": HindsightGoals(), "n_step": 3}
    made = source(kind, recorded, **law)
    expected = Sampler(recorded, 24, 0, **law).batch(3)
    seen = made.transitions(made.inputs(3))
    assert_equal(seen, expected.stacked())
    assert seen.now["goal/front"].dtype == torch.float32
    wanted = Sampler(recorded, 24, 0, **law).goal_rows(3)
    np.testing.assert_array_equal(seen.now["goal/front"][:, 0], features["goal/front"][wanted].astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_have_the_same_shapes_at_every_step(store: Store, kind: str) -> None:
    made = source(kind, store, **LONG)
    shapes = {tuple((name, x.shape, x.dtype) for name, x in made.inputs(step).items()) for step in range(6)}
    assert len(shapes) == 1


def test_what_is_shipped_has_room_for_rows_that_share_no_frame(make_store: MakeStore) -> None:
    for frame_stack, n_step in ((3, 2), (2, 3), (1, 1)):
        sampler = Sampler(make_store((4000,)), 8, 0, frame_stack=frame_stack, n_step=n_step)
        rows = np.arange(100, 4000, 500)
        full, padded = sampler.gather(rows), sampler.gather(rows, padded=True)
        assert len(full.frames["state"]) == len(padded.frames["state"]) == sampler.most_frames(8)


def test_resident_inputs_are_numbers_of_rows_alone(store: Store) -> None:
    assert list(source("resident", store).inputs(0)) == ["rows"]
    assert list(source("resident", store, goals=HindsightGoals()).inputs(0)) == ["rows", "goal_rows"]


def test_transitions_are_made_as_near_to_the_frames_as_can_be(make_store: MakeStore, tmp_path: Path) -> None:
    mapped = native.read(native.write(tmp_path / "data.h5", make_store()))
    assert isinstance(batch_source(Sampler(mapped, 4, 0), CPU), HostSource)
    assert isinstance(batch_source(Sampler(mapped, 4, 0), torch.device("cuda")), CompactSource)
    placed = place(mapped, CPU, "device")[0]
    assert isinstance(batch_source(Sampler(placed, 4, 0), CPU), ResidentSource)


@pytest.mark.parametrize("settings", [LONG, SETTINGS["goals"]], ids=["long", "goals"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_seeds_side_by_side_see_what_each_sees_alone(store: Store, kind: str, settings: dict[str, Any]) -> None:
    alone = [source(kind, store, seed, **settings) for seed in (3, 5, 8)]
    together = StackedSource(alone)
    mapped = torch.func.vmap(lambda inputs: together.transitions(inputs).tensors())(together.inputs(2))
    for index, one in enumerate(alone):
        own = Transitions.of({name: x[index] for name, x in mapped.items()})
        assert_equal(own, one.transitions(one.inputs(2)))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_transitions_are_one_graph_of_fixed_shapes(store: Store, kind: str, several: bool) -> None:
    law = LONG | {"goals": HindsightGoals()}
    made: BatchSource = (
        StackedSource([source(kind, store, s, **law) for s in (0, 1)]) if several else source(kind, store, **law)
    )
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: x.clone() for name, x in made.transitions(inputs).tensors().items()}

    whole = torch.func.vmap(run) if several else run
    compiled = torch.compile(whole, fullgraph=True, dynamic=False, backend=backend)
    for step in range(3):
        inputs = made.inputs(step)
        found, expected = compiled(inputs), whole(inputs)
        for name, x in expected.items():
            assert torch.equal(found[name], x), name
    assert len(graphs) == 1
