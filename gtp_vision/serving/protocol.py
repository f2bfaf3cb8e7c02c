"""Messages of robots: msgpack, with arrays as maps of their bytes, dtype and shape.

Arrays and NumPy scalars are read as openpi's client packs them and as PyPI's msgpack-numpy does, with keys as bytes or
as text; an answer's array is one map that both unpack.

A camera's frame may also be the bytes of a JPEG file, which are far fewer on the network.

Messages are untrusted. They are unpacked under limits on every length, on the number of containers and on depth, and an
array is read only after its dtype, shape and number of bytes agree with the policy's schema. Arrays are views of the
message's bytes; only states, a few numbers, are copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.jpeg import JPEG_ERRORS, decoded_jpeg, reason
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.datasets.instructions import Instructions
from gtp_vision.serving.schema import NO_INSTRUCTIONS, needed

_CODES = ("u1", "i1", "b1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
_DTYPES = {f"{order}{code}": np.dtype(f"{order}{code}") for code in _CODES for order in ("<", ">", "|", "=", "")}
_DTYPES |= {np.dtype(code).name: np.dtype(code) for code in _CODES}
"""Spelling to data type of arrays. Images are uint8; the others are for states."""

EVERYTHING = "*"
"""As a key to ignore: all keys that the policy does not know."""

_PROMPT = "prompt"  # openpi's name of an instruction
_DEPTH = 4  # of maps within maps
_CONTAINERS = 256  # maps and lists in a message
_MAP = 256  # keys of a map
_LIST = 4096  # items of a list, unless a state is wider
_OTHERS = 64 * 2**20  # bytes of what the policy does not use: other cameras, frames of a wrong size
_WIDEST = 8  # bytes of a number, of frames that are sent as float64
_SEED = 2**63
_MOST = 1000  # actions of a plan
_LATEST = 60_000.0  # ms of a round trip


class Request(NamedTuple):
    """A client's request.

    Attributes:
        observation: cameras (H, W, C) uint8 and states (n,) float32 by name; None to start an episode only.
        reset: whether a new episode starts with this observation.
        seed: of the noise from this episode on; None does not change it.
        executed: actions of the last plan that were executed before the observation; None is not known.
        delay: actions of it that are executed before the answer arrives; None is for the server to measure.
        round_trip: seconds on the network from the robot to the server and back.
    """

    observation: dict[str, np.ndarray] | None
    reset: bool
    seed: int | None
    executed: int | None = None
    delay: int | None = None
    round_trip: float = 0.0


class Reader:
    """Reads clients' messages against a policy's schema.

    Args:
        cameras: name to (H, W, C); a message may hold (C, H, W) as well. A square of H = C is read as (H, W, C).
        states: name to width.
        recorded: (H, W, C) of cameras whose frames the policy resizes, which may be sent instead.
        renamed: the client's key to the policy's name; keys of maps within maps are joined with `/`.
        ignored: the client's keys that are ignored, maps with all that is in them; `*` for all that the policy does not
            know.
        instructions: that the policy knows; a text `instruction`, or `prompt` as openpi's clients send it, is one of
            them.

    Attributes:
        max_size: bytes that a message may have: more than any that deserves an answer.

    Raises:
        GtpVisionError: a key is renamed to a name that the policy does not have.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, int, int]],
        states: Mapping[str, int],
        *,
        recorded: Mapping[str, tuple[int, int, int]] | None = None,
        renamed: Mapping[str, str] | None = None,
        ignored: Collection[str] = (),
        instructions: Instructions | None = None,
    ) -> None:
        self._instructions = instructions
        self._cameras, self._states = {name: tuple(shape) for name, shape in cameras.items()}, dict(states)
        self._names = [*self._cameras, *self._states]
        other = recorded or {}
        self._shapes = {name: [shape, *([other[name]] if name in other else [])] for name, shape in cameras.items()}
        self._renamed, self._ignored = dict(renamed or {}), frozenset(ignored)
        if instructions is not None and _PROMPT not in self._names:
            self._renamed.setdefault(_PROMPT, INSTRUCTION)
        for theirs, ours in self._renamed.items():
            if ours not in self._names:
                raise GtpVisionError(f"--map {theirs}={ours}: '{ours}' is unknown: {propose(ours, self._names)}")
        self._fast = [(name, "|u1", list(shape), math.prod(shape)) for name, shape in self._cameras.items()]
        self._fast += [(name, "<f4", [width], 4 * width) for name, width in states.items()]
        numbers = sum(max(map(math.prod, shapes)) for shapes in self._shapes.values()) + sum(states.values())
        self.max_size = _OTHERS + _WIDEST * numbers
        self._limits = {
            **{f"max_{kind}_len": self.max_size for kind in ("bin", "str", "ext")},
            "max_array_len": max([_LIST, *states.values()]),
            "max_map_len": _MAP,
        }

    def read(self, message: bytes | str) -> Request:
        """Read a message. Raises GtpVisionError: it is not a request, or does not fit the policy's schema."""
        if isinstance(message, str):
            raise GtpVisionError("the message is text; send msgpack in a binary message")
        content = self._unpacked(message)
        if not isinstance(content, dict):
            raise GtpVisionError(f"the message holds {_kind(content)}; send a map of names to arrays")
        if (observation := self._fast_path(content)) is not None:
            return Request(observation, reset=False, seed=None)
        if len(named := {_text(key): value for key, value in content.items()}) < len(content):
            raise GtpVisionError("a name was sent twice, as text and as bytes; send it once")
        content = named
        seed = _seed(_number(content.pop("seed", None))) if "seed" not in self._names else None
        reset = _number(content.pop("reset", False)) if "reset" not in self._names else False
        if not isinstance(reset, bool):
            raise GtpVisionError(f"'reset' is {_kind(reset)}; send true or false")
        reset = reset or seed is not None  # other noise starts with an episode
        executed, delay = (_steps(name, self._control(content, name)) for name in ("executed", "delay"))
        round_trip = _milliseconds("round_trip_ms", self._control(content, "round_trip_ms"))
        values = self._named(content)
        if reset and not values:
            return Request(None, reset, seed)
        for name, shape in [*self._cameras.items(), *((name, (width,)) for name, width in self._states.items())]:
            if name not in values:
                if name == INSTRUCTION and self._instructions is not None:
                    raise GtpVisionError(needed(self._instructions))
                raise GtpVisionError(f"'{name}' {shape} is missing from the observation; send {_listed(self._names)}")
        observation = {name: _image(name, values[name], shapes) for name, shapes in self._shapes.items()}
        if self._instructions is not None and isinstance(text := _text(values[INSTRUCTION]), str):
            observation[INSTRUCTION] = self._instructions.vector(text)
        others = [name for name in self._states if name not in observation]
        observation |= {name: _state(name, values[name], self._states[name]) for name in others}
        return Request(observation, reset, seed, executed, delay, round_trip)

    def _control(self, content: dict[Any, Any], name: str) -> Any:
        """Take a number about the request out of a message; None without one, or if the policy has such a name."""
        return None if name in self._names else _number(content.pop(name, None))

    def _fast_path(self, content: dict[Any, Any]) -> dict[str, np.ndarray] | None:
        """The observation of a message in the policy's own names and types; None for all others, which take longer.

        The network's computation has displaced Python from the processor's caches, so each line costs time.
        """
        if len(content) != len(self._fast):
            return None
        observation = {}
        for name, dtype, shape, size in self._fast:
            value = content.get(name)
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
            # Old versions of msgpack pack bytes as text, which this error handler keeps as they are.
            return msgpack.unpackb(
                message, object_hook=count, list_hook=count, unicode_errors="surrogateescape", **self._limits
            )
        except GtpVisionError:
            raise
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
            raise GtpVisionError(
                f"the message is not valid msgpack for this server ({_cut(error)}); send maps of names to arrays, as "
                f"openpi's client or msgpack-numpy packs them"
            ) from None

    def _named(self, content: dict[Any, Any]) -> dict[str, Any]:
        """Values by the policy's names, without the ignored ones."""
        values: dict[str, Any] = {}
        for key, value in _flat(content):
            name = self._renamed.get(key, key)
            if name not in self._names:
                above = itertools.accumulate(key.split("/"), lambda path, part: f"{path}/{part}")
                if EVERYTHING in self._ignored or not self._ignored.isdisjoint(above):
                    continue
                if name in (INSTRUCTION, _PROMPT):
                    raise GtpVisionError(
                        f"{NO_INSTRUCTIONS.format(name=name)}, or start the server with --ignore {name}"
                    )
                raise GtpVisionError(
                    f"'{_cut(key)}' is not a camera or state of this policy (it has {_listed(self._names)}); leave it "
                    f"out, or start the server with --map or --ignore for it"
                )
            if name in values:
                raise GtpVisionError(f"'{_cut(name)}' was sent twice, under two keys; send it once")
            values[name] = value
        return values


