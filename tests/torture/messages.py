"""Messages of robots that are none: bytes, lengths, types, shapes, keys and depth become others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from gtp_vision.serving.protocol import EVERYTHING, Reader, packed
from torture.mutations import BYTES, STRANGE

CAMERAS = {"front": (84, 84, 3), "wrist": (84, 84, 3)}
STATES = {"proprioception": 9}
_HEADERS = 120  # bytes at both ends in which names, types, shapes and lengths stand
_LIES = (b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x05")
_SHAPES: tuple[Any, ...] = (
    [1 << 40, 84, 3],
    [-84, -84, 3],
    [84, 84],
    [],
    [84.5, 84, 3],
    "84",
    [[84, 84, 3]],
    [84, 84, 1 << 62],
)
_TYPES: tuple[Any, ...] = (
    "|O",
    "<f8",
    ">u1",
    "V9999999999",
    "S1",
    "",
    None,
    b"|O",
    [["x", "<f4"]],
    "<U99999999",
    "x" * 5000,
)


def sample(folder: Path) -> Path:
    """The message of a robot with two cameras and a state."""
    random = np.random.default_rng(0)
    seen: dict[str, Any] = {name: random.integers(0, 256, shape, np.uint8) for name, shape in CAMERAS.items()}
    seen |= {name: random.normal(size=width).astype(np.float32) for name, width in STATES.items()}
    path = folder / "message"
    path.write_bytes(packed(seen))
    return path


def damaged(path: Path, random: np.random.Generator) -> str:
    """Damage a message in one way; what was done."""
    content = bytearray(path.read_bytes())
    kind = random.random()
    if kind < 0.4:
        mutate = BYTES[random.integers(len(BYTES))]
        if random.random() < 0.7:  # where it says what it holds, and not in a picture
            head, content, tail = content[:_HEADERS], content[_HEADERS:-_HEADERS], content[-_HEADERS:]
            head, tail = (mutate(head, random), tail) if random.random() < 0.5 else (head, mutate(tail, random))
            content = head + content + tail
        else:
            content = mutate(content, random)
        path.write_bytes(content)
        return f"{mutate.__name__} bytes"
    if kind < 0.5:
        lie = _LIES[random.integers(len(_LIES))]
        place = int(random.integers(_HEADERS))
        path.write_bytes(content[:place] + lie + content[place:])
        return f"a length of {lie[1:5].hex()} at {place}"
    message = msgpack.unpackb(bytes(content))
    what = _WAYS[random.integers(len(_WAYS))](message, random)
    path.write_bytes(msgpack.packb(message, default=str))
    return what


def opened(path: Path) -> Callable[[Path], str]:
    """What reads messages: by the policy's names alone, and with all others passed over."""
    readers = [Reader(CAMERAS, STATES), Reader(CAMERAS, STATES, ignored=[EVERYTHING])]

    def use(path: Path) -> str:
        message = path.read_bytes()
        size = len(message)
        if any(size > reader.max_size for reader in readers):
            return "too large"  # websockets ends such a connection before it holds the message
        for reader in readers:
            request = reader.read(message)
            for array in (request.observation or {}).values():
                array.tobytes()
        return "sound"

    return use


def _key(message: dict[Any, Any], random: np.random.Generator) -> Any:
    keys = list(message)
    return keys[random.integers(len(keys))]


def _another_value(message: dict[Any, Any], random: np.random.Generator) -> str:
    key = _key(message, random)
    values = [value for value in STRANGE if not isinstance(value, int) or abs(value) < 1 << 63]
    values = [value for value in values if value != "\ud800"]  # msgpack writes no such text
    message[key] = values[random.integers(len(values))]
    return f"{key} = {str(message[key])[:30]!r}"


def _another_key(message: dict[Any, Any], random: np.random.Generator) -> str:
    key = _key(message, random)
    names = ("x" * 4000, "", "front/front", b"front", "seed", "reset", "\u0000", "/", "a/" * 50)
    name = names[random.integers(len(names))]
    message[name] = message.pop(key)
    return f"{key} is named {str(name)[:20]!r}"


def _another_shape(message: dict[Any, Any], random: np.random.Generator) -> str:
    key = _key(message, random)
    message[key][b"shape"] = _SHAPES[random.integers(len(_SHAPES))]
    return f"{key} of shape {message[key][b'shape']}"


def _another_type(message: dict[Any, Any], random: np.random.Generator) -> str:
    key = _key(message, random)
    message[key][b"dtype"] = _TYPES[random.integers(len(_TYPES))]
    return f"{key} of type {str(message[key][b'dtype'])[:20]}"


def _without(message: dict[Any, Any], random: np.random.Generator) -> str:
    key = _key(message, random)
    part = _key(message[key], random)
    del message[key][part]
    return f"{key} without {part!r}"


def _deep(message: dict[Any, Any], random: np.random.Generator) -> str:
    levels, node = int(random.choice([3, 5, 100, 400])), message
    for _ in range(levels):
        node["in"] = {}
        node = node["in"]
    return f"{levels} maps in maps"


def _many(message: dict[Any, Any], random: np.random.Generator) -> str:
    count = int(random.choice([100, 250, 300, 50_000]))
    if random.random() < 0.5:
        message |= {f"k{number}": number for number in range(count)}
        return f"{count} keys"
    message["many"] = [[] for _ in range(count)]
    return f"{count} lists"


def _extension(message: dict[Any, Any], random: np.random.Generator) -> str:
    key = _key(message, random)
    code = int(random.choice([0, 5, 127]))
    message[key] = msgpack.ExtType(code, bytes(int(random.choice([0, 1, 100_000]))))
    return f"{key} is an extension {code}"


_WAYS = (_another_value, _another_key, _another_shape, _another_type, _without, _deep, _many, _extension)
