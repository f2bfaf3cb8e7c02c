"""Who goes first where threads share a core: who answers the network, since its work is short.

Linux lets a thread that is woken wait until the running one has used its slice, some 4 ms. That is most of an action:
an observation that came while the policy acted was looked at when it was done, and so were answers sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import threading

_LINUX = platform.system() == "Linux"
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SLICE = 100_000  # nanoseconds, the least that Linux takes
_NICE = 5


def go_first() -> bool:
    """Let the calling thread begin as soon as it is woken, for a short while; whether this kernel does (Linux 6.12)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if not _LINUX or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:  # who chose another knows why
        return False
    # struct sched_attr: size, policy (0: the usual one), flags, nice, priority, runtime (here: the slice), ...
    attributes = struct.pack("=IIQiIQQQII", 56, 0, 0, _niceness(), 0, _SLICE, 0, 0, 0, 0)
    return ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0


def go_after() -> None:
    """Let the other threads of this process go before the calling one."""
    if _LINUX:  # elsewhere this would be the process's, or somebody else's
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, _niceness() + _NICE))


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
