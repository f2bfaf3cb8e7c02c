"""Conversion between all formats: what is the same afterwards, what is told, and what stays when it fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from samples import FORMATS as SAMPLES

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.differences import differences
from gtp_vision.datasets.formats import FORMATS, convert, detect, native, open_store
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.datasets.store import Store
from gtp_vision.datasets.validation import problems

MakeStore = Callable[..., Store]
Copied = Callable[[str], Path]

WRITABLE = sorted(name for name, known in FORMATS.items() if known.write)


def target(folder: Path, to: str) -> Path:
    return folder / f"{to}-folder" if to == "lerobot" else folder / f"{to}.hdf5"


def assert_same_transitions(before: Store, after: Store, *, exact: bool = True) -> None:
    """Through the sampler: every row with an outcome gives the same batch, bit for bit (cameras unless `exact`)."""
    np.testing.assert_array_equal(before.episode_ends, after.episode_ends)
    np.testing.assert_array_equal(before.transitions, after.transitions)
    one, other = (
        Sampler(store, 1, 0, frame_stack=3, n_step=2, action_chunk=4).gather(before.transitions)
        for store in (before, after)
    )
    for field in ("actions", "action_mask", "reward", "discount", "rows"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
    assert list(before.observations) == list(after.observations) or set(before.observations) == set(after.observations)
    for frames, theirs in (
        (one.observation, other.observation),
        (one.next_observation, other.next_observation),
    ):
        for name, wanted in frames.items():
            mine, found = wanted.numpy(), theirs[name].numpy()
            assert (mine.dtype, mine.shape) == (found.dtype, found.shape)
            if exact or mine.ndim == 3:
                np.testing.assert_array_equal(mine.view(np.uint8), found.view(np.uint8), err_msg=name)


def refused(tmp_path: Path, source: Path, to: str, *words: str) -> None:
    """The conversion is refused in a sentence, and leaves no file, whole or half, behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GtpVisionError) as told:
        convert(source, target(tmp_path, to), to)
    assert all(word in str(told.value) for word in words), told.value
    cached = tmp_path / "cache"
    assert [path for path in sorted(tmp_path.rglob("*")) if cached not in [path, *path.parents]] == [
        path for path in before if cached not in [path, *path.parents]
    ]


# What is the same -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", WRITABLE)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_becomes_every_other_one(
    name: str, to: str, samples: dict[str, Path], tmp_path: Path, cache: Path
) -> None:
    before = open_store(samples[name])
    if to == "d4rl" and len(before.observations) > 1:
        refused(tmp_path, samples[name], to, "one observation array", *before.observations)
        return
    after = convert(samples[name], target(tmp_path, to), to)
    assert detect(target(tmp_path, to)) == to
    assert not problems(after)
    assert_same_transitions(before, after, exact=to != "lerobot")
    assert dict(before.attributes).items() <= dict(after.attributes).items()
    told = differences(before, after)
    cameras = [name for name, array in before.observations.items() if array.ndim == 4]
    if to == "lerobot" and cameras:
        assert all("on average" in sentence for sentence in told[: len(cameras)])
        for camera in cameras:
            error = np.abs(np.asarray(before.observations[camera]).astype(int) - after.observations[camera])
            assert any(f"'{camera}'" in sentence for sentence in told) or not error.any()
    elif to == "robomimic":
        assert all("without an outcome" in sentence for sentence in told)
    else:
        assert not told


def test_the_error_of_video_is_bounded_for_pictures_that_are_no_noise(
    make_store: MakeStore, tmp_path: Path, cache: Path
) -> None:
    store = make_store((4, 3), cameras={"front": (48, 64, 3)})
    y, x = np.mgrid[:48, :64]
    store.observations["front"][:] = (2 * y + x + 9 * np.arange(7)[:, None, None])[..., None]
    source = native.write(tmp_path / "a.h5", store)
    after = convert(source, tmp_path / "video", "lerobot")
    error = np.abs(np.asarray(after.observations["front"]).astype(int) - store.observations["front"])
    assert 0 < error.mean() < 2
    (told,) = differences(store, after)
    assert f"{error.mean():.3g} of 255 on average, by {error.max()} at most" in told


