"""Progress of long work: a bar on a terminal, and lines now and then in a file, a pipe or a log of CI."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

from tqdm import tqdm

_FIRST = 5.0  # seconds until the first line
_INTERVAL = 10.0  # seconds between the next ones,
_SHARE = 0.1  # later this share of the time so far: a day of work writes about 200 lines,
_LONGEST = 600.0  # and at most so many seconds
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f} %), {rate_fmt}, {remaining} left{postfix}"
_LAST = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}, {rate_fmt}{postfix}"


class Progress(tqdm):
    """tqdm, which writes lines instead of a bar where `is_terminal` is False; arguments are tqdm's.

    A line holds what is done, the rate and the time that is left. The last line, at the end, is what a terminal would
    be left with. TQDM_DISABLE=1 hides both. Messages beside it are written by `Progress.write` or `tqdm.write`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        file = options.get("file") or sys.stderr
        self._is_bar = is_terminal(file)
        if os.environ.get("TQDM_DISABLE") == "1":  # which an explicit argument would override
            options["disable"] = True
        if not self._is_bar:
            options |= {"mininterval": 1.0, "miniters": 1, "delay": max(options.get("delay", 0), 1e-9)}
        super().__init__(*arguments, **options)
        self._due = _FIRST  # seconds after the start

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar, or write a line if one is due."""
        if self._is_bar:
            return super().display(msg, pos)
        elapsed = self.format_dict["elapsed"]
        if elapsed >= self._due:
            self._write_line(_LINE if self.total else _LAST)
            self._due = elapsed + min(max(_INTERVAL, _SHARE * elapsed), _LONGEST)
        return True

    def clear(self, *arguments: Any, **options: Any) -> None:
        """Remove the bar for a message; lines stay."""
        if self._is_bar:
            super().clear(*arguments, **options)

    def close(self) -> None:
        """End the bar, or write the last line."""
        if not self._is_bar and not self.disable:
            if self.format_dict["elapsed"] >= self.delay:
                self._write_line(_LAST)
            self.delay = math.inf  # it would write a bar, too
        super().close()

    def _write_line(self, form: str) -> None:
        prefix = self.desc.removesuffix(": ") or "progress"
        known: dict[str, Any] = {**self.format_dict, "bar_format": form, "prefix": prefix, "ncols": None}
        if form == _LAST:
            known["rate"] = None  # the mean
        self.fp.write(self.format_meter(**known) + "\n")
        self.fp.flush()


def is_terminal(file: Any) -> bool:
    """Whether a file can show a line that is drawn again and again: neither a file or pipe, nor TERM=dumb, nor CI."""
    is_log = os.environ.get("TERM") == "dumb" or os.environ.get("CI", "").lower() not in ("", "0", "false")
    return not is_log and bool(getattr(file, "isatty", lambda: False)())
