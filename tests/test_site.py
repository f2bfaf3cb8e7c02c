"""The documentation's site: built as scripts/docs builds it, strictly, and loading nothing from the network."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from commands import ended

from gtp_vision.core.names import __version__

pytestmark = pytest.mark.docs

ROOT = Path(__file__).resolve().parents[1]
TWO_SCREENS = 1600  # pixels, 1280 wide
TYPE = """(input => {
  input.focus();
  input.value = "teleoperated rehearse";
  input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
})(document.querySelector(".md-search__input"))"""
LOADED = re.compile(r"""<(?:script|img|link|source|iframe)\b[^>]*?\b(?:src|href)=["']?([^"'\s>]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # It fails e.g. at a broken link or anchor, or a page that is not in nav.
    ended("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder, cwd=ROOT)
    return folder


def test_every_page_of_the_docs_is_there(site: Path) -> None:
    pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    pages |= {"index.html", "contributing.html", "security.html", "changelog.html"}
    assert pages <= {path.name for path in site.glob("*.html")}
    assert not list(site.rglob("*.py"))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = {(page.name, link) for page in site.glob("*.html") for link in LOADED.findall(page.read_text("utf-8"))}
    assert len(loaded) > 50
    assert not {link for _, link in loaded if re.match(r"(https?:)?//", link)}
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import\s+['\"]http", style.read_text("utf-8")), style.name
    assert {link for page, link in loaded if page == "method.html"} >= {"img/method-map.png", "img/method-jumps.png"}


def test_every_page_names_its_version_and_date(site: Path) -> None:
    for page in site.glob("*.html"):
        assert re.search(rf"gtp-vision {re.escape(__version__)}, \d{{4}}-\d\d-\d\d", page.read_text("utf-8")), page.name


def test_agents_of_the_readme_keep_their_names(site: Path) -> None:
    assert re.search("gtp_bc</code> .*gtp_vision/agents/gtp.py", (site / "index.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.browser
def test_search_works_in_pages_of_the_disk(site: Path, browser: Browser) -> None:
    with browser.page(site / "index.html") as page:
        page.run(f"document.querySelector('#__search').click(), {TYPE}")
        page.until("document.querySelector('.md-search-result__item a') !== null")
        found = page.run("[...document.querySelectorAll('.md-search-result__item a')].map(link => link.href).join()")
        assert "robot.html" in found
        assert page.complaints() == []
        assert [address for address in page.requests() if not address.startswith("file:")] == []


@pytest.mark.browser
def test_pages_say_what_they_are_about_on_two_screens(site: Path, browser: Browser) -> None:
    late = []
    for path in sorted(site.glob("*.html")):
        if path.stem in ("404", "api", "changelog"):
            continue
        with browser.page(path) as page:
            for what in ("h2", "pre, img, table"):  # where details begin; the first command, picture or table
                top = page.run(
                    f"document.querySelector('article').querySelector('{what}')?.getBoundingClientRect().top ?? 0"
                )
                late += [f"{path.stem}: {what} at {top:.0f}"] if top > TWO_SCREENS else []
    assert late == []


def test_links_of_the_readme_lead_to_pages_of_the_site(site: Path) -> None:
    index = (site / "index.html").read_text("utf-8")
    assert 'href="data.html#your-own-arrays"' in index
    assert 'href="docs/' not in index
    assert 'href="gtp_vision/' not in index
    assert "gtp_vision/agents/gtp.py" in index, "sources are named, as the site does not hold them"


def test_the_api_page_holds_the_docstrings(site: Path) -> None:
    api = (site / "api.html").read_text("utf-8")
    named = re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert len(named) > 15
    assert all(f'id="{name}"' in api for name in named if name[name.rindex(".") + 1].isupper())
    assert "not bootstrap" in api or "episode_ends" in api
    assert "Raises" in api
