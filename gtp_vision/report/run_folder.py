"""Reading run folders, which are untrusted and may be unfinished or damaged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from gtp_vision.agents import label_of
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.html import data_uri
from gtp_vision.core.names import SALIENCY
from gtp_vision.report.text import known, scalar

MAX_MEGABYTES = 8  # of one video or picture: the page should fit into an e-mail
MAX_TEXT = 16 << 20  # bytes of a JSON or YAML file
MAX_LINE = 1 << 20  # characters of a line of metrics
MAX_VIDEOS = 4  # of one run

Series = dict[str, dict[float, float]]  # key -> step -> value, NaN where it was not finite


@dataclass
class RunFolder:
    """One run folder: its configuration, results, curves, missing files (`problems`), and how it is drawn."""

    folder: Path
    config_text: str
    config: Any
    results: Mapping[str, Any] = field(default_factory=dict)
    series: Series = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    label: str = ""
    color: str = ""
    dash: tuple[float, ...] = ()

    @property
    def made_with(self) -> list[tuple[str, str]]:
        """The device and the versions of packages, as names and texts."""
        versions = self.results.get("versions")
        named = {"device": self.results.get("device"), **(versions if isinstance(versions, Mapping) else {})}
        return [(str(name), str(value)) for name, value in named.items() if value is not None]


def members(folder: Path) -> list[Path]:
    """The run folders in a folder of seeds that were trained side by side; otherwise the folder itself."""
    seeds = [config.parent for config in folder.glob("seed_*/config.yaml")]
    if not seeds or (folder / "metrics.jsonl").exists():
        return [folder]
    return sorted(seeds, key=lambda run: (len(run.name), run.name))


def read_run(folder: Path) -> RunFolder:
    """Read a run folder's texts, and note missing and damaged files."""
    if not folder.is_dir():
        raise GtpVisionError(f"run folder {folder} does not exist; give one that `gtp-vision train` wrote")
    if not (config := file_of(folder, "config.yaml")):
        raise GtpVisionError(
            f"{folder} is not a run folder: config.yaml is missing; give one that `gtp-vision train` wrote"
        )
    if config.stat().st_size > MAX_TEXT:
        raise GtpVisionError(
            f"{config} is larger than {MAX_TEXT >> 20} MB, too large for a configuration; omit this run"
        )
    text = config.read_text(encoding="utf-8", errors="replace")
    try:
        run = RunFolder(folder, text, yaml.load(text, _Loader))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise GtpVisionError(f"{config} is damaged YAML; restore it, or omit this run") from None
    run.problems += _segments(run.config)
    if metrics := file_of(folder, "metrics.jsonl"):
        run.series, damaged = _read_metrics(metrics)
        if damaged:
            run.problems.append(f"{damaged} damaged line(s) of metrics.jsonl skipped")
    else:
        run.problems.append("no metrics.jsonl")
    if (results := text_of(run, "results.json")) is not None:
        run.results = json_object(results)
    if not run.results:
        run.problems.append("results.json is damaged" if results is not None else "not finished (no results.json)")
    return run


def _segments(config: Any) -> list[str]:
    """A sentence for each time that the run was resumed with other data or settings."""
    stored = config.get("segments") if isinstance(config, Mapping) else None
    found = [segment for segment in stored if isinstance(segment, Mapping)] if isinstance(stored, list) else []
    sentences = []
    for before, after in pairwise(found[:20]):
        pairs = [{"data": each.get("data")} | dict(settings_in(each)) for each in (before, after)]
        changed = [
            f"{key}: {pairs[0].get(key)} -> {now}"[:200] for key, now in pairs[1].items() if pairs[0].get(key) != now
        ]
        sentences.append(f"resumed at step {str(after.get('start'))[:20]} with {', '.join(changed[:20])}")
    return sentences


