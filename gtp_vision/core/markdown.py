"""Texts of untrusted files in a Markdown page."""

from __future__ import annotations

from typing import Any


def plain(text: Any) -> str:
    """Return a text on one line, without the characters that open a tag, a link, code or a cell of a table."""
    return "".join(letter if letter.isprintable() and letter not in "<>[]|`" else " " for letter in str(text))
