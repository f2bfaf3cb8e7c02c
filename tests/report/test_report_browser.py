import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, chromium
from PIL import Image
from report_pages import make_run

from gtp_vision.report import build_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, mp4: bytes) -> dict[str, Path]:
    """A page of one run with a warning, and one of two seeds of an agent and another agent."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run(folder / f"gtp{seed}", mp4, seed=seed, shade=40, curves=True) for seed in (0, 1)]
    runs.append(make_run(folder / "fql", mp4, agent="fql", outcomes="ffs", shade=40, curves=True))
    warning = {"step": 900, "kind": "collapse", "told": "step 900: " + "success fell from 80 % to 10 %, " * 4}
    (runs[0] / "health.json").write_text(json.dumps([warning]))
    return {
        "one": build_report(runs[:1], folder / "one.html", title="Reach from pixels"),
        "three": build_report(runs, folder / "three.html", title="Reach from pixels, three runs"),
    }


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("name", ["one", "three"])
def test_everything_is_there_and_nothing_spills(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    with browser.page(pages[name], width=width) as page:
        page.until("[...document.querySelectorAll('video')].every((video) => video.videoWidth === 64)")
        assert page.spill() == 0
        assert page.run("[...document.querySelectorAll('img')].every((image) => image.naturalWidth === 16)")
        assert "system-ui" in page.run("getComputedStyle(document.querySelector('.panels svg text')).fontFamily")
        titles = page.run("[...document.querySelectorAll('h2')].map((title) => title.textContent)")
        assert {"Summary", "Health", "Evaluation videos", "Learning curves"} <= set(titles)
        assert ({"Comparison", "Side by side"} <= set(titles)) == (name == "three")
        outside = """[...document.querySelectorAll('td, th, h1, h2, p, li, figcaption')].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width > 0 && (box.left < 0 || box.right > innerWidth + 1) && !one.closest('.wide');
        }).map((one) => one.textContent.slice(0, 60))"""
        assert page.run(outside) == []
        assert page.complaints() == []
        assert page.requests() == []


def test_videos_of_an_episode_play_together(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.page(pages["three"]) as page:
        row = "document.querySelector('[data-together]')"
        films = f"[...{row}.querySelectorAll('video')]"
        assert page.run(f"{films}.length") == 2
        page.until(f"{films}.every((film) => film.readyState >= 2)")
        assert page.run(f"{films}.every((film) => !film.loop)")
        page.until(f"{films}.every((film) => film.ended)")
        assert page.run(f"!{row}.querySelector('button').hidden")
        page.run(f"{row}.querySelector('button').click()")
        page.until(f"{films}.every((film) => !film.ended)")
        times = f"...{films}.map((film) => film.currentTime)"
        assert page.run(f"Math.max({times}) - Math.min({times})") < 0.4
        assert page.complaints() == []


def test_without_scripts_everything_is_there(browser: Browser, pages: dict[str, Path]) -> None:
    with browser.page(pages["three"], scripts=False) as page:
        assert page.complaints() == []
        assert page.requests() == []
        text = page.run("document.body.innerText")
        assert "Start together" not in text, "a button that does nothing is not shown"
        assert "Side by side" in text
        assert page.run("[...document.querySelectorAll('[data-together] video')].every((film) => film.loop)")


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_follows_the_users_color_scheme(
    browser: Browser, pages: dict[str, Path], dark: bool, tmp_path: Path
) -> None:
    with browser.page(pages["three"], dark=dark) as page:
        shot = page.picture(tmp_path / "page.png")
    pixels = np.asarray(Image.open(shot).convert("L")).astype(int)
    background = int(pixels[2, 2])
    assert background < 40 if dark else background > 240
    assert np.abs(pixels - background).max() > 150, "there is text with contrast"
