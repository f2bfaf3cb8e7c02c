"""GCIQL: IQL whose rewards are those of goals, as in OGBench (Kostrikov et al., ICLR 2022; Park et al., ICLR 2025).

    1. V: E[L_tau(min_j Q'_j(o, a, g) - V(o, g))], the expectile of Q over the data's actions; g by OGBench's law of
       values (`gtp_vision.datasets.goals.HindsightGoals`), r = -1 until g is reached.
    2. Q: E[(Q_j(o, a, g) - r - gamma mask V(o', g))^2] (`Agent`).
    3. Policy, DDPG+BC: -E[Q(o, pi(o, g), g)] / E|Q| + alpha E||pi(o, g) - a||^2 / 2, with g a later frame: `bc_weight`
       is alpha / 2 (`gtp_vision.agents.diffusion_ql.QGradient`). With `improvement=advantage` it is AWR.
    4. Acting: pi(o, g).

OGBench follows the least member of Q; here each is divided by the other's size, and the mean is followed.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Recipe

GCIQL = Recipe(
    "gciql",
    "Park et al., ICLR 2025",
    family="deterministic",
    backup="expectile",
    improvement="q_gradient",
    goals=True,
)
