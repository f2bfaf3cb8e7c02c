"""Damaged and malicious inputs: each is read, or refused with an error message, soon and in little memory.

A kind of input is a sample, ways to damage it, and its use; `KINDS` lists them. They are used in a worker process (see
`watched`), whose end, time and memory are measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import samples
import yaml

from gtp_vision.config.compose import from_run
from gtp_vision.core import manifest
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.inspection import facts, inspection_text
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.validation import problems
from gtp_vision.report import build_report
from gtp_vision.training import checkpoint
from gtp_vision.training.build import build
from gtp_vision.training.evaluate import restore
from gtp_vision.training.run import pending_metrics_of, train_seconds_of
from gtp_vision.training.segments import segments_of
from torture import messages
from torture.forked import forked
from torture.mutations import change_json, damage, damage_bytes, damage_json, pick
from torture.runs import data, words

Use = Callable[[Path], str]
"""Uses an input as the package does; returns a word for how that ended, or raises `GtpVisionError`."""


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    share: int  # of all inputs, relative to the other kinds
    sample: Callable[[Path], Path]  # writes an undamaged one into an empty folder, and returns its path
    damaged: Callable[[Path, np.random.Generator], str]  # damages a copy of the sample, and returns how
    opened: Callable[[Path], Use]  # returns the function that uses it; its own time does not count


def _data(name: str) -> Callable[[Path], Path]:
    return lambda folder: samples.make(folder)[name]


def _use_data(path: Path) -> str:
    """Do with a data set what is done before training."""
    try:
        found = open_store(path)
    except GtpVisionError as error:
        if str(path) not in str(error):
            raise RuntimeError("it does not name the file") from error
        raise
    (seen,) = scaled([found])
    faults = problems(seen)
    with np.errstate(all="ignore"):
        inspection_text({"path": str(path), "format": "", "title": ""} | facts(found))
    for array in found.observations.values():  # mapped pages beyond a file's end would end this process here
        np.asarray(array[np.arange(len(array))]).tobytes()
    if faults:
        return "faulty"
    Sampler(seen, 1, 0, frame_stack=2, n_step=2, action_chunk=2).gather(seen.transitions)
    return "sound"


def _run(folder: Path) -> Path:
    """A run of two checkpoints and an evaluation, and the data set that it was trained on."""
    data(folder / "data")
    run = folder / "run"
    line = words("evaluated", folder / "data", run, "training.steps=10", "training.eval_every=5")
    forked(line, folder / "run.log").check(0)
    return run


def _damage_checkpoint(run: Path, random: np.random.Generator) -> str:
    """Damage a file of the newest checkpoint, and in half of the cases write its manifest again."""
    newest = run / "checkpoints" / "step_10"
    kind = random.random()
    if kind < 0.1:
        what = _header(newest / pick(random, ("agent.safetensors", "optimizer.safetensors")), random)
    elif kind < 0.3:
        what = damage_json(newest / "state.json", random)
    else:
        what = damage(newest, random)
    if random.random() < 0.5 and (newest / manifest.MANIFEST).exists() and "manifest" not in what:
        manifest.write_manifest(newest)
        what += ", with a new manifest"
    return what


def _header(path: Path, random: np.random.Generator) -> str:
    """Change sizes, shapes, dtypes or offsets in the header of a safetensors file."""
    raw, kind = path.read_bytes(), int(random.integers(4))
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if kind == 0:
        what = "a long name"
        header = dict.fromkeys(["x" * 100_000], next(iter(header.values())))
    elif kind == 1:
        what = "a tensor of 4 TB"
        header[pick(random, sorted(header))] = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    else:
        what = change_json(header, random)
    content = json.dumps(header).encode()
    size = pick(random, (0, length + 1, 1 << 20, 1 << 40, (1 << 63) - 1)) if kind == 2 else len(content)
    path.write_bytes(size.to_bytes(8, "little") + content + raw[8 + length :])
    return f"{path.name}, header: {what}, size {size}"


def _opened_checkpoint(run: Path) -> Use:
    parts = build(from_run(run))
    agent, optimizer = parts.agent, parts.optimizer

    def use(path: Path) -> str:
        skipped: list[str] = []
        found = checkpoint.newest_of_all([path / "checkpoints"], skipped.append)
        assert found
        state = checkpoint.load(found[0], agent, optimizer)
        segments_of(found[0])
        pending_metrics_of(state, found[0])
        train_seconds_of(state, found[0])
        return "skipped" if skipped else "sound"

    return use


_LEVELS = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
_BOMB = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *_LEVELS]) + "\n"  # of 10 GB, once aliases are copied
_TEXTS = (
    *(_BOMB, "", "- 1\n- 2\n", "\x00", "a: b: c", "seed: &a [*a]\n", "!!python/object/apply:os.system ['true']\n"),
    *("seed: " + "[" * 5000 + "]" * 5000, "seed: " + "9" * 6000, "seed: 0x" + "f" * 4000),
    *("run_dir: ${oc.env:PATH}\n", "run_dir: ${run_dir}\n", "task:\n  name: ???\n"),
    *("seed: 1_000_000_000_000_000\n", "? {a: 1}\n: 2\n", "%YAML 9.9\n---\na: 1\n"),
)
_NUMBERS = (-1, 0, 1.5, 10**6, 10**9, 10**12, 10**30, 1e308, float("nan"), float("inf"), -(10**18))


def _damage_config(run: Path, random: np.random.Generator) -> str:
    path, kind = run / "config.yaml", random.random()
    text = path.read_text()
    if kind < 0.3:
        path.write_text((text if kind < 0.15 else "") + pick(random, _TEXTS))
        return f"config.yaml ends in {path.read_text()[-30:]!r}"
    if kind < 0.45:
        return damage_bytes(path, random)
    document = yaml.safe_load(text)
    what = change_json(document, random) if kind < 0.7 else _change_number(document, random)
    path.write_text(yaml.safe_dump(document))
    return f"config.yaml: {what}"


def _change_number(document: dict, random: np.random.Generator) -> str:
    """Replace a number, or a list of them: sizes are such numbers."""
    nodes, places = [document], []
    while nodes:
        node = nodes.pop()
        nodes += [value for value in node.values() if isinstance(value, dict)]
        places += [(node, key) for key, value in node.items() if isinstance(value, int | float | list)]
    (node, key), number = pick(random, places), pick(random, _NUMBERS)
    node[key] = [number] * pick(random, (1, 2, 3, 1000)) if isinstance(node[key], list) else number
    return f"{key} = {str(node[key])[:40]}"


def _damage_records(run: Path, random: np.random.Generator) -> str:
    names = ("metrics.jsonl", "results.json", "evaluations.json", "config.yaml", "statistics.json")
    path = run / pick(random, names)
    if path.suffix == ".json" and random.random() < 0.5:
        return damage_json(path, random)
    return damage_bytes(path, random)


def _sound(use: Callable[[Path], object]) -> Callable[[Path], Use]:
    """Use an input by a function that returns or refuses."""

    def returns(path: Path) -> str:
        use(path)
        return "sound"

    return lambda sample: returns


KINDS: dict[str, Kind] = {
    **{f"data {name}": Kind(10, _data(name), damage, lambda sample: _use_data) for name in samples.FORMATS},
    "checkpoint": Kind(60, _run, _damage_checkpoint, _opened_checkpoint),
    "config": Kind(50, _run, _damage_config, _sound(restore)),
    "records": Kind(10, _run, _damage_records, _sound(lambda run: build_report([run], run / "again.html", title="a"))),
    "message": Kind(40, messages.sample, messages.damaged, messages.opened),
}
"""By name."""


def copied(sample: Path, to: Path) -> Path:
    """A copy of a sample in a folder of its own."""
    to.mkdir(parents=True)
    copy = partial(shutil.copytree, symlinks=True) if sample.is_dir() else shutil.copyfile
    return Path(copy(sample, to / sample.name))
