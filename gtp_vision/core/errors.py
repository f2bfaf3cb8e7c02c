"""The one exception for what the user can fix, and helpers for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GtpVisionError(Exception):
    """A fault of the input or the machine, in one sentence: what failed, why, and what to run or set.

    The command line prints the message without a traceback and exits with `exit_status`. Every other exception is a
    defect of this package and keeps its traceback.

    Args:
        message: the sentence, or such an error, which Gymnasium passes where it raises one of another process again.
            Characters that are not printable (names in untrusted files) become spaces.
    """

    exit_status = 2

    def __init__(self, message: str | GtpVisionError) -> None:
        super().__init__("".join(letter if letter.isprintable() else " " for letter in str(message)))

    def _render_traceback_(self) -> list[str]:  # what IPython shows, in a notebook
        return [f"gtp-vision: {self}"]


def first_line(error: BaseException, lines: int = 1) -> str:
    """Return the first line, or lines, of an exception's message, at most 200 characters each; its type if empty."""
    found = [line.strip()[:200] for line in str(error).splitlines() if line.strip()]
    return " ".join(found[:lines]) or type(error).__name__


def reason(error: BaseException) -> str:
    """Return the system's words for an OSError that has some, and else the first line of an exception's message."""
    return getattr(error, "strerror", None) or first_line(error)


def causes(error: BaseException, *, implied: bool = True) -> list[BaseException]:
    """Return an error and what it was raised from, the first cause last; `implied` ones were only being handled.

    An error may be its own cause: omegaconf raises such where a debugger or a coverage tool traces it.
    """
    found = [error]
    while inner := found[-1].__cause__ or (found[-1].__context__ if implied else None):
        if any(inner is known for known in found):
            break
        found.append(inner)
    return found


def propose(word: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a clause that proposes the nearest of `known` to a mistyped `word`, or lists them if none is near.

    Example: `propose("gpt", ["gtp", "gtp_bc"])` returns `did you mean 'gtp' or 'gtp_bc'?`.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=limit, cutoff=0.55)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    if not names:
        return "there are none."
    shown = ", ".join(repr(name) for name in names[:12])
    return f"known: {shown}" + (", ..." if len(names) > 12 else ".")
