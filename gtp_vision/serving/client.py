"""A client of `gtp-vision serve`. This file alone can be copied to a robot: it needs numpy and websockets.

    with Client("ws://localhost:8000") as policy:
        print(policy.metadata)  # cameras, states, actions, their bounds and limits
        policy.reset()  # start an episode
        answer = policy.infer({"camera": frame, "state": state})
        actions = answer["actions"]  # float32 (H, A), in the robot's units

A camera's frame is an array, uint8 (height, width, channels), or the bytes of a JPEG file. The messages are msgpack,
of which this file holds the part that is needed; answers are checked as those of an untrusted server.
"""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from websockets.sync.client import connect

_MOST_BYTES = 16 << 20  # of an answer
_RETRY = 0.5  # seconds between attempts to connect
_MOST_VALUES, _DEPTH = 100_000, 8  # values in an answer, and maps or lists within each other
_DTYPES = {f"{order}{kind}": np.dtype(f"{order}{kind}") for order in "<>" for kind in ("f4", "f8", "i4", "i8")}
_DTYPES |= {f"|{kind}": np.dtype(kind) for kind in ("u1", "i1", "b1")}


class ServerError(RuntimeError):
    """The server's sentence about a message that it could not answer; the connection stays open."""


class Client:
    """A connection to a server, which is one robot with its own episodes.

    Args:
        url: `ws://HOST:PORT`, or `wss://` with TLS.
        token: of `serve --token-file`.
        timeout: seconds to connect, and to wait for an answer.
        wait: seconds in which it tries again while nothing listens there, as a server that still loads its policy.
        options: of `websockets.sync.client.connect`, e.g. `ssl`.

    Attributes:
        metadata: cameras, states and actions of the policy, their bounds and limits.

    Raises:
        OSError, websockets.InvalidStatus, TimeoutError: no server there, or it refused the connection.
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 10.0, wait: float = 0.0, **options: Any
    ) -> None:
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._timeout, self._late = timeout, 0  # answers that came too late, and are still to be read
        limits: dict[str, Any] = {"compression": None, "max_size": _MOST_BYTES, "open_timeout": timeout}
        self._open = contextlib.ExitStack()
        until = time.monotonic() + wait
        while True:
            try:
                connection = connect(url, additional_headers=headers, **limits, **options)
                break
            except ConnectionRefusedError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_RETRY)
        self._connection = self._open.enter_context(connection)
        self.metadata = self._receive()

    def infer(self, observation: Mapping[str, Any], **extra: Any) -> dict[str, Any]:
        """The answer to an observation: `actions` float32 (H, A), `server_timing`, and what else the server tells.

        `extra` are more fields of the message, such as `executed`, the number of actions of the plan before that were
        carried out when the observation was taken; those that are None are left out.

        Raises:
            ServerError: the server's error message.
            TimeoutError: no answer in time; if it comes later it is dropped.
            websockets.ConnectionClosed: the connection was lost, and the episode with it.
        """
        self._connection.send(pack({**observation, **{name: x for name, x in extra.items() if x is not None}}))
        return self._receive()

    def reset(self, seed: int | None = None) -> None:
        """Start an episode, with the noise of another seed if one is given; raises as `infer`."""
        self.infer({"reset": True}, seed=seed)

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        self._late += 1
        while self._late:  # answers arrive in order
            try:
                message = self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(f"the server gave no answer within {self._timeout:g} s") from None
            self._late -= 1
        if isinstance(message, str):
            raise ServerError(message)
        answer = unpack(message)
        if not isinstance(answer, dict):
            raise ServerError(f"the server's answer is a {type(answer).__name__} instead of a map; check the address")
        return answer


# msgpack -------------------------------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """Values as msgpack: None, bools, numbers, text, bytes, lists, maps, and arrays as openpi's client packs them.

    Raises TypeError: another type, or an array of objects.
    """
    parts: list[Any] = []
    _pack(value, parts.append)
    return b"".join(parts)


def _pack(value: Any, put: Any) -> None:
    if value is None:
        put(b"\xc0")
    elif isinstance(value, bool | np.bool_):
        put(b"\xc3" if value else b"\xc2")
    elif isinstance(value, int | np.integer):
        put(struct.pack(">BQ", 0xCF, value) if value > 0 else struct.pack(">Bq", 0xD3, value))
    elif isinstance(value, float | np.floating):
        put(struct.pack(">Bd", 0xCB, value))
    elif isinstance(value, str):
        put(struct.pack(">BI", 0xDB, len(encoded := value.encode())) + encoded)
    elif isinstance(value, bytes):
        put(struct.pack(">BI", 0xC6, len(value)))
        put(value)
    elif isinstance(value, list | tuple):
        put(struct.pack(">BI", 0xDD, len(value)))
        for item in value:
            _pack(item, put)
    elif isinstance(value, Mapping):
        put(struct.pack(">BI", 0xDF, len(value)))
        for key, item in value.items():
            _pack(key, put)
            _pack(item, put)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        array = {b"dtype": value.dtype.str, b"shape": list(value.shape), b"data": value.tobytes()}
        _pack({b"__ndarray__": True, **array}, put)
    else:
        raise TypeError(f"a {type(value).__name__} cannot be sent; send arrays of numbers, numbers, text, lists, maps")


def unpack(message: bytes) -> Any:
    """The value of a message; maps that describe an array become arrays. Raises ValueError: it is not valid."""
    reader = _Unpacker(message)
    try:
        value = reader.value(_DEPTH)
    except (struct.error, UnicodeDecodeError, TypeError, OverflowError) as error:
        raise ValueError(f"the message is not valid msgpack ({error})") from error
    if reader.place != len(message):
        raise ValueError(f"the message has {len(message) - reader.place} bytes too many")
    return value


_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BINARY, _TEXT = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}, {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_LISTS, _MAPS = {0xDC: ">H", 0xDD: ">I"}, {0xDE: ">H", 0xDF: ">I"}
_LENGTHS = _BINARY | _TEXT | _LISTS | _MAPS
"""First byte of a value to the form of the number that follows."""


class _Unpacker:
    def __init__(self, message: bytes) -> None:
        self._message, self.place, self._values = message, 0, 0

    def value(self, depth: int) -> Any:
        self._values += 1
        if depth < 0 or self._values > _MOST_VALUES:
            raise ValueError("the message holds too many values, or maps within maps")
        kind = self._number(">B")
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind < 0xC0:  # short maps, lists and texts hold their length
            length = kind & (0x1F if kind >= 0xA0 else 0x0F)
        elif kind in _LENGTHS:
            length = self._number(_LENGTHS[kind])
        else:
            raise ValueError(f"the message holds a value of the unknown type {kind:#x}")
        if length > len(self._message) - self.place:
            raise ValueError("the message is truncated")
        if kind in _BINARY:
            return self._bytes(length)
        if kind in _TEXT or 0xA0 <= kind < 0xC0:
            return self._bytes(length).decode()
        if kind in _LISTS or 0x90 <= kind < 0xA0:
            return [self.value(depth - 1) for _ in range(length)]
        content = {self.value(depth - 1): self.value(depth - 1) for _ in range(length)}
        return _array(content) if b"__ndarray__" in content else content

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack_from(form, self._message, self.place)
        self.place += struct.calcsize(form)
        return number

    def _bytes(self, length: int) -> bytes:
        self.place += length
        return self._message[self.place - length : self.place]


def _array(content: Mapping[Any, Any]) -> np.ndarray:
    data, shape, dtype = (content.get(name) for name in (b"data", b"shape", b"dtype"))
    sizes: list[Any] = shape if isinstance(shape, list) else [None]
    if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"the message holds an array of unknown type or shape ({str(dtype)[:20]}, {str(shape)[:40]})")
    if not isinstance(data, bytes) or len(data) != math.prod(sizes) * _DTYPES[dtype].itemsize:
        raise ValueError("the message holds an array whose bytes do not fit its shape")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(sizes).copy()
