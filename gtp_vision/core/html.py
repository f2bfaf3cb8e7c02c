"""Pages as single HTML files without network access, whose policy lets the browser run only our script."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def environment(folder: Path) -> jinja2.Environment:
    """The templates of a folder. Inserted text is escaped, and a missing variable is an error.

    Templates may use `style`, the CSS rules that all pages share.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["style"] = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    return templates


def script(*paths: Path) -> dict[str, Markup]:
    """Scripts of ours, as one `script`, and as `script_hash` its hash for a Content-Security-Policy."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": Markup(f"'sha256-{digest}'")}


def block(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`, escaped so that no text ends the script."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def data_uri(content: bytes, kind: str) -> str:
    """Content of a media type, e.g. `image/png`, as a `data:` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
