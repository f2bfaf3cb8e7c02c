import copy
import json
import math
from pathlib import Path

import pytest
import torch
from engines_of import engine_of, members_of
from safetensors.torch import load_file
from small_runs import assert_close, assert_equal, lines, saved, small_run
from stores import make_store

from gtp_vision.agents import AGENTS
from gtp_vision.agents.base import Agent
from gtp_vision.agents.gtp import AdvantageWeighting
from gtp_vision.agents.improvement import LossInputs
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.training import checkpoint, health, nonfinite, recovery, trainer
from gtp_vision.training.build import Components, build
from gtp_vision.training.seeds import seeds_of

ROW, BATCH, STEPS = 17, 8, 12
SMALL = [f"training.batch_size={BATCH}", f"training.steps={STEPS}", "agent.tau=0.5", "training.keep_checkpoints=9"]
DATA = ("reward", "good")
FATAL = "task.reward_scale=1e38"  # every step overflows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets; one has a reward that overflows."""
    folder = tmp_path_factory.mktemp("data")
    for name in DATA:
        store = make_store((30, 40), terminals={29})
        store.rewards[ROW] += 1e38 if name == "reward" else 0
        native.write(folder / f"{name}.h5", store)
    return folder


def config_of(data: Path, run: Path, *more: str, agent: str = "gtp") -> Config:
    return small_run(data, run, *SMALL, *more, agent=agent)


def bad_steps(config: Config, steps: int = STEPS) -> list[int]:
    """The steps, from 1, whose batch holds the bad row."""
    sampler = build(config).sampler
    return [step + 1 for step in range(steps) if ROW in sampler.rows(step)]


def state_of(parts: Components) -> dict[str, torch.Tensor]:
    """Everything that a step changes, without Adam's step counts."""
    moments = checkpoint._optimizer_tensors(parts.optimizer, parts.agent)
    return copy.deepcopy(
        dict(parts.agent.state_dict()) | {name: x for name, x in moments.items() if not name.endswith(".step")}
    )


AGENT = {"compile": "td3_bc", "eager": "gtp", "function": "gtp"}  # the one that compiles fastest
COMPILED = [pytest.param("compile", seeds, marks=pytest.mark.compiles) for seeds in (1, 2)]


