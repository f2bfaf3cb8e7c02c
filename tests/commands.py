"""Commands in processes of their own, and waiting for what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CLI = ("-m", "gtp_vision")


def started(
    *words: str | Path, environment: Mapping[str, str | None] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start `python -P WORDS`, with pipes of text; `environment` sets, or by None removes, variables."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    variables = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"} | dict(environment or {})
    env = {name: value for name, value in variables.items() if value is not None}
    return subprocess.Popen([sys.executable, "-P", *map(str, words)], text=True, env=env, **pipes | options)


def ended(*words: str | Path, status: int = 0, **options: Any) -> tuple[str, str]:
    """Run `python -P WORDS`, require its status, and return its output and errors."""
    process = started(*words, **options)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == status, output + errors
    return output, errors


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    """Wait until a condition holds; fail if `process` ends before, or after so many seconds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)
