"""OGBench's data sets by its own recipes, into its own files: `name.npz` and `name-val.npz`.

OGBench's `make_env_and_datasets(name, dataset_dir=...)` loads them. Each file also has the member `gtp_vision`, a JSON
object as text: recipe, rendering, seed, versions and command.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.collection.ogbench_recipes import RECIPES, Episode
from gtp_vision.collection.recording import EpisodeParts, Execution, recorded, require_at_least, seed_of, versions
from gtp_vision.core.progress import Progress
from gtp_vision.envs import EnvSpec, Rendering, choose_backend

_COUNTS = ("targets", "reached")


@dataclass(frozen=True)
class _Episodes:
    """Records episode k as a function of (seed, k) only."""

    spec: EnvSpec
    seed: int

    def make(self) -> gymnasium.Env:
        return self.spec.make()

    def record(self, env: gymnasium.Env, episode: int) -> Episode:
        return RECIPES[self.spec.name].record(env, seed_of(self.seed, episode))


def collect(
    env: str,
    out: Path,
    *,
    episodes: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    shadow_size: int | None = None,
    multisamples: int | None = None,
    execution: Execution,
) -> str:
    """Record one of OGBench's data sets again, and return a summary of one sentence.

    Episode k is a function of (seed, k) only; the validation set's episodes, a tenth as many (at least one), follow the
    training set's. `out` is a folder, in which the files get OGBench's names, or the training file, ending in .npz.
    `episodes` and `limit` (rows of an episode) are OGBench's numbers if None.

    Raises:
        GtpVisionError: a setting out of range; no OpenGL library; rendering options for states.
    """
    name = env.removesuffix("-v0")
    recipe, pixels = RECIPES[name], name.startswith("visual-")
    episodes, limit = recipe.episodes if episodes is None else episodes, recipe.steps if limit is None else limit
    require_at_least(episodes=(episodes, 1), limit=(limit, 2), seed=(seed, 0))
    rendering = Rendering(shadow_size, multisamples)
    if pixels:
        choose_backend()
    train = out if out.suffix == ".npz" else out / f"{name}-v0.npz"
    validation = train.with_name(f"{train.stem}-val.npz")
    numbers = {train: range(episodes), validation: range(episodes, episodes + max(1, episodes // 10))}
    settings = {"env": name, "episodes": episodes, "seed": seed, "limit": limit, "rendering": rendering.record()}
    settings |= {"versions": versions("ogbench", "mujoco", pixels=pixels)}
    spec = EnvSpec(name, rendering, pixels=pixels, max_episode_steps=limit, collecting=True)
    with recorded(
        train,
        _Episodes(spec, seed),
        episodes=numbers[validation].stop,
        settings=settings,
        execution=execution,
    ) as parts:
        record = {"suite": "ogbench", "recipe": recipe.description, "command": parts.command, **settings}
        counts = {path: _counts(parts, numbers[path]) for path in numbers}
        with parts.whole(validation) as second, parts.whole(train) as first:
            _write(first, parts, numbers[train], record | {"split": "training"} | counts[train], execution)
            _write(second, parts, numbers[validation], record | {"split": "validation"} | counts[validation], execution)
    files = ", ".join(f"{path}: {len(numbers[path])} episodes, {len(numbers[path]) * limit} frames" for path in numbers)
    reached, targets = (sum(count[name] for count in counts.values()) for name in ("reached", "targets"))
    return f"{files}, {reached} of {targets} targets reached"


def _counts(parts: EpisodeParts, numbers: range) -> dict[str, int]:
    counts = [parts.load(number, *_COUNTS) for number in numbers]
    return {name: int(sum(count[name] for count in counts)) for name in _COUNTS}


def _write(path: Path, parts: EpisodeParts, numbers: range, record: dict[str, Any], execution: Execution) -> None:
    """Write one file as `np.savez_compressed` does, but by array and episode, so that memory stays small."""
    arrays = parts.load(numbers[0])
    rows = len(numbers) * len(arrays["terminals"])
    names = [name for name in arrays if name not in _COUNTS]
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        Progress(total=len(names) * len(numbers), desc="joining", unit="part", disable=not execution.progress) as bar,
    ):
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                parts.stack(name, numbers, rows, stream, bar)
        with archive.open("gtp_vision.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(json.dumps(record)), allow_pickle=False)
