"""Where the frames live: mapped from the file, or on the device that trains."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.distributed import widest
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.arrays import Array, Lookup, gather, videos_of
from gtp_vision.datasets.layout import COPY_BYTES
from gtp_vision.datasets.store import Store

PLACEMENTS = ("auto", "mapped", "device")
_TORCH = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float16): torch.float16, np.dtype(np.float32): torch.float32}
_SHARE = 0.6  # of a GPU's free memory that frames may take; networks and activations need the rest


def transfer_dtype(dtype: np.dtype) -> np.dtype:
    """In which dtype rows travel: images as uint8, half floats as they are, other floats as float32."""
    return dtype if dtype in _TORCH else np.dtype(np.float32)


class Resident:
    """An array (N, ...), copied in pieces, whose rows live on a device; has the shape attributes of an `Array`.

    `index`, int32 (N,), says which rows of `tensor` those of a `Lookup` are; None of other arrays, whose rows they are.
    """

    def __init__(self, array: Array, device: torch.device) -> None:
        own = transfer_dtype(array.dtype)
        kind = _TORCH[own]
        self.shape, self.ndim, self.dtype, self.nbytes = array.shape, array.ndim, array.dtype, array.nbytes
        self.index = torch.from_numpy(array.index).to(device) if isinstance(array, Lookup) else None
        array = array.table if isinstance(array, Lookup) else array
        self.tensor = torch.empty(array.shape, dtype=kind, device=device)
        step = max(1, COPY_BYTES // max(1, array.nbytes // max(1, len(array))))
        for start in range(0, len(array), step):
            piece = np.ascontiguousarray(array[start : start + step], own)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a mapped file cannot be written, and is only read
                self.tensor[start : start + len(piece)] = torch.from_numpy(piece).to(device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = rows if isinstance(rows, slice) else torch.as_tensor(rows, device=self.tensor.device)
        return self.tensor[chosen if self.index is None else self.index[chosen]].cpu().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows, int64 (n,), on the device."""
        return self.tensor.index_select(0, rows if self.index is None else self.index.index_select(0, rows))


def place(
    store: Store, device: torch.device, how: str = "auto", *, what: str = "frames", source: Path | None = None
) -> tuple[Store, str]:
    """The store with its frames where they are to be, and a sentence about it.

    Args:
        store: mapped.
        device: that trains.
        how: `device` copies all frames there; `mapped` leaves them in the file, gathered and shipped by the loader;
            `auto` copies them to a GPU when they fill at most 60 % of its free memory. On a CPU mapped is as near as
            it gets: the operating system keeps the pages in memory, shared by all processes.
        what: the observations are called.
        source: where they are mapped from; None is the data set.

    Raises:
        GtpVisionError: `device` is demanded and they do not fit, or it lacks the float64 of returns.
    """
    if how == "device" and widest(device) != torch.float64:
        raise GtpVisionError(
            f"training.placement=device computes returns in float64, which {device} lacks; set "
            f"training.placement=mapped, which shares the same memory"
        )
    size = store.nbytes()
    free = free_memory(device)
    fits = size <= _SHARE * free
    if how == "device" and not fits:
        raise GtpVisionError(
            f"training.placement=device: the {what} of {store.path or 'the data set'} take {size / 1e9:.1f} GB and "
            f"{device} has {free / 1e9:.1f} GB free, of which they may take {_SHARE:.0%}; set training.placement=mapped"
        )
    if how == "device" or (how == "auto" and device.type == "cuda" and fits):
        moved: dict[str, Any] = {name: Resident(array, device) for name, array in store.observations.items()}
        return replace(store, observations=moved), f"data: {size / 1e9:.2f} GB of {what} on {device}"
    place = source or store.path or "memory"
    if videos := [part for array in store.observations.values() for part in videos_of(array)]:
        rows = len(store) * len(videos) / sum(len(part) / part.rows_per_keyframe() for part in videos)
        return store, (
            f"data: {size / 1e9:.2f} GB of {what}, decoded from the videos of {place} when they are needed, with a "
            f"keyframe every {rows:.3g} rows"
        )
    return store, f"data: {size / 1e9:.2f} GB of {what} mapped from {place}"


def free_memory(device: torch.device) -> int:
    """Bytes that a device, or the machine, has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def take_rows(array: Array | Resident, rows: np.ndarray, capacity: int) -> torch.Tensor:
    """The rows as a tensor where the array lives, in the dtype that `transfer_dtype` says.

    `rows` do not decrease; `capacity` is the most that will ever be asked for; see `gather`.
    """
    if isinstance(array, Resident):
        return array.take(torch.from_numpy(rows).to(array.tensor.device))
    frames = gather(array, rows, capacity)
    return torch.from_numpy(np.ascontiguousarray(frames, transfer_dtype(frames.dtype)))
