"""What tests of readers share: files changed in one place, and the sentence by which they are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.validation import validate


def replaced(name: str, array: Any) -> Callable[[h5py.File], None]:
    """A change of an HDF5 file: another array of that name, or none."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if array is not None:
            file[name] = array

    return change


def refused(path: Path, *words: str) -> str:
    """The one sentence, with the path's name and the words, by which a data set is refused, and nothing else is."""
    with pytest.raises(GtpVisionError) as told:
        validate(open_store(path))
    message = str(told.value)
    assert path.name in message
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


def refusal(path: Path) -> str:
    """The one sentence by which a data set cannot be opened; empty if it can."""
    try:
        open_store(path)
    except GtpVisionError as told:
        sentence = str(told)
    else:
        sentence = ""
    assert "\n" not in sentence
    return sentence
