"""GCBC: cloning of the data's way to a goal, as in OGBench (Lynch et al., CoRL 2020; Ghosh et al., ICLR 2021).

    1. Goals: any later frame of the same episode, uniformly (`gtp_vision.datasets.goals.ACTOR_GOALS`).
    2. Policy: E[||pi(o, g) - a||^2], a normal distribution of a fixed deviation but for a constant.
    3. Acting: the mean, pi(o, g).

GTP-BC with goals (`agent=gtp_bc`) is the same with another family of policies.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Recipe

GCBC = Recipe("gcbc", "Ghosh et al., ICLR 2021", family="deterministic", backup="none", improvement="none", goals=True)
