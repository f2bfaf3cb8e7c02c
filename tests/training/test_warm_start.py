import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CLI, ended
from safetensors.torch import load_file, save_file
from small_runs import PIXELS, assert_equal, saved, small_run
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.config.schema import Config, InitConfig
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.datasets.formats import native
from gtp_vision.report.rounds import rounds_of
from gtp_vision.training import trainer
from gtp_vision.training.build import build
from gtp_vision.training.rounds import appended
from gtp_vision.training.validation import read_entries
from gtp_vision.training.warm_start import Source, open_run

SEEN = ("encoder.share=false", "training.steps=2")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on a camera and a state, of two action dimensions."""
    folder = tmp_path_factory.mktemp("source")
    data = written(folder / "old.h5")
    trainer.train(small_run(data, folder / "run", *PIXELS, *SEEN), progress=False)
    return folder / "run"


def written(path: Path, **options: object) -> Path:
    store = make_store((30, 40), terminals={29}, **({"cameras": {"front": (12, 12, 3)}} | options))  # type: ignore[arg-type]
    return native.write(path, replace(store, actions=0.5 * store.actions))


def begun(source: Path, tmp_path: Path, *overrides: str, append: tuple[str, ...] = ()) -> Config:
    return open_run(str(source)).new_run([f"run_dir={tmp_path / 'new'}", *overrides], append)


def filled(source: Path, config: Config) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of an agent that begins with a source, and the names that were loaded."""
    parts = build(config, source=open_run(str(source)))
    assert parts.initial is not None
    return parts.agent.state_dict(), dict(parts.initial.names)


@pytest.mark.trains
def test_other_data_leave_the_weights_the_statistics_and_the_scale_as_the_source_has_them(
    source: Path, tmp_path: Path
) -> None:
    new = written(tmp_path / "new.h5", seed=1)
    config = begun(source, tmp_path, f"task.dataset={new}")
    own, old = filled(source, config)[0], load_file(source / "checkpoints" / "last" / "agent.safetensors")
    assert_equal(own, old)
    refitted = filled(source, begun(source, tmp_path, f"task.dataset={new}", "init.refit=true"))[0]
    differing = {name.rpartition(".")[2] for name in old if not torch.equal(refitted[name], old[name])}
    assert differing == {"mean_state", "scale_state", "mean"}  # of states, and of frames


@pytest.mark.trains
def test_actions_of_other_data_come_in_the_scale_of_the_source(tmp_path: Path) -> None:
    """Bounds of the old file: +-30; of the new one: +-120, where the same number means four times the motion."""
    stores = [make_store((30, 40), attributes={"action_low": [-x] * 2, "action_high": [x] * 2}) for x in (30.0, 120.0)]
    stores[1] = replace(stores[1], actions=stores[1].actions / 8)
    old, new = (native.write(tmp_path / f"{i}.h5", store) for i, store in enumerate(stores))
    trainer.train(small_run(old, tmp_path / "run", "training.steps=1"), progress=False)
    source = open_run(str(tmp_path / "run"))
    for overrides, append in (([f"task.dataset={new}"], []), ([], [str(new)])):
        parts = build(source.new_run(overrides, append), source=source)
        assert parts.record.action_bounds == ([-30, -30], [30, 30])
        torch.testing.assert_close(parts.store.actions[-40:], 4 * stores[1].actions[-40:])


@pytest.mark.trains
def test_a_run_that_begins_with_weights_resumes_without_their_source(source: Path, tmp_path: Path) -> None:
    moved = source.rename(source.with_name("moved"))
    try:
        for name, stops in (("whole", [4]), ("stopped", [2, 4])):
            for stop in stops:
                config = replace(begun(moved, tmp_path, f"training.steps={stop}"), run_dir=str(tmp_path / name))
                is_resumed = (tmp_path / name).exists()
                if is_resumed:
                    moved.rename(source)
                trainer.train(config, resume=is_resumed, progress=False)
                if is_resumed:
                    source.rename(moved)
    finally:
        moved.rename(source)
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "stopped"))
    begins = tmp_path / "stopped" / "checkpoints" / "step_0"
    assert not begins.exists() or load_file(begins / "agent.safetensors")


