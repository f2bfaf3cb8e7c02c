import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import started, wait_for
from small_runs import assert_equal, composed, saved
from stores import make_store

from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import channels_first
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import HostSource
from gtp_vision.encoders import Encoder
from gtp_vision.encoders.views import one_view
from gtp_vision.training import eager as updates
from gtp_vision.training import feature_cache, trainer
from gtp_vision.training.build import Components, build

CAMERAS = {"front": (16, 16, 3), "wrist": (12, 16, 3)}
LENGTHS = (5, 1, 9, 22)
STILL = ("encoder.augmentation.shift=0", "encoder.augmentation.shift_probability=0")
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two cameras and a state, in episodes shorter and longer than a stack."""
    attributes = {"filters": {"train": [0, 2], "valid": [1, 3]}}
    return native.write(tmp_path / "data.h5", make_store(LENGTHS, cameras=CAMERAS, attributes=attributes))


def _overrides(data: Path) -> list[str]:
    return [
        *("task=own", f"task.dataset={data}", "task.frame_stack=3", f"run_dir={data.parent / 'run'}"),
        *("agent=gtp", "agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "encoder=impala_tiny"),
        *("encoder.features=16", "encoder.tuning=frozen", "training.batch_size=16", "training.device=cpu"),
        *("training.probe_rows=0", "task.validation=0"),
    ]


def _config(data: Path, *overrides: str) -> Config:
    return composed(*_overrides(data), *overrides)


def _live(parts: Components, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Observations of an environment: stacks of frames (B, T, C, H, W) and of states (B, T, D)."""
    shown = {name: torch.from_numpy(x[parts.frames.windows(rows)]) for name, x in parts.store.observations.items()}
    return {name: channels_first(x) if x.ndim == 5 else x for name, x in shown.items()}


