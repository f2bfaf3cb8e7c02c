"""IQL, in the order of the paper (Kostrikov, Nair and Levine, ICLR 2022).

    1. V: E[L_tau(min_j Q'_j(o, a) - V(o))], the expectile of Q over the data's actions, eq. 5
       (`gtp_vision.models.critic.expectile_loss`).
    2. Q: E[(Q_j(o, a) - r - gamma mask V(o'))^2], eq. 6: no action that the data lacks is ever judged (`Agent`).
    3. Policy: E[exp(beta (Q - V)) log pi(a | o)], weights of at most 100, eq. 7: a normal distribution whose deviation
       does not depend on the observation (`gtp_vision.models.plain`), weighed by
       `gtp_vision.agents.gtp.AdvantageWeighting`.
    4. Acting: the mean.

The paper's advantage takes the slow Q; here it is the current one, which the step has computed already, and weights are
divided by their mean over the batch.
"""

from __future__ import annotations

from gtp_vision.agents.improvement import Recipe

IQL = Recipe("iql", "Kostrikov et al., ICLR 2022", family="gaussian", backup="expectile", improvement="advantage")