@pytest.mark.trains
def test_what_does_not_fit_is_new_and_named(source: Path, tmp_path: Path) -> None:
    new = written(tmp_path / "new.h5", cameras={"front": (12, 12, 3), "wrist": (12, 12, 3)}, state=5)
    seen = "task.observations=[front,wrist,state]"  # without it, those of the source
    parts = build(begun(source, tmp_path, f"task.dataset={new}", seen), source=open_run(str(source)))
    assert parts.initial is not None
    table = parts.initial.table()
    by_name = {part.name: part for part in parts.initial.parts}
    assert "towers.camera_wrist: absent in the source" in by_name["actor_encoder"].notes
    assert by_name["policy"].loaded
    assert by_name["policy"].new
    assert [note.partition(":")[0] for note in by_name["policy"].notes] == ["observe"]
    assert "critic_target" in table
    assert "partly" in table
    old = load_file(source / "checkpoints" / "last" / "agent.safetensors")
    loaded = {name: x for name, x in parts.agent.state_dict().items() if name in parts.initial.names}
    assert_equal(loaded, {name: old[name] for name in loaded})
    assert {name.split(".")[2] for name in loaded if ".towers." in name} == {"camera_front"}


@pytest.mark.trains
@pytest.mark.parametrize(
    ("options", "overrides", "words"),
    [
        ({"actions": 3}, [], r"acts in 2 dimensions, and the data have 3.*init\.partial=true"),
        ({}, ["agent.policy.hidden=[16,16]"], r"policy of .* is of another architecture \(.*init\.partial=true"),
        ({}, ["encoder.name=impala_small"], r"no backbone of .* fits \(encoder=impala_tiny there"),
    ],
)
def test_weights_that_do_not_fit_are_refused_unless_partly_accepted(
    source: Path, tmp_path: Path, options: dict[str, object], overrides: list[str], words: str
) -> None:
    data = f"task.dataset={written(tmp_path / 'new.h5', **options)}"
    with pytest.raises(GtpVisionError, match=words):
        filled(source, begun(source, tmp_path, data, *overrides))
    assert not (tmp_path / "new").exists()
    assert filled(source, begun(source, tmp_path, data, *overrides, "init.partial=true"))[1]


@pytest.mark.trains
def test_moments_are_loaded_where_they_fit_and_start_at_0_elsewhere(source: Path, tmp_path: Path) -> None:
    new = written(tmp_path / "new.h5", state=5)
    config = begun(source, tmp_path, f"task.dataset={new}", "init.optimizer=true", "training.steps=1")
    trainer.train(config, progress=False)
    old, start = saved(source), saved(tmp_path / "new", "step_0")
    policy = "policy.network.1.0.weight.exp_avg"
    assert torch.equal(start[policy], old[policy])
    assert start[policy].any()
    assert not start["policy.observe.weight.exp_avg"].any()
    assert start["policy.observe.weight.step"] == 0
    found = json.loads((tmp_path / "new" / "init.json").read_text())
    assert 0 < found["moments"] < len([name for name in start if name.endswith(".step")])


@pytest.mark.trains
def test_lora_begins_with_the_weights_of_a_run_without_adapters(source: Path, tmp_path: Path) -> None:
    own, names = filled(source, begun(source, tmp_path, "encoder.tuning=lora", "encoder.lora.rank=2"))
    based = [name for name in names if ".base_layer." in name and name.startswith("actor_encoder.")]
    old = load_file(source / "checkpoints" / "last" / "agent.safetensors")
    assert based
    assert all(torch.equal(own[name], old[name.replace(".base_layer.", ".")]) for name in based)


@pytest.mark.trains
def test_features_of_a_frozen_backbone_are_of_the_loaded_weights(source: Path, tmp_path: Path, cache: Path) -> None:
    config = begun(source, tmp_path, "encoder.tuning=frozen", "encoder.augmentation.shift=0")
    parts = build(config, source=open_run(str(source)))
    frames, features = parts.frames.batch(0).observation, parts.sampler.batch(0).observation
    seen = parts.agent.actor_encoder.camera_features("front", frames["front"])
    torch.testing.assert_close(features["front"][:, 0].float(), seen, rtol=1e-2, atol=1e-2)


