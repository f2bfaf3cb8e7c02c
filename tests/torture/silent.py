"""Changes between training and what comes after it: each ends in equal numbers, or in an error message.

A run of a few steps is copied, its data, settings or files are changed at random, and it is resumed, evaluated,
exported, reported, or its artifact is served. What a change must not alter has to be equal to the bit; where it would
alter a step, the run must be refused with both values, and left as it was, or begin a new segment where it is told to.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file
from stores import make_store

from gtp_vision.datasets.formats import FORMATS, native
from gtp_vision.datasets.store import Store
from gtp_vision.serving.artifact import load_policy
from torture.forked import FailedError, forked
from torture.mutations import pick
from torture.runs import words

_SHORT = (
    *("training.steps=4", "training.checkpoint_every=2", "training.keep_checkpoints=9", "training.log_every=2"),
    *("training.engine=eager", "training.eval_every=0", "training.schedule=constant"),
)
_MIX = ("states", "pixels", "states", "lerobot", "evaluated")
_HALF = 2  # the step from which a copy is resumed
_FREE = ("training.log_every=1", "training.checkpoint_every=3", "training.keep_checkpoints=4", "training.videos=1")
_FREE += ("training.device=auto", "training.placement=mapped", "training.eval_timeout=9", "task.name=renamed")
_FREE += ("training.on_nonfinite=skip", "training.steps=5")
_FIXED = ("seed=5", "training.batch_size=4", "training.learning_rate=0.1", "training.schedule=cosine")
_FIXED += ("training.warmup_steps=3", "training.clip_gradient=0.5", "training.precision=tf32", "task.discount=0.5")
_FIXED += ("task.reward_scale=2", "task.frame_stack=2", "task.n_step=2", "agent.policy.sigma_max=9", "agent.tau=0.3")
_FIXED += ("agent.action_chunk=2", "agent.acting.steps=3", "agent.policy.hidden=[8]", "encoder.features=9")
_FIXED += ("encoder.augmentation.shift=1", "encoder.share=true")


@dataclass(frozen=True)
class Place:
    """A run, an artifact of it, and its data set, in a folder that may be moved."""

    folder: Path
    kind: str

    @property
    def data(self) -> Path:
        """The data set."""
        return self.folder / ("data" if self.kind == "lerobot" else "data.h5")

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    @property
    def artifact(self) -> Path:
        """What was exported from the run's step `_HALF`."""
        return self.folder / "artifact"

    def write(self, store: Store) -> None:
        """Write another data set in the place of the one that there is."""
        if self.kind == "lerobot":
            shutil.rmtree(self.data, ignore_errors=True)
            FORMATS["lerobot"].write(self.data, store)  # type: ignore[misc]
        else:
            native.write(self.folder / "new.h5", store)
            (self.folder / "new.h5").rename(self.data)

    def words(self, *more: str) -> list[str]:
        """The whole command line of its training."""
        kind = "states" if self.kind == "lerobot" else self.kind
        return words(kind, self.folder, self.run, *_SHORT, f"task.dataset={self.data}", *more)


def _store(kind: str) -> Store:
    if kind != "pixels":
        return make_store((15, 15), actions=1)  # Pendulum's shapes
    store = make_store((15, 15), cameras={"left": (8, 8, 3), "right": (8, 8, 3)}, state=None, actions=1)
    return replace(store, attributes={"action_low": [-30.0], "action_high": [30.0]})


@dataclass(frozen=True)
class Change:
    """A change: what was done, whether it may alter the steps after it, and the settings to resume with."""

    what: str
    alters: bool = True
    settings: tuple[str, ...] = ()


def _other_data(place: Place, random: np.random.Generator) -> Change:
    """Append, remove, exchange, rescale, replace or rename what was recorded."""
    store = _store(place.kind)
    row, name = int(random.integers(len(store) - 1)), pick(random, sorted(store.observations))
    seen = {key: np.array(array) for key, array in store.observations.items()}
    actions, rewards = np.array(store.actions), np.array(store.rewards)
    kind = int(random.integers(9))
    if kind == 0:
        what, store = "an episode more", store.subset([0, 1, int(random.integers(2))])
    elif kind == 1:
        what, store = "an episode less", store.subset([int(random.integers(2))])
    elif kind == 2:
        what, store = "episodes in another order", store.subset([1, 0])
    elif kind == 3:
        factor = float(random.uniform(0.2, 0.95))
        what, store = f"actions times {factor:.2f}", replace(store, actions=(actions * factor).astype(np.float32))
    elif kind == 4:
        seen[name][row] = 255 - seen[name][row] if seen[name].dtype == np.uint8 else seen[name][row] + 0.5
        what, store = f"another '{name}' in row {row}", replace(store, observations=seen)
    elif kind == 5:
        rewards[row] += 0.5
        what, store = f"another reward in row {row}", replace(store, rewards=rewards)
    elif kind == 6:
        seen = {key + "_new" * (key == name): array for key, array in seen.items()}
        what, store = f"'{name}' renamed", replace(store, observations=seen)
    elif kind == 7 and len(seen) > 1:
        first, second = sorted(seen)
        what, store = "cameras exchanged", replace(store, observations={first: seen[second], second: seen[first]})
    else:
        bounds = {"action_low": [-7.0], "action_high": [70.0]}
        what, store = "other action bounds", replace(store, attributes=dict(store.attributes) | bounds)
    place.write(store)
    return Change(what)


