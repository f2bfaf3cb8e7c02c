"""The messages of openpi's client: msgpack, with arrays as maps of their bytes, type and shape.

A message from the network is a stranger's. It is taken apart under limits on every length, on the number of containers
and on depth, and an array is looked at only after its type, its shape and its number of bytes are what the policy's
schema asks for. Arrays are views of the message's bytes; nothing is copied but a state's few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose

DTYPES = ("|u1", "|i1", "|b1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
"""Types of arrays that are read. Images are |u1; the others are states."""

EVERYTHING = "*"
"""As a key to ignore: whatever the policy does not know."""

_DEPTH = 4  # of maps within maps
_CONTAINERS = 256  # maps and lists in a message
_LIST = 256  # items of a list, unless a state is wider
_TEXT = 4096  # bytes of a text: openpi's prompt
_SLACK = 2**20  # bytes of a message beyond the policy's own arrays
_SEED = 2**63


class Request(NamedTuple):
    """What a client asks.

    Attributes:
        observation: cameras (H, W, C) uint8 and states (n,) float32 by name; None when it only starts an episode.
        reset: a new episode begins before this observation.
        seed: the noise of the episodes from here on; None leaves it.
    """

    observation: dict[str, np.ndarray] | None
    reset: bool
    seed: int | None


class Reader:
    """Reads clients' messages against a policy's schema.

    Args:
        cameras: name to (H, W, C); a message may hold (C, H, W) as well. A square of H = C is read as (H, W, C).
        states: name to width.
        renamed: the client's key to the policy's name; keys of maps within maps are joined with `/`.
        ignored: the client's keys that are passed over; `*` for all that the policy does not know.

    Attributes:
        max_size: bytes that a message may have, unless the server is told otherwise.

    Raises:
        GtpVisionError: a key is led to a name that the policy does not have.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, int, int]],
        states: Mapping[str, int],
        *,
        renamed: Mapping[str, str] | None = None,
        ignored: Collection[str] = (),
    ) -> None:
        self._cameras, self._states = {name: tuple(shape) for name, shape in cameras.items()}, dict(states)
        self._names = [*self._cameras, *self._states]
        self._renamed, self._ignored = dict(renamed or {}), frozenset(ignored)
        for theirs, ours in self._renamed.items():
            if ours not in self._names:
                raise GtpVisionError(
                    f"'{theirs}={ours}' leads to no camera or state of this policy: {propose(ours, self._names)}"
                )
        self._usual = [(name, "|u1", list(shape), math.prod(shape)) for name, shape in self._cameras.items()]
        self._usual += [(name, "<f4", [width], 4 * width) for name, width in states.items()]
        sizes = [math.prod(shape) for shape in self._cameras.values()] + [8 * width for width in states.values()]
        self.max_size = sum(sizes) + _SLACK
        self._limits = {
            "max_bin_len": self.max_size if EVERYTHING in self._ignored else max([_TEXT, *sizes]),
            "max_str_len": _TEXT,
            "max_array_len": max([_LIST, *states.values()]),
            "max_map_len": _LIST,
            "max_ext_len": 0,
        }

    def read(self, message: bytes | str) -> Request:
        """The request that a message holds.

        Raises:
            GtpVisionError: it holds none, or one that is not what the policy sees.
        """
        if isinstance(message, str):
            raise GtpVisionError("the message is text; send msgpack in a binary message")
        found = self._unpacked(message)
        if not isinstance(found, dict):
            raise GtpVisionError(f"the message holds {_kind(found)}; send a map of names to arrays")
        if (observation := self._as_usual(found)) is not None:
            return Request(observation, reset=False, seed=None)
        seed = _seed(found.pop("seed", None)) if "seed" not in self._names else None
        reset = found.pop("reset", False) if "reset" not in self._names else False
        if not isinstance(reset, bool):
            raise GtpVisionError(f"'reset' is {_kind(reset)}; send true or false")
        reset = reset or seed is not None  # other noise begins with an episode
        given = self._named(found)
        if reset and not given:
            return Request(None, reset, seed)
        observation = {}
        for name, shape in self._cameras.items():
            observation[name] = _image(name, self._one(given, name, shape), shape)
        for name, width in self._states.items():
            observation[name] = _state(name, self._one(given, name, (width,)), width)
        return Request(observation, reset, seed)

    def _as_usual(self, found: dict[Any, Any]) -> dict[str, np.ndarray] | None:
        """The observation of a message that is just what it should be; None for all others, which take longer.

        Between two acts of a network nothing of Python is left in the processor's caches, so that lines cost time.
        """
        if len(found) != len(self._usual):
            return None
        observation = {}
        for name, dtype, shape, size in self._usual:
            value = found.get(name)
            if type(value) is not dict or value.get(b"dtype") != dtype or value.get(b"shape") != shape:
                return None
            data = value.get(b"data")
            if type(data) is not bytes or len(data) != size:
                return None
            observation[name] = np.frombuffer(data, dtype).reshape(shape)
        return observation

    def _unpacked(self, message: bytes) -> Any:
        count = _counter()
        try:
            return msgpack.unpackb(message, object_hook=count, list_hook=count, **self._limits)
        except GtpVisionError:
            raise
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
            raise GtpVisionError(f"the message is no msgpack that this server reads ({_cut(error)})") from None

    def _named(self, found: dict[Any, Any]) -> dict[str, Any]:
        """The values by our names; those that may be ignored are left out."""
        given: dict[str, Any] = {}
        for key, value in _flat(found):
            name = self._renamed.get(key, key)
            if name not in self._names:
                if key in self._ignored or EVERYTHING in self._ignored:
                    continue
                raise GtpVisionError(
                    f"'{_cut(key)}' is no camera or state of this policy (it has {_listed(self._names)}); leave it "
                    f"out, or start the server with --map or --ignore for it"
                )
            if name in given:
                raise GtpVisionError(f"'{_cut(name)}' came twice, under two keys; send it once")
            given[name] = value
        return given

    def _one(self, given: dict[str, Any], name: str, shape: tuple[int, ...]) -> Any:
        if name not in given:
            raise GtpVisionError(f"'{name}' {shape} is missing from the observation; send {_listed(self._names)}")
        return given[name]


