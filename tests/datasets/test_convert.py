import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from commands import started
from refusals import assert_same, open_here
from samples import FORMATS as SAMPLES
from samples import Copied
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.differences import differences
from gtp_vision.datasets.formats import FORMATS, check_writable, convert, detect, native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.scaling import scaled
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

pytestmark = pytest.mark.usefixtures("cache")
WRITABLE = [name for name, known in FORMATS.items() if known.write]


def target(folder: Path, to: str) -> Path:
    return folder / f"{to}-folder" if to.startswith("lerobot") else folder / f"{to}.hdf5"


def assert_same_transitions(before: Store, after: Store, *, exact: bool = True) -> None:
    """Through the sampler: every row with an outcome gives the same batch, bit for bit.

    If not `exact`, cameras may differ, and actions by rounding.
    """
    np.testing.assert_array_equal(before.episode_ends, after.episode_ends)
    np.testing.assert_array_equal(before.transitions, after.transitions)
    old, new = (
        Sampler(store, 1, 0, frame_stack=3, n_step=2, action_chunk=4).gather(before.transitions)
        for store in (before, after)
    )
    np.testing.assert_allclose(old.actions, new.actions, rtol=0, atol=0 if exact else 1e-6)
    for field in ("action_mask", "reward", "discount"):
        np.testing.assert_array_equal(getattr(old, field), getattr(new, field), err_msg=field)
    for frames, converted in ((old.observation, new.observation), (old.next_observation, new.next_observation)):
        assert frames.keys() == converted.keys()
        for name, wanted in frames.items():
            mine, found = wanted.numpy(), converted[name].numpy()
            assert (mine.dtype, mine.shape) == (found.dtype, found.shape)
            if exact or mine.ndim == 3:
                np.testing.assert_array_equal(mine.view(np.uint8), found.view(np.uint8), err_msg=name)


def refused(tmp_path: Path, source: Path, to: str, *words: str) -> None:
    """The conversion is refused in a sentence, and leaves no file, complete or not, behind."""

    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in [path, *path.parents]}

    before = files()
    with pytest.raises(GtpVisionError) as error:
        convert(source, target(tmp_path, to), to)
    assert all(word in str(error.value) for word in words), error.value
    assert files() == before


ATTRIBUTES: dict[str, Any] = {
    "env": "cube-single-play-singletask-task1-v0",
    "suite": "ogbench",
    "rendering": {"shadow_size": 512, "multisamples": None},
    "filters": {"train": [0, 2], "valid": [1], "none": []},
    "action_low": [-2.0, -1.5],
    "action_high": [2.0, 1.5],
    "tasks": ["pick up the cube", "öffnen\nund schließen"],
    "episode_tasks": [0, 1, 0],
    "fps": 29.97,
    "seeds": list(range(30_000)),
}


STORES: dict[str, dict[str, Any]] = {
    "terminals inside": {"lengths": (6, 6), "terminals": {2, 3, 8, 11}},
    "both flags": {"lengths": (4, 4), "terminals": {3, 7}, "timeouts": {3}},
    "short": {"lengths": (1, 2, 2), "terminals": {0, 2}},
    "one number": {"state": 1, "actions": 1},
    "camera": {"lengths": (70, 80), "cameras": {"front": (8, 6, 3)}, "state": None, "terminals": {4}},
    "attributes": {"lengths": (3, 4, 2), "attributes": ATTRIBUTES},
    "mapped": {"lengths": (3000, 3000), "state": 8},
}


@pytest.mark.parametrize("to", WRITABLE)
@pytest.mark.parametrize("content", STORES.values(), ids=STORES)
def test_what_is_written_is_read_back(tmp_path: Path, content: dict[str, Any], to: str) -> None:
    store = make_store(**content)
    store.rewards[0] = 1e-40
    if "state" in store.observations:  # NaNs and signs keep their bits
        bits = np.array([0x7FC00001, 0x80000000, 0xFF800000, 1], np.uint32).view(np.float32)
        store.observations["state"][1:5, -1] = bits
    after = open_here(check_writable(to)(target(tmp_path, to), store))
    if to == "robomimic":  # has no room for rows without an outcome
        assert_same_transitions(store, after)
        assert store.attributes.items() <= after.attributes.items()
    else:
        if to.startswith("lerobot") and "action_low" in store.attributes:  # they are written in the robot's units
            np.testing.assert_allclose(after.actions, store.actions, atol=1e-6)
            after = replace(after, actions=store.actions)
        assert_same(after, store, cameras=not to.startswith("lerobot"))


REAL_LAST = {*SAMPLES} - {"robomimic", "minari", "minari_jpeg", "minari_arrow", "dm_env", "dm_env_npz", "maniskill"}
"""Samples whose last rows have actions of their own."""


