"""What all our pages share: one HTML file without network, whose policy lets the browser run nothing but our script."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def environment(folder: Path) -> jinja2.Environment:
    """Where a page's templates lie. Every text that is filled in is escaped, and one that is not given is an error.

    Templates may use `style`, the rules that all pages share, as the beginning of their own.
    """
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["style"] = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    return found


def script(path: Path) -> dict[str, Markup]:
    """A script of ours as `script`, and as `script_hash` its source in a Content-Security-Policy."""
    text = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": Markup(f"'sha256-{digest}'")}


def block(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def data_uri(content: bytes, kind: str) -> str:
    """Content of a media type, e.g. `image/png`, as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
