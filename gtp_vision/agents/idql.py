"""IDQL, in the order of the paper (Hansen-Estruch et al., 2023).

    1. Critic: IQL's expectile V and Q (`gtp_vision.agents.iql`).
    2. Policy: a diffusion that clones the behaviour, every action alike: policy and critic are trained apart
       (`gtp_vision.agents.bc.Cloning`), the network a residual one with LayerNorm (`architecture=ln_resnet`).
    3. Acting: N actions of the policy, of which the best by Q is taken, algorithm 2
       (`gtp_vision.agents.base.choose`). The policy improves here and only here, so N may be chosen after training.

The published network drops a tenth of its units when training; here nothing is dropped, as all randomness is
a function of the seed and the step. The published code acts by a slow copy of the policy; here the current one acts.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Recipe

IDQL = Recipe(
    "idql",
    "Hansen-Estruch et al., 2023",
    family="vp_diffusion",
    backup="expectile",
    improvement="none",
    chooses=True,
)
