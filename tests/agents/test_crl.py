import numpy as np
import torch

from gtp_vision.agents.crl import contrast
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


def test_the_optimum_is_how_much_more_often_a_goal_follows_than_it_occurs() -> None:
    random, rows, kinds = np.random.default_rng(0), 300, 4
    here, goal = random.integers(kinds, size=(2, rows))
    goal[:50] = here[:50]
    counts = np.zeros((kinds, kinds))
    np.add.at(counts, (here, goal), 1)
    share = torch.from_numpy(counts / counts.sum(1, keepdims=True) / counts.sum(0))  # p(g | o, a) / p(g) / rows
    table = share.logit()[None].requires_grad_()
    psi = torch.eye(kinds, dtype=table.dtype)[goal][None]

    def slope(table: torch.Tensor) -> float:
        loss, _ = contrast(table[:, here], psi, 0)
        return float(torch.autograd.grad(loss, table)[0].abs().max())

    assert slope(table) < 1e-12 < slope(table + 0.1)
