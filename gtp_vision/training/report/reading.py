"""Run folders as they are read: they may come from strangers, be unfinished or damaged."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gtp_vision.config import agent_label
from gtp_vision.errors import GtpVisionError
from gtp_vision.training.insight import SALIENCY
from gtp_vision.training.report.telling import known, scalar

MAX_MEGABYTES = 8  # of one video or picture: the page should still go through a mail
MAX_VIDEOS = 4  # of one run

Series = dict[str, dict[float, float]]  # key -> step -> value, NaN where it was not finite


@dataclass
class Run:
    """One run folder as it was read: what was asked, what came out, what is wanting, and how it is drawn."""

    folder: Path
    config_text: str
    config: Any
    results: Mapping[str, Any] = field(default_factory=dict)
    series: Series = field(default_factory=dict)
    wanting: list[str] = field(default_factory=list)
    label: str = ""
    colour: str = ""
    dash: tuple[float, ...] = ()

    @property
    def made_with(self) -> list[tuple[str, str]]:
        """The device and the packages with their versions, as names and texts."""
        versions = self.results.get("versions")
        named = {"device": self.results.get("device"), **(versions if isinstance(versions, Mapping) else {})}
        return [(str(name), str(value)) for name, value in named.items() if value is not None]


def members(folder: Path) -> list[Path]:
    """The run folders in a folder of seeds that were trained side by side; of any other, itself."""
    inside = [config.parent for config in folder.glob("seed_*/config.yaml")]
    if not inside or (folder / "metrics.jsonl").exists():
        return [folder]
    return sorted(inside, key=lambda run: (len(run.name), run.name))


def read_run(folder: Path) -> Run:
    """Read a run folder's texts, and note what an unfinished or damaged run lacks."""
    if not folder.is_dir():
        raise GtpVisionError(f"There is no run folder {folder}; give one that `gtp-vision train` wrote.")
    if not (config := file_of(folder, "config.yaml")):
        raise GtpVisionError(f"{folder} is no run folder, it has no config.yaml; give one that has.")
    text = config.read_text(encoding="utf-8", errors="replace")
    try:
        run = Run(folder, text, yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise GtpVisionError(f"{config} is damaged YAML; restore it, or leave this run out.") from None
    if metrics := file_of(folder, "metrics.jsonl"):
        run.series, damaged = _read_metrics(metrics)
        if damaged:
            run.wanting.append(f"{damaged} damaged line(s) of metrics.jsonl skipped")
    else:
        run.wanting.append("no metrics.jsonl")
    if results := file_of(folder, "results.json"):
        run.results = json_object(results.read_text(encoding="utf-8", errors="replace"))
    if not run.results:
        run.wanting.append("results.json is damaged" if results else "not finished (no results.json)")
    return run


def file_of(folder: Path, name: str | Path) -> Path | None:
    """A file of the run, or None. A link out of the run is none: the page would publish what it points to."""
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; an empty one when it is damaged or something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_metrics(path: Path) -> tuple[Series, int]:
    """Every scalar of metrics.jsonl, and the number of damaged lines.

    A resumed run logs some steps twice; the later line counts.
    """
    series: Series = {}
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            record = json_object(line)
            step = known(record.pop("step", None))
            if step is None:
                damaged += 1
                continue
            for key, value in record.items():
                number = known(value)
                if number is not None or value is None or isinstance(value, float):
                    series.setdefault(key, {})[step] = math.nan if number is None else number
    return series, damaged


def _embed(run: Run, path: Path, kind: str, ending: bytes) -> str:
    """The file as a data address; an empty one, with the reason noted, when it is too large or damaged."""
    megabytes = path.stat().st_size / 2**20
    if megabytes > MAX_MEGABYTES:
        run.wanting.append(f"{path.name} left out: {megabytes:.1f} MB, the limit is {MAX_MEGABYTES} MB")
    elif ending not in (data := path.read_bytes()):
        run.wanting.append(f"{path.name} left out: the file is damaged")
    else:
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return ""


def videos_of(run: Run) -> tuple[str, list[dict[str, str]], list[dict[str, str]]]:
    """The last step with videos; a few of them, successes and failures both where there are both; those of saliency."""
    names = [path.relative_to(run.folder) for path in run.folder.glob("videos/step_*/*.mp4")]
    names = [name for name in names if name.parts[1][5:].isdecimal() and file_of(run.folder, name)]
    step = max((name.parts[1][5:] for name in names), key=int, default="")
    kept: dict[str, list[dict[str, str]]] = {"success": [], "failure": [], "": [], SALIENCY: []}
    for name in sorted(name for name in names if name.parts[1][5:] == step):
        match = re.fullmatch(rf"episode_0*(\d+)_(success|failure)({SALIENCY})?", name.stem)
        outcome = match[2] if match else ""
        title = f"episode {match[1]}" if match else name.stem
        kind = SALIENCY if match and match[3] else outcome
        if len(kept[kind]) == MAX_VIDEOS:
            continue
        if address := _embed(run, run.folder / name, "video/mp4", b"moov"):
            kept[kind].append({"title": title, "outcome": outcome, "address": address})
    if not step:
        run.wanting.append("no videos")
    wins, losses = kept["success"], kept["failure"]
    chosen = wins[: max(MAX_VIDEOS // 2, MAX_VIDEOS - len(losses))] + losses + kept[""]
    return step, chosen[:MAX_VIDEOS], kept[SALIENCY]


def pictures_of(runs: Sequence[Run], name: str, wanted: str = "") -> dict[str, list[Run]]:
    """The runs' pictures of that name as data addresses, each once, with the runs that have it.

    A run without one lacks what `wanted` says, or nothing.
    """
    pictures: dict[str, list[Run]] = {}
    for run in runs:
        if not (path := file_of(run.folder, f"images/{name}.png")):
            run.wanting += [f"no {wanted}"] * bool(wanted)
        elif address := _embed(run, path, "image/png", b"IEND"):
            pictures.setdefault(address, []).append(run)
    return pictures


def probes_of(run: Run) -> list[dict[str, Any]]:
    """R^2 of each state that was probed, before and after training."""
    probe = run.results.get("probe")
    before, after = (probe.get(key) if isinstance(probe, Mapping) else None for key in ("before", "after"))
    states = [state for found in (after, before) if isinstance(found, Mapping) for state in found]
    return [
        {"run": run, "state": state, "before": scalar(before, state), "after": scalar(after, state)}
        for state in dict.fromkeys(states)
    ]


def row_of(run: Run) -> dict[str, Any]:
    """The run's row of the table; of an unfinished run, what it has logged so far."""
    return {
        "agent": agent_label(run.config) or run.folder.name,
        "encoder": scalar(run.config, "encoder", "name"),
        "seed": scalar(run.config, "seed"),
        "steps": max((step for points in run.series.values() for step in points), default=None),
        "last": {key[5:]: run.series[key][max(run.series[key])] for key in run.series if key[:5] == "eval/"},
        "eval_seconds": sum(run.series.get("eval/seconds", {}).values()) or None,
        **run.results,
        "run": run,
    }


def date_of(run: Run) -> str:
    """The day of the results, or else of the newest of the run's files."""
    if date := scalar(run.results, "date"):
        return str(date)[:10]
    files = (file_of(run.folder, name) for name in ("config.yaml", "metrics.jsonl", "results.json"))
    newest = max(file.stat().st_mtime for file in files if file)
    return datetime.fromtimestamp(newest, UTC).date().isoformat()
