"""What `remote.RemoteEnv` runs in another Python: `PYTHON _remote_worker.py FILE`, needs NumPy and Python 3.8.

FILE has `make(settings)`, which returns an object with `spaces() -> (observations by name, low, high, facts)`,
`reset(seed) -> (observations, info)`, `step(action) -> (observations, reward, terminated, info)`, and maybe
`state() -> arrays` and `restore(arrays)`. Requests come on stdin, answers go to stdout, as `write` has them:

    8 bytes, little-endian: length of a JSON object, which has "arrays": [[name, dtype, shape], ...]
    that object, then the arrays' bytes, C-contiguous, one after another
"""

import json
import math
import os
import runpy
import struct
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder has files of the simulators' names

import numpy as np

DTYPES = ("|u1", "|b1", "<f4", "<f8", "<i4", "<i8")
LARGEST = 1 << 28
"""Bytes of a message."""


def write(stream, fields, arrays=None):  # type: ignore[no-untyped-def]
    """Write a message: JSON-able fields, and arrays by name."""
    held = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in held.items()]
    header = json.dumps({**fields, "arrays": described}).encode()
    stream.write(struct.pack("<Q", len(header)) + header + b"".join(array.tobytes() for array in held.values()))
    stream.flush()


def read(exactly):  # type: ignore[no-untyped-def]
    """Read a message by `exactly`, a function of a number of bytes: fields, and arrays by name.

    Raises ValueError: what is declared is not of `DTYPES`, or larger than `LARGEST`.
    """
    (length,) = struct.unpack("<Q", exactly(8))
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes is too long")
    fields = json.loads(exactly(length))
    arrays, total = {}, 0
    for name, dtype, shape in fields.pop("arrays"):
        if dtype not in DTYPES or not all(isinstance(size, int) and 0 <= size <= LARGEST for size in shape):
            raise ValueError(f"an array is of dtype {str(dtype)[:20]} and shape {str(shape)[:80]}")
        size = np.dtype(dtype).itemsize * math.prod(shape)
        total += size
        if total > LARGEST:
            raise ValueError(f"the arrays of a message have more than {LARGEST} bytes")
        arrays[str(name)] = np.frombuffer(exactly(size), dtype).reshape(shape).copy()
    return fields, arrays


def _answer(env, fields, arrays):  # type: ignore[no-untyped-def]
    kind = fields["do"]
    if kind == "reset":
        seen, info = env.reset(int(fields["seed"]))
        return {"info": info}, seen
    if kind == "step":
        seen, reward, terminated, info = env.step(arrays["action"])
        return {"reward": float(reward), "terminated": bool(terminated), "info": info}, seen
    if kind == "state":
        return {}, env.state()
    if kind == "restore":
        env.restore(arrays)
        return {}, {}
    raise ValueError("unknown request")


def _serve():  # type: ignore[no-untyped-def]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the simulator prints
    sys.stdout = sys.stderr
    requests = sys.stdin.buffer
    os.environ.setdefault("LP_NUM_THREADS", "1")

    def exactly(size):  # type: ignore[no-untyped-def]
        data = requests.read(size)
        if len(data) < size:
            raise EOFError
        return data

    env = None
    while True:
        try:
            fields, arrays = read(exactly)
        except EOFError:  # the other process has ended
            return
        try:
            if env is None:
                env = runpy.run_path(sys.argv[1])["make"](fields)
                observations, low, high, facts = env.spaces()
                write(answers, {"facts": facts}, {"low": low, "high": high, **observations})
            else:
                write(answers, *_answer(env, fields, arrays))
        except Exception as error:
            known = getattr(error, "known", [])
            text = " ".join(str(error).split()) or "without a message"
            write(answers, {"error": text if known else f"{type(error).__name__}: {text}", "known": known})


if __name__ == "__main__":
    _serve()