def packed(answer: Mapping[str, Any]) -> bytes:
    """Pack an answer as msgpack, with arrays that openpi's client and msgpack-numpy both unpack."""
    return msgpack.packb(answer, default=_packed_array)


def unpacked(answer: bytes) -> dict[str, Any]:
    """Unpack the bytes of `packed`; trusts the server."""
    return msgpack.unpackb(answer, object_hook=_unpacked_array)


def _packed_array(value: object) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray) or value.dtype.str not in _DTYPES:
        raise TypeError(f"{type(value).__name__} cannot be packed")
    array = {b"data": value.tobytes(), b"shape": value.shape}
    openpis = {b"__ndarray__": True, b"dtype": value.dtype.str}
    return {**openpis, b"nd": True, b"type": value.dtype.str, b"kind": b"", **array}


def _unpacked_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value:
        return value
    return np.frombuffer(value[b"data"], np.dtype(value[b"dtype"])).reshape(value[b"shape"])


class PackedArray(NamedTuple):
    """An untrusted array or NumPy scalar; the data of openpi's scalars is a number, of all others bytes."""

    data: Any
    dtype: Any
    shape: Any


def _packed(value: Any) -> PackedArray | None:
    """The parts of an array or NumPy scalar, as openpi's client or msgpack-numpy packs it; None for other values."""
    if not isinstance(value, dict):
        return None
    parts = {_text(key): part for key, part in value.items()}
    data, dtype = parts.get("data"), _text(parts.get("dtype"))
    if "__ndarray__" in parts:
        return PackedArray(data, dtype, parts.get("shape"))
    if "__npgeneric__" in parts:
        return PackedArray(data, dtype, [])
    if {"nd", "type", "data"} <= parts.keys():
        return PackedArray(data, _text(parts["type"]), parts.get("shape") if parts["nd"] else [])
    return PackedArray(data, "complex", []) if {"complex", "data"} == parts.keys() else None


