"""Make the pictures and videos of docs/gallery.md, and its captions, from the runs of a demo.

    gtp-vision demo
    .venv/bin/python -P docs/img/gallery.py runs/demo

It runs the command of each caption, photographs pages with Chromium, and writes WebP files to docs/img/gallery/ and
the page between its comments. Videos are animated WebP, which pages of the disk and code hosts play like a picture.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOLDER = ROOT / "docs" / "gallery.md", ROOT / "docs" / "img" / "gallery"
DATA = "datasets/demo/visual-puzzle-3x3.h5"
LIMIT = 3_000_000  # bytes of all pictures
CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
)
BEGIN, END = "<!-- docs/img/gallery.py -->", "<!-- end -->"


def ours(work: Path, *words: str) -> str:
    """Run `gtp-vision` in a folder, and return the command as a reader types it."""
    subprocess.run([sys.executable, "-P", "-m", "gtp_vision", *words], cwd=work, check=True, env=dict(os.environ))
    return " ".join(["gtp-vision", *words])


def video(source: Path, name: str, *, side: int = 192, most: int = 60) -> None:
    """A video as animated WebP of at most so many frames, each as long as those it stands for."""
    frames = iio.imread(source)
    every = max(1, -(-len(frames) // most))
    images = [Image.fromarray(frame) for frame in frames[::every]]
    for image in images:
        image.thumbnail((2 * side, side))
    seconds = every / iio.immeta(source)["fps"]
    images[0].save(
        FOLDER / name,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 * seconds),
        loop=0,
        quality=45,
        method=4,
    )


def photograph(page: Path, name: str, *, height: int, width: int = 1000, top: int = 0) -> None:
    """A part of an HTML page as WebP."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        size = [f"--window-size={width},{top + height}", f"--user-data-dir={folder}/profile"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*CHROMIUM, *size, f"--screenshot={shot}", page.as_uri()], check=True, **quiet)
        Image.open(shot).convert("RGB").crop((0, top, width, top + height)).save(FOLDER / name, quality=70, method=6)


def still(source: Path, name: str, *, width: int = 1000) -> None:
    """A picture as WebP."""
    image = Image.open(source).convert("RGB")
    image.thumbnail((width, 4 * width))
    image.save(FOLDER / name, quality=70, method=6)


def entry(title: str, command: str, text: str, names: Sequence[str]) -> str:
    """A part of the page."""
    pictures = "\n".join(f"![{title}](img/gallery/{name})" for name in names)
    return f"## {title}\n\n```bash\n{command}\n```\n\n{text}\n\n{pictures}\n"


def trained(run: Path) -> str:
    """How long a run trained, for the captions."""
    return f"{(run / 'checkpoints' / 'last').resolve().name.removeprefix('step_')} steps"


def make(runs: Path, work: Path) -> list[str]:
    """Run everything; the page's parts in order."""
    (work / "datasets").symlink_to(ROOT / "datasets")
    (work / "runs").mkdir()
    (work / "runs" / "demo").symlink_to(runs)
    gtp, clone = "runs/demo/gtp", "runs/demo/gtp_bc"
    steps = f"GTP trained {trained(runs / 'gtp')}, behavior cloning {trained(runs / 'gtp_bc')}"
    parts = []

    command = ours(work, "data", "inspect", DATA, "--sheet", "frames.png")
    still(work / "frames.png", "inspect.webp", width=420)
    parts.append(
        entry(
            "A data set, before training",
            command,
            "First, middle and last frames of the demonstrations.",
            ["inspect.webp"],
        )
    )
    command = ours(work, "data", "view", DATA, "--out", "data.html", "--episodes", "2")
    photograph(work / "data.html", "view.webp", top=290, height=880)
    parts.append(
        entry(
            "Its episodes",
            command,
            "A page with the frames of all cameras at the moment that a slider chooses.",
            ["view.webp"],
        )
    )

    commands = [
        ours(work, "eval", run, "--episodes", "2", "--videos", f"videos/{Path(run).name}", "--saliency", "--json")
        for run in (gtp, clone)
    ]
    names = []
    for run in ("gtp", "gtp_bc"):
        for number, path in enumerate(sorted((work / "videos" / run).glob("*.mp4"))):
            names.append(f"{run}-{number}.webp")
            video(path, names[-1])
    parts.append(
        entry(
            "Episodes, and what moves the action",
            "\n".join(commands),
            f"Two episodes of each, GTP above ({steps}). Right of each: the pixels that move the action.",
            names,
        )
    )
    command = ours(work, "judge", gtp, clone, "--output", "judge")
    photograph(work / "judge" / "judge.html", "judge.webp", top=275, height=825)  # above it: the path of the data
    parts.append(
        entry(
            "Judged without a simulator", command, f"Which policy is better, and how surely ({steps}).", ["judge.webp"]
        )
    )
    command = ours(work, "report", gtp, clone, "--out", "report.html")
    photograph(work / "report.html", "report.webp", height=1200)
    parts.append(
        entry(
            "A report of two runs",
            command,
            f"Curves, tables, videos and what the encoder sees ({steps}).",
            ["report.webp"],
        )
    )
    return parts


def main() -> None:
    """Make pictures and page. Raises SystemExit: the pictures are larger than the limit."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        parts = make(Path(sys.argv[1]).resolve(), Path(work))
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{FOLDER} holds {size} bytes, more than {LIMIT}")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    body = "\n".join([BEGIN, "", *parts, END])
    PAGE.write_text(before + body + rest.partition(END)[2], encoding="utf-8")
    print(f"{len(list(FOLDER.iterdir()))} pictures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
