"""Instructions: the texts of a data set's tasks as an observation, one vector a text.

The vector of a row is looked up by its episode, so that nothing is copied. One-hot vectors number the known texts;
features of a text encoder also place new ones. The table of texts and vectors is kept in the record of the data, so
runs and artifacts need no text encoder for the texts that they know.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import INSTRUCTION
from gtp_vision.datasets.arrays import Lookup
from gtp_vision.datasets.store import Store

TABLE = "instructions"
"""Attribute of data whose instructions are shown: the record of `Instructions`."""
MODES = ("id", "text")
"""Of `task.instructions`: one-hot vectors of known texts, or features of a text encoder."""
MOST = 1000
"""Texts of a table, which are read and compared whenever a policy is loaded."""
_LONGEST, _WIDEST = 1000, 10_000  # letters of a text, numbers of a vector

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts to their features (texts, D)."""


@dataclass(frozen=True, eq=False)
class Instructions:
    """Texts and their vectors.

    Attributes:
        texts: different ones.
        vectors: float32 (texts, D).
        encoder: the text encoder of the vectors; None of one-hot vectors.
    """

    texts: tuple[str, ...]
    vectors: np.ndarray
    encoder: str | None = None

    @staticmethod
    def made(texts: Sequence[str], encoder: str | None = None, encode: Encode | None = None) -> Instructions:
        """The table of some texts: one-hot vectors, or the features of `encoder`, which `encode` computes.

        Raises GtpVisionError: too many texts.
        """
        if len(texts) > MOST:
            raise GtpVisionError(
                f"the data hold {len(texts)} different instructions, and at most {MOST} are kept; choose fewer "
                f"episodes by task.filter, or set task.instructions=null"
            )
        vectors = np.eye(len(texts), dtype=np.float32) if encode is None else _scaled(encode(texts))
        return Instructions(tuple(texts), vectors, encoder)

    def extended(self, texts: Sequence[str], encode: Encode | None = None) -> Instructions:
        """The table with more texts after its own, whose vectors stay, but for the width of one-hot ones.

        Raises GtpVisionError: too many texts, or an encoder with features of another width.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.texts]
        made = Instructions.made([*self.texts, *new])
        if not new or self.encoder is None or encode is None:
            return made if new else self
        vectors = _scaled(encode(new))
        if vectors.shape[1] != self.vectors.shape[1]:
            raise GtpVisionError(
                f"the text encoder answers {vectors.shape[1]} features, and {self.encoder}, with which the policy was "
                f"trained, {self.vectors.shape[1]}; set task.text_encoder to that one"
            )
        return replace(self, texts=made.texts, vectors=np.concatenate([self.vectors, vectors]))

    def vector(self, text: str) -> np.ndarray:
        """float32 (D,), the vector of a text. Raises GtpVisionError: an unknown one."""
        text = text.strip()
        if text in self.texts:
            return self.vectors[self.texts.index(text)]
        how = "it knows only these"
        if self.encoder is not None:
            how = f"export the run with --instruction TEXT to add a new one, which needs its encoder {self.encoder}"
        raise GtpVisionError(
            f"'{text[:_LONGEST]}' is not an instruction of the policy: {propose(text, self.texts).rstrip('.')} ({how})"
        )

    def text(self, vector: np.ndarray) -> str | None:
        """The text of a vector (D,); None of a vector that is not in the table."""
        found = np.flatnonzero((self.vectors == vector).all(1))
        return self.texts[found[0]] if len(found) else None

    def shown(self, store: Store, texts: Sequence[str]) -> Store:
        """A store with the observation `INSTRUCTION`, of each episode's text; raises as `vector`."""
        for text in dict.fromkeys(texts):
            self.vector(text)
        numbers = np.array([self.texts.index(text) for text in texts], np.int32)
        index = np.repeat(numbers, store.episode_ends - store.episode_starts)
        return replace(
            store,
            observations={**store.observations, INSTRUCTION: Lookup(self.vectors, index)},
            attributes={**store.attributes, TABLE: self.record()},
        )

    def record(self) -> dict[str, Any]:
        """As JSON-able values: vectors of features as float16, in which they are exact."""
        packed = None
        if self.encoder is not None:
            packed = base64.b64encode(self.vectors.astype(np.float16).tobytes()).decode()
        return {"texts": list(self.texts), "encoder": self.encoder, "vectors": packed}

    @staticmethod
    def of(stored: Any) -> Instructions | None:
        """The table in untrusted JSON; None of None. Raises GtpVisionError: it is invalid."""
        if stored is None:
            return None
        try:
            texts, encoder = stored["texts"], stored["encoder"]
            if not 0 < len(texts) <= MOST or not all(isinstance(text, str) and len(text) <= _LONGEST for text in texts):
                raise ValueError("its texts are not a list of at most a thousand texts")
            if encoder is None:
                return Instructions.made(texts)
            vectors = np.frombuffer(base64.b64decode(stored["vectors"], validate=True), np.float16)
            vectors = vectors.reshape(len(texts), -1).astype(np.float32)
            if not 0 < vectors.shape[1] <= _WIDEST or not np.isfinite(vectors).all():
                raise ValueError("its vectors are not finite numbers")
            return Instructions(tuple(texts), vectors, str(encoder))
        except (KeyError, TypeError, ValueError) as error:
            raise GtpVisionError(f"its table of instructions is invalid ({type(error).__name__}: {error})") from error


def named_tasks(attributes: Mapping[str, Any], episodes: int) -> list[str] | None:
    """The text of each of so many episodes' tasks in the attributes of their data; None if these name none."""
    known, numbers = attributes.get("tasks"), attributes.get("episode_tasks")
    if not isinstance(known, list) or not isinstance(numbers, list) or len(numbers) != episodes:
        return None
    if not all(isinstance(number, int) and 0 <= number < len(known) for number in numbers):
        return None
    return [str(known[number]).strip()[:_LONGEST] for number in numbers]


def texts_of(store: Store) -> list[str]:
    """The text of each episode's task. Raises GtpVisionError: the data name none."""
    found = named_tasks(store.attributes, store.episodes)
    if found is None:
        raise GtpVisionError(
            f"{store.path or 'the data set'} does not name the task of each episode (attributes tasks and "
            f"episode_tasks); leave it out, write them into it, or set task.instructions=null"
        )
    return found


def table_of(attributes: Mapping[str, Any] | None) -> Instructions | None:
    """The table of instructions in the attributes of a record; None without one."""
    return None if attributes is None else Instructions.of(attributes.get(TABLE))


def _scaled(features: np.ndarray) -> np.ndarray:
    """Features (texts, D) at a mean square of 1 each, as float16 holds them: float32."""
    features = np.asarray(features, np.float32)
    norm = np.sqrt(np.square(features).mean(1, keepdims=True))
    return (features / np.maximum(norm, 1e-6)).astype(np.float16).astype(np.float32)
