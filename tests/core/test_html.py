import base64
import hashlib
import json
from pathlib import Path

import jinja2
import pytest

from gtp_vision.core import html


def test_no_text_ends_a_block_of_json() -> None:
    value = {"</script><!--": ["<script>", "&amp;", "\u2028", None, 0.1]}
    block = html.block(value)
    assert not set("<>&") & set(block)
    assert json.loads(block) == value
    with pytest.raises(ValueError, match="JSON"):
        html.block([float("nan")])


def test_text_is_escaped_and_scripts_come_with_their_hash(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("<p>{{ text }}</p><style>{{ style }}</style>")
    template = html.environment(tmp_path).get_template("a.j2")
    page = template.render(text="<b>&")
    assert "<p>&lt;b&gt;&amp;</p>" in page
    assert '"Segoe UI"' in page, "our own rules are not escaped"
    with pytest.raises(jinja2.UndefinedError):
        template.render()
    (tmp_path / "a.js").write_text("let a = 1 < 2;\n")
    digest = base64.b64encode(hashlib.sha256(b"let a = 1 < 2;\n").digest()).decode()
    assert html.script(tmp_path / "a.js") == {"script": "let a = 1 < 2;\n", "script_hash": f"'sha256-{digest}'"}
