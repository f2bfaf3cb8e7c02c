import os
import signal
from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from gtp_vision.envs import EnvSpec, Rendering
from gtp_vision.evaluation.evaluator import Episode, EpisodeNoise, Evaluator, random_actor, summary, write_videos

PUZZLE = EnvSpec("puzzle-3x3-play-singletask-task1", max_episode_steps=6)


def _run(envs: int, episodes: int) -> list[tuple[int, float, int]]:
    seen: list[torch.Tensor] = []

    def actor(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        assert observation["state"].shape[1:] == (2, 55)
        seen.append(observation["state"])
        return random_actor(5)(observation, noise)

    with Evaluator(PUZZLE, frame_stack=2, envs=envs, seed=3, progress=False) as evaluator:
        found, done = evaluator.run(actor, episodes)
    assert found["episodes"] == episodes
    assert torch.equal(seen[0][:, 0], seen[0][:, 1]), "the first frame of an episode repeats"
    assert not torch.equal(seen[1][:, 0], seen[1][:, 1])
    return [(e.number, e.total_reward, e.length) for e in done]


def test_an_episode_does_not_depend_on_how_many_run_beside_it() -> None:
    alone, beside = _run(1, 3), _run(2, 3)
    assert alone == beside
    assert [number for number, _, _ in alone] == [0, 1, 2]
    assert {length for _, _, length in alone} == {6}


def test_evaluating_leaves_ctrl_c_to_whoever_had_it() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        _run(1, 1)
        signal.raise_signal(signal.SIGINT)
        assert asked == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    assert "LP_NUM_THREADS" not in os.environ


def test_the_summary_has_wilson_intervals() -> None:
    episodes = [Episode(k, k < 3, -1.0 * k, 10 + k, []) for k in range(4)]
    found = summary(episodes, 2.0)
    assert found["success"] == 0.75
    assert found["return"] == -1.5
    assert found["length"] == 11.5
    # Wilson (1927) for 3 of 4 at z = 1.959964
    np.testing.assert_allclose(found["success_interval"], [0.30064, 0.95441], atol=1e-4)


def test_pixels_are_rendered_as_asked_and_filmed(tmp_path: Path) -> None:
    spec = EnvSpec("visual-puzzle-3x3-singletask-task1", Rendering(512, 0), max_episode_steps=3)
    with Evaluator(spec, frame_stack=2, envs=1, seed=0, progress=False) as evaluator:
        _, done = evaluator.run(random_actor(5), 1, film=1)
    frames = done[0].frames
    assert len(frames) == 4
    env = EnvSpec("visual-puzzle-3x3-singletask-task1", Rendering(512, 0), max_episode_steps=3).make()
    fine = EnvSpec("visual-puzzle-3x3-singletask-task1", max_episode_steps=3).make()
    first, other = env.reset(seed=0)[0], fine.reset(seed=0)[0]
    assert env.unwrapped.model.vis.quality.shadowsize == 512
    assert env.unwrapped.model.vis.quality.offsamples == 0
    env.unwrapped._renderer.close()
    fine.unwrapped._renderer.close()
    np.testing.assert_array_equal(frames[0], first)
    assert not np.array_equal(first, other)
    (video,) = write_videos(tmp_path, done)
    assert video.name == "episode_000_failure.mp4"
    assert iio.imread(video).shape == (4, 256, 256, 3)


def test_a_missing_opengl_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from gtp_vision.core.errors import GtpVisionError
    from gtp_vision.envs import rendering

    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(GtpVisionError, match=r"MUJOCO_GL=osmesa needs libOSMesa.*install"):
        rendering.choose_backend()
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(GtpVisionError, match=r"no OpenGL library.*libegl1"):
        rendering.choose_backend()
    assert rendering.choose_backend(required=False) == ""
