"""Steps that are not finite, caused by rewards, states and rates that overflow: stop, skip, roll back, and say why."""

import copy
import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from engines_of import engine_of, members_of
from safetensors.torch import load_file
from small_runs import assert_close, assert_equal, lines, saved, small_run

from gtp_vision.agents import AGENTS
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training import checkpoint, health, nonfinite, recovery, trainer
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.seeds import seeds_of

ROW, BATCH, STEPS = 17, 8, 12
SMALL = [f"training.batch_size={BATCH}", f"training.steps={STEPS}", "agent.tau=0.5", "training.keep_checkpoints=9"]
FATAL = "task.reward_scale=1e38"  # every step overflows


@pytest.fixture(scope="module")
def folder(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets; one has a reward that overflows."""
    folder = tmp_path_factory.mktemp("data")
    for name, reward in (("good", 0), ("reward", 1e38)):
        store = make_store((30, 40), terminals={29})
        store.rewards[ROW] += reward
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
KINDS = [
    pytest.param("compile", 1, marks=pytest.mark.compiles),
    pytest.param("compile", 2, marks=pytest.mark.compiles),
    *[("eager", 1), ("function", 1), ("function", 2)],
]


@pytest.mark.parametrize(("kind", "seeds"), [KINDS[0], *KINDS[2:]])
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


@pytest.mark.parametrize(("kind", "seeds"), KINDS[1:])
def test_a_skipped_step_changes_nothing_of_its_run_and_everything_of_the_others(
    folder: Path, kind: str, seeds: int
) -> None:
    more = ["training.on_nonfinite=skip", f"training.seeds={seeds}"]
    config, good_config = (
        config_of(folder / f"{data}.h5", folder, *more, agent=AGENT[kind]) for data in ("reward", "good")
    )
    members, good = members_of(config), members_of(good_config)
    is_bad = [[ROW in member.sampler.rows(step) for member in members] for step in range(60)]
    step = next(step for step, bad in enumerate(is_bad) if bad in ([True], [True, False]))
    engine, theirs = (
        engine_of(kind, config, members),
        engine_of("function" if seeds == 2 else kind, good_config, good),
    )
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


def test_statistics_of_batch_normalization_are_restored(make_store: Callable[..., Store], tmp_path: Path) -> None:
    data = native.write(tmp_path / "d.h5", make_store((30, 40), cameras={"front": (12, 12, 3)}))
    more = ["encoder=resnet18", "encoder.pooling=average", "encoder.features=8", "encoder.batch_norm=train"]
    config = config_of(data, tmp_path, *more, "training.on_nonfinite=skip", FATAL)
    members = members_of(config)
    before = state_of(members[0])
    assert any(name.endswith("running_mean") for name in before)
    engine = engine_of("eager", config, members)
    assert float(engine.step(0, engine.source.fetch(0))[0]["nonfinite"]) == 1
    after = state_of(members[0])
    assert_equal({name: after[name] for name in before}, before)


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.trains
def test_stop_names_step_term_row_and_fix(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder / "reward.h5", tmp_path)
    step = bad_steps(config)[0]
    with pytest.raises(GtpVisionError) as raised:
        trainer.train(config, progress=False)
    kept = f"step_{3 * ((step - 1) // 3)}"
    for part in (
        f"step {step}: loss is not finite; ",
        f"{tmp_path}/checkpoints/{kept}; ",
        f"first row {ROW} (episode 0, frame {ROW}): critic/loss, loss",
        "training.on_nonfinite=skip",
    ):
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
def test_a_seed_that_skips_everything_does_not_affect_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(parts: Components, config: Config) -> Components:
        other = components_for_seed(parts, config)
        with torch.no_grad():
            next(other.agent.critic.parameters()).fill_(1e38)
        return other

    for run, seed in (("whole", components_for_seed), ("broken", overflowing)):
        monkeypatch.setattr(trainer, "components_for_seed", seed)
        more = ["training.on_nonfinite=skip", "training.seeds=2"]
        trainer.train(config_of(folder / "good.h5", tmp_path / run, *more), progress=False)
    assert_equal(saved(tmp_path / "whole" / "seed_0"), saved(tmp_path / "broken" / "seed_0"))
    broken = tmp_path / "broken" / "seed_1"
    assert {(line["skipped"], line["loss"]) for line in lines(broken)} == {(2.0, None)}
    assert next(one["kind"] for one in health.read_warnings(broken)) == "skipped"


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
UNSAVED = "training.checkpoint_every=100"


@pytest.mark.trains
@pytest.mark.parametrize(
    ("agent", "more", "words", "kept"),
    [
        ("gtp", ["training.on_nonfinite=skip", FATAL], r"step 4: no step since step 1 was finite.*all were skip", "3"),
        (
            "gtp",
            ["training.on_nonfinite=rollback", UNSAVED, "training.log_every=1", FATAL],
            "step 4: loss is not finite after 3 rollbacks to step 0; ",
            "0",
        ),
        (
            "gtp_bc",
            [*DIVERGES, "training.checkpoint_every=1"],
            "step 2: .* is not finite; .*step_1; caused by 8 of the 8",
            "1",
        ),
        (
            "gtp_bc",
            [*DIVERGES, UNSAVED],
            "none; its batch is finite with the initial parameters, so the parameters diver",
            "",
        ),
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


# Parts ----------------------------------------------------------------------------------------------------------


def test_parameters_that_are_not_finite_are_found_before_they_are_saved(folder: Path, tmp_path: Path) -> None:
    parts = build(config_of(folder / "good.h5", tmp_path))
    members = [SimpleNamespace(parts=parts)]
    recovery.check_parameters(members, 5)  # type: ignore[arg-type]
    with torch.no_grad():
        parts.agent.policy.observe.bias[0] = math.inf
    with pytest.raises(nonfinite.Fault, match=r"policy\.observe\.bias is not finite") as raised:
        recovery.check_parameters(members, 5)  # type: ignore[arg-type]
    assert raised.value.step == 5


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_bad_rows_of_every_agent_are_found(folder: Path, tmp_path: Path, name: str) -> None:
    config = config_of(folder / "reward.h5", tmp_path, agent=name)
    parts = build(config)
    if AGENTS[name].backup == "none":  # it sees no reward

        def hide(module: object, inputs: tuple, features: torch.Tensor) -> torch.Tensor:
            return features.masked_fill(inputs[0]["state"][:, -1, :1] == ROW, torch.nan)

        parts.agent.actor_encoder.register_forward_hook(hide)
    step = next(step for step in range(100) if ROW in parts.sampler.rows(step))
    before = state_of(parts)
    clause = nonfinite.diagnose(parts, config, tmp_path, step + 1, ["loss"])
    (found,) = nonfinite.read_reports(tmp_path)
    assert {row["row"] for row in found["rows"]} == {ROW}
    assert "loss" in found["terms"]
    assert clause == found["told"]
    assert_equal(state_of(parts), before)


def test_the_first_step_that_is_not_finite_is_read() -> None:
    accelerator = Accelerator(cpu=True)

    def step(loss: float, bad: float) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(loss), "nonfinite": torch.tensor(bad)}

    steps = [step(1, 0), None, step(3, 0), step(math.nan, 1), step(5, 1)]
    found = nonfinite.read_steps(steps, accelerator, skips=True)
    assert found.rows == [{"loss": 1}, None, {"loss": 3}, None, None]
    assert (found.skipped, found.first, found.names) == ([3, 4], None, ["loss"])
    assert nonfinite.means([row for row in found.rows if row]) == {"loss": 2}
    found = nonfinite.read_steps(steps, accelerator, skips=False)
    assert (found.first, found.names) == (3, ["loss"])
    assert nonfinite.read_steps(steps[4:], accelerator, skips=False).names == ["the gradient"]
    for nothing in ([None], steps[3:]):
        assert not any(nonfinite.read_steps(nothing, accelerator, skips=True).rows)
    assert math.isnan(nonfinite.means([])["loss"])


def test_damaged_files_are_refused_or_ignored(tmp_path: Path) -> None:
    assert recovery.skips_of({"skip_steps": [4]}, tmp_path) == {4}
    for stored in ("4", [0], ["4"], {"4": 4}):
        with pytest.raises(GtpVisionError, match=r"state\.json: skip_steps"):
            recovery.skips_of({"skip_steps": stored}, tmp_path)
    for text in ("", "{", '{"step": 1}', "[1, {}]", "[" * 100_000):
        (tmp_path / nonfinite.FILE).write_text(text)
        assert nonfinite.read_reports(tmp_path) == []


# Two processes ---------------------------------------------------------------------------------------------------


def work(rank: int, port: int, folder: Path) -> None:
    """One of two processes, as a launcher starts it."""
    torch.set_num_threads(1)
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
    }
    found = []
    for mode in ("stop", "skip", "rollback"):
        config = config_of(folder / "reward.h5", folder / f"two_{mode}", f"training.on_nonfinite={mode}")
        try:
            found.append(trainer.train(config, progress=False)["health"])
        except GtpVisionError as error:
            found.append(str(error))
    torch.save(found, folder / f"two_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.trains
@pytest.mark.processes
def test_two_processes_do_the_same_at_the_same_step(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(work, (port, folder), nprocs=2)
    first, second = (torch.load(folder / f"two_{rank}.pt", weights_only=False) for rank in range(2))
    config = config_of(folder / "reward.h5", folder / "one_skip", "training.on_nonfinite=skip")
    step = bad_steps(config)[0]
    rows = np.split(build(config).sampler.rows(step - 1), 2)
    assert [ROW in own for own in rows].count(True) == 1, "both processes have it: nothing is proven"
    assert first[0] == second[0]
    assert first[0].startswith(f"step {step}: loss is not finite; ")
    assert f"first row {ROW} (episode 0" in first[0]
    assert [one["kind"] for one in first[1]] == [one["kind"] for one in second[1]] == ["skipped"]
    trainer.train(config, progress=False)
    assert_close(saved(folder / "two_skip"), saved(folder / "one_skip"), rtol=1e-4, atol=1e-5)
    assert_equal(saved(folder / "two_skip"), saved(folder / "two_rollback"))