def settings_in(segment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a segment in config.yaml."""
    settings = segment.get("settings")
    return settings if isinstance(settings, Mapping) else {}


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases, with which a few lines can expand beyond any memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def text_of(run: RunFolder, name: str) -> str | None:
    """A text file of the run; None if it is missing, or too large, which is noted."""
    if (path := file_of(run.folder, name)) is None:
        return None
    if path.stat().st_size > MAX_TEXT:
        run.problems.append(f"{name} left out: larger than {MAX_TEXT >> 20} MB")
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def file_of(folder: Path, name: str | Path) -> Path | None:
    """A file of the run, or None if it is missing or a link out of the run, whose target must not be published."""
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; an empty one if it is damaged or something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_metrics(path: Path) -> tuple[Series, int]:
    """All scalars of metrics.jsonl, and the number of damaged lines; of a step logged twice the later line counts."""
    series: Series = {}
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(MAX_LINE):
            if not line.strip():
                continue
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


def _embed(run: RunFolder, path: Path, kind: str, ending: bytes) -> str:
    """The file as a data URI; empty, with the reason noted, if it is too large or damaged."""
    megabytes = path.stat().st_size / 2**20
    if megabytes > MAX_MEGABYTES:
        run.problems.append(f"{path.name} left out: {megabytes:.1f} MB, the limit is {MAX_MEGABYTES} MB")
    elif ending not in (data := path.read_bytes()):
        run.problems.append(f"{path.name} left out: the file is damaged")
    else:
        return data_uri(data, kind)
    return ""


@dataclass(frozen=True)
class Clip:
    """A video of an episode."""

    path: Path
    step: str  # of training, as its folder's name writes it
    episode: int | None  # its number in the evaluation; None if the name does not say it
    outcome: str  # `success`, `failure`, or nothing if it is unknown
    saliency: bool  # whether it shows where the policy looks

    @property
    def title(self) -> str:
        """Its title on the page."""
        return self.path.stem if self.episode is None else f"episode {self.episode}"


def clips_of(run: RunFolder) -> list[Clip]:
    """The videos of the last step with videos, in the order of their names."""
    names = [path.relative_to(run.folder) for path in run.folder.glob("videos/step_*/*.mp4")]
    names = [name for name in names if name.parts[1][5:].isdecimal() and file_of(run.folder, name)]
    step = max((name.parts[1][5:] for name in names), key=int, default="")
    clips = []
    for name in sorted(name for name in names if name.parts[1][5:] == step):
        match = re.fullmatch(rf"episode_0*([0-9]{{1,9}})_(success|failure|unknown)({SALIENCY})?", name.stem)
        episode, outcome, saliency = (int(match[1]), match[2], bool(match[3])) if match else (None, "", False)
        outcome = "" if outcome == "unknown" else outcome
        clips.append(Clip(run.folder / name, step, episode, outcome, saliency))
    if not clips:
        run.problems.append("no videos")
    return clips


def embed(run: RunFolder, clip: Clip) -> dict[str, str]:
    """The clip for the page; its address is empty if it is too large or damaged, which is noted."""
    address = _embed(run, clip.path, "video/mp4", b"moov")
    return {"title": clip.title, "outcome": clip.outcome, "address": address}


def embed_some(run: RunFolder, clips: Sequence[Clip], limit: int) -> list[dict[str, str]]:
    """Some of the clips: both successes and failures if there are both."""
    by_outcome: dict[str, list[dict[str, str]]] = {"success": [], "failure": [], "": []}
    for clip in clips:
        if len(by_outcome[clip.outcome]) < limit and (embedded := embed(run, clip))["address"]:
            by_outcome[clip.outcome].append(embedded)
    successes, failures, others = by_outcome.values()
    return (successes[: max(limit // 2, limit - len(failures))] + failures + others)[:limit]


def pictures_of(runs: Sequence[RunFolder], name: str, problem: str = "") -> dict[str, list[RunFolder]]:
    """The runs' pictures of that name as data URIs, each once, with its runs; `problem` is noted of runs without."""
    pictures: dict[str, list[RunFolder]] = {}
    for run in runs:
        if not (path := file_of(run.folder, f"images/{name}.png")):
            run.problems += [problem] if problem else []
        elif address := _embed(run, path, "image/png", b"IEND"):
            pictures.setdefault(address, []).append(run)
    return pictures


def probes_of(run: RunFolder) -> list[dict[str, Any]]:
    """R^2 of each probed state, before and after training."""
    probe = run.results.get("probe")
    before, after = (probe.get(key) if isinstance(probe, Mapping) else None for key in ("before", "after"))
    states = [state for scores in (after, before) if isinstance(scores, Mapping) for state in scores]
    return [
        {"run": run, "state": state, "before": scalar(before, state), "after": scalar(after, state)}
        for state in dict.fromkeys(states)
    ]


def row_of(run: RunFolder) -> dict[str, Any]:
    """The run's row of the table; for an unfinished run, from its logs so far."""
    return {
        "agent": label_of(run.config) or run.folder.name,
        "encoder": scalar(run.config, "encoder", "name"),
        "seed": scalar(run.config, "seed"),
        "steps": max((step for points in run.series.values() for step in points), default=None),
        "last": {key[5:]: run.series[key][max(run.series[key])] for key in run.series if key[:5] == "eval/"},
        "eval_seconds": sum(run.series.get("eval/seconds", {}).values()) or None,
        **run.results,
        "run": run,
    }


def date_of(run: RunFolder) -> str:
    """The day of the results, or else of the newest of the run's files."""
    if date := scalar(run.results, "date"):
        return str(date)[:10]
    files = (file_of(run.folder, name) for name in ("config.yaml", "metrics.jsonl", "results.json"))
    newest = max(file.stat().st_mtime for file in files if file)
    return datetime.fromtimestamp(newest, UTC).date().isoformat()
