"""The card of a data set on the Hugging Face hub: README.md and a picture of its frames."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.markdown import plain
from gtp_vision.datasets import pictures
from gtp_vision.datasets.inspection import entries, statistics
from gtp_vision.datasets.scaling import in_file_units
from gtp_vision.datasets.statistics import ArrayStatistics, array_statistics
from gtp_vision.datasets.store import Store

README, SHEET = "README.md", "contact_sheet.png"
MARK = "<!-- Written by gtp-vision data push, which replaces this page; remove this line to keep your changes. -->"
_MAX_ROWS = 100  # of the table of statistics; wider arrays have one row each
_FACTS = ("episode length", "rewards", "terminals", "timeouts", "success", "filters", "tasks")  # of `inspect`
_LEROBOT_VIEWER = "https://huggingface.co/spaces/lerobot/visualize_dataset?path="


def card(
    name: str,
    store: Store,
    found: Mapping[str, Any],
    *,
    licence: str | None,
    rate: float | None,
    features: Mapping[str, Mapping[str, Any]] | None,
    file: str,
    has_sheet: bool,
) -> str:
    """Return README.md of a data set without faults, with the header of the hub.

    Args:
        name: OWNER/NAME.
        store: the data set.
        found: its facts, see `inspection.inspect`.
        licence: the hub's identifier of the licence; None if it is not stated.
        rate: frames a second, if it is known.
        features: of LeRobot's meta/info.json, by the names in the store; None if the data are of another format.
        file: what has to be opened in the folder of a download; empty for the folder itself.
        has_sheet: whether the picture is beside the card.
    """
    header: dict[str, Any] = {"license": licence} if licence else {}
    header["task_categories"] = ["robotics"]
    header["tags"] = [*(["LeRobot"] if features else []), "gtp-vision"]
    if features:  # as LeRobot's own cards, so that the hub's viewer of tables finds them
        header["configs"] = [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    robot = store.attributes.get("robot_type")
    size = f"{store.episodes} episodes, {len(store)} frames"
    size += f", {rate:g} a second ({_time(len(store) / rate)})" if rate else ", at an unknown rate"
    size += f", of the robot {plain(robot)}" if robot else ""
    sheet = f"\n![First, middle and last frames of some episodes]({SHEET})\n" if has_sheet else ""
    facts = "\n".join(f"| {key} | {plain(text)} |" for key, text in entries(dict(found)) if key in _FACTS)
    facts += _returns(store)
    warnings = "".join(f"\n- {plain(text)}" for text in found["warnings"])
    owner, _, short = name.partition("/")
    licensed = f"Licence: {licence}." if licence else f"No licence is stated: ask {owner} before you use the data."
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
{MARK}

# {short}

{size[0].upper()}{size[1:]}. {licensed}
{sheet}
| array | values |
|---|---|
{chr(10).join(_arrays(store, features))}

| data | |
|---|---|
{facts}

{_units(store)}

| array | dimension | min | max | mean | deviation |
|---|---|---|---|---|---|
{chr(10).join(_statistics(store, features))}
{f"{chr(10)}`gtp-vision data inspect` warns:{chr(10)}{warnings}{chr(10)}" if warnings else ""}
{_commands(name, short, file, bool(features))}"""


def write_sheet(path: Path, store: Store) -> bool:
    """Draw the picture; False if the data set has no camera."""
    try:
        pictures.write_contact_sheet(path, store)
    except GtpVisionError:  # the data set has no faults, so there is nothing to draw
        return False
    return True


def licence_of(page: str) -> str | None:
    """Return the licence in the header of a card of ours."""
    found = re.search(r"^license: (\S+)$", page.partition(MARK)[0], re.MULTILINE)
    return found[1] if found else None


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"


def _named(name: str, features: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Return an array's name in the files."""
    return plain((features or {}).get(name, {}).get("key", name))


def _arrays(store: Store, features: Mapping[str, Mapping[str, Any]] | None) -> Iterator[str]:
    for name, array in store.observations.items():
        shape = "x".join(map(str, array.shape[1:]))
        held = f"frames, {shape} (height, width, channels)" if array.ndim == 4 else f"{shape} numbers"
        yield f"| `{_named(name, features)}` | {held} |"
    yield f"| `{_named('action', features)}` | {store.action_dim} numbers |"


def _returns(store: Store) -> str:
    rewards = np.asarray(store.rewards, np.float64)
    if not rewards.any():
        return ""
    sums = np.add.reduceat(rewards, store.episode_starts)
    return f"\n| return | {sums.min():.3g} to {sums.max():.3g}, mean {sums.mean():.3g} of an episode |"


def _units(store: Store) -> str:
    low, high = (store.attributes.get(bound) for bound in ("action_low", "action_high"))
    if not low or not high or (set(low) == {-1} and set(high) == {1}):
        return "Statistics of all frames, and of the actions that have an outcome, in the units of the recording."
    bounds = ", ".join(f"{least:g} to {most:g}" for least, most in zip(low, high, strict=True))
    return f"Statistics of all frames, and of the actions that have an outcome, in the robot's units: {bounds}."


def _statistics(store: Store, features: Mapping[str, Mapping[str, Any]] | None) -> Iterator[str]:
    arrays = statistics(store) | {"actions": array_statistics(in_file_units(store, store.transitions))}
    states = {key.removeprefix("observations/"): numbers for key, numbers in arrays.items() if key != "actions"}
    states["action"] = arrays["actions"]
    has_all = sum(len(numbers.mean) for numbers in states.values()) <= _MAX_ROWS
    for name, numbers in states.items():
        labels = _labels((features or {}).get(name, {}).get("names"), len(numbers.mean))
        yield from _rows(_named(name, features), labels, numbers, has_all)


def _rows(name: str, labels: list[str], numbers: ArrayStatistics, has_all: bool) -> Iterator[str]:
    if not has_all:
        yield f"| `{name}` | all {len(labels)} | {min(numbers.min):.4g} | {max(numbers.max):.4g} | | |"
        return
    columns = (numbers.min, numbers.max, numbers.mean, numbers.std)
    for label, *row in zip(labels, *columns, strict=True):
        yield f"| `{name}` | {label} | {' | '.join(f'{value:.4g}' for value in row)} |"


def _labels(names: Any, width: int) -> list[str]:
    """Return names of dimensions; LeRobot has a list of them, or one below a key such as `motors`."""
    names = next(iter(names.values()), None) if isinstance(names, dict) else names
    is_known = isinstance(names, list) and len(names) == width
    return [plain(name) for name in names] if is_known else [str(number) for number in range(width)]


def _commands(name: str, short: str, file: str, is_lerobot: bool) -> str:
    path = f"{short}/{plain(file)}" if file else short
    ours = f"""```bash
gtp-vision data download hf://{name} --to {short}
gtp-vision data inspect "{path}"
gtp-vision train task=own task.name={short} task.dataset={path}
```
"""
    if not is_lerobot:
        return ours
    return f"""[Watch the episodes]({_LEROBOT_VIEWER}{name}) in LeRobot's viewer.

{ours}
```python
from lerobot.datasets.lerobot_dataset import LeRobotDataset

dataset = LeRobotDataset("{name}")
```
"""