def test_shares_of_rounds_follow_from_their_rows_and_weights(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old.h5"), written(tmp_path / "new.h5")
    rows = 30 + 39  # with an outcome
    config = small_run(old, tmp_path)
    second = appended(config, [f"{new}:5"])
    assert second.task.datasets == [str(old), str(new)]
    assert second.task.shares == [rows, 5 * rows]
    third = appended(second, [str(written(tmp_path / "third.h5"))])
    assert third.task.shares == pytest.approx([2 * rows / 6, 2 * rows * 5 / 6, rows])
    for item, words in ((f"{new}:0", "must be above 0"), (f"{tmp_path / 'none.h5'}", "none.h5")):
        with pytest.raises(GtpVisionError, match=words):
            appended(config, [item])
    with pytest.raises(GtpVisionError, match="are a round of the run already"):
        appended(second, [str(new)])


@pytest.mark.trains
def test_settings_of_the_source_hold_except_for_overrides(source: Path, tmp_path: Path) -> None:
    new = written(tmp_path / "new.h5")
    found = open_run(str(source / "checkpoints" / "step_2"))
    config = found.new_run(["training.learning_rate=1e-5"], [str(new)])
    assert config.agent == found.config.agent
    assert config.training.learning_rate == 1e-5
    assert config.run_dir == "runs/small/gtp-impala_tiny-seed0-round2"
    assert config.init == InitConfig(source=str(source / "checkpoints" / "step_2"))
    for overrides, words in (
        (["agent=fql"], "--init takes the settings of .* init.source="),
        (["training.stepz=1"], "training.steps"),
        (["task.shares=[1,2]"], r"task\.shares=\[1\.0, 2\.0\] must hold"),
    ):
        with pytest.raises(GtpVisionError, match=words):
            found.new_run(overrides)
    with pytest.raises(GtpVisionError, match="is the run whose weights"):
        found.check_folder(source)


@pytest.mark.trains
def test_sources_that_are_missing_or_damaged_are_refused(source: Path, tmp_path: Path) -> None:
    for given, words in (
        (tmp_path, "is not a run"),
        (source / "checkpoints" / "step_9", "has no checkpoint 'step_9'"),
    ):
        with pytest.raises(GtpVisionError, match=words):
            open_run(str(given))
    at = source / "checkpoints" / "last"
    tensors = load_file(at / "agent.safetensors")
    tensors["policy.observe.bias"][0] = torch.nan
    broken = tmp_path / "broken.safetensors"
    save_file(tensors, broken)
    found: Source = replace(open_run(str(source)), weights=broken)
    with pytest.raises(GtpVisionError, match=r"not finite \('policy\.observe\.bias'\)"):
        build(begun(source, tmp_path), source=found)


@pytest.mark.trains
@pytest.mark.processes
def test_rounds_on_the_command_line(source: Path, tmp_path: Path) -> None:
    new, run = written(tmp_path / "new.h5"), tmp_path / "second"
    given = [*CLI, "train", "--init", source, "--append", f"{new}:2", f"run_dir={run}", "training.steps=1"]
    errors = ended(*given, environment={"TQDM_DISABLE": None})[1]
    assert "policy" in errors
    assert "loaded" in errors
    assert [entry["run"] for entry in rounds_of(run)] == [str(source), str(run)]
    assert (run / "checkpoints" / "step_0").is_dir()  # from which it resumes without the source


@pytest.mark.trains
def test_explain_names_the_source_of_settings(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--init", str(source), "training.steps=7", "--explain"]) == 0
    lines = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()}
    assert lines["training.steps"] == ["7", "command"]
    assert lines["agent.name"] == [open_run(str(source)).config.agent.name, str(source)]


def test_options_of_a_warm_start_belong_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["--append", "x.h5"], "--append is for a run that begins with the weights of another; add --init RUN"),
        (["--init", "a", "--resume", "b"], "give one of the two"),
        (["--init", "a", "-m"], "init.source=a instead"),
        (["task=demo", "init.refit=true"], "init.refit and init.partial are of weights that init.source names"),
    ):
        assert main(["train", *words]) == 2
        assert sentence in capsys.readouterr().err


def test_a_folder_of_a_manifest_alone_is_no_source(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    with pytest.raises(GtpVisionError, match="is not a run"):
        open_run(str(tmp_path))


@pytest.mark.trains
def test_other_data_of_a_similar_task_need_a_third_of_the_steps(tmp_path: Path) -> None:
    """Actions are a function of the state; in the new data the sensor is turned by 20 degrees."""
    weights = np.random.default_rng(1).normal(size=(3, 2))
    paths = []
    for seed, angle in enumerate((0.0, np.deg2rad(20))):
        store = make_store([20] * 20, seed=seed)
        states = np.random.default_rng(seed).normal(size=(len(store), 3)).astype(np.float32)
        actions = np.tanh(states @ weights).astype(np.float32)
        turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        seen = {"state": (states @ turn).astype(np.float32)}
        paths.append(native.write(tmp_path / f"{seed}.h5", replace(store, observations=seen, actions=actions)))
    wide = ("agent.policy.hidden=[64,64]", "training.batch_size=64", "training.checkpoint_every=100")
    for name, path in zip(("source", "scratch"), paths, strict=True):
        config = small_run(path, tmp_path / name, "training.steps=300", *wide, agent="gtp_bc")
        trainer.train(config, progress=False)
    run = [f"task.dataset={paths[1]}", f"run_dir={tmp_path / 'begun'}", "training.steps=100"]
    trainer.train(open_run(str(tmp_path / "source")).new_run(run), progress=False)
    (start, reached), (*_, scratch) = (read_entries(tmp_path / name) for name in ("begun", "scratch"))
    assert (start["step"], reached["step"], scratch["step"]) == (0, 100, 300)
    assert reached["energy"] < min(start["energy"], scratch["energy"])