def _number(value: Any) -> Any:
    """A NumPy scalar or 0-d array as a Python number; other values as they are."""
    found = _packed(value)
    if found is None or found.shape != []:
        return value
    if isinstance(found.data, int | float):
        return found.data
    dtype, data = _DTYPES.get(found.dtype) if isinstance(found.dtype, str) else None, _bytes(found.data)
    is_sound = dtype is not None and isinstance(data, bytes) and len(data) == dtype.itemsize
    return np.frombuffer(data, dtype)[0].item() if is_sound else value


def _text(value: Any) -> Any:
    """Bytes as text; other values as they are."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _bytes(value: Any) -> Any:
    """The bytes that were unpacked as text; other values as they are."""
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


def _counter() -> Callable[[Any], Any]:
    count = 0

    def hook(container: Any) -> Any:
        nonlocal count
        count += 1
        if count > _CONTAINERS:
            raise GtpVisionError(f"the message holds more than {_CONTAINERS} maps and lists; send arrays as bytes")
        return container

    return hook


def _flat(content: Mapping[Any, Any], prefix: str = "", depth: int = 1) -> list[tuple[str, Any]]:
    """Items of nested maps, keys joined with `/`; an array is a value, and so is a map that is nested too deep."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{_text(key)}"
        if isinstance(value, dict) and depth < _DEPTH and _packed(value) is None:
            pairs += _flat(value, f"{name}/", depth + 1)
        else:
            pairs.append((name, value))
    return pairs


