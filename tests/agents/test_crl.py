import chain
import numpy as np
import torch

from gtp_vision.agents.crl import Contrastive, contrast
from gtp_vision.core.random import RandomStream


def test_the_gradient_is_the_closed_form_of_binary_contrast() -> None:
    members, rows, width = 2, 5, 3
    noise = RandomStream(0, 0)
    phi, psi = (noise.normal(members, rows, width).requires_grad_() for _ in range(2))
    loss, logits = contrast(phi, psi, 0)
    loss.backward()
    error = (logits.detach().sigmoid() - torch.eye(rows)) / (members * rows * rows)
    torch.testing.assert_close(phi.grad, error @ psi.detach())
    torch.testing.assert_close(psi.grad, error.transpose(1, 2) @ phi.detach())


def test_parts_of_the_rows_and_of_the_goals_have_the_gradient_of_all() -> None:
    noise = RandomStream(0, 0)
    phi, psi = (noise.normal(2, 6, 3).requires_grad_() for _ in range(2))
    whole = torch.autograd.grad(contrast(phi, psi, 0)[0], [phi, psi])
    parts = torch.zeros(())
    for start in (0, 3):  # two processes
        own = slice(start, start + 3)
        parts = parts + contrast(phi[:, own], psi.detach(), start)[0] / 2
        parts = parts + contrast(phi.detach(), psi[:, own], -start)[0] / 2
    for mine, expected in zip(torch.autograd.grad(parts, [phi, psi]), whole, strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_step_towards_a_goal_is_worth_more() -> None:
    agent, random = chain.learner("crl"), np.random.default_rng(0)
    walks = np.cumsum(random.choice([-1, 1], (1000, 12)), 1) + random.integers(chain.PLACES, size=(1000, 1))
    walks = np.abs(walks) % (2 * chain.PLACES - 2)  # reflected at both ends
    walks = np.minimum(walks, 2 * chain.PLACES - 2 - walks)
    later = np.minimum(random.geometric(0.3, 1000), 11)
    here, following, goal = walks[:, 0], walks[:, 1], walks[np.arange(1000), later]
    base, aim = chain.batch(), {"goal/state": chain.shown(goal)}
    seen = type(base)(
        {"state": chain.shown(here), **aim},
        {"state": chain.shown(following), **aim},
        torch.from_numpy(following - here).float()[:, None, None],
        *(torch.ones(1000, 1, dtype=torch.bool), torch.zeros(1000), torch.zeros(1000), aim, aim),
    )
    chain.learn(agent, seen, 150, rate=2e-3)
    assert isinstance(agent.critic, Contrastive)
    pairs, steps = chain.pairs()
    way = torch.sign(pairs["goal/state"] - pairs["state"])[:, 0]
    with torch.no_grad():
        toward, away = (agent.critic(agent.actor_encoder(pairs), sign * way).mean(0) for sign in (1, -1))
    inside = pairs["state"].flatten().abs() < 1  # from where both steps were taken
    near = (steps > 0) & (steps < 4) & inside
    assert float((toward > away)[near].float().mean()) > 0.9
