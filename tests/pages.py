"""A parsed page of HTML."""

import html
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """A page: its elements, its text, that of each element, its panels, and its tables by row and column."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.texts: dict[str, list[str]] = {}  # of each element, by its tag
        self.rows: list[dict[str, str]] = []
        self.panels: dict[str, str] = {}  # caption to SVG
        self.column: str | None = None
        source = path.read_text(encoding="utf-8")
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.parts).split())
        for figure in source.split("<figure>")[1:]:
            if "<svg" in figure.split("</figure>")[0]:
                caption = figure.split("<figcaption>")[1].split("</figcaption>")[0].split(" <")[0]
                self.panels[html.unescape(caption)] = figure.split("</figcaption>")[1].split("</figure>")[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes))
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append({})
        if tag == "td":
            self.column = attributes.get("data-label", "Agent")
            self.rows[-1][self.column] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.rows[-1][self.column or ""] = self.rows[-1][self.column or ""].strip()
            self.column = None

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        self.texts.setdefault(tag, [""])[-1] += data
        if tag != "style":
            self.parts.append(data)
        if self.column:
            self.rows[-1][self.column] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def of(self, kind: str) -> list[dict[str, str]]:
        """The attributes of all elements of a class."""
        return [attributes for _, attributes in self.elements if attributes.get("class") == kind]

    def row(self, number: int) -> dict[str, str]:
        return [row for row in self.rows if "Success, last" in row][number]