def packed(answer: Mapping[str, Any]) -> bytes:
    """An answer in msgpack, its arrays as openpi's client reads them."""
    return msgpack.packb(answer, default=_packed_array)


def unpacked(answer: bytes) -> dict[str, Any]:
    """What `packed` packed, for clients of our own; trusts the server."""
    return msgpack.unpackb(answer, object_hook=_unpacked_array)


def _packed_array(value: object) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} has no place in a message")


def _unpacked_array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in found:
        return found
    return np.frombuffer(found[b"data"], np.dtype(found[b"dtype"])).reshape(found[b"shape"])


def _counter() -> Callable[[Any], Any]:
    count = 0

    def hook(container: Any) -> Any:
        nonlocal count
        count += 1
        if count > _CONTAINERS:
            raise GtpVisionError(f"the message holds more than {_CONTAINERS} maps and lists; send arrays as bytes")
        return container

    return hook


def _flat(found: dict[Any, Any], prefix: str = "", depth: int = 1) -> list[tuple[str, Any]]:
    """Pairs of a map and of the maps in it, keys joined with `/`. An array is a value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in found.items():
        if not isinstance(key, str):
            raise GtpVisionError(f"a key of the message is {_kind(key)}; send names as text")
        if isinstance(value, dict) and not _holds_array(value):
            if depth == _DEPTH:
                raise GtpVisionError(f"'{_cut(prefix + key)}' lies deeper than {_DEPTH} maps; send flatter maps")
            pairs += _flat(value, f"{prefix}{key}/", depth + 1)
        else:
            pairs.append((prefix + key, value))
    return pairs


def _holds_array(value: dict[Any, Any]) -> bool:
    return any(mark in value for mark in (b"__ndarray__", "__ndarray__", b"__npgeneric__", "__npgeneric__"))


def _image(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _array(name, value, [shape, (shape[2], shape[0], shape[1])], ("|u1",))
    return array if array.shape == shape else array.transpose(1, 2, 0)


def _state(name: str, value: Any, width: int) -> np.ndarray:
    """(width,) float32; what overflows it becomes infinite, which the policy refuses."""
    if isinstance(value, dict) and (b"__npgeneric__" in value or "__npgeneric__" in value):
        value = value.get(b"data", value.get("data"))
    if isinstance(value, (int, float)):
        value = [value]
    if isinstance(value, list):
        if len(value) != width or not all(isinstance(number, (int, float)) for number in value):
            raise GtpVisionError(f"'{name}' is a list of {len(value)} items; send ({width},) numbers")
        array = np.array([float(number) for number in value])
    else:
        array = _array(name, value, [(width,), *([()] if width == 1 else [])], DTYPES).reshape(width)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _array(name: str, value: Any, shapes: list[tuple[int, ...]], dtypes: tuple[str, ...]) -> np.ndarray:
    """A view of an array's bytes, after all that is claimed of it was checked."""
    if not isinstance(value, dict):
        raise GtpVisionError(f"'{name}' is {_kind(value)}; send an array {shapes[0]}")
    data, dtype, shape = (value.get(key.encode(), value.get(key)) for key in ("data", "dtype", "shape"))
    dtype = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if not isinstance(dtype, str) or dtype not in dtypes:
        told = _cut(dtype) if isinstance(dtype, str) else _kind(dtype)
        raise GtpVisionError(f"'{name}' is of type {told}; send {' or '.join(map(_plain, dtypes))}")
    if not isinstance(shape, list) or tuple(shape) not in shapes or not all(type(number) is int for number in shape):
        told = str(tuple(shape)) if isinstance(shape, list) else _kind(shape)
        raise GtpVisionError(f"'{name}' has shape {_cut(told)}; send {' or '.join(map(str, shapes))}")
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        told = f"{len(data)} bytes" if isinstance(data, bytes) else _kind(data)
        raise GtpVisionError(f"'{name}' {tuple(shape)} of type {_plain(dtype)} holds {told}; send {wanted} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _seed(value: Any) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value < _SEED):
        raise GtpVisionError(f"'seed' is {_cut(value) if type(value) is int else _kind(value)}; send 0 to {_SEED - 1}")
    return value


def _plain(dtype: str) -> str:
    return np.dtype(dtype).name


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _kind(value: object) -> str:
    kinds = {dict: "a map", list: "a list", bytes: "bytes", str: "text", type(None): "nothing", bool: "true or false"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def _cut(value: object, length: int = 80) -> str:
    """A stranger's words in a sentence of ours: not too many."""
    told = str(value)
    return told if len(told) <= length else f"{told[:length]}..."