def test_a_state_set_survives_a_chain_of_conversions(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    store = make_store((5, 7, 2, 4), terminals={1, 4, 8, 13}, state=4)
    store.rewards[3:5] = -0.0, 1e-40
    path = native.write(tmp_path / "0.h5", store)
    last = store
    for number, to in enumerate(("robomimic", "d4rl", "lerobot", "robomimic", "native", "d4rl", "native"), 1):
        last = convert(path, tmp_path / str(number), to)
        path = tmp_path / str(number)
    assert_same_transitions(store, last)
    assert_same_transitions(store, open_store(path))


ATTRIBUTES: dict[str, Any] = {
    "env": "cube-single-play-singletask-task1-v0",
    "suite": "ogbench",
    "rendering": {"shadow_size": 512, "multisamples": None},
    "filters": {"train": [0, 2], "valid": [1]},
    "action_low": [-2.0, -1.5],
    "action_high": [2.0, 1.5],
    "tasks": ["pick up the cube", "öffnen\nund schließen"],
    "episode_tasks": [0, 1, 0],
    "fps": 20,
    "seed": 3,
}


@pytest.mark.parametrize("to", WRITABLE)
def test_attributes_that_matter_survive(make_store: MakeStore, tmp_path: Path, cache: Path, to: str) -> None:
    store = make_store((5, 7, 3), attributes=ATTRIBUTES)
    after = convert(native.write(tmp_path / "a.h5", store), target(tmp_path, to), to)
    assert ATTRIBUTES.items() <= dict(after.attributes).items()
    assert after.filtered("train").episodes == 2
    again = convert(target(tmp_path, to), tmp_path / "again.h5", "native")
    assert ATTRIBUTES.items() <= dict(again.attributes).items()


# What is told ---------------------------------------------------------------------------------------------------------


def test_what_a_conversion_does_not_keep_is_printed(
    make_store: MakeStore, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store((5, 7), terminals={4}, cameras={"front": (8, 6, 3)}, state=None)
    source = native.write(tmp_path / "a.h5", store)
    said = {}
    for to in WRITABLE:
        assert main(["data", "convert", str(source), str(target(tmp_path, to)), "--to", to]) == 0
        first, *rest = capsys.readouterr().out.splitlines()
        assert first == f"{target(tmp_path, to)}: {to}, 2 episodes, 12 frames"
        said[to] = rest
    assert said["native"] == said["d4rl"] == ["  every frame, action, reward and flag is as it was"]
    assert said["robomimic"] == [
        "  the actions of 1 rows, rewards of 1 rows without an outcome, which nothing is learnt from, were not kept"
    ]
    assert len(said["lerobot"]) == 1
    assert said["lerobot"][0].startswith("  frames of the camera 'front' are off by ")


def test_every_kind_of_difference_is_told(make_store: MakeStore) -> None:
    options: dict[str, Any] = {"lengths": (5, 7), "terminals": {4}, "cameras": {"front": (8, 6, 3)}}
    store = make_store(**options, attributes={"env": "a", "fps": 5})

    def told(change: Callable[[Store], Any]) -> list[str]:
        other = make_store(**options, attributes={"env": "a", "fps": 5, "more": 1})
        change(other)
        return differences(store, other)

    assert told(lambda other: None) == []
    assert told(lambda other: other.actions.__setitem__((1, 0), 9.0))[0].startswith("actions differ in 1 rows")
    assert told(lambda other: other.rewards.__setitem__(2, np.nan)) == ["rewards differ in 1 rows, by at most 0"]
    assert "terminals" in told(lambda other: other.terminals.__setitem__(2, 1))[0]
    assert "1 rows gained or lost their outcome" in told(lambda other: other.terminals.__setitem__(4, 0))[0]
    assert "rewards of 1 rows without an outcome" in told(lambda other: other.rewards.__setitem__(11, 5))[0]
    assert "'state' differs in 1 rows, by at most 2" in told(
        lambda other: other.observations["state"].__setitem__((0, 0), 2)
    )
    assert "'front' are off by" in told(lambda other: other.observations["front"].__setitem__(3, 0))[0]
    assert told(lambda other: other.observations.pop("front")) == ["the observation 'front' was left out"]
    assert "made of 2 episodes" in told(lambda other: setattr(other, "episode_ends", np.array([3, 5, 12])))[0]
    assert told(lambda other: setattr(other, "attributes", {"env": "b"})) == [
        "these attributes are gone or changed: env, fps"
    ]


def test_only_formats_with_a_writer_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "a", "b", "--to", "robomimik"]) == 2
    assert "did you mean 'robomimic'?" in capsys.readouterr().err
    assert main(["data", "convert", "a", "b", "--to", "minari"]) == 2
    assert "known: 'd4rl', 'lerobot', 'native', 'robomimic'" in capsys.readouterr().err