def _cached(parts: Components, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Observations of training at the same rows: (B, 1, ...)."""
    arrays = parts.sampler.store.observations
    return {name: torch.from_numpy(np.asarray(array[rows], np.float32))[:, None] for name, array in arrays.items()}


def _error(parts: Components, camera: str) -> float:
    """The largest error of a camera's features, relative to their deviation."""
    rows = np.arange(len(parts.store))
    live, found = parts.agent.actor_encoder.camera_features(camera, _live(parts, rows)[camera]), _cached(parts, rows)
    first = found[camera][:, 0, 0] if found[camera].ndim == 4 else found[camera][:, 0]
    return float((live - first).abs().max() / live.std())


def _entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.h5"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stacks went through a backbone, call by call."""
    rows: list[int] = []
    real = Encoder.camera_features

    def counted(self: Encoder, name: str, images: torch.Tensor) -> torch.Tensor:
        if images.ndim == 5:
            rows.append(len(images))
        return real(self, name, images)

    monkeypatch.setattr(Encoder, "camera_features", counted)
    return rows


def test_acting_on_frames_equals_acting_on_features(data: Path) -> None:
    parts = build(_config(data))
    rows = np.arange(sum(LENGTHS))  # first rows, whose frame is repeated, and rows in the middle
    seen, made = _live(parts, rows), _cached(parts, rows)
    assert {name: tuple(x.shape[1:]) for name, x in seen.items()} == parts.agent.actor_encoder.shapes
    widths = [parts.agent.actor_encoder.tower(name).width for name in CAMERAS]
    assert [made[name].shape[1:] for name in (*CAMERAS, "state")] == [(1, widths[0]), (1, widths[1]), (1, 9)]
    for camera in CAMERAS:
        live = parts.agent.actor_encoder.camera_features(camera, seen[camera])
        assert (live - made[camera][:, 0]).square().mean() < 1e-6 * (live - live.mean(0)).square().mean()
    plans = [parts.agent.plan(observation, RandomStream(0, 0)) for observation in (seen, made)]
    assert torch.allclose(*plans, atol=1e-3)
    assert (plans[0] - plans[1][torch.randperm(37)]).abs().max() > 0.05


@pytest.mark.parametrize("more", [("encoder.share=true",), ("agent=gtp_bc",)])
def test_training_on_features_equals_training_live_without_augmentation(data: Path, more: tuple[str, ...]) -> None:
    configs = [_config(data, *STILL, *more, f"encoder.cache={cache}") for cache in ("true", "false")]
    runs = [build(config) for config in configs]
    assert runs[0].sampler.store.observations["front"].ndim == 2
    assert runs[1].sampler.store.observations["front"].ndim == 4
    for step in range(3):
        ours, live = (
            updates.Eager(HostSource(parts.sampler), config, parts).step(step, parts.sampler.batch(step))[0]
            for parts, config in zip(runs, configs, strict=True)
        )
        for name in live:
            assert float(ours[name].detach()) == pytest.approx(float(live[name].detach()), rel=3e-3, abs=3e-3), name
    pairs = zip(runs[0].agent.parameters(), runs[1].agent.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 5e-4  # of three steps of 3e-4


@pytest.mark.parametrize("stack", [1, 3])
def test_goals_are_features_too(data: Path, stack: int) -> None:
    config = _config(data, *STILL, "task.goals=hindsight", f"task.frame_stack={stack}", "encoder.views=1")
    parts = build(config)
    seen, made = (sampler.batch(0) for sampler in (parts.frames, parts.sampler))
    encoder = parts.agent.actor_encoder
    assert sorted(seen.observation) == sorted(made.observation) == sorted(encoder.shapes)
    for live, cached in ((seen.observation, made.observation), (seen.next_observation, made.next_observation)):
        wanted = encoder(live)
        assert (wanted - encoder(cached)).abs().max() < 0.01 * wanted.std()
    assert torch.isfinite(updates.Eager(HostSource(parts.sampler), config, parts).step(0, made)[0]["loss"])


def test_views_are_the_frames_and_then_augmented_ones(data: Path) -> None:
    parts = build(_config(data, "encoder.views=3", "encoder.augmentation.shift_probability=1"))
    plain = build(_config(data))
    several, one = (np.asarray(p.sampler.store.observations["front"], np.float32) for p in (parts, plain))
    assert several.shape == (37, 3, one.shape[1])
    np.testing.assert_allclose(several[:, 0], one, rtol=2e-3, atol=1e-4)
    apart = np.abs(several - one[:, None]).max(2) > 1e-3
    assert apart[:, 1:].mean() > 0.9
    assert (np.abs(several[:, 1] - several[:, 2]).max(1) > 1e-3).mean() > 0.9
    assert parts.augmented
    assert "3 views, 2 of them augmented" in parts.where
    assert "not augmented" in plain.where


def test_a_view_changes_all_frames_of_an_episode_alike(tmp_path: Path) -> None:
    """Otherwise a critic would see a jump between an observation and the next one."""
    store = make_store(LENGTHS, cameras=CAMERAS)
    for name, array in store.observations.items():
        if array.ndim == 4:  # every episode stands still
            store.observations[name] = np.asarray(array)[store.episode_starts[store.episode_of(np.arange(len(store)))]]
    data = native.write(tmp_path / "still.h5", store)
    parts = build(_config(data, "encoder.views=4", "encoder.augmentation.shift_probability=1"))
    for camera in CAMERAS:
        views = np.asarray(parts.sampler.store.observations[camera], np.float32)
        for start, end in zip(store.episode_starts, store.episode_ends, strict=True):
            np.testing.assert_allclose(views[start:end], views[start : start + 1].repeat(end - start, 0), rtol=1e-3)
        assert len(np.unique(views[store.episode_starts, 1:].reshape(-1, views.shape[2]), axis=0)) > 8


def test_one_view_is_drawn_for_each_sample_and_its_next_observation() -> None:
    views = torch.arange(4.0)[None, None, :, None] + 10 * torch.arange(64)[:, None, None, None]
    now = {"front": views.expand(64, 1, 4, 2), "state": torch.zeros(64, 1, 3)}
    one, next_one = one_view((now, {"front": now["front"] + 1000, "wrist": now["front"] + 0.5}), RandomStream(0, 0))
    assert one["state"] is now["state"]
    assert torch.equal(next_one["front"], one["front"] + 1000)
    assert torch.equal(next_one["wrist"], one["front"] + 0.5)
    assert set((one["front"][:, 0, 0] - 10 * torch.arange(64)).tolist()) == {0.0, 1.0, 2.0, 3.0}
    spent = RandomStream(0, 0)
    assert one_view((one,), spent)[0]["front"] is one["front"]
    assert torch.equal(spent.normal(4), RandomStream(0, 0).normal(4)), "without views nothing is drawn"


def test_views_that_would_all_be_the_same_are_refused(data: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"encoder.views=2 .*encoder.augmentation.shift=3"):
        build(_config(data, *STILL, "encoder.views=2"))


def test_a_finished_entry_is_reused(data: Path, cache: Path, computed: list[int]) -> None:
    first = build(_config(data))
    assert sum(computed) == 2 * (37 + 32)
    kept = _entries(cache)
    computed.clear()
    again = build(_config(data))
    assert sum(computed) == 2 * 32, "only the rows that are compared"
    assert _entries(cache) == kept
    for name in ("front", "wrist", "state"):
        array = again.sampler.store.observations[name]
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, first.sampler.store.observations[name])


def test_views_depend_on_the_augmentation_and_one_view_does_not(data: Path, cache: Path) -> None:
    def added(*more: str) -> int:
        before = len(_entries(cache))
        build(_config(data, *more))
        return len(_entries(cache)) - before

    assert added() == 3
    assert added("encoder.augmentation.shift=2", "encoder.fusion=transformer", "encoder.share=true") == 0
    assert added("encoder.views=2") >= 2
    assert added("encoder.views=2", "encoder.augmentation.shift=2") == 2


CHANGES = ["seed=1", "task.frame_stack=2", "task.observations=[wrist,front]", "encoder.cameras.front.size=[8,8]"]
CHANGES += ["task.filter=train", "task.filter=valid", "other recordings"]


def test_what_changes_features_creates_another_entry(data: Path, tmp_path: Path, cache: Path) -> None:
    other = native.write(tmp_path / "other.h5", make_store(LENGTHS, cameras=CAMERAS, seed=1))
    build(_config(data))
    for change in CHANGES:
        before = set(_entries(cache))
        both = ["task.dataset=null", f"task.datasets=[{data},{other}]"]
        parts = build(_config(data, *(both if change == "other recordings" else [change])))
        assert max(_error(parts, camera) for camera in CAMERAS) < 5e-3
        assert set(_entries(cache)) - before, change


def _other_bytes(entry: Path) -> None:
    content = entry.read_bytes()
    if len(content) > 8000:  # the states' are compared with nothing
        entry.write_bytes(content[:3000] + bytes(len(content) - 3000))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda entry: os.truncate(entry, entry.stat().st_size // 2),
    "other bytes": _other_bytes,
    "header": lambda entry: entry.write_bytes(b"no HDF5" + entry.read_bytes()[7:]),
    "note": lambda entry: entry.with_suffix(".json").write_text('{"done": "all"}'),
    "no note": lambda entry: entry.with_suffix(".json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_computed_again(data: Path, cache: Path, damage: str) -> None:
    whole = {name: np.array(x) for name, x in build(_config(data)).sampler.store.observations.items()}
    for entry in _entries(cache):
        DAMAGE[damage](entry)
    again = build(_config(data)).sampler.store.observations
    for name, x in whole.items():
        np.testing.assert_array_equal(again[name], x)


@pytest.mark.processes
def test_a_killed_computation_resumes(
    data: Path, cache: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import sys, time
from gtp_vision.encoders import Encoder
from gtp_vision.training import feature_cache
from gtp_vision.datasets import resumable
from gtp_vision.config.compose import from_command_line
from gtp_vision.training.build import build
feature_cache._PIECE, resumable._SAVE_SECONDS = 4, 0
real = Encoder.camera_features
def slow(*arguments):
    time.sleep(0.1)
    return real(*arguments)
Encoder.camera_features = slow
build(from_command_line(sys.argv[1:]))
"""

    def done() -> int:
        return max((json.loads(note.read_text())["done"] for note in cache.glob("*.json")), default=0)

    running = started("-c", program, *_overrides(data))
    wait_for(lambda: 8 <= done() < 37, running)
    running.kill()
    running.communicate(timeout=60)
    finished = done()
    assert len(list(cache.glob("*.json"))) == 1
    monkeypatch.setattr(feature_cache, "_PIECE", 4)
    parts = build(_config(data))
    assert sum(computed) == 2 * 32 + (37 - finished) + 37, "the compared rows, the remaining ones, the other camera"
    assert max(_error(parts, camera) for camera in CAMERAS) < 5e-3


@pytest.mark.trains
def test_a_resumed_run_uses_the_weights_of_its_checkpoint(
    data: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(folder: Path, steps: int) -> Config:
        return _config(data, f"training.steps={steps}", f"run_dir={folder}")

    trainer.train(config(tmp_path / "whole", 4), progress=False)
    trainer.train(config(tmp_path / "halves", 2), progress=False)
    computed.clear()
    created = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: created(seed + 1))  # as a file of weights that is gone
    trainer.train(config(tmp_path / "halves", 4), resume=True, progress=False)
    assert sum(computed) == 2 * 32, "the entries of the first half are used"
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "halves"))


def test_large_features_outside_the_sample_are_stored_as_float32(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "storage", lambda sample: np.dtype(np.float16))
    real = Encoder.camera_features
    monkeypatch.setattr(Encoder, "camera_features", lambda self, name, images: 1e7 * real(self, name, images))
    array = build(_config(data)).sampler.store.observations["front"]
    assert array.dtype == np.float32
    assert np.isfinite(array).all()


def test_features_that_are_not_finite_are_refused_with_their_frame(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Encoder.camera_features

    def broken(self: Encoder, name: str, images: torch.Tensor) -> torch.Tensor:
        found = real(self, name, images)
        return found.index_fill(0, torch.tensor(6), torch.nan) if len(images) == 37 else found

    monkeypatch.setattr(Encoder, "camera_features", broken)
    with pytest.raises(GtpVisionError, match=r"features of 'front'.*frame 6"):
        build(_config(data))
