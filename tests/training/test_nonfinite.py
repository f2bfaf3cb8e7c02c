"""Steps that are not finite, caused by rewards, states and rates that overflow: stop, skip, go back, and say why."""

import copy
import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from safetensors.torch import load_file

from gtp_vision.agents import AGENTS
from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import HostSource, batch_source, batch_source_of_seeds
from gtp_vision.datasets.store import Store
from gtp_vision.training import checkpoint, health, nonfinite, recovery, trainer
from gtp_vision.training import eager as updates
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.engines import Eager, Engine, Functional
from gtp_vision.training.seeds import seeds_of

ROW, BATCH, STEPS = 17, 8, 12
SMALL = [
    *("task=own", "task.name=small", "encoder=state", "training.device=cpu", "training.eval_episodes=0"),
    *(f"training.batch_size={BATCH}", "training.log_every=2", "training.checkpoint_every=3", f"training.steps={STEPS}"),
    *("agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "agent.policy.grid=2", "agent.critic.next_steps=2"),
    *("agent.acting.steps=2", "agent.improvement.value_samples=3", "agent.improvement.q_steps=2"),
    *("agent.improvement.distill_steps=2", "agent.improvement.support_actions=4", "agent.improvement.support_steps=2"),
    *("training.learning_rate=1e-3", "agent.tau=0.5", "training.keep_checkpoints=9"),
]
CPU = torch.device("cpu")


def write(folder: Path, make_store: Callable[..., Store], name: str, reward: float = 0) -> Path:
    store = make_store((30, 40), terminals={29})
    store.rewards[ROW] += reward
    return native.write(folder / name, store)


@pytest.fixture(scope="module")
def folder(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets: one that is good, and one with a reward that overflows."""
    folder = tmp_path_factory.mktemp("data")
    write(folder, make_store, "good.h5")
    write(folder, make_store, "reward.h5", reward=1e38)
    return folder


def config_of(data: Path, run: Path, *more: str, agent: str = "gtp") -> Config:
    own = ["agent.improvement.pretrain_steps=2"] if AGENTS[agent].improvement == "alignment" else []
    own += ["agent.critic.next_actions=3"] if AGENTS[agent].backup == "softmax" else []
    return from_command_line([*SMALL, f"agent={agent}", f"task.dataset={data}", f"run_dir={run}", *own, *more])


def bad_steps(config: Config, steps: int = STEPS) -> list[int]:
    """The steps, from 1, whose batch holds the bad row."""
    sampler = build(config).sampler
    return [step + 1 for step in range(steps) if ROW in sampler.rows(step)]


def members_of(config: Config) -> list[Components]:
    alone = seeds_of(config)
    first = build(alone[0])
    return [first, *(components_for_seed(first, other) for other in alone[1:])]


def engine_of(kind: str, config: Config, members: list[Components]) -> Engine:
    if kind == "eager":
        return Eager(batch_source(members[0].sampler, CPU), config, members[0])
    source = batch_source_of_seeds([member.sampler for member in members], CPU)
    name, backend = ("eager", "inductor") if kind == "function" else ("compile", "aot_eager")
    return Functional(source, config, members, name, lambda line: None, backend=backend)


def moved(parts: Components) -> dict[str, torch.Tensor]:
    """All that a step moves, but for Adam's counts."""
    moments = checkpoint._optimizer_tensors(parts.optimizer, parts.agent)
    tensors = dict(parts.agent.state_dict()) | {n: x for n, x in moments.items() if not n.endswith(".step")}
    return copy.deepcopy(tensors)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    path = run / "checkpoints" / which
    return load_file(path / "agent.safetensors") | load_file(path / "optimizer.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


AGENT = {"compile": "td3_bc", "eager": "gtp", "function": "gtp"}  # the one that is compiled soonest
KINDS = [("compile", 1), ("eager", 1), ("function", 1), ("function", 2)]


@pytest.mark.parametrize(("kind", "seeds"), KINDS)
def test_skipping_changes_no_bit_of_a_run_that_is_finite(folder: Path, kind: str, seeds: int) -> None:
    ends = []
    for mode in ("stop", "skip"):
        more = [f"training.on_nonfinite={mode}", f"training.seeds={seeds}"]
        config = config_of(folder / "good.h5", folder, *more, agent=AGENT[kind])
        members = members_of(config)
        engine = engine_of(kind, config, members)
        told = [engine.step(step, engine.source.fetch(step)) for step in range(3)]
        assert not any(float(one["nonfinite"]) for each in told for one in each)
        ends.append([moved(member) for member in members])
    for one, other in zip(*ends, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("kind", "seeds"), [("compile", 2), *KINDS[1:]])
def test_a_skipped_step_moves_nothing_of_its_run_and_all_of_the_others(folder: Path, kind: str, seeds: int) -> None:
    more = ["training.on_nonfinite=skip", f"training.seeds={seeds}"]
    config = config_of(folder / "reward.h5", folder, *more, agent=AGENT[kind])
    members = members_of(config)
    good = members_of(config_of(folder / "good.h5", folder, *more, agent=AGENT[kind]))
    held = [[ROW in member.sampler.rows(step) for member in members] for step in range(60)]
    step = next(step for step, bad in enumerate(held) if bad in ([True], [True, False]))
    engine, theirs = engine_of(kind, config, members), engine_of("function" if seeds == 2 else kind, config, good)
    for each in (engine, theirs):  # a step before, so that there are moments
        each.step(0, theirs.source.fetch(0))
    before = [moved(member) for member in members]
    told = engine.step(step, engine.source.fetch(step))
    theirs.step(step, theirs.source.fetch(step))
    assert [float(one["nonfinite"]) for one in told] == [1.0, 0.0][:seeds]
    assert_same(moved(members[0]), before[0])
    if seeds == 2:
        for name, value in moved(members[1]).items():  # what compiled code rounds otherwise
            torch.testing.assert_close(value, moved(good[1])[name], rtol=0, atol=1e-5 * (kind == "compile"), msg=name)
        assert any(not torch.equal(x, before[1][name]) for name, x in moved(members[1]).items())


def test_statistics_of_a_batch_normalisation_are_put_back(make_store: Callable[..., Store], tmp_path: Path) -> None:
    data = native.write(tmp_path / "d.h5", make_store((30, 40), cameras={"front": (12, 12, 3)}))
    more = ["encoder=resnet18", "encoder.pooling=average", "encoder.features=8", "encoder.batch_norm=train"]
    config = config_of(data, tmp_path, *more, "training.on_nonfinite=skip", "task.reward_scale=1e38")
    parts = build(config)
    before = moved(parts)
    running = [name for name in before if name.endswith("running_mean")]
    assert running
    told = updates.Eager(HostSource(parts.sampler), config, parts).step(0, parts.sampler.batch(0))[0]
    assert float(told["nonfinite"]) == 1
    after = moved(parts)
    assert_same({name: after[name] for name in before if name in after}, before)


def test_a_run_stops_and_names_step_term_row_and_mend(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder / "reward.h5", tmp_path)
    step = bad_steps(config)[0]
    with pytest.raises(GtpVisionError) as told:
        trainer.train(config, progress=False)
    kept = 3 * ((step - 1) // 3)
    assert str(told.value).startswith(f"step {step}: loss is not finite; the last good checkpoint is {tmp_path}/")
    assert f"step_{kept}; caused by " in str(told.value)
    assert f"first row {ROW} (episode 0, frame {ROW}): critic/loss, loss" in str(told.value)
    assert str(told.value).endswith("or set training.on_nonfinite=skip")
    (found,) = nonfinite.reports(tmp_path)
    assert found["step"] == step
    assert {"loss", "critic/loss"} <= set(found["found"])
    assert set(found["terms"]) == {"loss", "critic/loss"}
    assert {row["row"] for row in found["rows"]} == {ROW}
    assert found["batch"] == BATCH
    assert (tmp_path / "checkpoints" / "last").resolve().name == f"step_{kept}"


def test_a_run_skips_and_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(folder / "reward.h5", tmp_path, "training.on_nonfinite=skip", "training.steps=40")
    bad = bad_steps(config, 40)
    results = trainer.train(config)
    assert sum(line["skipped"] for line in lines(tmp_path)) == len(bad) > 1
    assert all(math.isfinite(x) for line in lines(tmp_path) for x in line.values() if x is not None)
    assert all(bool(x.isfinite().all()) for x in weights(tmp_path).values())
    assert [(one["kind"], one["step"]) for one in results["health"]] == [("skipped", bad[0])]
    assert health.read(tmp_path) == results["health"]
    assert capsys.readouterr().err.count(f"warning: step {bad[0]}: loss is not finite") == 1


def test_a_run_that_skips_everything_stops(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder / "good.h5", tmp_path, "training.on_nonfinite=skip", "task.reward_scale=1e38")
    with pytest.raises(GtpVisionError, match="step 4: no step since step 1 was finite, and all were skipped; the last"):
        trainer.train(config, progress=False)


def test_a_seed_that_skips_everything_leaves_the_others_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_is_blown(run: str) -> None:
        monkeypatch.setattr(
            trainer, "sibling", lambda parts, config: blown(components_for_seed(parts, config), run == "blown")
        )
        more = ["training.on_nonfinite=skip", "training.seeds=2"]
        trainer.train(config_of(folder / "good.h5", tmp_path / run, *more), progress=False)

    def blown(parts: Components, really: bool) -> Components:
        if really:
            with torch.no_grad():
                next(parts.agent.critic.parameters()).fill_(1e38)
        return parts

    first_is_blown("whole")
    first_is_blown("blown")
    assert_same(weights(tmp_path / "whole" / "seed_0"), weights(tmp_path / "blown" / "seed_0"))
    assert {line["skipped"] for line in lines(tmp_path / "blown" / "seed_1")} == {2.0}
    assert {line["loss"] for line in lines(tmp_path / "blown" / "seed_1")} == {None}
    assert next(one["kind"] for one in health.read(tmp_path / "blown" / "seed_1")) == "skipped"


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_goes_back_and_leaves_the_step_out(folder: Path, tmp_path: Path, seeds: int) -> None:
    more = [f"training.seeds={seeds}", "training.steps=20"]
    config = config_of(folder / "reward.h5", tmp_path / "whole", "training.on_nonfinite=rollback", *more)
    trainer.train(config, progress=False)
    for index, own in enumerate(seeds_of(config)):
        run, skipped = Path(own.run_dir), bad_steps(own, 20)
        state = json.loads((run / "checkpoints" / "last" / "state.json").read_text())
        assert state["skip_steps"] == skipped
        assert [one["step"] for one in health.read(run)] == skipped
        assert [one["step"] for one in nonfinite.reports(run)] == skipped
        steps = [line["step"] for line in lines(run)]
        assert steps == sorted(set(steps))
        if index == 0:  # leaving a step out and skipping it is the same, beside others or not
            twin = config_of(folder / "reward.h5", tmp_path / "skip", "training.on_nonfinite=skip", more[1])
            trainer.train(twin, progress=False)
            mine, his = weights(run), weights(tmp_path / "skip")
            if seeds == 1:
                assert_same(mine, his)
            for name, value in mine.items():
                torch.testing.assert_close(value, his[name], rtol=1e-3, atol=2e-4, msg=name)


def test_a_run_that_went_back_resumed_equals_the_whole(folder: Path, tmp_path: Path) -> None:
    more = ["training.on_nonfinite=rollback", "training.checkpoint_every=5"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = config_of(folder / "reward.h5", whole, *more, "training.steps=20")
    bad = bad_steps(config, 20)
    trainer.train(config, progress=False)
    for stop in (bad[0], bad[0] + 1, 20):
        trainer.train(
            config_of(folder / "reward.h5", halves, *more, f"training.steps={stop}"),
            resume=halves.exists(),
            progress=False,
        )
    assert_same(weights(whole), weights(halves))
    state = json.loads((halves / "checkpoints" / "last" / "state.json").read_text())
    assert state["skip_steps"] == bad


def test_a_run_goes_back_so_often_and_no_more(folder: Path, tmp_path: Path) -> None:
    more = ["training.on_nonfinite=rollback", "training.checkpoint_every=100", "training.log_every=1"]
    config = config_of(folder / "good.h5", tmp_path, *more, "task.reward_scale=1e38")
    with pytest.raises(
        GtpVisionError, match="step 4: loss is not finite after 3 rollbacks to step 0; the last good ch"
    ):
        trainer.train(config, progress=False)
    assert [one["step"] for one in health.read(tmp_path)] == [1, 2, 3]


def test_no_checkpoint_is_written_that_is_not_finite(folder: Path, tmp_path: Path) -> None:
    more = ["training.learning_rate=1e36", "training.checkpoint_every=1", "training.log_every=100"]
    with pytest.raises(
        GtpVisionError, match=r"step 2: .* is not finite; .*step_1; caused by 8 of the 8 rows of its b"
    ):
        trainer.train(config_of(folder / "good.h5", tmp_path, *more, agent="gtp_bc"), progress=False)
    (kept,) = (tmp_path / "checkpoints").glob("step_*")
    assert all(bool(x.isfinite().all()) for x in load_file(kept / "agent.safetensors").values())


def test_parameters_that_ran_away_are_told_from_bad_rows(folder: Path, tmp_path: Path) -> None:
    more = ["training.learning_rate=1e36", "training.checkpoint_every=100", "training.log_every=100"]
    with pytest.raises(
        GtpVisionError, match="none; its batch is finite with the initial parameters, so the pa"
    ):
        trainer.train(config_of(folder / "good.h5", tmp_path, *more, agent="gtp_bc"), progress=False)
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_a_parameter_that_is_not_finite_is_found_before_it_is_saved(folder: Path, tmp_path: Path) -> None:
    parts = build(config_of(folder / "good.h5", tmp_path))
    member = type("Known", (), {"parts": parts})
    recovery.check_parameters([member], 5)  # type: ignore[list-item]
    with torch.no_grad():
        parts.agent.policy.observe.bias[0] = math.inf
    with pytest.raises(nonfinite.Fault, match=r"policy\.observe\.bias is not finite") as told:
        recovery.check_parameters([member], 5)  # type: ignore[list-item]
    assert told.value.step == 5


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agents_rows_are_found_alone(folder: Path, tmp_path: Path, name: str) -> None:
    config = config_of(folder / "reward.h5", tmp_path, agent=name)
    parts = build(config)
    if AGENTS[name].backup == "none":  # it sees no reward

        def blinded(module: object, given: tuple, features: torch.Tensor) -> torch.Tensor:
            return features.masked_fill(given[0]["state"][:, -1, :1] == ROW, torch.nan)

        parts.agent.actor_encoder.register_forward_hook(blinded)
    step = next(step for step in range(100) if ROW in parts.sampler.rows(step))
    before = moved(parts)
    told = nonfinite.report(parts, config, tmp_path, step + 1, ["loss"])
    (found,) = nonfinite.reports(tmp_path)
    assert {row["row"] for row in found["rows"]} == {ROW}
    assert "loss" in found["terms"]
    assert told == found["told"]
    assert_same(moved(parts), before)


def test_the_first_step_that_is_not_finite_is_read(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)

    def step(loss: float, bad: float) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(loss), "nonfinite": torch.tensor(bad)}

    steps = [step(1, 0), None, step(3, 0), step(math.nan, 1), step(5, 1)]
    found = nonfinite.reading(steps, accelerator, skips=True)
    assert found.rows == [{"loss": 1}, None, {"loss": 3}, None, None]
    assert (found.skipped, found.first, found.names) == ([3, 4], None, ["loss"])
    assert nonfinite.means([row for row in found.rows if row]) == {"loss": 2}
    found = nonfinite.reading(steps, accelerator, skips=False)
    assert (found.first, found.names) == (3, ["loss"])
    assert nonfinite.reading(steps[4:], accelerator, skips=False).names == ["the gradient"]
    for nothing in ([None], steps[3:]):
        assert not any(nonfinite.reading(nothing, accelerator, skips=True).rows)
    assert math.isnan(nonfinite.means([])["loss"])


def test_a_checkpoint_with_other_steps_to_skip_is_refused(tmp_path: Path) -> None:
    assert recovery.skips_of({"skip_steps": [4]}, tmp_path) == {4}
    for stored in ("4", [0], ["4"], {"4": 4}):
        with pytest.raises(GtpVisionError, match=r"state\.json : skip_steps is not a list"):
            recovery.skips_of({"skip_steps": stored}, tmp_path)


def test_reports_that_were_damaged_are_none(tmp_path: Path) -> None:
    for text in ("", "{", '{"step": 1}', "[1, {}]", "[" * 100_000):
        (tmp_path / nonfinite.FILE).write_text(text)
        assert nonfinite.reports(tmp_path) == []


def test_an_unknown_answer_is_refused() -> None:
    with pytest.raises(GtpVisionError, match=r"training\.on_nonfinite=skp is unknown: did you mean 'skip'"):
        from_command_line(["task=demo", "training.on_nonfinite=skp"])


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
    one = weights(folder / "one_skip")
    for name, value in weights(folder / "two_skip").items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5, msg=name)
    assert_same(weights(folder / "two_skip"), weights(folder / "two_rollback"))
