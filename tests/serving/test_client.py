import ast
import contextlib
import importlib.util
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from running import Running
from small_policies import observations, untrained

from gtp_vision.serving import client
from gtp_vision.serving.client import Client, ServerError, pack, unpack
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.protocol import packed
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings

TOKEN = "an-example-of-a-token"
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20), max_leaves=40
)


@given(VALUES)
def test_values_are_packed_and_unpacked_as_msgpack_does(value: Any) -> None:
    np.testing.assert_equal(msgpack.unpackb(pack({"value": value})), {"value": value})
    assume(depth(value) < 8)
    np.testing.assert_equal(unpack(msgpack.packb({"value": value})), {"value": value})


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0)


@given(st.binary(max_size=60) | st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=3)))
def test_damaged_answers_are_refused_and_take_no_memory(damage: Any) -> None:
    message = packed({"actions": np.ones((3, 2), np.float32), "server_timing": {"infer_ms": 1.5}, "more": [1, "b"]})
    if isinstance(damage, tuple):
        message = message[: damage[0]] + damage[1] + message[damage[0] + len(damage[1]) :]
    else:
        message = damage
    with contextlib.suppress(ValueError):
        unpack(message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\xdd\xff\xff\xff\xff\xc0", "truncated"),
        (b"\x91" * 50 + b"\xc0", "too many values"),
        (b"\xdd\x00\x02\x00\x00" + b"\xc0" * 2**17, "too many values"),
        (b"\xc1", "unknown type"),
        (b"\xc0\xc0", "1 bytes too many"),
        (packed({b"__ndarray__": True, b"dtype": "|O8", b"shape": [1], b"data": b"12345678"}), "unknown type or shape"),
        (packed({b"__ndarray__": True, b"dtype": "<f4", b"shape": [2**40, 2**40], b"data": b""}), "do not fit"),
    ],
)
def test_hostile_answers(message: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(message)


def test_what_cannot_be_sent() -> None:
    for value in (object(), np.array([object()])):
        with pytest.raises(TypeError, match="cannot be sent"):
            pack({"value": value})


@pytest.fixture(scope="module")
def policy() -> Policy:
    return untrained("agent=gtp_bc", "agent.action_chunk=4")


@pytest.fixture(scope="module")
def running(policy: Policy) -> Iterator[Running]:
    server = Running(Server(policy, Settings(port=0, token=TOKEN, timeout=30, queue=2)))
    yield server
    server.end()


def test_a_copy_of_the_file_gets_the_policys_plans(running: Running, policy: Policy, tmp_path: Path) -> None:
    """It imports nothing but numpy and websockets, and its frames are arrays."""
    tree = ast.parse(Path(client.__file__).read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy", "websockets"}
    spec = importlib.util.spec_from_file_location("robot_client", shutil.copy(client.__file__, tmp_path / "robot.py"))
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    session, seen = policy.session(7), observations(policy.schema, 3)
    with copy.Client(running.address, TOKEN) as robot:
        assert (robot.metadata["chunk"], robot.metadata["cameras"]) == (4, {"front": [16, 12, 3]})
        robot.reset(seed=7)
        for observation in seen:
            answer = robot.infer(observation, executed=None)
            np.testing.assert_array_equal(answer["actions"], session.plan(observation))
            assert answer["server_timing"]["infer_ms"] > 0


def test_errors_of_the_server_leave_the_connection_open(running: Running, policy: Policy) -> None:
    (seen,) = observations(policy.schema, 1)
    with Client(running.address, TOKEN) as robot:
        with pytest.raises(ServerError, match="'fronts' is not a camera or state"):
            robot.infer({"fronts": seen["front"]})
        assert robot.infer(seen, seed=3)["actions"].shape == (4, 2)
        robot._timeout = 0.0
        with pytest.raises(TimeoutError, match="no answer within 0 s"):
            robot.infer(seen)
        robot._timeout = 30.0
        session = policy.session(3)
        plans = [session.plan(seen) for _ in range(3)]
        np.testing.assert_array_equal(robot.infer(seen)["actions"], plans[2])  # the late answer was dropped


def test_it_waits_for_a_server_that_does_not_listen_yet(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        Client(f"ws://127.0.0.1:{port}")
    servers, slept = [], client.time.sleep

    def sleep(seconds: float) -> None:
        if not servers:
            servers.append(Running(Server(policy, Settings(port=port))))
        slept(seconds)

    monkeypatch.setattr(client.time, "sleep", sleep)
    try:
        with Client(f"ws://127.0.0.1:{port}", wait=60) as robot:
            assert robot.metadata["chunk"] == 4
    finally:
        servers[0].end()