def _image(name: str, value: Any, shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    content = _bytes(value)
    if isinstance(content, bytes):
        try:
            return decoded_jpeg(content, shapes)
        except JPEG_ERRORS as error:
            wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
            raise GtpVisionError(
                f"'{name}' is not a JPEG image of {wanted} ({reason(error)}); send one, or an array"
            ) from None
    array = _array(name, value, [*shapes, *((c, h, w) for h, w, c in shapes)], is_image=True)
    return array if array.shape in shapes else array.transpose(1, 2, 0)


def _state(name: str, value: Any, width: int) -> np.ndarray:
    """(width,) float32; numbers that overflow become infinite, which the schema refuses."""
    value = _number(value)
    if isinstance(value, int | float):
        value = [value]
    if isinstance(value, list):
        numbers = [_number(item) for item in value]
        if len(numbers) != width or not all(isinstance(number, int | float) for number in numbers):
            raise GtpVisionError(f"'{name}' is a list of {len(value)} items; send ({width},) numbers")
        array = np.array([float(number) for number in numbers])
    else:
        array = _array(name, value, [(width,)])
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _array(name: str, value: Any, shapes: list[tuple[int, ...]], *, is_image: bool = False) -> np.ndarray:
    """A view of an array's bytes, once its dtype, shape and size are checked."""
    found = _packed(value)
    if found is None:
        raise GtpVisionError(f"'{name}' is {_kind(value)}; send an array {shapes[0]}")
    shape, data, dtype = found.shape, _bytes(found.data), None
    given = "a structured array" if isinstance(found.dtype, list) else f"of type {_kind(found.dtype)}"
    if isinstance(found.dtype, str):
        dtype = _DTYPES.get(found.dtype)
        given = f"of type {_cut(dtype.name if dtype else found.dtype)}"
        given += ", a pickle, which is not read" if found.dtype.endswith("O") else ""
    if dtype is None or (is_image and dtype != np.uint8):
        raise GtpVisionError(f"'{name}' is {given}; send {'uint8 from 0 to 255' if is_image else 'float32'}")
    if not isinstance(shape, list) or tuple(shape) not in shapes or not all(type(number) is int for number in shape):
        given = str(tuple(shape)) if isinstance(shape, list) else _kind(shape)
        raise GtpVisionError(f"'{name}' has shape {_cut(given)}; send {' or '.join(map(str, shapes))}")
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        given = f"{len(data)} bytes" if isinstance(data, bytes) else _kind(data)
        raise GtpVisionError(f"'{name}' {tuple(shape)} of type {dtype.name} holds {given}; send {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _seed(value: Any) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value < _SEED):
        raise GtpVisionError(f"'seed' is {_cut(value) if type(value) is int else _kind(value)}; send 0 to {_SEED - 1}")
    return value


def _steps(name: str, value: Any) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value <= _MOST):
        raise GtpVisionError(f"'{name}' is {_cut(value) if type(value) is int else _kind(value)}; send 0 to {_MOST}")
    return value


def _milliseconds(name: str, value: Any) -> float:
    """Seconds."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        given = _cut(value) if type(value) in (int, float) else _kind(value)
        raise GtpVisionError(f"'{name}' is {given}; send 0 to {_LATEST:g}")
    return value / 1e3


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _kind(value: object) -> str:
    kinds = {dict: "a map", list: "a list", bytes: "bytes", str: "text", type(None): "nothing", bool: "true or false"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def _cut(value: object, length: int = 80) -> str:
    """Untrusted text for an error message, shortened."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."
