import json
from collections.abc import Callable, Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import nn

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.names import SALIENCY
from gtp_vision.core.random import EpisodeNoise, RandomStream
from gtp_vision.evaluation.evaluator import Episode, write_videos
from gtp_vision.evaluation.saliency import Saliency, saliency
from gtp_vision.training import trainer
from gtp_vision.training.evaluate import evaluate_run

SIDE, STACK = 16, 2
SHAPES: dict[str, tuple[int, ...]] = {"camera": (STACK, 3, SIDE, SIDE)}
TINY = ["encoder=demo", "encoder.features=8", "agent.policy.hidden=[16,16]", "agent.critic.hidden=[16]"]


def _agent(*overrides: str, name: str = "gtp", shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Agent:
    config = from_command_line(["task=demo", f"agent={name}", *TINY, *overrides])
    torch.manual_seed(0)
    return agents.create(shapes, 2, config.agent, config.encoder)


class Patch(nn.Module):
    """Sees one patch of one frame of the stack, and nothing else."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame, self.project = frame, nn.Linear(3 * 4 * 5, 8)

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.project(observation["camera"][:, self.frame, :, 2:6, 7:12].float().flatten(1))


INSIDE = np.zeros((SIDE, SIDE), bool)
INSIDE[2:6, 7:12] = True


def _observation(rows: int = 3, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    noise = RandomStream(5, 0)
    return {name: noise.integers(256, rows, *shape).byte() for name, shape in shapes.items()}


def _episode(length: int = 6, number: int = 3) -> Episode:
    frames = np.random.default_rng(0).integers(0, 256, (length + 1, SIDE, SIDE, 3), np.uint8)
    return Episode(number, True, 0.0, length, [{"camera": frame} for frame in frames])


def test_a_policy_that_sees_one_patch_lights_up_that_patch_alone() -> None:
    agent = _agent()
    agent.actor_encoder = Patch(frame=-1)  # type: ignore[assignment]
    found = saliency(agent, _observation(), "camera", RandomStream(0, 0)).numpy()
    assert found.shape == (3, SIDE, SIDE)
    assert (found[:, ~INSIDE] == 0).all()
    assert (found[:, INSIDE] > 0).all()


def test_only_the_newest_frame_counts() -> None:
    agent = _agent()
    agent.actor_encoder = Patch(frame=0)  # type: ignore[assignment]
    assert not saliency(agent, _observation(), "camera", RandomStream(0, 0)).any()


def test_it_is_the_length_of_the_gradient_of_the_mean_action() -> None:
    agent, observation = _agent("agent.acting.noise=1", name="gaussian_bc").eval(), _observation(rows=1)

    def mean_action(pixels: torch.Tensor) -> torch.Tensor:
        features = agent.actor_encoder({"camera": pixels})
        return agent.improvement.act(agent, features, 1, RandomStream(0, 0), 8).mean(0)

    jacobian = torch.autograd.functional.jacobian(
        mean_action, observation["camera"].float() / 255
    )  # (A, 1, T, C, H, W)
    found = saliency(agent, observation, "camera", RandomStream(0, 0), 1)
    torch.testing.assert_close(found[0], jacobian[:, 0, -1].square().sum((0, 1)).sqrt())


@pytest.mark.parametrize("name", sorted(agents.AGENTS))
def test_every_agent_can_be_followed_to_the_pixels_and_is_left_as_it_was(name: str) -> None:
    agent = _agent(name=name)
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    found = saliency(agent, _observation(), "camera", RandomStream(0, 0), agent.config.acting.steps)
    assert found.isfinite().all()
    assert (found.flatten(1).amax(1) > 0).any()
    assert all(parameter.grad is None for parameter in agent.parameters())
    assert agent.training
    assert all(torch.equal(value, before[key]) for key, value in agent.state_dict().items())


def test_a_frozen_backbone_is_followed_too() -> None:
    agent = _agent("encoder.tuning=frozen")
    assert not any(parameter.requires_grad for parameter in agent.actor_encoder.tower("camera").parameters())
    assert saliency(agent, _observation(), "camera", RandomStream(0, 0)).any()


def test_chunks_are_judged_by_the_action_that_comes_next() -> None:
    agent, observation = _agent("agent.action_chunk=3", name="gtp_bc"), _observation()
    found = saliency(agent, observation, "camera", RandomStream(0, 0))
    original = agent.improvement.act
    agent.improvement.act = lambda *args: original(*args)[:, :2]  # type: ignore[method-assign]
    torch.testing.assert_close(saliency(agent, observation, "camera", RandomStream(0, 0)), found)


# Of episodes


def test_an_episode_is_seen_as_the_policy_saw_it() -> None:
    agent, episode = _agent(), _episode()
    maps = Saliency(agent, STACK, seed=9).maps(episode)
    assert maps.shape == (7, SIDE, SIDE)
    frames = torch.from_numpy(np.stack(episode.frames)).permute(0, 3, 1, 2)
    for step, stack in ((0, [0, 0]), (4, [3, 4])):
        noise = EpisodeNoise(9, [3], [step], torch.device("cpu"))
        alone = saliency(agent, {"camera": frames[stack][None]}, "camera", noise)
        np.testing.assert_allclose(maps[step], alone[0], rtol=1e-3, atol=1e-6)


def test_a_goal_is_shown_beside_every_frame() -> None:
    shapes = SHAPES | {"goal/camera": SHAPES["camera"]}
    agent, episode = _agent(shapes=shapes), _episode()
    episode.goal = {"camera": np.full((SIDE, SIDE, 3), 7, np.uint8)}
    maps = Saliency(agent, STACK, seed=9).maps(episode)
    frames = torch.from_numpy(np.stack(episode.frames)).permute(0, 3, 1, 2)
    observation = {"camera": frames[[1, 2]][None], "goal/camera": torch.full((1, *shapes["camera"]), 7).byte()}
    alone = saliency(agent, observation, "camera", EpisodeNoise(9, [3], [2], torch.device("cpu")))
    np.testing.assert_allclose(maps[2], alone[0], rtol=1e-3, atol=1e-6)


def test_the_heat_is_drawn_where_it_is_and_the_rest_stays(tmp_path: Path) -> None:
    agent, episode = _agent(), _episode()
    agent.actor_encoder = Patch(frame=-1)  # type: ignore[assignment]
    drawn = Saliency(agent, STACK, seed=0)(episode)
    plain = np.stack(episode.frames).repeat(4, 1).repeat(4, 2)
    assert drawn.shape == plain.shape
    assert drawn.dtype == np.uint8
    changed = (drawn.astype(int) != plain).any(-1).any(0)
    assert changed[12:20, 32:44].all()
    assert not changed[36:].any()
    assert np.array_equal(drawn, Saliency(agent, STACK, seed=0)(episode)), "the same video gives the same colours"
    (path,) = write_videos(tmp_path, [episode], Saliency(agent, STACK, seed=0), SALIENCY)
    assert path.name == "episode_003_success_saliency.mp4"
    assert iio.imread(path).shape == plain.shape


def test_a_policy_that_nothing_moves_is_drawn_without_heat() -> None:
    agent, episode = _agent(), _episode()
    agent.actor_encoder = Patch(frame=0)  # type: ignore[assignment]
    plain = np.stack(episode.frames).repeat(4, 1).repeat(4, 2)
    assert np.array_equal(Saliency(agent, STACK, seed=0)(episode), plain)


# Of runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("insight") / "run"
    more = ["training.steps=1", "training.batch_size=8", "training.eval_episodes=2", "training.videos=2"]
    settings = ["task=demo", "training=demo", "agent=gtp_bc_demo", *TINY, *more, "task.max_episode_steps=2"]
    trainer.train(from_command_line([*settings, f"run_dir={folder}"]), progress=False)
    return folder


def test_the_last_evaluation_shows_where_the_policy_looks(run: Path) -> None:
    names = sorted(path.name for path in (run / "videos" / "step_1").iterdir())
    assert names == ["episode_000_failure.mp4", "episode_000_failure_saliency.mp4"]
    page = (run / "report.html").read_text()
    assert "What it sees" in page
    assert page.count("<video") == 2


def test_eval_writes_every_video_twice(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["eval", str(run), "--episodes", "2", "--videos", str(tmp_path), "--saliency", "--json"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert len(list(tmp_path.glob("*_saliency.mp4"))) == 2
    assert len(list(tmp_path.glob("*.mp4"))) == 4


def test_saliency_without_videos_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--saliency"]) == 2
    assert "saliency is drawn into videos, and none are asked for; give --videos FOLDER" in capsys.readouterr().err


def test_saliency_of_a_policy_that_sees_states_is_refused(tmp_path: Path, make_store: Callable[..., object]) -> None:
    from gtp_vision.core.errors import GtpVisionError
    from gtp_vision.datasets.formats import native

    data = native.write(tmp_path / "data.h5", make_store((9, 7), actions=5, state=55))  # type: ignore[arg-type]
    settings = [f"run_dir={tmp_path / 'run'}", f"task.dataset={data}", "encoder=state", "agent=gtp_bc_demo"]
    more = ["training.steps=1", "training.batch_size=8", "training.eval_episodes=0", "agent.policy.hidden=[16]"]
    env = "task.env=puzzle-3x3-play-singletask-task1-v0"
    trainer.train(from_command_line(["task=demo", "training=demo", *settings, *more, env]), progress=False)
    with pytest.raises(GtpVisionError, match=r"sees no camera.*leave out --saliency"):
        evaluate_run(tmp_path / "run", episodes=1, videos=tmp_path, saliency=True, progress=False)
