"""Numbers and texts of the page: values that cannot be shown become a dash instead of an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

_MOST_TASKS = 200


def known(value: Any) -> float | None:
    """The number, or None if it cannot be drawn: not finite, beyond 1e100, or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        return None
    return float(value)


def scalar(tree: Any, *keys: str) -> Any:
    """The value under `keys`; None if it is missing or a container."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return None if isinstance(tree, Mapping | list | set | tuple) else tree


def number_text(value: Any, decimals: int = 0) -> str:
    """A number with separators and a true minus sign; a dash for None; any other value as its text."""
    if (number := known(value)) is not None:
        return f"{number:,.{decimals}f}".replace("-", "−")
    return "–" if value is None or isinstance(value, float) else str(value)


def percent_text(value: Any) -> str:
    """A fraction in whole percent; `number_text` of anything else."""
    number = known(value)
    return number_text(value) if number is None else f"{100 * number:.0f}\u202f%"


def success_text(row: Mapping[str, Any], when: str) -> str:
    """The success of `last`, `mean_last_3` or `best` in percent; `unknown` if the environment did not report it."""
    value = scalar(row, when, "success")
    return "unknown" if value is None and scalar(row, when, "return") is not None else percent_text(value)


def tasks_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the tasks of all last evaluations, at most 200."""
    found = [last.get("tasks") for row in rows if isinstance(last := row.get("last"), Mapping)]
    names = dict.fromkeys(str(name) for tasks in found if isinstance(tasks, Mapping) for name in tasks)
    return list(names)[:_MOST_TASKS]


def interval_of(row: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Lower end of the success interval, success, and upper end, as fractions; or None."""
    last = row.get("last")
    ends = last.get("success_interval") if isinstance(last, Mapping) else None
    if not isinstance(ends, Sequence) or len(ends) != 2:
        return None
    numbers = [known(value) for value in (ends[0], scalar(last, "success"), ends[1])]
    fractions = tuple(number for number in numbers if number is not None and 0 <= number <= 1)
    return fractions if len(fractions) == 3 else None


def decimals_of(values: Iterable[Any]) -> int:
    """The number of decimals of a column, so that its points are aligned."""
    largest = max((abs(number) for value in values if (number := known(value)) is not None), default=0)
    return 2 if largest < 10 else 1 if largest < 1000 else 0


def median_of(values: Iterable[float]) -> float | None:
    """The median of the finite values, or None."""
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else None
