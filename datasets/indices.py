"""Which rows make an observation, a return and a chunk of actions: the same arithmetic for NumPy and for torch.

`xp` is the namespace, `numpy` or `torch`, of the arrays that are given and come back. Nothing here has a shape that
depends on data, changes what it is given or waits for a device. Axes: B batch, T frames of a stack, H actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = Any
"""Integers (B,), of NumPy or torch."""


def window(xp: Any, rows: Rows, first: Rows, frame_stack: int) -> Any:
    """Integers (B, T), which frames make each row's observation, oldest first, none before its episode's first."""
    return xp.stack([xp.maximum(rows - past, first) for past in reversed(range(frame_stack))], 1)


def chunk(xp: Any, rows: Rows, last: Rows, action_chunk: int) -> tuple[Any, Any]:
    """Integers (B, H), the rows of each action chunk, and bool (B, H), which of them are real.

    `last` is the row of each one's episode whose action has an outcome; what would follow it is that row again.
    """
    wanted = xp.stack([rows + ahead for ahead in range(action_chunk)], 1)
    return xp.minimum(wanted, last[:, None]), wanted <= last[:, None]


def returns(
    xp: Any,
    rows: Rows,
    last: Rows,
    reward: Callable[[Rows], Any],
    terminal: Callable[[Rows], Any],
    *,
    n_step: int,
    discount: float,
) -> tuple[Any, Any, Rows]:
    """The n-step return, what the next value counts, and the row of that next value.

    For `rows` with an outcome, of which `last` is the episode's last one: sum_k gamma^k r_k float64 (B,), gamma^k mask
    float64 (B,), integers (B,). Rewards and terminals of given rows are (B,).
    """
    total, count = xp.zeros_like(rows, dtype=xp.float64), xp.ones_like(rows, dtype=xp.float64)
    here, alive = rows, xp.ones_like(rows, dtype=xp.bool)
    for _ in range(n_step):
        total = total + xp.where(alive, count * reward(here), 0.0)
        ended = alive & terminal(here)
        count = xp.where(ended, 0.0, xp.where(alive, count * discount, count))
        alive = alive & ~ended
        here = xp.where(alive, here + 1, here)
        # The last row of a recording that timed out has no outcome: bootstrap from it instead of using it.
        alive = alive & (here <= last)
    return total, count, here


def goal_returns(
    xp: Any, reached: Any, *, discount: float, reward_scale: float, reward_shift: float
) -> tuple[Any, Any]:
    """Reward and discount, (B,), of rows that are, or are not, their own goals: 0 and no next value, or -1 and one."""
    there, on_the_way = ((reward + reward_shift) * reward_scale for reward in (0.0, -1.0))
    return xp.where(reached, there, on_the_way), xp.where(reached, 0.0, discount)