def test_help_imports_no_reader() -> None:
    script = "import sys; from gtp_vision.cli import main; main._parser(); print({'h5py', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# What is refused, and what stays --------------------------------------------------------------------------------------


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(
    make_store: MakeStore, tmp_path: Path, cache: Path
) -> None:
    cameras = {"front": (8, 6, 3)}
    two = native.write(tmp_path / "two.h5", make_store(cameras=cameras))
    refused(tmp_path, two, "d4rl", "one observation array", "front", "state")
    lone = native.write(tmp_path / "lone.h5", make_store((4, 1, 3)))
    refused(tmp_path, lone, "robomimic", "episode 1", "no outcome")
    depth = native.write(tmp_path / "depth.h5", make_store(cameras={"front": (8, 6, 4)}))
    refused(tmp_path, depth, "lerobot", "front", "4 channels")
    ends = native.write(tmp_path / "ends.h5", make_store())
    with h5py.File(ends, "r+") as file:
        file["episode_ends"][-1] = 11
    for to in WRITABLE:
        refused(tmp_path, ends, to, "ends.h5", "episode_ends")
    refused(tmp_path, tmp_path / "gone.h5", "native", "no data set")
    refused(tmp_path, two, "nativ", "did you mean 'native'")


def test_places_where_nothing_can_be_written_are_refused(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    source = native.write(tmp_path / "a.h5", make_store())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for to in WRITABLE:
        with pytest.raises(GtpVisionError, match=r"folder|holds something else"):
            convert(source, tmp_path / "full", to, overwrite=True)
        with pytest.raises(GtpVisionError, match="below a file"):
            convert(source, source / "inside", to)
    with pytest.raises(GtpVisionError, match="is a file"):
        convert(source, source, "lerobot", overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"
    assert not problems(open_store(source))


@pytest.mark.parametrize("to", WRITABLE)
def test_what_stands_there_is_replaced_only_when_asked(
    make_store: MakeStore, tmp_path: Path, cache: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path = native.write(tmp_path / "a.h5", make_store()), target(tmp_path, to)
    words = ["data", "convert", str(source), str(path), "--to", to]
    assert main(words) == 0
    assert main(words) == 2
    assert "is there already; give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    before = source.read_bytes()
    assert main(["data", "convert", str(source), str(source), "--to", to]) == 2
    assert source.read_bytes() == before


def test_a_place_that_cannot_be_written_is_told(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    source = native.write(tmp_path / "a.h5", make_store())
    for to in WRITABLE:
        with pytest.raises(GtpVisionError, match=r"; make room or choose another place"):
            convert(source, Path("/proc/x.h5"), to)


@pytest.mark.parametrize("to", WRITABLE)
def test_an_existing_target_is_replaced_whole(make_store: MakeStore, tmp_path: Path, cache: Path, to: str) -> None:
    first = native.write(tmp_path / "a.h5", make_store((9, 8, 7), seed=1))
    second = native.write(tmp_path / "b.h5", make_store((4, 3), seed=2))
    path = target(tmp_path, to)
    held = convert(first, path, to)
    after = convert(second, path, to, overwrite=True)
    assert_same_transitions(open_store(second), after)
    assert_same_transitions(open_store(first), held)  # who has the old one open keeps it
    assert len(list(tmp_path.glob(f"*{path.name}*"))) == 1


@pytest.mark.parametrize("to", WRITABLE)
def test_a_data_set_can_be_converted_onto_itself(make_store: MakeStore, tmp_path: Path, cache: Path, to: str) -> None:
    store = make_store((5, 7), terminals={4})
    path = target(tmp_path, to)
    convert(native.write(tmp_path / "a.h5", store), path, to)
    link = tmp_path / f"link-{path.name}"
    link.symlink_to(path)
    assert_same_transitions(store, convert(path, path, to, overwrite=True))
    assert_same_transitions(store, convert(link, path, to, overwrite=True))
    assert_same_transitions(store, open_store(path))


@pytest.mark.parametrize("name", ["d4rl_mapped", "robomimic_mapped", "native"])
def test_frames_mapped_in_place_survive_the_file_that_they_lie_in(name: str, copied: Copied, cache: Path) -> None:
    path = copied(name)
    before = open_store(path)
    after = convert(path, path, "native", overwrite=True)
    assert detect(path) == "native"
    assert_same_transitions(before, after)


SLOWLY = """
import sys, time
import numpy as np
from gtp_vision import cli
from gtp_vision.datasets import formats

class Slow(np.ndarray):
    def __getitem__(self, key):
        print("writing", flush=True)
        time.sleep(60)

def slowly(path, env=None):
    store = opened(path, env)
    store.observations = {"front": store.observations["front"].view(Slow)}
    return store

opened, formats.open_store = formats.open_store, slowly
sys.exit(main(["data", "convert", sys.argv[1], sys.argv[2], "--to", sys.argv[3], "--overwrite"]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("to", WRITABLE)
def test_a_conversion_that_is_stopped_leaves_the_old_target_and_no_process(
    make_store: MakeStore, tmp_path: Path, cache: Path, to: str, how: signal.Signals
) -> None:
    store = make_store(cameras={"front": (16, 16, 3)}, state=None)
    source, path = native.write(tmp_path / "a.h5", store), target(tmp_path, to)
    old = convert(source, path, to)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SLOWLY, str(source), str(path), to],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "writing\n"
        children = psutil.Process(command.pid).children(recursive=True)
        assert children
        command.send_signal(how)
        _, said = command.communicate(timeout=30)
    assert "Traceback" not in said
    if how == signal.SIGINT:
        assert (command.returncode, said) == (130, "gtp-vision: interrupted\n")
        assert not list(tmp_path.glob(".*"))
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert_same_transitions(old, open_store(path))
    assert_same_transitions(old, convert(source, path, to, overwrite=True), exact=to != "lerobot")


def test_a_full_cache_disk_is_not_blamed_on_the_file(copied: Copied, tmp_path: Path, cache: Path) -> None:
    path = copied("robomimic")
    script = (
        "import resource, signal, sys; from pathlib import Path;"
        "from gtp_vision.datasets.formats import robomimic;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "robomimic.read(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(path)], capture_output=True, text=True, check=False, env=os.environ
    )
    told = done.stderr.strip().splitlines()[-1]
    assert "GtpVisionError" in told
    assert "GTP_VISION_CACHE" in told
    assert "copy it again" not in told


def test_hdf5_tools_find_no_trace_of_the_old_file(make_store: MakeStore, tmp_path: Path, cache: Path) -> None:
    path = convert(native.write(tmp_path / "a.h5", make_store()), tmp_path / "b.hdf5", "d4rl").path
    assert path is not None
    convert(tmp_path / "a.h5", path, "robomimic", overwrite=True)
    with h5py.File(path) as file:
        assert set(file) == {"data"}
