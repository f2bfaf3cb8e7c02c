from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stores import make_store

from gtp_vision.datasets import inspection
from gtp_vision.datasets.pitfalls import pitfalls
from gtp_vision.datasets.store import Store

Change = Callable[[Store], Any]
CAMERAS = {"front": (8, 6, 3), "wrist": (8, 6, 3)}
GOOD: dict[str, Any] = {"lengths": (20, 30, 25), "terminals": {19}, "cameras": CAMERAS}


def rewards(rows: Any, value: float) -> Change:
    def change(store: Store) -> None:
        store.rewards[:] = 0
        store.rewards[rows] = value

    return change


def observe(name: str, rows: Any, values: Any) -> Change:
    return lambda store: store.observations[name].__setitem__(rows, values(store) if callable(values) else values)


def attributes(**values: Any) -> Change:
    return lambda store: setattr(store, "attributes", values)


def actions(dimension: int, new: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda store: store.actions[:, dimension].__setitem__(slice(None), new(store.actions[:, dimension].copy()))


def several(*changes: Change) -> Change:
    return lambda store: [change(store) for change in changes]


def masks(store: Store) -> None:
    store.terminals[:] = 1
    store.terminals[[3, 19, 49, 74]] = 0
    store.timeouts[19] = 1


def no_terminal(store: Store) -> None:
    store.rewards[:] = -1
    store.terminals[:], store.timeouts[19] = 0, 1


def wide(store: Store) -> None:
    store.observations["rgb"] = np.random.default_rng(0).random((len(store), 32 * 32 * 3), np.float32)


def same_camera(store: Store) -> None:
    store.observations["wrist"] = store.observations["front"].copy()


def scene(noise: Any = slice(0), texture: float = 0.0, moves: bool = True) -> Change:
    """A drawn scene in 32x32 frames, with noise in the rows `noise`, and with gray grain on everything."""

    def change(store: Store) -> None:
        random, rows, place = np.random.default_rng(0), len(store), np.arange(32)
        grain = texture * random.normal(size=(64, 64, 1))
        for row in range(rows):
            shift = row % 30 if moves else 0
            drawn = 4 * np.stack(np.broadcast_arrays(place, place[:, None], place + shift), -1)
            store.observations["front"][row] = np.clip(60 + drawn + grain[shift : shift + 32, :32], 0, 255)
        store.observations["front"][noise] = random.integers(0, 256, store.observations["front"][noise].shape)

    return change


DRAWN: dict[str, Any] = {"lengths": (40, 35), "terminals": {39}, "cameras": {"front": (32, 32, 3)}}
SECONDS = np.concatenate([np.arange(n) for n in (20, 30, 25)])
TEN = {"lengths": [10] * 3, "terminals": {9, 19, 29}}
ENDS = {"lengths": [10, 12, 9], "terminals": {9, 21, 30}}
STATIC = {"lengths": [20] * 12, "cameras": {"front": (4, 4, 3)}}
ROWS: list[tuple[dict[str, Any], Change | None, tuple[str, ...]]] = [
    (GOOD, None, ()),
    (GOOD, rewards([], 0), ("rewards are 0 everywhere", "agent=gtp_bc")),
    (GOOD, several(rewards([], 0), attributes(suite="ogbench")), ("--env NAME-singletask",)),
    (GOOD, rewards([49, 74], 1), ("no outcome have rewards other than 0, first at episode 1, frame 29",)),
    (GOOD, rewards([19, 49, 74], 1), ()),  # a terminal row is sampled
    (GOOD, rewards(slice(None), -1), ()),  # a step costs, and there is a terminal to reach
    (GOOD, no_terminal, ("rewards are -1 everywhere and no row is a terminal",)),
    (GOOD, masks, ("terminals are set in 95% of the rows, first at episode 0, frame 0",)),
    (TEN, None, ("all 3 episodes end in a terminal after 10 frames",)),
    (TEN | {"terminals": {9, 19}}, None, ()),
    (ENDS, None, ("all 3 episodes end in a terminal and none in a timeout",)),
    (ENDS, rewards([9, 21, 30], 1), ()),  # every terminal is a success, as the rewards show
    ({"lengths": [10, 10], "terminals": {8, 18}, "timeouts": {9, 19}}, None, ("all 2 episodes end in a terminal",)),
    ({"lengths": [40, 1, 40, 40]}, None, ("1 of 4 episodes have one frame and no outcome, first episode 1",)),
    ({"lengths": [40, 40, 2, 40]}, None, ("1 of 4 episodes are shorter", "first episode 2 with 2 frames")),
    ({"lengths": [5, 1, 5], "terminals": {5}}, None, ()),
    (GOOD, actions(1, lambda x: 0 * x + 0.25), ("actions: nearly constant in dimension 1 (about 0.25)",)),
    (GOOD, several(actions(1, lambda x: 0 * x), attributes(action_low=[-1.0, 5.0], action_high=[1.0, 5.0])), (
        "actions: nearly constant in dimension 1 (about 5)",)),
    (GOOD, observe("state", (slice(None), 2), 7), ("observations/state: nearly constant in dimension 2 (about 7)",)),
    ({"state": 30}, observe("state", (slice(None), slice(5, None)), 0), (
        "dimensions 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 and 13 more (about 0, 0, 0, 0, ...)",)),
    (GOOD, actions(0, lambda x: 0.05 * x), ("in dimension 0, far below the policy's noise",)),
    (GOOD, several(actions(0, lambda x: np.clip(9 * x, -1, 1)), actions(1, np.sign)),  # a gripper is not clipped
        ("rows in dimension 0; check that they were not clipped",)),
    (GOOD, several(actions(0, lambda x: np.clip(9 * x, -1, 1)), attributes(answers={})), ()),  # recorded by the server
    (GOOD, wide, ("observations/rgb is a state of 3072 numbers",)),
    (GOOD, attributes(suite="d4rl", episode_ends="terminals"), ("interruptions of the recording", "add 'timeouts'")),
    *((GOOD, attributes(suite="d4rl", episode_ends=f"terminals and {known}"), ())
      for known in ("timeouts", "next_observations", "every 1000 steps")),
    *((GOOD, observe("wrist", slice(22, 30), value), (
        "observations/wrist is blank in 8 of 75 sampled frames", f"first at episode 1, frame 2 ({name})"))
      for value, name in ((0, "all black"), (200, "all one color"))),
    (GOOD, observe("front", slice(1, 20, 2), lambda store: store.observations["front"][0:20:2]), (
        "observations/front is the same as in the next frame in 10 of 72 sampled", "first at episode 0, frame 0")),
    ({"lengths": [2] * 20, "cameras": {"front": (8, 6, 3)}},  # neighbors of two episodes are not compared
        observe("front", slice(2, None, 2), lambda store: store.observations["front"][1:-1:2]), ()),
    (STATIC, observe("front", slice(100, 120), lambda store: store.observations["front"][100]), (
        "first, middle and last frame of 1 sampled episodes, the first is episode 5",)),
    (DRAWN, scene(slice(1, 12)), (
        "observations/front is noise in 11 of 73 sampled frames, first at episode 0, frame 1", "record")),
    (DRAWN, scene([50]), ("is noise in 1 of 73 sampled frames, first at episode 1, frame 10",)),
    (DRAWN, scene(slice(None)), ("is noise in 73 of 73",)),
    (DRAWN, scene(slice(1, 40)), ("is noise in 38 of 73 sampled frames, first at episode 0, frame 1",)),
    (DRAWN, scene(slice(40, None)), ("is noise in 34 of 73 sampled frames, first at episode 1, frame 0",)),
    (DRAWN, scene(slice(70, None)), ("is noise in 4 of 73 sampled frames, first at episode 1, frame 30",)),
    (DRAWN, scene([0, 40]), ("is noise in 2 of 73 sampled frames, first at episode 0, frame 0",)),
    (DRAWN, scene(slice(0, None, 3)), ("is noise in 24 of 73 sampled frames, first at episode 0, frame 0",)),
    (DRAWN, scene([30], texture=60), ("is noise in 1 of 73 sampled frames, first at episode 0, frame 30",)),
    (DRAWN, scene(), ()),
    (DRAWN, scene(texture=60), ()),  # a camera that moves over gravel
    (DRAWN, scene(texture=60, moves=False), ("is the same as in the next frame in 73 of 73",)),
    (GOOD, same_camera, ("observations/wrist has the same images as observations/front",)),
    (GOOD, attributes(left_out=["depth", "words"]), ("not read: depth, words, which are", "write images as uint8")),
    (GOOD, attributes(left_out="anything"), ()),
    (GOOD, attributes(time_stamps=["a.mp4: some do not fit"]), ("a.mp4: some do not fit",)),
    *((GOOD, lambda store, name=name, seconds=seconds: store.observations.update({name: seconds[:, None]}), words)
      for name, seconds, *words in [
          ("time", SECONDS), ("angle", SECONDS // 2), ("time", SECONDS + 7),
          ("timestamp", SECONDS // 2, "observations/timestamp: 49.3% are equal to the one before, first at"),
          ("sensor_time", SECONDS + (np.arange(75) > 30), "1.33% are off by up to 1 s, first at episode 1, frame 11"),
          ("stamp", SECONDS * (np.arange(75) != 60), "are earlier than the one before", "episode 2, frame 10")]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "change", "words"), ROWS)
def test_a_likely_mistake_is_one_sentence(
    content: dict[str, Any], change: Change | None, words: tuple[str, ...]
) -> None:
    store = make_store(**content)
    if change:
        change(store)
    found = pitfalls(store, inspection.statistics(store))
    assert len(found) == bool(words), found
    assert all(word in found[0] for word in words), found
    assert "\n" not in "".join(found)
