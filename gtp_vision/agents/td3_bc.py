"""TD3+BC and ReBRAC, in the order of their papers (Fujimoto and Gu, NeurIPS 2021; Tarasov et al., NeurIPS 2023).

    1. Critic: E[(Q_j(o, a) - r - gamma mask (min_j Q'_j(o', a') - beta_2 ||a' - a'_data||^2))^2], a' = pi'(o') with
       normal noise of 0.2, clipped at 0.5; ReBRAC's penalty beta_2 is 0 in TD3+BC (`Agent`, `critic.next_penalty`).
    2. Policy: -lambda E[Q(o, pi(o))] + beta_1 E||pi(o) - a||^2, lambda = alpha / E|Q|: TD3+BC's alpha is `q_weight` 2.5
       with a mean over dimensions; ReBRAC's beta_1 is `bc_weight` with a sum
       (`gtp_vision.agents.diffusion_ql.QGradient` with a deterministic policy).
    3. Acting: pi(o).

Both update the policy at every second step only; here it is updated with the critic, in one backward pass. TD3+BC
follows the first member of Q and ReBRAC the least; here both follow the mean of the members, each divided by the
other's size.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Recipe

TD3_BC = Recipe(
    "td3_bc", "Fujimoto and Gu, NeurIPS 2021", family="deterministic", backup="mean", improvement="q_gradient"
)
REBRAC = Recipe(
    "rebrac", "Tarasov et al., NeurIPS 2023", family="deterministic", backup="mean", improvement="q_gradient"
)
