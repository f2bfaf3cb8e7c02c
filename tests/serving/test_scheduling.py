import ctypes
import os
import platform
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gtp_vision.serving import scheduling
from gtp_vision.serving.worker import Lane, Worker

ONLY_LINUX = pytest.mark.skipif(platform.system() != "Linux", reason="threads have priorities of their own on Linux")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def slice_of_this_thread() -> int:
    found = ctypes.create_string_buffer(56)
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]  # sched_getattr
    assert ctypes.CDLL(None).syscall(number, 0, found, len(found), 0) == 0
    return int(struct.unpack("=IIQiIQ", found.raw[:32])[5])


@ONLY_LINUX
def test_only_the_calling_thread_goes_after() -> None:
    with ThreadPoolExecutor(1) as pool:
        before = niceness()
        pool.submit(scheduling.go_after).result()
        assert pool.submit(niceness).result() == min(19, before + 5)
        assert niceness() == before


@ONLY_LINUX
def test_only_the_calling_thread_goes_first_and_stays_as_nice() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(scheduling.go_after).result()
        nice, usual = pool.submit(niceness).result(), slice_of_this_thread()
        if not pool.submit(scheduling.go_first).result():
            pytest.skip("this kernel gives threads no slices of their own")
        if usual:  # Linux 6.12 and later tell
            assert pool.submit(slice_of_this_thread).result() == 100_000
            assert slice_of_this_thread() == usual
        assert pool.submit(niceness).result() == nice
        assert niceness() < nice or nice == 19


@ONLY_LINUX
def test_a_thread_of_another_class_stays_in_it() -> None:
    def background() -> tuple[bool, int]:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return scheduling.go_first(), os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(background).result() == (False, os.SCHED_BATCH)


@ONLY_LINUX
def test_the_policy_goes_after_the_network() -> None:
    worker, told = Worker(1), threading.Event()
    found: list[int] = []

    class Look:
        before: tuple[()] = ()
        behind = started = ended = 0.0

        def work(self) -> None:
            found.append(niceness())
            told.set()

    try:
        worker.submit(Lane(), Look())  # type: ignore[arg-type]
        assert told.wait(30)
    finally:
        assert worker.stop(30)
    assert found == [min(19, niceness() + 5)]


def test_elsewhere_nothing_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_LINUX", False)
    monkeypatch.delattr(os, "setpriority", raising=False)
    scheduling.go_after()
    assert scheduling.go_first() is False
