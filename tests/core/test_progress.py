"""Bars on a terminal, bounded lines elsewhere."""

import io
import os
import pty
import re
import sys
import termios
from collections.abc import Iterator

import pytest
from tqdm import tqdm

from gtp_vision.core.progress import Progress, is_terminal

DAY = 86_400


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def terminal() -> Iterator[io.TextIOWrapper]:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as file:
        yield file
    os.close(reader)


def written(seconds: float, steps: int, **options: float) -> list[str]:
    """The lines of work of so many steps that takes so long."""
    file, now = io.StringIO(), 0.0
    with Progress(total=steps, desc="gtp on own", unit="step", file=file, **options) as bar:
        bar._time = lambda: now
        bar.start_t = bar.last_print_t = 0.0
        for step in range(steps):
            now = seconds * (step + 1) / steps
            bar.update()
            bar.set_postfix_str("loss 0.125")  # which a bar shows at once
    text = file.getvalue()
    assert "\r" not in text
    return text.splitlines()


@pytest.mark.parametrize(
    ("seconds", "least", "most"), [(1, 1, 1), (30, 3, 5), (600, 30, 40), (DAY, 150, 250), (7 * DAY, 1000, 1200)]
)
def test_lines_come_now_and_then_however_long_the_work(seconds: float, least: int, most: int) -> None:
    assert least <= len(written(seconds, 5_000)) <= most


def test_lines_hold_what_is_done_the_rate_and_the_time_left() -> None:
    first, *_, last = written(100, 1000)
    assert re.fullmatch(r"gtp on own: 5\d/1000 step \(5 %\), 1\d\.\d\dstep/s, 01:3\d left, loss 0\.125", first)
    assert last == "gtp on own: 1000/1000 step in 01:40, 10.00step/s, loss 0.125"
    assert max(map(len, written(DAY, 5_000))) < 120


def test_messages_stand_between_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=2, desc="x") as bar:
        bar.update()
        tqdm.write("hello", file=sys.stderr)
        bar.update()
    shown = capsys.readouterr().err
    assert shown.startswith("hello\nx: 2/2 it in")
    assert shown.count("\n") == 2


def test_work_that_ends_before_its_delay_is_silent() -> None:
    assert written(0.5, 10, delay=1.0) == []


@pytest.mark.parametrize("columns", [0, 20, 200])
def test_a_terminal_has_a_bar_that_fits(
    monkeypatch: pytest.MonkeyPatch, terminal: io.TextIOWrapper, columns: int
) -> None:
    termios.tcsetwinsize(terminal.fileno(), (24, columns))
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=3, desc="a long description", leave=False) as bar:
        assert bar._is_bar
        assert len(str(bar)) <= (columns or 100)


@pytest.mark.parametrize(
    ("name", "value", "shows"),
    [("TERM", "dumb", False), ("CI", "1", False), ("CI", "true", False), ("CI", "0", True), ("NO_COLOR", "1", True)],
)
def test_which_terminals_show_bars(
    monkeypatch: pytest.MonkeyPatch, terminal: io.TextIOWrapper, name: str, value: str, shows: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert is_terminal(terminal) is shows
    assert not is_terminal(io.StringIO())


def test_disabled_by_tqdms_own_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    file = io.StringIO()
    with Progress(total=1, file=file, disable=False) as bar:
        bar.update()
    assert not file.getvalue()