def assert_said(sentences: list[str], words: dict[str, bool]) -> None:
    """There is a sentence for each of the words that are true, and no other."""
    assert len(sentences) == sum(map(bool, words.values())), sentences
    for word in (word for word, is_said in words.items() if is_said):
        assert any(word in sentence for sentence in sentences), (word, sentences)


@pytest.mark.parametrize("to", WRITABLE)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_becomes_every_other_one(name: str, to: str, samples: dict[str, Path], tmp_path: Path) -> None:
    before = open_store(samples[name])
    if to == "d4rl" and len(before.observations) > 1:
        refused(tmp_path, samples[name], to, "one observation array", *before.observations)
        return
    after = convert(samples[name], target(tmp_path, to), to)
    assert detect(target(tmp_path, to)) == to.removesuffix("-v2.1")
    assert not problems(*scaled([after]))
    kept = before.without_final_observations() if to.startswith("lerobot") else before
    assert_same_transitions(kept, after, exact=not to.startswith("lerobot"))
    assert dict(before.attributes).items() <= dict(after.attributes).items()
    is_lerobot = to.startswith("lerobot")
    lost = {
        "the observations after the last action of 2 episodes were left out": kept is not before,
        "without an outcome, from which nothing is learned, were not kept": to == "robomimic" and name in REAL_LAST,
    }
    lost |= {f"'{name}' differ by": is_lerobot for name, array in before.observations.items() if array.ndim == 4}
    assert_said(differences(before, after), lost)
    made_up = {
        "the last rows of 2 episodes hold nothing but": to == "d4rl" and before.final_observations.any(),
        "the last next_obs of": to == "robomimic" and before.has_outcome[before.episode_ends - 1].any(),
        "env_args are made up": to == "robomimic" and "env_args" not in before.attributes,
        "fps is 10, since the data set does not say its rate": is_lerobot and name != "lerobot",
        "the data set has no text of a task": is_lerobot and "tasks" not in before.attributes,
    }
    assert_said(known(before) if (known := FORMATS[to].notes) else [], made_up)


def test_lost_content_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store((5, 7), terminals={4}, cameras={"front": (8, 6, 3)}, state=None)
    source = native.write(tmp_path / "a.h5", store)
    for to, words in (
        ("native", "every frame, action, reward and flag is as it was"),
        ("robomimic", "the actions of 1 rows, rewards of 1 rows without an outcome, "),
        ("lerobot", "fps is 10, since the data set does not say its rate; --fps sets it"),
    ):
        assert main(["data", "convert", str(source), str(target(tmp_path, to)), "--to", to]) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == f"{target(tmp_path, to)}: {to}, 2 episodes, 12 frames"
        assert any(line.startswith(f"  {words}") for line in lines)
    assert main(["data", "convert", str(source), str(tmp_path / "b"), "--to", "lerobot", "--fps", "25"]) == 0
    assert "fps is" not in capsys.readouterr().out
    assert open_store(tmp_path / "b").attributes["fps"] == 25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda other: None, ""),
        (lambda other: other.actions.__setitem__((1, 0), 9.0), "actions differ in 1 rows"),
        (lambda other: other.rewards.__setitem__(2, np.nan), "rewards differ in 1 rows, by at most 0"),
        (lambda other: other.terminals.__setitem__(2, 1), "terminals"),
        (lambda other: other.terminals.__setitem__(4, 0), "1 rows gained or lost their outcome"),
        (lambda other: other.rewards.__setitem__(11, 5), "rewards of 1 rows without an outcome"),
        (lambda other: other.observations["state"].__setitem__((0, 0), 2), "'state' differs in 1 rows, by at most 2"),
        (lambda other: other.observations["front"].__setitem__(3, 0), "'front' differ by"),
        (lambda other: other.observations.pop("front"), "the observation 'front' was left out"),
        (lambda other: other.observations.update(state=np.zeros((12, 9))), "'state' has the shape (12, 9)"),
        (lambda other: setattr(other, "episode_ends", np.array([3, 5, 12])), "made of 2 episodes"),
        (lambda other: setattr(other, "attributes", {"env": "b"}), "attributes are missing or changed: env, fps"),
    ],
)
def test_each_kind_of_difference_is_reported(change: Callable[[Store], Any], words: str) -> None:
    options: dict[str, Any] = {"lengths": (5, 7), "terminals": {4}, "cameras": {"front": (8, 6, 3)}}
    store, other = (make_store(**options, attributes={"env": "a", "fps": 5} | more) for more in ({}, {"more": 1}))
    change(other)
    sentences = differences(store, other)
    assert len(sentences) == bool(words)
    assert words in "".join(sentences)


