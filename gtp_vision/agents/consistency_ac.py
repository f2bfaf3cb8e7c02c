"""Consistency-BC and Consistency-AC, in the order of the paper (Ding and Jin, ICLR 2024).

    1. Policy: a consistency model in its training form, f(a + t z, t) = f'(a + u z, u) for neighbouring levels
       t > u (`gtp_vision.models.consistency`).
    2. Consistency-BC: this loss alone, algorithm 1.
    3. Consistency-AC: twin Q with a' from the slow policy, and the policy's loss L = L_c - eta E[Q(o, a)] / E|Q|
       with the gradient through its K = 2 steps, algorithm 2 (`gtp_vision.agents.diffusion_ql.QGradient`).
    4. Acting: 50 candidates, one drawn by softmax(Q).

The published code lets the number of levels grow from 2 to 150 within every call of its training function and divides
the loss by the distance of the levels for every task, though its settings ask for that in some (the setting is read and
never passed on); here the number is fixed, and the loss is the paper's.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Recipe

CONSISTENCY_BC = Recipe(
    "consistency_bc", "Ding and Jin, ICLR 2024", family="consistency", backup="none", improvement="none"
)
CONSISTENCY_AC = Recipe(
    "consistency_ac",
    "Ding and Jin, ICLR 2024",
    family="consistency",
    backup="mean",
    improvement="q_gradient",
    chooses=True,
)