@pytest.mark.parametrize(("kind", "seeds"), [COMPILED[0], ("eager", 1), ("function", 2)])
def test_skip_changes_no_bit_of_a_finite_run(folder: Path, kind: str, seeds: int) -> None:
    ends = []
    for mode in ("stop", "skip"):
        more = [f"training.on_nonfinite={mode}", f"training.seeds={seeds}"]
        config = config_of(folder / "good.h5", folder, *more, agent=AGENT[kind])
        members = members_of(config)
        engine = engine_of(kind, config, members)
        for step in range(3):
            assert not any(float(one["nonfinite"]) for one in engine.step(step, engine.source.fetch(step)))
        ends.append([state_of(member) for member in members])
    for one, other in zip(*ends, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(("kind", "seeds"), [COMPILED[1], ("eager", 1), ("function", 1), ("function", 2)])
def test_a_skipped_step_changes_nothing_of_its_run_and_everything_of_the_others(
    folder: Path, kind: str, seeds: int
) -> None:
    more = ["training.on_nonfinite=skip", f"training.seeds={seeds}"]
    config, good_config = (config_of(folder / f"{name}.h5", folder, *more, agent=AGENT[kind]) for name in DATA)
    members, good = members_of(config), members_of(good_config)
    is_bad = [[ROW in member.sampler.rows(step) for member in members] for step in range(60)]
    step = next(step for step, bad in enumerate(is_bad) if bad in ([True], [True, False]))
    engine, theirs = engine_of(kind, config, members), engine_of("function" if seeds == 2 else kind, good_config, good)
    for each in (engine, theirs):  # a step before, so that there are moments
        each.step(0, theirs.source.fetch(0))
    before = [state_of(member) for member in members]
    metrics = engine.step(step, engine.source.fetch(step))
    theirs.step(step, theirs.source.fetch(step))
    assert [float(one["nonfinite"]) for one in metrics] == [1.0, 0.0][:seeds]
    assert_equal(state_of(members[0]), before[0])
    if seeds == 2:  # compiled code rounds differently
        assert_close(state_of(members[1]), state_of(good[1]), rtol=0, atol=1e-5 * (kind == "compile"))
        assert any(not torch.equal(x, before[1][name]) for name, x in state_of(members[1]).items())


def test_statistics_of_batch_normalization_are_restored(pixels: Path, tmp_path: Path) -> None:
    more = ["encoder=resnet18", "encoder.pooling=average", "encoder.features=8", "encoder.batch_norm=train"]
    config = config_of(pixels, tmp_path, *more, "training.on_nonfinite=skip", FATAL)
    members = members_of(config)
    before = state_of(members[0])
    assert any(name.endswith("running_mean") for name in before)
    engine = engine_of("eager", config, members)
    assert float(engine.step(0, engine.source.fetch(0))[0]["nonfinite"]) == 1
    after = state_of(members[0])
    assert_equal({name: after[name] for name in before}, before)


@pytest.mark.trains
def test_stop_names_step_term_row_and_fix(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder / "reward.h5", tmp_path)
    step = bad_steps(config)[0]
    with pytest.raises(GtpVisionError) as raised:
        trainer.train(config, progress=False)
    kept = f"step_{3 * ((step - 1) // 3)}"
    words = (f"step {step}: loss is not finite; ", f"/checkpoints/{kept}; ", "training.on_nonfinite=skip")
    for part in (*words, f"first row {ROW} (episode 0, frame {ROW}): critic/loss, loss"):
        assert part in str(raised.value)
    (found,) = nonfinite.read_reports(tmp_path)
    assert found["step"] == step
    assert set(found["found"]) >= {"loss", "critic/loss"} == set(found["terms"])
    assert {row["row"] for row in found["rows"]} == {ROW}
    assert (tmp_path / "checkpoints" / "last").resolve().name == kept


@pytest.mark.trains
def test_skip_skips_and_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(folder / "reward.h5", tmp_path, "training.on_nonfinite=skip", "training.steps=40")
    bad = bad_steps(config, 40)
    results = trainer.train(config)
    assert sum(line["skipped"] for line in lines(tmp_path)) == len(bad) > 1
    assert all(math.isfinite(x) for line in lines(tmp_path) for x in line.values() if x is not None)
    assert all(bool(x.isfinite().all()) for x in saved(tmp_path).values())
    assert [(one["kind"], one["step"]) for one in results["health"]] == [("skipped", bad[0])]
    assert health.read_warnings(tmp_path) == results["health"]
    assert capsys.readouterr().err.count(f"warning: step {bad[0]}: loss is not finite") == 1


@pytest.mark.trains
@pytest.mark.parametrize("seeds", [1, 2])
def test_rollback_leaves_the_bad_steps_out(folder: Path, tmp_path: Path, seeds: int) -> None:
    more = [f"training.seeds={seeds}", "training.steps=20"]
    config = config_of(folder / "reward.h5", tmp_path / "whole", "training.on_nonfinite=rollback", *more)
    trainer.train(config, progress=False)
    for own in seeds_of(config):
        run, bad = Path(own.run_dir), bad_steps(own, 20)
        assert json.loads((run / "checkpoints" / "last" / "state.json").read_text())["skip_steps"] == bad
        assert [one["step"] for one in health.read_warnings(run)] == bad
        assert [one["step"] for one in nonfinite.read_reports(run)] == bad
        steps = [line["step"] for line in lines(run)]
        assert steps == sorted(set(steps))
    skipping = config_of(folder / "reward.h5", tmp_path / "skip", "training.on_nonfinite=skip", more[1])
    trainer.train(skipping, progress=False)  # leaves the same steps out
    if seeds == 1:
        assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "skip"))
    else:
        assert_close(saved(tmp_path / "whole" / "seed_0"), saved(tmp_path / "skip"), rtol=1e-3, atol=2e-4)


