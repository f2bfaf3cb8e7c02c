"""Hooks of mkdocs.yml: add the root's pages to the site, and replace links to sources by their paths."""

from __future__ import annotations

import datetime
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from gtp_vision.core.names import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<to>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


_tree = tempfile.TemporaryDirectory(prefix="gtp-vision-docs-")  # removed when the build's process ends


@event_priority(100)  # before the readers are made
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version, and link the package as it is installed: the API pages do not know setuptools' package-dir."""
    config.site_name = f"gtp-vision {__version__}"
    config.copyright = f"{config.site_name}, {_date()}"
    package = Path(_tree.name) / "gtp_vision"
    if not package.exists():
        package.mkdir()
        for path in (ROOT / "gtp_vision").iterdir():
            (package / path.name).symlink_to(path)
        mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
        for name, folder in mapping.items():
            (package / name.partition(".")[2]).symlink_to(ROOT / folder)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [_tree.name]
    return config


def _date() -> str:
    """Of the last commit; outside of a checkout, of the newest change to a page."""
    command = ["git", "log", "-1", "--format=%cs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    newest = max(path.stat().st_mtime for path in (ROOT / "docs").glob("*.md"))
    return done.stdout.strip() or datetime.date.fromtimestamp(newest).isoformat()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files of the repository by links to the pages of the site."""
    source = PAGES.get(page.file.src_uri)
    folder = ROOT if source else ROOT / "docs"
    if source:
        markdown = markdown.replace("](docs/img/", "](img/")
    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: _site_link(found, folder), part) for part in parts[::2]]
    return "".join(parts)


def _site_link(found: re.Match[str], folder: Path) -> str:
    text, to, anchor = found["text"], found["to"], found["anchor"] or ""
    if not to or "://" in to:
        return found[0]
    target = (folder / to).resolve()
    pages = {ROOT / name: page for page, name in PAGES.items()}
    if target in pages:
        return f"[{text}]({pages[target]}{anchor})"
    if target.is_relative_to(ROOT / "docs") and target.suffix != ".py":
        return f"[{text}]({target.relative_to(ROOT / 'docs')}{anchor})"
    if not target.exists():
        return found[0]
    path = f"`{target.relative_to(ROOT)}`"  # a source, which the site does not contain
    return path if path.strip("`").endswith(text.strip("`")) else f"{text} ({path})"