def _same_data(place: Place, random: np.random.Generator) -> Change:
    """Write the same again, touch it, move it, or name its observations in another order."""
    kind = int(random.integers(4))
    if kind == 0:
        place.write(_store(place.kind))
        return Change("the data written again", alters=False)
    if kind == 1:
        for path in [place.data, *place.data.rglob("*")]:
            os.utime(path, (1e9, 1e9))
        return Change("the data's times", alters=False)
    if kind == 2:
        moved = place.folder / "elsewhere" / place.data.name
        moved.parent.mkdir()
        place.data.rename(moved)
        return Change("the data moved", alters=False, settings=(f"task.dataset={moved}",))
    names = sorted(_store(place.kind).observations, reverse=True)
    return Change("another order", alters=False, settings=(f"task.observations=[{','.join(names)}]",))


def _no_data(place: Place, random: np.random.Generator) -> Change:
    if random.random() < 0.5 or place.data.is_dir():
        shutil.rmtree(place.data) if place.data.is_dir() else place.data.unlink()
        return Change("the data deleted")
    os.truncate(place.data, int(random.integers(place.data.stat().st_size)))
    return Change("the data cut off")


def _setting(place: Place, random: np.random.Generator) -> Change:
    """Give another setting on resume."""
    setting, alters = (pick(random, _FREE), False) if random.random() < 0.3 else (pick(random, _FIXED), True)
    return Change(f"{setting} given", alters, (setting,))


def _edited(place: Place, random: np.random.Generator) -> Change:
    """Change a setting in config.yaml by hand."""
    setting = pick(random, [each for each in _FIXED if "acting" not in each])
    path, (key, _, text) = place.run / "config.yaml", setting.partition("=")
    document = yaml.safe_load(path.read_text())
    inner, names = document, key.split(".")
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = yaml.safe_load(text)
    path.write_text(yaml.safe_dump(document))
    return Change(f"{setting} written into config.yaml")


def _files(place: Place, random: np.random.Generator) -> Change:
    """Remove or move files of the run that nothing depends on."""
    if random.random() < 0.3:
        place.run.rename(place.folder / "other")
        shutil.copytree(place.folder / "other", place.run, symlinks=True)
        return Change("the run copied", alters=False)
    name = pick(random, ("statistics.json", "images", "tensorboard", "report.html", "results.json"))
    path = place.run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return Change(f"{name} removed", alters=False)


_CHANGES = (_other_data, _other_data, _other_data, _same_data, _no_data, _setting, _setting, _edited, _files)
_VERBS = ("resume", "resume", "resume", "segment", "export", "export", "serve", "report", "eval")


@dataclass(frozen=True)
class _Reference:
    """What an undisturbed run gives: its place, copied before its second half, and the numbers of each verb."""

    place: Place
    numbers: dict[str, str]


def _reference(kind: str, folder: Path) -> _Reference:
    """Train a run of a kind, keep its numbers, and take it back to step `_HALF`."""
    place = Place(folder / kind, kind)
    place.folder.mkdir(parents=True)
    place.write(_store(kind))
    forked(place.words(), folder / f"{kind}.log").check(0)
    numbers = {"resume": _weights(place.run)}
    checkpoints = place.run / "checkpoints"
    for path in checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > _HALF:
            shutil.rmtree(path)
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to(f"step_{_HALF}")
    forked(["export", str(place.run), str(place.artifact)], folder / f"{kind}.export.log").check(0)
    numbers |= {"export": _exported(place.artifact), "serve": _acted(place.artifact), "report": ""}
    if kind == "evaluated":
        log = folder / "eval.log"
        forked(_eval(place), log).check(0)
        numbers["eval"] = _evaluated(log)
    return _Reference(place, numbers)


def _eval(place: Place) -> list[str]:
    return ["eval", str(place.run), "--episodes", "2", "--json"]


