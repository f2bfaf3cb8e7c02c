"""Environments in another Python, whose packages cannot be installed beside this one's."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError, first_line, propose
from gtp_vision.envs import _remote_worker

_START, _STEP = 600.0, 300.0  # seconds that an answer may take; a reset compiles a model
_FAREWELL = 5.0
_PASSED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")


class RemoteEnv(gymnasium.Env):
    """An environment that a file's `make` makes in a process of another Python, see `_remote_worker`.

    Messages are JSON and plain arrays, whose sizes are checked; nothing is unpickled. The process ends with this one,
    whose end it sees as that of its input.

    Args:
        what: the environment's name, for messages.
        python: the interpreter.
        file: with `make(settings)`, and what it returns.
        settings: JSON-able.
        prefix: of names of environment variables that it gets, besides those of the system and of rendering.

    Attributes:
        facts: what the file says of itself, JSON-able.

    Raises:
        GtpVisionError: the interpreter cannot be run, its process ends, is silent, or reports an error.
    """

    def __init__(
        self, what: str, python: Path, file: Path, settings: Mapping[str, Any], prefix: str = "GTP_VISION_"
    ) -> None:
        self._what = what
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the environment)
        kept = {name: held for name, held in os.environ.items() if name in _PASSED or name.startswith(prefix)}
        command = [str(python), str(Path(_remote_worker.__file__).resolve()), str(file.resolve())]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=kept
            )
        except OSError as error:
            raise GtpVisionError(f"{python}, which runs {what}, cannot be started ({error.strerror})") from error
        try:
            fields, spaces = self._call(dict(settings), needs=("facts", "low", "high"), within=_START)
            self.facts: dict[str, Any] = dict(fields["facts"])
            self.action_space = gymnasium.spaces.Box(spaces.pop("low"), spaces.pop("high"), dtype=np.float32)
        except BaseException:
            self.close()
            raise
        self.observation_space = gymnasium.spaces.Dict([(name, _space(array)) for name, array in spaces.items()])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, which depends on the seed alone; without one, on the next of Gymnasium's generator."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        fields, seen = self._call({"do": "reset", "seed": seed}, needs=("info",))
        return seen, dict(fields["info"])

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act: `action` float (A,)."""
        fields, seen = self._call(
            {"do": "step"}, {"action": np.asarray(action, np.float64)}, ("reward", "terminated", "info")
        )
        return seen, float(fields["reward"]), bool(fields["terminated"]), False, dict(fields["info"])

    def state(self) -> dict[str, np.ndarray]:
        """The simulator's state by name."""
        return self._call({"do": "state"})[1]

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put the simulator into a state of `state`."""
        self._call({"do": "restore"}, arrays)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _call(
        self,
        fields: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        needs: Sequence[str] = (),
        within: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        within = _STEP if within is None else within
        deadline = time.monotonic() + within
        try:
            _remote_worker.write(self._process.stdin, fields, arrays)
            answer, held = _remote_worker.read(lambda size: self._read(size, deadline))
            if "error" not in answer and (missing := set(needs) - {*answer, *held}):
                raise ValueError(f"without {', '.join(sorted(missing))}")
        except TimeoutError:
            raise GtpVisionError(
                f"{self._what}: its process is silent for {within:.0f} s{self._last_words()}"
            ) from None
        except (OSError, EOFError):
            raise GtpVisionError(f"{self._what}: its process has ended{self._last_words()}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GtpVisionError(
                f"{self._what}: its process does not answer as _remote_worker.py does ({first_line(error)}); check "
                f"that it is of this version"
            ) from error
        if "error" in answer:
            known = [str(name) for name in answer.get("known") or ()]
            words = str(answer["error"])[:500]
            raise GtpVisionError(f"{self._what}: {words}" + (f": {propose(known[0], known[1:])}" if known else ""))
        return answer, held

    def _read(self, size: int, deadline: float) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        found = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while len(found) < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(stream.fileno(), min(size - len(found), 1 << 20))
                if not part:
                    raise EOFError
                found += part
        return bytes(found)

    def _last_words(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f" ({lines[-1].strip()[:300]})" if lines else ""


def versions_in(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of distributions that are installed in another Python; none if it cannot be run."""
    code = "import json, sys, importlib.metadata as m; held = {d.metadata['Name'].replace('_', '-'): d.version for d in"
    code += " m.distributions()}; print(json.dumps({n: held[n] for n in sys.argv[1:] if n in held}))"
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, timeout=60, check=True)
        return {str(name): str(held)[:80] for name, held in json.loads(done.stdout).items()}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def _space(array: np.ndarray) -> gymnasium.spaces.Box:
    if array.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, array.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, array.shape, np.float32)
