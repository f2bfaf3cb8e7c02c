"""Models of MuJoCo that a file holds: of those only numbers are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

_LARGEST = 1 << 24  # letters


def recorded_model(recorded: str, own: Sequence[str]) -> str | None:
    """A recorded model (XML) if it has the parts of one of our own, with this one's files; else None.

    So it names nothing that is opened or allocated: paths, the compiler's settings and sizes are our own.
    """
    parts = _parts(recorded)
    for ours in map(_parts, own):
        if [_identity(part) for part in ours] == [_identity(part) for part in parts]:
            for mine, its in zip(ours, parts, strict=True):
                if mine.tag in ("compiler", "size"):
                    its.attrib = dict(mine.attrib)
                elif "file" in mine.attrib:
                    its.set("file", mine.attrib["file"])
            return ElementTree.tostring(parts[0], encoding="unicode")
    return None


def _parts(model: str) -> list[ElementTree.Element]:
    """The elements in their order; none if the text is not XML, or declares entities."""
    if len(model) > _LARGEST or "<!" in model.replace("<!--", ""):
        return []
    try:
        return list(ElementTree.fromstring(model).iter())
    except ElementTree.ParseError:
        return []


def _identity(part: ElementTree.Element) -> tuple[str, str | None, str, bool]:
    return part.tag, part.get("name"), Path(part.get("file", "")).name, "file" in part.attrib