def _weights(run: Path) -> str:
    digest = hashlib.blake2b()
    for name in ("agent", "optimizer"):
        for key, tensor in sorted(load_file(run / "checkpoints" / "last" / f"{name}.safetensors").items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _exported(artifact: Path) -> str:
    names = ("policy.safetensors", "policy.json")
    return hashlib.blake2b(b"".join((artifact / name).read_bytes() for name in names)).hexdigest()


def _acted(artifact: Path) -> str:
    policy = load_policy(artifact)
    seen = {name: np.full(shape, 9, np.uint8) for name, shape in policy.schema.cameras.items()}
    seen |= {name: np.ones(width, np.float32) for name, width in policy.schema.states.items()}
    return str(policy.act(seen).tolist())


def _evaluated(log: Path) -> str:
    line = next(line for line in log.read_text().splitlines() if line.startswith("{"))
    return json.dumps({key: value for key, value in json.loads(line).items() if key != "seconds"})


def _held(run: Path) -> dict[str, bytes]:
    """What a refusal must leave as it was."""
    kept = [run / "config.yaml", run / "metrics.jsonl", *sorted((run / "checkpoints").glob("*/*"))]
    return {str(path): path.read_bytes() for path in kept}


def silent(count: int, folder: Path, seed: int, tell: Callable[[str], None]) -> Counter[str]:
    """Make `count` changes by a seed, and report those that end badly to `tell`; returns how often each end was met.

    Ends: `equal`, `refused`, `recorded` (a new segment), and `silent`, which must not be.
    """
    for module in ("training.trainer", "training.evaluate", "serving.export"):  # once, for all forks
        importlib.import_module(f"gtp_vision.{module}")
    references = {kind: _reference(kind, folder / "references") for kind in dict.fromkeys(_MIX)}
    ends: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        reference = references[_MIX[number % len(_MIX)]]
        place = Place(folder / str(number), reference.place.kind)
        shutil.copytree(reference.place.folder, place.folder, symlinks=True)
        verb = pick(random, [each for each in _VERBS if each in reference.numbers or each == "segment"])
        change = pick(random, _CHANGES)(place, random)
        try:
            ends[_end(place, verb, change, reference.numbers, random)] += 1
            shutil.rmtree(place.folder)
        except FailedError as error:
            ends["silent"] += 1
            tell(f"change {number}: {place.kind}, {change.what}, {verb} (kept in {place.folder}): {error}")
    tell(f"{count} changes in {time.monotonic() - began:.0f} s: {dict(ends)}")
    return ends


def _end(place: Place, verb: str, change: Change, numbers: dict[str, str], random: np.random.Generator) -> str:
    """Use a changed run, and return how that ended; FailedError if it did so badly."""
    log, before = place.folder / f"{verb}.log", _held(place.run)
    if verb in ("resume", "segment"):
        line = place.words(*change.settings, "--resume")
        if random.random() < 0.5 or "config.yaml" in change.what:
            line = ["train", "--resume", str(place.run), f"task.dataset={place.data}", *change.settings]
        line += ["--new-segment"] * (verb == "segment")
    elif verb == "serve":
        _same("serve", _acted(place.artifact), numbers)
        return "equal"
    else:
        out = {"export": [str(place.folder / "again")], "report": ["--out", str(place.folder / "page.html")]}
        line = _eval(place) if verb == "eval" else [verb, str(place.run), *out[verb]]
    victim = forked(line, log)
    if victim.wait() == 2:
        victim.check(2)
        is_of_data = verb not in ("resume", "segment") and "config.yaml" not in change.what
        if not change.alters or is_of_data:
            raise FailedError(f"refused although nothing that matters has changed: {victim.last_line()}")
        if _held(place.run) != before:
            raise FailedError(f"the run has changed although it was refused: {victim.last_line()}")
        return "refused"
    victim.check(0)
    if verb == "segment" and change.alters:
        stored = yaml.safe_load((place.run / "config.yaml").read_text())
        if len(stored.get("segments", [])) < 2 or "from step " not in log.read_text():
            raise FailedError("the new segment is not recorded")
        again = ["export", str(place.run), str(place.folder / "again"), "--checkpoint", f"step_{_HALF}"]
        forked(again, place.folder / "again.log").check(0)
        _same("export", _exported(place.folder / "again"), numbers)
        return "recorded"
    if "training.steps=5" in change.settings and verb in ("resume", "segment"):
        return "equal"  # more steps, of which the first are compared by the tests
    found = {
        "resume": lambda: _weights(place.run),
        "segment": lambda: _weights(place.run),
        "export": lambda: _exported(place.folder / "again"),
        "eval": lambda: _evaluated(log),
        "report": lambda: "",
    }[verb]()
    _same("resume" if verb == "segment" else verb, found, numbers)
    return "equal"


def _same(verb: str, found: str, numbers: dict[str, str]) -> None:
    if found != numbers[verb]:
        raise FailedError(f"other numbers with status 0: {found[:200]}, and not {numbers[verb][:200]}")
