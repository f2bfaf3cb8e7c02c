from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from small_runs import composed
from torch import nn

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.core.names import SALIENCY
from gtp_vision.core.random import EpisodeNoise, RandomStream
from gtp_vision.evaluation.evaluator import Episode, write_videos
from gtp_vision.evaluation.saliency import Saliency, saliency

SIDE, STACK = 16, 2
SHAPES: dict[str, tuple[int, ...]] = {"camera": (STACK, 3, SIDE, SIDE)}
TINY = ["encoder=demo", "encoder.features=8", "agent.policy.hidden=[16,16]", "agent.critic.hidden=[16]"]
CPU = torch.device("cpu")


def make(*overrides: str, name: str = "gtp", shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Agent:
    config = composed("task=demo", f"agent={name}", *TINY, *overrides)
    torch.manual_seed(0)
    return agents.create(shapes, 2, config.agent, config.encoder)


class Patch(nn.Module):
    """An encoder that sees one patch of one frame of the stack."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame, self.project = frame, nn.Linear(3 * 4 * 5, 8)

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.project(observation["camera"][:, self.frame, :, 2:6, 7:12].float().flatten(1))


def seeing(frame: int) -> Agent:
    agent = make()
    agent.actor_encoder = Patch(frame)  # type: ignore[assignment]
    return agent


def seen(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"camera": RandomStream(5, 0).integers(256, rows, *SHAPES["camera"]).byte()}


@pytest.fixture
def episode() -> Episode:
    frames = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), np.uint8)
    return Episode(3, True, 0.0, 6, [{"camera": frame} for frame in frames])


def test_only_pixels_of_the_newest_frame_that_the_policy_sees_are_salient() -> None:
    maps = saliency(seeing(-1), seen(), "camera", RandomStream(0, 0)).numpy()
    inside = np.zeros((SIDE, SIDE), bool)
    inside[2:6, 7:12] = True
    assert maps.shape == (3, SIDE, SIDE)
    assert ((maps > 0) == inside).all()
    assert not saliency(seeing(0), seen(), "camera", RandomStream(0, 0)).any()


def test_it_is_the_norm_of_the_gradient_of_the_mean_action() -> None:
    agent, observation = make("agent.acting.noise=1", name="gaussian_bc").eval(), seen(rows=1)

    def mean_action(pixels: torch.Tensor) -> torch.Tensor:
        features = agent.actor_encoder({"camera": pixels})
        return agent.improvement.act(agent, features, 1, RandomStream(0, 0), 8).mean(0)

    pixels = observation["camera"].float() / 255
    jacobian = torch.autograd.functional.jacobian(mean_action, pixels)  # (A, 1, T, C, H, W)
    found = saliency(agent, observation, "camera", RandomStream(0, 0), 1)
    torch.testing.assert_close(found[0], jacobian[:, 0, -1].square().sum((0, 1)).sqrt())


@pytest.mark.parametrize(
    ("name", "overrides"), [*((name, []) for name in sorted(agents.AGENTS)), ("gtp", ["encoder.tuning=frozen"])]
)
def test_every_agent_has_a_saliency_and_is_not_changed(name: str, overrides: list[str]) -> None:
    has_goals = agents.AGENTS[name].goals
    goal = {"goal/camera": SHAPES["camera"]} if has_goals else {}
    agent = make(*overrides, name=name, shapes=SHAPES | goal)
    observation = seen() | ({"goal/camera": seen()["camera"].flip(0)} if has_goals else {})
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    found = saliency(agent, observation, "camera", RandomStream(0, 0))
    assert found.isfinite().all()
    assert found.any()
    assert all(parameter.grad is None for parameter in agent.parameters())
    assert agent.training
    assert all(torch.equal(value, before[key]) for key, value in agent.state_dict().items())


@pytest.mark.parametrize("goals", [False, True])
def test_maps_of_an_episode_are_those_of_what_the_policy_saw(episode: Episode, goals: bool) -> None:
    shapes = SHAPES | ({"goal/camera": SHAPES["camera"]} if goals else {})
    agent = make(shapes=shapes)
    episode.goal = {"camera": np.full((SIDE, SIDE, 3), 7, np.uint8)} if goals else None
    maps = Saliency(agent, STACK, seed=9).maps(episode)
    assert maps.shape == (7, SIDE, SIDE)
    frames = torch.from_numpy(np.stack(episode.frames)).permute(0, 3, 1, 2)
    for step, stack in ((0, [0, 0]), (4, [3, 4])):
        observation = {"camera": frames[stack][None], "goal/camera": torch.full((1, *SHAPES["camera"]), 7).byte()}
        alone = saliency(
            agent, {name: observation[name] for name in shapes}, "camera", EpisodeNoise(9, [3], [step], CPU)
        )
        np.testing.assert_allclose(maps[step], alone[0], rtol=1e-3, atol=1e-6)


def test_heat_is_drawn_over_salient_pixels_only(episode: Episode, tmp_path: Path) -> None:
    plain, draw = np.stack(episode.frames).repeat(4, 1).repeat(4, 2), Saliency(seeing(-1), STACK, seed=0)
    drawn = draw(episode)
    changed = (drawn.astype(int) != plain).any(-1).any(0)
    assert drawn.dtype == np.uint8
    assert changed[12:20, 32:44].all()
    assert not changed[36:].any()
    assert np.array_equal(drawn, draw(episode)), "deterministic"
    assert np.array_equal(Saliency(seeing(0), STACK, seed=0)(episode), plain)
    (path,) = write_videos(tmp_path, [episode], draw, SALIENCY)
    assert path.name == "episode_003_success_saliency.mp4"
    assert iio.imread(path).shape == plain.shape


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(1, np.uint8), (2, np.uint8), (4, np.uint8), (6, np.uint8), (1, np.float32), (3, np.float32)],
)
def test_cameras_of_any_channels_are_filmed_as_rgb(tmp_path: Path, channels: int, dtype: type) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, channels), np.uint8)
    given = frames if dtype == np.uint8 else (frames / 255).astype(dtype)
    episode = Episode(0, True, 0.0, 2, [{"camera": frame} for frame in given])
    shown = frames[..., :3] if channels > 2 else np.repeat(frames[..., :1], 3, -1)
    if channels == 2:  # a depth camera's distances, of 16 bits, the farthest of a frame white
        distances = frames.astype(np.float32) @ np.float32([256, 1])
        gray = (255 * (distances / distances.max((1, 2), keepdims=True))).round().astype(np.uint8)
        shown = np.repeat(gray[..., None], 3, -1)
    assert np.array_equal(episode.frames, shown)
    agent = make(shapes={"camera": (STACK, channels, SIDE, SIDE)})
    draw = Saliency(agent, STACK, seed=0)
    assert draw.maps(episode).any()
    for paths in (write_videos(tmp_path, [episode]), write_videos(tmp_path, [episode], draw, SALIENCY)):
        assert [iio.imread(path).shape for path in paths] == [(3, 4 * SIDE, 4 * SIDE, 3)]


@pytest.mark.parametrize(
    ("side", "written"),
    [((17, 13), (68, 52)), ((64, 64), (256, 256)), ((85, 60), (256, 180)), ((301, 200), (302, 200))],
)
def test_videos_enlarge_small_frames_only(tmp_path: Path, side: tuple[int, int], written: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *side, 3), np.uint8)
    (path,) = write_videos(tmp_path, [Episode(0, True, 0.0, 1, [{"camera": frame} for frame in frames])])
    assert iio.imread(path).shape == (2, *written, 3)
