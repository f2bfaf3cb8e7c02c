"""Plain language: words that a reader would have to look at twice are refused in messages, docstrings and docs."""

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFUSED = re.compile(
    r"\b(told(?!\")|tells? of|mends?|mended|mending|goes on|go on|going on|what came of|came of|asks for|strangers?"
    r"|for want of|is not to be had|beyond all measure|nobody|whose it is)\b"
    r"|(?<!there )\b(?:is|are|was|were) no (?!longer\b|more than\b)\w+",  # "it is no run"; "there is no run" is plain
    re.IGNORECASE,
)
CODE = [*ROOT.glob("gtp_vision/**/*.py"), *ROOT.glob("datasets/**/*.py"), *ROOT.glob("encoders/**/*.py")]
PAGES = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("gtp_vision/**/*.j2")]
SCRIPTS = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]


def refused(text: str) -> list[str]:
    return [found[0] for found in REFUSED.finditer(" ".join(text.split()))]


def test_messages_comments_and_docstrings_are_plain() -> None:
    faults = []
    for path in CODE:
        text = path.read_text(encoding="utf-8")
        if not refused(text):  # names may match, so only strings and comments of these files count
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.STRING, tokenize.COMMENT):
                faults += [f"{path.relative_to(ROOT)}:{token.start[0]}: {word}" for word in refused(token.string)]
    assert faults == []


def test_docs_configurations_and_scripts_are_plain() -> None:
    faults = []
    for path in [*PAGES, *SCRIPTS]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            faults += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in refused(line)]
    assert faults == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
