import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from browser import Browser, chromium
from pages import Page
from PIL import Image
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.datasets import viewing
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.inspection import facts
from gtp_vision.datasets.store import Store

HOSTILE = "</script><script>document.title='no'</script><img src=x onerror=alert(1)>"


def values_of(page: Page) -> dict[str, Any]:
    """What the script is given."""
    return dict(json.loads(page.texts["script"][0]))


def write(path: Path, store: Store, **options: Any) -> Page:
    with np.errstate(all="ignore"):  # as `inspect` does
        found = {"path": "data.h5", "format": "native", "title": "gtp-vision HDF5"} | facts(store)
    viewing.write_page(path, found, store, **options)
    return Page(path)


def frames(film: dict[str, str]) -> list[np.ndarray]:
    found = re.search(r"url\(data:image/jpeg;base64,([^)]*)\)", film["style"] or "")
    assert found
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))
    columns, lines = int(film["data-columns"] or 0), int(film["data-lines"] or 0)
    height, width = sheet.shape[0] // lines, sheet.shape[1] // columns
    return [sheet[n // columns * height :][:height, n % columns * width :][:, :width] for n in range(columns * lines)]


def test_frames_and_numbers_are_those_recorded(tmp_path: Path) -> None:
    store = make_store([5, 8], cameras={"left": (16, 16, 3), "depth": (16, 24, 1)})
    for name in ("left", "depth"):  # even frames, which JPEG hardly changes
        store.observations[name][:] = (np.arange(13) * 15)[:, None, None, None]
    page = write(tmp_path / "a.html", store)
    films, values = page.of("film"), values_of(page)
    assert [film["aria-label"] for film in films] == ["left", "depth"] * 2
    for number, film in enumerate(films):
        first, length = ((0, 5), (5, 8))[number // 2]
        for row, frame in zip(range(first, first + length), frames(film), strict=False):
            assert np.abs(frame.astype(int) - 15 * row).max() <= 3, f"film {number}, row {row}"
    for episode, (first, end) in zip(values["episodes"], [(0, 5), (5, 13)], strict=True):
        assert episode["moments"] == list(range(end - first))
        action, reward, *_ = episode["panels"]
        known = store.has_outcome[first:end]
        for line, wanted in zip(
            [*action, *reward], [*store.actions[first:end].T, store.rewards[first:end]], strict=True
        ):
            told = np.array([np.nan if value is None else value for value in line])
            np.testing.assert_allclose(told[known], wanted[known], rtol=1e-3)
            assert np.isnan(told[~known]).all(), "an action without an outcome is a filler"


def test_long_episodes_are_thinned_but_for_what_happens(tmp_path: Path) -> None:
    rewards = np.zeros(5000, np.float32)
    rewards[1234] = 1
    store = make_store([4990, 10], rewards=rewards, terminals={1300}, cameras={"front": (4, 4, 3)})
    page = write(tmp_path / "a.html", store)
    moments = values_of(page)["episodes"][0]["moments"]
    assert {0, 1233, 1234, 1235, 1300, 4989} <= set(moments)
    assert moments == sorted(set(moments))
    assert 300 <= len(moments) <= 310
    assert max(np.diff(moments)) < 20
    assert "300 evenly spread frames" in (tmp_path / "a.html").read_text()
    store.rewards[:] = np.random.default_rng(0).normal(size=5000)
    assert len(values_of(write(tmp_path / "a.html", store))["episodes"][0]["moments"]) == 300


def test_long_films_keep_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store([40], cameras={"front": (8, 8, 3)})
    store.observations["front"][:] = (np.arange(40) * 6)[:, None, None, None]
    monkeypatch.setattr(viewing, "_PIXELS", 64 * 12)
    (film,) = write(tmp_path / "a.html", store).of("film")
    every = int(film["data-every"] or 0)
    assert every == 4
    for number in range(10):
        assert np.abs(frames(film)[number].astype(int) - 6 * every * number).max() <= 3
    assert "at most 12 frames" in (tmp_path / "a.html").read_text()


def test_lines_show_finite_numbers_of_any_size_and_break_at_the_others(tmp_path: Path) -> None:
    store = make_store([6], state=2)
    store.observations = {
        "state": np.arange(12, dtype=np.float32).reshape(6, 2),
        "far": np.array([[-3e38], [3e38], [0], [np.inf], [0], [0]], np.float32),
        "reward": np.full((6, 1), 1e30, np.float32),
    }
    store.observations["state"][2] = np.nan
    store.observations["state"][4, 1] = np.inf
    page = write(tmp_path / "a.html", store)
    _, _, state, far, reward = values_of(page)["episodes"][0]["panels"]
    assert state == [[0, 2, None, 6, 8, 10], [1, 3, None, 7, None, 11]]
    assert (far, reward) == ([[-3e38, 3e38, 0, None, 0, 0]], [[1e30] * 6])
    paths = [found["d"] or "" for tag, found in page.elements if tag == "path"][-4:]
    assert [path.count("M") for path in paths] == [2, 3, 2, 1]
    assert [len(re.findall("[ML]", path)) for path in paths] == [5, 4, 5, 6]
    assert paths[0].startswith("M0.0 90.0"), "the least stands at the bottom"
    assert paths[1].endswith("M600.0 0.0h0"), "the last alone is a dot, and the largest of both"
    assert "45.0" in paths[3], "what never changes stands in the middle"


def test_only_a_part_of_very_many_arrays_and_episodes_is_shown(tmp_path: Path) -> None:
    store = make_store([3] * 20, cameras={f"camera{number}": (4, 4, 3) for number in range(20)}, state=30)
    store.observations |= {f"state{number}": np.zeros((60, 2), np.float32) for number in range(20)}
    store.observations["float"] = np.zeros((60, 4, 4, 3), np.float32)
    page = write(tmp_path / "a.html", store, episodes=2)
    text = (tmp_path / "a.html").read_text()
    assert len(page.of("film")) == 2 * 16
    assert [text.split(":")[0] for text in page.texts["option"]] == ["Episode 0", "Episode 19"]
    counts = ("2 of 20 episodes", "16 of 20 cameras", "12 of 21 states", "faults: float", "first 16 of 30")
    assert all(words in text for words in counts)
    assert [len(panel) for panel in values_of(page)["episodes"][0]["panels"]] == [2, 1, 16, *[2] * 11]


def test_a_page_replaces_only_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = native.write(tmp_path / "data.h5", make_store())
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--episodes", "1"]):
        assert main(["data", "view", "data.h5", *options]) == 0
    assert len(values_of(Page(tmp_path / "data.html"))["episodes"]) == 1
    (tmp_path / "notes.html").write_text("my notes")
    before = path.read_bytes()
    for options, words in (
        (["--out", "data.h5"], "ends in .html"),
        (["--out", "notes.html"], "is not a HTML file, so it is not replaced"),
        (["--episodes", "0"], "choose from 1 to 50"),
        (["--episodes", "51"], "choose from 1 to 50"),
    ):
        assert main(["data", "view", "data.h5", *options]) == 2
        assert words in capsys.readouterr().err
    assert path.read_bytes() == before
    assert (tmp_path / "notes.html").read_text() == "my notes"


def test_marks_of_success_are_shown(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", make_store((5, 7, 6), attributes={"episode_success": [True, None, False]}))
    assert [text.rpartition(", ")[2].strip() for text in page.texts["option"]] == [
        "a success",
        "no terminal",
        "a failure",
    ]


def test_names_from_a_file_are_only_text(tmp_path: Path) -> None:
    attributes = {"tasks": [HOSTILE], "episode_tasks": [0, 0], HOSTILE: HOSTILE}
    store = make_store(attributes=attributes, cameras={HOSTILE: (4, 4, 3)})
    store.observations |= {f"state {HOSTILE}": np.zeros((12, 2), np.float32), f"odd {HOSTILE}": np.zeros((12, 0))}
    path = tmp_path / "a.html"
    found = {"path": f"/data/{HOSTILE}", "format": "native", "title": HOSTILE} | facts(store)
    viewing.write_page(path, found, store)
    page = Page(path)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in page.elements]
    assert HOSTILE in page.texts["option"][0]
    assert page.of("film")[0]["aria-label"] == HOSTILE


def test_faulty_rows_are_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = native.write(tmp_path / "data.h5", make_store(cameras={"front": (4, 4, 3)}))
    with h5py.File(path, "r+") as file:
        file["timeouts"][2] = 1
    assert main(["data", "view", str(path), "--out", str(tmp_path / "a.html")]) == 2
    told = "timeouts are set inside an episode, first at episode 0, frame 2; end the episode there"
    assert f"PROBLEM {told}" in capsys.readouterr().out
    assert told in (tmp_path / "a.html").read_text()
    assert "section" not in Page(tmp_path / "a.html").texts


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two episodes with two cameras, one of them with a hostile name."""
    folder = tmp_path_factory.mktemp("view")
    store = make_store([30, 4], cameras={"front": (16, 16, 3), HOSTILE: (16, 32, 3)}, attributes={"fps": 100})
    for camera in ("front", HOSTILE):
        store.observations[camera][:] = (np.arange(34) * 7)[:, None, None, None]
    store.observations["long"] = np.zeros((34, 40), np.float32)
    store.rewards[:] = np.arange(34)
    write(folder / "page.html", store)
    return folder / "page.html"


@pytest.mark.browser
@pytest.mark.parametrize("width", [380, 1280])
def test_in_a_browser_frames_follow_the_slider(browser: Browser, shown: Path, width: int, tmp_path: Path) -> None:
    def grey() -> int:
        """Of the first camera's middle, as the browser draws it."""
        page.run(f"{film}.scrollIntoView({{block: 'center'}})")
        x, y, side = page.run(seen)
        pixels = np.asarray(Image.open(page.picture(tmp_path / "page.png")).convert("L"))
        return int(pixels[int(y + side / 2), int(x + side / 2)])

    film = "document.querySelector('section:not([hidden]) .film')"
    seen = f"(({{x, y, width}}) => [x, y, width])({film}.getBoundingClientRect())"
    reward = "document.querySelectorAll('section:not([hidden]) .values')[1].querySelector('output').textContent"
    with browser.page(shown, width=width) as page:
        assert page.spill() == 0
        move = """(name, value, event) => {
            const one = document.querySelector(name);
            one.value = value;
            one.dispatchEvent(new Event(event));
        }"""
        for row in (0, 17, 28):
            page.run(f"({move})('input', {row}, 'input')")
            assert page.run(reward) == str(row)
            assert abs(grey() - 7 * row) <= 4
            assert page.run("document.querySelector('#controls output').textContent") == f"frame {row} / 29"
        press = "(key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
        for key, row in (("ArrowLeft", "27"), ("ArrowRight", "28"), ("ArrowRight", "–"), ("ArrowRight", "–")):
            page.run(f"({press})({json.dumps(key)})")
            assert page.run(reward) == row, "the last frame's reward is nobody's"
        page.run(f"({move})('input', 29, 'input')")
        page.run("document.querySelector('button').click()")  # from the end it plays from the start
        page.until("document.querySelector('button').textContent === 'Play'")
        assert page.run("document.querySelector('input').value") == "29"
        page.run(f"({move})('select', 1, 'change')")
        assert page.run(reward) == "30"
        assert abs(grey() - 7 * 30) <= 4
        assert page.run("document.querySelectorAll('section:not([hidden])').length") == 1
        assert page.run("document.title") == "data.h5"
        assert page.spill() == 0
        assert page.complaints() == []
        assert page.requests() == []


@pytest.mark.browser
def test_without_scripts_first_frames_lines_and_findings_are_seen(browser: Browser, shown: Path) -> None:
    with browser.page(shown, scripts=False) as page:
        text = page.run("document.body.innerText")
        assert "Scripts are off" in text
        assert "Play" not in text
        assert page.run("document.querySelectorAll('section:not([hidden])').length") == 2
        assert page.complaints() == []
