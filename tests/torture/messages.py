"""Damaged messages to the policy server: bytes, lengths, types, shapes, keys and depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from gtp_vision.serving.protocol import EVERYTHING, Reader, packed
from torture.mutations import BYTES, STRANGE, pick

CAMERAS = {"front": (84, 84, 3), "wrist": (84, 84, 3)}
STATES = {"proprioception": 9}
_HEADERS = 120  # bytes at both ends with names, types, shapes and lengths
_LENGTHS = (b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x05")
_SHAPES: tuple[Any, ...] = (
    *([1 << 40, 84, 3], [-84, -84, 3], [84, 84], [], [84.5, 84, 3], "84", [[84, 84, 3]], [84, 84, 1 << 62]),
)
_TYPES: tuple[Any, ...] = (
    *("|O", "<f8", ">u1", "V9999999999", "S1", "", None, b"|O", [["x", "<f4"]], "<U99999999", "x" * 5000),
)
_NAMES = ("x" * 4000, "", "front/front", b"front", "seed", "reset", "\u0000", "/", "a/" * 50)
_VALUES = [x for x in STRANGE if x != "\ud800" and (not isinstance(x, int) or abs(x) < 1 << 63)]  # msgpack writes them


def sample(folder: Path) -> Path:
    """The message of a robot with two cameras and a state."""
    random = np.random.default_rng(0)
    observation: dict[str, Any] = {name: random.integers(0, 256, shape, np.uint8) for name, shape in CAMERAS.items()}
    observation |= {name: random.normal(size=width).astype(np.float32) for name, width in STATES.items()}
    path = folder / "message"
    path.write_bytes(packed(observation))
    return path


def damaged(path: Path, random: np.random.Generator) -> str:
    """Damage a message in one way."""
    content, kind = bytearray(path.read_bytes()), random.random()
    if kind < 0.5:
        place = int(random.integers(_HEADERS)) if random.random() < 0.7 else len(content) - _HEADERS
        if kind < 0.4:  # a part of it, mostly of its headers and not of a picture
            mutate = pick(random, BYTES)
            content[place:] = mutate(content[place : place + _HEADERS], random) + content[place + _HEADERS :]
            what = f"{mutate.__name__} bytes at {place}"
        else:
            length = pick(random, _LENGTHS)
            content[place:place] = length
            what = f"a length of {length[1:5].hex()} at {place}"
        path.write_bytes(content)
        return what
    message = msgpack.unpackb(bytes(content))
    what = pick(random, (_change_key, _change_key, _change_key, _change_key, _enlarge))(message, random)
    path.write_bytes(msgpack.packb(message, default=str))
    return what


def opened(path: Path) -> Callable[[Path], str]:
    """The function that reads messages: with the policy's names alone, and ignoring all others."""
    readers = [Reader(CAMERAS, STATES), Reader(CAMERAS, STATES, ignored=[EVERYTHING])]

    def use(path: Path) -> str:
        message = path.read_bytes()
        if any(len(message) > reader.max_size for reader in readers):
            return "too large"  # websockets closes such a connection before it holds the message
        for reader in readers:
            request = reader.read(message)
            for array in (request.observation or {}).values():
                array.tobytes()
        return "sound"

    return use


def _change_key(message: dict[Any, Any], random: np.random.Generator) -> str:
    """Change the value, name, shape or type of one key, or remove a part of it."""
    key, kind = pick(random, list(message)), int(random.integers(6))
    part = pick(random, list(message[key]))
    if kind == 0:
        message[key] = pick(random, _VALUES)
    elif kind == 1:
        message[pick(random, _NAMES)] = message.pop(key)
        return f"{key} is renamed"
    elif kind == 2:
        message[key] = msgpack.ExtType(pick(random, (0, 5, 127)), bytes(pick(random, (0, 1, 100_000))))
    elif kind == 3:
        del message[key][part]
    elif kind == 4:
        message[key][b"shape"] = pick(random, _SHAPES)
    else:
        message[key][b"dtype"] = pick(random, _TYPES)
    return f"{key} = {str(message[key])[:30]!r}"


def _enlarge(message: dict[Any, Any], random: np.random.Generator) -> str:
    """Add nested maps, keys or lists, some more than are allowed."""
    count, kind = pick(random, (3, 100, 300, 50_000)), int(random.integers(3))
    if kind == 0:
        levels, node = min(count, 400), message
        for _ in range(levels):
            node["in"] = node = {}
        return f"{levels} nested maps"
    if kind == 1:
        message |= {f"k{number}": number for number in range(count)}
        return f"{count} keys"
    message["many"] = [[] for _ in range(count)]
    return f"{count} lists"
