import numpy as np
import pytest
import torch
from small import make, states_of
from stores import make_store

from gtp_vision.core.random import RandomStream
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler


@pytest.mark.parametrize("noise", [0.2, 5.0])
def test_noise_on_the_next_action_stays_within_its_clip_and_the_box(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    learner = make("td3_bc", f"agent.critic.next_noise={noise}", "agent.critic.next_noise_clip=0.3")
    policy = torch.linspace(-1, 1, 24).view(12, 2)
    judged: list[torch.Tensor] = []

    def noted(features: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        judged.append(action)
        return torch.zeros(2, len(action))

    monkeypatch.setattr(learner.policy_target, "sample", lambda *_: policy)
    monkeypatch.setattr(learner.critic_target, "forward", noted)
    learner.next_value(learner.loss_inputs(states_of(batch), RandomStream(0, 0), 0))
    (action,) = judged
    assert float(action.abs().max()) <= 1
    away = (action - policy).abs()
    assert 0 < float(away.max()) <= 0.3 + 1e-6
    inside = (policy.abs() < 0.7) & (away > 0)
    bound = torch.isclose(away[inside], torch.tensor(0.3))
    assert float(bound.float().mean()) > 0.5 if noise == 5.0 else not bound.all()


@pytest.mark.parametrize(
    ("rows", "steps", "following"),
    [
        ([0, 1, 2, 4, 5, 6], 1, [1, 2, None, 5, 6, None]),  # row 2's next frame is the last before a timeout
        ([7, 9], 3, [10, 12]),
    ],
)
def test_rebracs_penalty_is_the_squared_distance_from_the_datas_next_action(
    monkeypatch: pytest.MonkeyPatch, rows: list[int], steps: int, following: list[int | None]
) -> None:
    store = make_store((4, 3, 8), terminals={6})
    sampler = Sampler(store, len(rows), 0, frame_stack=2, n_step=steps, action_chunk=steps + 1)
    learner = make("rebrac", "agent.critic.next_penalty=0.5", "agent.critic.next_noise=0")
    action = torch.rand(len(rows), 2)
    monkeypatch.setattr(learner.policy_target, "sample", lambda *_: action)
    monkeypatch.setattr(learner.critic_target, "forward", lambda features, _: torch.full((2, len(features)), 10.0))
    value = learner.next_value(learner.loss_inputs(sampler.gather(np.array(rows)), RandomStream(0, 0), 0))
    distances = [
        0 if row is None else float((own - torch.from_numpy(store.actions[row])).square().sum())
        for own, row in zip(action, following, strict=True)
    ]
    assert value.tolist() == pytest.approx([10 - 0.5 * distance for distance in distances], rel=1e-5)