def test_only_formats_with_a_writer_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "a", "b", "--to", "robomimik"]) == 2
    assert "did you mean 'robomimic'?" in capsys.readouterr().err
    assert main(["data", "convert", "a", "b", "--to", "minari"]) == 2
    assert "known: 'd4rl', 'lerobot', 'lerobot-v2.1', 'native', 'robomimic'" in capsys.readouterr().err


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    stores = {
        "two": make_store(cameras={"front": (8, 6, 3)}),
        "lone": make_store((4, 1, 3)),
        "depth": make_store(cameras={"front": (8, 6, 4)}),
        "ends": make_store(),
    }
    paths = {name: native.write(tmp_path / f"{name}.h5", store) for name, store in stores.items()}
    with h5py.File(paths["ends"], "r+") as file:
        file["episode_ends"][-1] = 11
    refused(tmp_path, paths["two"], "d4rl", "one observation array", "front", "state")
    refused(tmp_path, paths["lone"], "robomimic", "episode 1", "no outcome")
    refused(tmp_path, paths["depth"], "lerobot", "front", "4 channels")
    for to in WRITABLE:
        refused(tmp_path, paths["ends"], to, "ends.h5", "episode_ends")
    refused(tmp_path, tmp_path / "gone.h5", "native", "no data set")


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    source = native.write(tmp_path / "a.h5", make_store())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for to in WRITABLE:
        for path, words in (
            (tmp_path / "full", "is a folder|not a LeRobot data set"),
            (source / "inside", "below a file"),
            (Path("/proc/x.h5"), "; make room or choose another place"),
        ):
            with pytest.raises(GtpVisionError, match=words):
                convert(source, path, to, overwrite=True)
    with pytest.raises(GtpVisionError, match="is a file"):
        convert(source, source, "lerobot", overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"
    assert not problems(open_store(source))


@pytest.mark.parametrize("to", WRITABLE)
def test_overwrite_replaces(tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = native.write(tmp_path / "a.h5", make_store((9, 8, 7), seed=1))
    second = native.write(tmp_path / "b.h5", make_store((4, 3), seed=2))
    path = target(tmp_path, to)
    words = ["data", "convert", str(second), str(path), "--to", to]
    held = convert(first, path, to)
    assert main(words) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert_same_transitions(open_store(second), open_store(path))
    assert_same_transitions(open_store(first), held)  # an open data set stays readable
    assert len(list(tmp_path.glob(f"*{path.name}*"))) == 1


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("native", "native"),
        ("d4rl_mapped", "d4rl"),
        ("d4rl_mapped", "native"),
        ("robomimic_mapped", "native"),
        ("lerobot", "lerobot"),
    ],
)
def test_a_data_set_can_be_converted_onto_itself(name: str, to: str, copied: Copied) -> None:
    path = copied(name)
    link = path.with_name("link")
    link.symlink_to(path)
    before = open_store(link)
    after = convert(link, path, to, overwrite=True)
    assert detect(path) == to
    assert_same_transitions(before, after, exact=not to.startswith("lerobot"))


SLOWLY = """
import sys, time
import numpy as np
from gtp_vision.cli.main import main
from gtp_vision.datasets import formats

class Slow(np.ndarray):
    def __getitem__(self, key):
        print("writing", flush=True)
        time.sleep(60)

def slowly(path, *options, **framing):
    store = opened(path, *options, **framing)
    store.observations = {"front": store.observations["front"].view(Slow)}
    return store

opened, formats.open_store = formats.open_store, slowly
sys.exit(main(["data", "convert", sys.argv[1], sys.argv[2], "--to", sys.argv[3], "--overwrite"]))
"""


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("to", ["native", "lerobot"])
def test_a_stopped_conversion_is_undone(tmp_path: Path, to: str, how: signal.Signals) -> None:
    store = make_store(cameras={"front": (16, 16, 3)}, state=None)
    source, path = native.write(tmp_path / "a.h5", store), target(tmp_path, to)
    old = convert(source, path, to)
    with started("-c", SLOWLY, source, path, to) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "writing\n"
        children = psutil.Process(command.pid).children(recursive=True)
        assert children
        command.send_signal(how)
        _, err = command.communicate(timeout=30)
    assert "Traceback" not in err
    if how == signal.SIGINT:
        assert (command.returncode, err) == (130, "gtp-vision: interrupted\n")
        assert not list(tmp_path.glob(".*"))
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert_same_transitions(old, open_store(path))
    assert_same_transitions(old, convert(source, path, to, overwrite=True), exact=not to.startswith("lerobot"))
