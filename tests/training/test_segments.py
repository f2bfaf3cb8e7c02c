"""A run knows its data and settings: what changes between its parts is equal, refused with both values, or recorded."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from small_runs import PIXELS, assert_equal, lines, saved, small_run

from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_run
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.datasets.formats import native, open_store
from gtp_vision.datasets.record import differences, record_of
from gtp_vision.datasets.store import ACTION_BOUNDS, Store
from gtp_vision.report import build_report
from gtp_vision.serving.artifact import load_policy
from gtp_vision.serving.export import export
from gtp_vision.training import trainer
from gtp_vision.training.data import measure
from gtp_vision.training.evaluate import evaluate_run, restore
from gtp_vision.training.segments import Segment, continued, segments_of

pytestmark = pytest.mark.trains
Change = Callable[[Store], Store]


@pytest.fixture(scope="module")
def made(make_store: Callable[..., Store]) -> Store:
    """Two cameras of one shape, states, and actions with bounds."""
    store = make_store((30, 40), terminals={29}, cameras={"front": (12, 12, 3), "arm": (12, 12, 3)})
    return replace(
        store, attributes={"action_low": [-30.0] * store.action_dim, "action_high": [30.0] * store.action_dim}
    )


@pytest.fixture(scope="module")
def trained(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `d.h5`, and a run of four of six steps, `run`, and the whole one, `whole`."""
    folder = tmp_path_factory.mktemp("trained")
    native.write(folder / "d.h5", made)
    for run, steps in (("run", 4), ("whole", 6)):
        trainer.train(_config(folder, run, f"training.steps={steps}"), progress=False)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`, which is thus moved."""
    return Path(shutil.copytree(trained, tmp_path / "moved", symlinks=True))


def _config(folder: Path, run: str = "run", *more: str) -> object:
    settings = ("training.schedule=constant", "training.checkpoint_every=2", "training.engine=eager", *more)
    return small_run(folder / "d.h5", folder / run, *PIXELS, *settings, agent="gtp_bc")


def _resume(folder: Path, *more: str) -> int:
    return main(["train", "--resume", str(folder / "run"), f"task.dataset={folder / 'd.h5'}", *more])


def _grown(store: Store) -> Store:
    return store.subset([0, 1, 1])


def _observed(**changed: np.ndarray) -> Change:
    return lambda store: replace(store, observations=dict(store.observations) | changed)


def _renamed(store: Store) -> Store:
    return replace(store, observations={name.replace("front", "wrist"): x for name, x in store.observations.items()})


def _swapped(store: Store) -> Store:
    seen = dict(store.observations)
    return replace(store, observations=seen | {"front": seen["arm"], "arm": seen["front"]})


def _bounds(store: Store) -> Store:
    return replace(store, attributes=dict(store.attributes) | {"action_high": [120.0] * 2})


CHANGES: dict[str, tuple[Change, str]] = {
    "grown": (_grown, r"episodes: 2 -> 3; frames: 70 -> 110"),
    "cut": (lambda store: store.subset([0]), r"episodes: 2 -> 1; frames: 70 -> 30"),
    "other episodes": (lambda store: store.subset([1, 0]), r"content of .*: \w+ -> \w+"),
    "renamed camera": (_renamed, r"observations: arm 12x12x3, front .* -> arm 12x12x3, state 3, wrist"),
    "swapped cameras": (_swapped, r"content of observations/arm: \w+ -> \w+; content of observations/front"),
    "bounds": (_bounds, r"action_high: \[30, 30\] -> \[120, 120\]"),
    "rescaled actions": (lambda store: replace(store, actions=store.actions / 2), r"m\w+ of actions\[0\]: \S+ -> "),
    "rewards": (lambda store: replace(store, rewards=store.rewards + 1), r"content of rewards"),
    "terminals": (lambda store: replace(store, terminals=np.zeros_like(store.terminals)), r"content of terminals"),
    "fewer cameras": (
        lambda store: store.select(["state", "front"]),
        r"observations: arm .* -> front 12x12x3, state 3;?",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_data_are_refused_with_both_values_or_begin_a_segment(
    place: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    change, words = CHANGES[kind]
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    store = open_store(place / "d.h5")
    native.write(place / "new.h5", change(store))
    (place / "new.h5").rename(place / "d.h5")
    assert _resume(place, "training.steps=6") == 2
    message = capfd.readouterr().err
    assert re.search(words, message)
    assert "--new-segment" in message
    assert {path: path.read_bytes() for path in before if path.name != ".lock"} | before == before, "nothing is lost"
    if kind not in ("grown", "bounds", "renamed camera"):
        return
    if "observations: " in message:  # these are other networks
        assert _resume(place, "training.steps=6", "--new-segment") == 2
        assert "another architecture" in capfd.readouterr().err
        return
    assert _resume(place, "training.steps=6", "--new-segment") == 0
    assert "from step 4 on: " in capfd.readouterr().out
    starts = [segment["start"] for segment in yaml.safe_load((place / "run" / "config.yaml").read_text())["segments"]]
    assert starts == [0, 4]
    assert export(place / "run", place / "old", which="step_4").schema.action_high == (30, 30)
    new = (120, 120) if kind == "bounds" else (30, 30)
    assert export(place / "run", place / "new").schema.action_high == new


@pytest.mark.parametrize("how", ["same", "reordered", "moved", "another format's name", "one more camera"])
def test_what_is_the_same_resumes_bit_equal(place: Path, how: str) -> None:
    store = open_store(place / "d.h5")
    more = []
    if how == "reordered":
        more = ["task.observations=[state,front,arm]"]
    elif how == "another format's name":
        native.write(place / "e.h5", store)
        (place / "e.h5").rename(place / "d.h5")
    elif how == "one more camera":  # an earlier version may have left it out
        native.write(place / "e.h5", _observed(also=store.observations["front"])(store))
        (place / "e.h5").rename(place / "d.h5")
    elif how == "moved":
        (place / "run").rename(place / "gone")
        (place / "gone").rename(place / "run")
    assert _resume(place, "training.steps=6", *more) == 0, "more steps are one command"
    assert_equal(saved(place / "run"), saved(place / "whole"))
    names = ("step", "loss", "learning_rate")
    assert [[line[name] for name in names] for line in lines(place / "run")] == [
        [line[name] for name in names] for line in lines(place / "whole")
    ]
    results = json.loads((place / "run" / "results.json").read_text())
    assert (results["step"], results["steps"]) == (6, 6)


SETTINGS = {
    "seed=7": r"seed: 0 -> 7",
    "training.batch_size=8": r"training\.batch_size: 16 -> 8",
    "training.learning_rate=0.01": r"training\.learning_rate: 0\.001 -> 0\.01",
    "training.schedule=cosine": r"training\.steps: 4 -> 6.*training\.schedule: constant -> cosine",
    "training.warmup_steps=2": r"training\.warmup_steps: 0 -> 2",
    "training.clip_gradient=1": r"training\.clip_gradient: null -> 1",
    "training.precision=tf32": r"training\.precision: float32 -> tf32",
    "training.engine=compile": r"training\.engine: eager -> compile",
    "task.discount=0.5": r"task\.discount: 0\.99 -> 0\.5",
    "task.frame_stack=3": r"task\.frame_stack: 2 -> 3",
    "agent.policy.sigma_max=3": r"agent\.policy\.sigma_max: \S+ -> 3",
    "agent.acting.steps=3": r"agent\.acting\.steps: 2 -> 3",
    "agent.tau=0.5": r"agent\.tau: \S+ -> 0\.5",
    "encoder.augmentation.shift=1": r"encoder\.augmentation\.shift: 2 -> 1",
    "encoder.features=16": r"encoder\.features: 8 -> 16",
    "encoder.tuning=frozen": r"encoder\.tuning: full -> frozen",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_other_settings_are_refused_with_both_values(trained: Path, setting: str) -> None:
    past = segments_of(trained / "run" / "checkpoints" / "step_4")
    now = Segment(4, from_run(trained / "run", ["training.steps=6", setting]), past[0].data, past[0].rows)
    with pytest.raises(GtpVisionError, match=f"{SETTINGS[setting]}.*--new-segment"):
        continued(past, now, new_segment=False, statistics=trained / "none")
    assert continued(past, now, new_segment=True, statistics=trained / "none") == [*past, now]


def test_settings_that_change_no_step_may_change(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    free = ("log_every=3", "checkpoint_every=5", "keep_checkpoints=1", "eval_episodes=3", "eval_every=1", "videos=0")
    free += ("device=auto", "placement=mapped", "on_nonfinite=skip", "probe_rows=0", "eval_timeout=9")
    more = [*(f"training.{each}" for each in free), "task.name=other", "task.max_episode_steps=3"]
    assert _resume(place, "training.steps=6", *more) == 0
    assert "training.log_every: 2 -> 3" in capfd.readouterr().out
    assert_equal(saved(place / "run"), saved(place / "whole"))


def test_a_finished_cosine_is_extended_by_one_that_begins_there(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place / "run")
    trainer.train(_config(place, "run", "training.steps=4", "training.schedule=cosine"), progress=False)
    assert _resume(place, "training.steps=8") == 2
    assert "cosine then begins again, from 0.001 to 0 at step 8" in capfd.readouterr().err
    more = ("training.steps=8", "training.log_every=1", "training.keep_checkpoints=9")
    assert _resume(place, *more, "--new-segment") == 0
    rates = {line["step"]: line["learning_rate"] for line in lines(place / "run")}
    assert [rates[step] for step in (5, 6, 7, 8)] == pytest.approx(
        [0.0005 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    )
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert [segment["settings"]["training.steps"] for segment in config["segments"]] == [4, 8]
    assert config["training"]["schedule_start"] == 4
    assert from_run(place / "run").training.steps == 8
    weights = saved(place / "run")
    for step in (6, 8):  # as if it were killed after it was accepted
        shutil.rmtree(place / "run" / "checkpoints" / f"step_{step}")
    assert _resume(place, "training.learning_rate=0.1") == 2, "only what was accepted"
    assert _resume(place) == 0, "the same settings again are no change"
    assert_equal(saved(place / "run"), weights)
    assert _resume(place, "training.steps=2") == 2
    assert "has taken 8 steps already" in capfd.readouterr().err
    build_report([place / "run"], place / "report.html", title="a")
    assert "resumed at step 4 with training.steps: 4 -&gt; 8" in (place / "report.html").read_text()


@pytest.mark.parametrize("damage", ["deleted", "other"])
def test_export_eval_and_report_need_no_data_set(place: Path, damage: str) -> None:
    before = export(place / "run", place / "before")
    if damage == "deleted":
        (place / "d.h5").unlink()
    else:
        native.write(place / "new.h5", _bounds(_renamed(_grown(open_store(place / "d.h5")))))
        (place / "new.h5").rename(place / "d.h5")
    after = export(place / "run", place / "after")
    seen = {name: np.full(shape, 7, np.uint8) for name, shape in before.schema.cameras.items()}
    seen |= {name: np.ones(width, np.float32) for name, width in before.schema.states.items()}
    np.testing.assert_array_equal(before.act(seen), after.act(seen))
    assert before.schema == after.schema
    assert before.schema.action_high == (30, 30)
    assert (before.card, after.card)[0]["data"] == after.card["data"]
    with pytest.raises(GtpVisionError, match="without a simulator"):
        evaluate_run(place / "run")
    build_report([place / "run"], place / "report.html", title="a")
    assert load_policy(place / "before").schema == before.schema


def test_a_configuration_that_was_edited_is_refused(place: Path) -> None:
    path = place / "run" / "config.yaml"
    path.write_text(path.read_text().replace("discount: 0.99", "discount: 0.5"))
    with pytest.raises(GtpVisionError, match=r"task\.discount: 0\.99 -> 0\.5; restore"):
        restore(place / "run")


def test_checkpoints_of_earlier_versions_resume_with_a_sentence(
    place: Path, made: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """They number the encoders' parts, and hold no record of data and settings."""
    number = {"camera_front": "0", "camera_arm": "1", "mean_state": "state_mean_0", "scale_state": "state_scale_0"}
    order = list(open_store(place / "d.h5").observations)
    number |= {f"camera_{name}": str(i) for i, name in enumerate(name for name in order if name != "state")}
    for path in (place / "run" / "checkpoints").glob("step_*"):
        for name in ("agent", "optimizer"):
            file = path / f"{name}.safetensors"
            tensors = {
                ".".join(number.get(part, part) for part in key.split(".")): x for key, x in load_file(file).items()
            }
            assert any("towers.1." in key for key in tensors)
            save_file(tensors, file)
        state = json.loads((path / "state.json").read_text())
        del state["segments"]
        (path / "state.json").write_text(json.dumps(state | {"format": 1}))
        write_manifest(path)
    assert export(place / "run", place / "old").schema.action_high == (30, 30)
    assert _resume(place, "training.steps=6", "training.learning_rate=1") == 2
    assert "training.learning_rate: 0.001 -> 1" in capfd.readouterr().err
    native.write(place / "new.h5", _bounds(made))
    assert _resume(place, "training.steps=6", f"task.dataset={place / 'new.h5'}") == 2
    assert "action_high: [30.0, 30.0] -> [120.0, 120.0]" in capfd.readouterr().err
    assert _resume(place, "training.steps=6") == 0
    assert "holds no record of its data" in capfd.readouterr().err
    assert_equal(saved(place / "run"), saved(place / "whole"))


def test_runs_of_seeds_keep_their_seeds(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for setting in ("training.seeds=2", "training.seeds=3"):
        assert _resume(place, "training.steps=6", setting) == 2
        assert "training.seeds=1, and cannot be resumed with " + setting in capfd.readouterr().err


def test_a_batch_of_other_size_because_of_other_processes_is_refused(made: Store, place: Path) -> None:
    record = measure(made)[1]
    config = from_run(place / "run")
    past = [Segment(0, config, record, 16)]
    with pytest.raises(GtpVisionError, match="rows of a step in all processes: 16 -> 32"):
        continued(past, Segment(4, config, record, 32), new_segment=False, statistics=place / "none")
    assert continued(past, Segment(4, config, record, 16), new_segment=False, statistics=place / "none") == past


def test_records_of_equal_data_are_equal_whatever_the_format(made: Store, tmp_path: Path) -> None:
    native.write(tmp_path / "a.h5", made)
    one, other = measure(made)[1], measure(open_store(tmp_path / "a.h5"))[1]
    assert not differences(one, other)
    assert one.content == other.content
    assert record_of(made).action_bounds == tuple(list(made.attributes[bound]) for bound in ACTION_BOUNDS)