@pytest.mark.trains
def test_a_run_that_rolled_back_resumed_equals_the_whole(folder: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def train(run: Path, steps: int) -> Config:
        more = ["training.on_nonfinite=rollback", "training.checkpoint_every=5", f"training.steps={steps}"]
        config = config_of(folder / "reward.h5", run, *more)
        trainer.train(config, resume=run.exists(), progress=False)
        return config

    bad = bad_steps(train(whole, 20), 20)
    for steps in (bad[0], bad[0] + 1, 20):
        train(halves, steps)
    assert_equal(saved(whole), saved(halves))
    assert json.loads((halves / "checkpoints" / "last" / "state.json").read_text())["skip_steps"] == bad


DIVERGES = ["training.learning_rate=1e36", "training.log_every=100"]
SAVED, UNSAVED = "training.checkpoint_every=1", "training.checkpoint_every=100"
SKIP = "training.on_nonfinite=skip"
ROLLS_BACK = ["training.on_nonfinite=rollback", "training.log_every=1", UNSAVED]


@pytest.mark.trains
@pytest.mark.parametrize(
    ("agent", "more", "words", "kept"),
    [
        ("gtp", [SKIP, FATAL], r"step 4: no step since step 1 was finite.*all were skip", "3"),
        ("gtp", [*ROLLS_BACK, FATAL], "step 4: loss is not finite after 3 rollbacks to step 0; ", "0"),
        ("gtp_bc", [*DIVERGES, SAVED], "step 2: .* is not finite; .*step_1; caused by 8 of the 8", "1"),
        ("gtp_bc", [*DIVERGES, UNSAVED], "its batch is finite with the initial parameters, so the para", ""),
    ],
    ids=["skips everything", "rollbacks", "diverges", "diverges unsaved"],
)
def test_runs_that_cannot_continue_stop_with_finite_checkpoints(
    folder: Path, tmp_path: Path, agent: str, more: list[str], words: str, kept: str
) -> None:
    with pytest.raises(GtpVisionError, match=words):
        trainer.train(config_of(folder / "good.h5", tmp_path, *more, agent=agent), progress=False)
    assert [path.name for path in tmp_path.glob("checkpoints/step_*")] == [f"step_{step}" for step in kept]
    for path in tmp_path.glob("checkpoints/step_*"):
        assert all(bool(x.isfinite().all()) for x in load_file(path / "agent.safetensors").values())


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_bad_rows_of_every_agent_are_found(folder: Path, tmp_path: Path, name: str) -> None:
    config = config_of(folder / "reward.h5", tmp_path, agent=name)
    parts = build(config)
    sees_goals = AGENTS[name].goals
    if AGENTS[name].backup == "none" or sees_goals:  # it sees no reward of the file

        def hide(module: object, inputs: tuple, features: torch.Tensor) -> torch.Tensor:
            return features.masked_fill(inputs[0]["state"][:, -1, :1] == ROW, torch.nan)

        parts.agent.actor_encoder.register_forward_hook(hide)
    drawn = ((step, *parts.sampler.draw(step)) for step in range(400))
    step = next(  # in whose batch the row is not another's next row or goal
        step for step, rows, goals in drawn if ROW in rows and not (sees_goals and (ROW - 1 in rows or ROW in goals))
    )
    before = state_of(parts)
    clause = nonfinite.diagnose(parts, config, tmp_path, step + 1, ["loss"])
    (found,) = nonfinite.read_reports(tmp_path)
    assert {row["row"] for row in found["rows"]} == {ROW}
    assert "loss" in found["terms"]
    assert clause == found["told"]
    assert_equal(state_of(parts), before)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weights_that_no_loss_has_are_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    def weights(improvement: object, agent: Agent, inputs: LossInputs) -> tuple[torch.Tensor, dict]:
        return torch.where(inputs.batch.observation["state"][:, -1, 0] == ROW, weight, 1.0), {}

    monkeypatch.setattr(AdvantageWeighting, "weights", weights)
    config = config_of(folder / "good.h5", tmp_path)
    (parts,), step = members_of(config), bad_steps(config)[0] - 1
    engine = engine_of("eager", config, [parts])
    assert float(engine.step(step, engine.source.fetch(step))[0]["nonfinite"]) == 1
    assert f"first row {ROW} (episode 0" in nonfinite.diagnose(parts, config, tmp_path, step + 1, ["loss"])


def test_damaged_files_are_refused_or_ignored(tmp_path: Path) -> None:
    assert recovery.skips_of({"skip_steps": [4]}, tmp_path) == {4}
    for stored in ("4", [0], ["4"], {"4": 4}):
        with pytest.raises(GtpVisionError, match=r"state\.json: skip_steps"):
            recovery.skips_of({"skip_steps": stored}, tmp_path)
    for text in ("", "{", '{"step": 1}', "[1, {}]", "[" * 100_000):
        (tmp_path / nonfinite.FILE).write_text(text)
        assert nonfinite.read_reports(tmp_path) == []
