"""Weight decay, micro-batches and the average of the acting weights: what they change in a step, and what not."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from engines_of import engine_of, members_of
from small_runs import PIXELS, assert_equal, saved, small_run

from gtp_vision.agents import AGENTS
from gtp_vision.agents.base import AVERAGE, averaged_name
from gtp_vision.core.distributed import SplitBatch, global_max, global_moments
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.tuning import parameter_groups
from gtp_vision.training import trainer
from gtp_vision.training.build import Components, build
from gtp_vision.training.eager import average_rate
from gtp_vision.training.evaluate import restore
from gtp_vision.training.warm_start import open_run

SEEING = [*PIXELS, "encoder.share=false"]
STATES = ["task.observations=[state]"]
EMA = ["training.ema=0.9", "training.steps=4"]


def gradients(parts: Components) -> dict[str, torch.Tensor]:
    return {name: x.grad.clone() for name, x in parts.agent.named_parameters() if x.grad is not None}


# Micro-batches


def test_statistics_of_micro_batches_are_those_of_all_rows() -> None:
    values, met = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0, 9.0]), []

    def compute(index: int) -> None:
        part = values[3 * index : 3 * index + 3]
        largest = global_max(part)
        met.append((float(global_moments(part - largest).std), float(largest)))

    SplitBatch(2).run(compute)
    assert met == [(pytest.approx(float(values.std(correction=0))), 9.0)] * 2
    assert float(global_max(values[:1])) == 3  # nothing is left behind


@pytest.mark.parametrize(("name", "count"), [*((name, 4) for name in sorted(AGENTS)), ("gtp", 8)])
def test_micro_batches_make_the_step_of_the_whole_batch(name: str, count: int, pixels: Path) -> None:
    found = []
    for settings in ([], [f"training.accumulate={count}"]):
        config = small_run(pixels, "unused", *SEEING, *settings, agent=name)
        parts = build(config)
        engine = engine_of("eager", config, [parts])
        losses = [float(engine.step(step, engine.source.fetch(step))[0]["loss"]) for step in range(2)]
        found.append((losses, gradients(parts)))
    (losses, whole), (same, split) = found
    assert same == pytest.approx(losses, rel=2e-4)
    assert whole.keys() == split.keys()
    size = torch.stack([x.norm() for x in whole.values()]).norm()
    assert size > 0
    assert max(float((split[key] - x).norm() / size) for key, x in whole.items()) < 1e-3


def train_as_rank(rank: int, port: int, data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    trainer.train(small_run(data, run, *STATES, "training.accumulate=4", "training.steps=3"), progress=False)


@pytest.mark.processes
def test_micro_batches_of_two_processes_make_the_steps_of_one(pixels: Path, tmp_path: Path) -> None:
    trainer.train(small_run(pixels, tmp_path / "whole", *STATES, "training.steps=3"), progress=False)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(train_as_rank, (port, pixels, tmp_path / "split"), nprocs=2)
    split = saved(tmp_path / "split")
    for name, value in saved(tmp_path / "whole").items():
        atol = 1e-4 * float(value.abs().max()) + 1e-9
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.accumulate=3"], "the 16 rows of each process cannot be divided into training.accumulate=3"),
        (["training.accumulate=2", "training.seeds=2"], "training.seeds=2 maps whole batches over seeds"),
        (["training.accumulate=2", "encoder.batch_norm=train"], "encoder.batch_norm=train takes statistics"),
    ],
)
def test_what_needs_the_whole_batch_refuses_micro_batches(settings: list[str], message: str, pixels: Path) -> None:
    seen = [*PIXELS, "encoder=resnet18"] if "encoder.batch_norm=train" in settings else STATES
    with pytest.raises(GtpVisionError, match=message):
        build(small_run(pixels, "unused", *seen, *settings))


@pytest.mark.trains
def test_a_compiled_step_refuses_micro_batches(pixels: Path, tmp_path: Path) -> None:
    run = small_run(pixels, tmp_path, *STATES, "training.accumulate=2", "training.engine=compile", "training.steps=1")
    with pytest.raises(GtpVisionError, match="engine=compile makes a step a function of its whole batch"):
        trainer.train(run, progress=False)


# Weight decay


def test_biases_norms_and_tokens_do_not_decay(pixels: Path) -> None:
    parts = build(small_run(pixels, "unused", *SEEING, "encoder.fusion=transformer", "training.weight_decay=0.1"))
    names = {parameter: name for name, parameter in parts.agent.named_parameters()}
    decaying = {names[p] for group in parts.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    kept = {names[p] for group in parts.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert all(name.endswith("weight") for name in decaying)
    assert {"critic.q.layers.0.bias", "critic.q.layers.1.scale"} <= kept
    assert any(name.endswith(".places") for name in kept)
    assert "critic.q.layers.0.weight" in decaying
    assert len(parameter_groups(parts.agent, replace(parts.agent.actor_encoder.config))) == 1


@pytest.mark.parametrize("kind", ["eager", "function"])
def test_decay_is_decoupled(kind: str, pixels: Path) -> None:
    """AdamW (Loshchilov & Hutter, 2019): theta - lr (Adam's step + decay theta)."""
    moved = []
    for decay in (0.0, 0.5):
        config = small_run(pixels, "unused", *STATES, f"training.weight_decay={decay}")
        parts = build(config)
        before = {name: x.detach().clone() for name, x in parts.agent.named_parameters() if x.requires_grad}
        engine = engine_of(kind, config, [parts])
        engine.step(0, engine.source.fetch(0))
        moved.append({name: x.detach().clone() for name, x in parts.agent.named_parameters() if x.requires_grad})
    for name, plain in moved[0].items():
        decays = name.endswith("weight") and plain.ndim > 1
        expected = plain - 1e-3 * 0.5 * before[name] if decays else plain
        torch.testing.assert_close(moved[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)


# The average of the acting weights


@pytest.mark.parametrize("kind", ["eager", "function", "seeds", "skip"])
def test_the_average_follows_the_trained_weights(kind: str, pixels: Path) -> None:
    more = {"seeds": ["training.seeds=2"], "skip": ["training.on_nonfinite=skip"]}.get(kind, [])
    config = small_run(pixels, "unused", *STATES, *EMA, *more, agent="fql")
    members = members_of(config)
    expected = [{name: x.detach().clone() for name, x in member.agent.named_parameters()} for member in members]
    engine = engine_of("eager" if kind in ("eager", "skip") else "function", config, members)
    for step in range(3):
        engine.step(step, engine.source.fetch(step))
        for member, average in zip(members, expected, strict=True):
            for name, x in member.agent.named_parameters():
                average[name].lerp_(x.detach(), 1 - min(0.9, (1 + step) / (10 + step)))
    for member, average in zip(members, expected, strict=True):
        pairs = {averaged_name(n): x for n, x in member.agent.state_dict().items() if n.startswith(AVERAGE)}
        assert {name.partition(".")[0] for name in pairs} == {"policy", "improvement"}
        for name, x in pairs.items():
            torch.testing.assert_close(x, average[name], rtol=1e-5, atol=1e-7)
            assert not torch.equal(x, member.agent.get_parameter(name))


def test_the_decay_warms_up_to_its_value(pixels: Path) -> None:
    config = small_run(pixels, "unused", *EMA)
    assert [average_rate(config, step) for step in (0, 10, 10_000)] == pytest.approx([0.9, 9 / 20, 0.1])


@pytest.mark.trains
def test_a_run_acts_and_resumes_with_its_average(pixels: Path, tmp_path: Path) -> None:
    trainer.train(small_run(pixels, tmp_path / "plain", *PIXELS, "training.steps=4"), progress=False)
    config = small_run(pixels, tmp_path / "ema", *PIXELS, *EMA)
    trainer.train(config, progress=False)
    plain, averaged = saved(tmp_path / "plain"), saved(tmp_path / "ema")
    assert_equal(plain, {name: x for name, x in averaged.items() if not name.startswith(AVERAGE)})
    trainer.train(small_run(pixels, tmp_path / "cut", *PIXELS, *EMA, "training.steps=2"), progress=False)
    trainer.train(small_run(pixels, tmp_path / "cut", *PIXELS, *EMA), progress=False, resume=True)
    assert_equal(averaged, saved(tmp_path / "cut"))

    _, trained = restore(tmp_path / "ema")
    acting = dict(trained.agent.named_parameters())
    pairs = {averaged_name(name): x for name, x in averaged.items() if name.startswith(AVERAGE)}
    assert any(name.startswith("actor_encoder.towers.") for name in pairs)
    for name, x in pairs.items():
        assert torch.equal(acting[name], x)
        assert not torch.equal(plain[name], x)
    assert not any(name.startswith(AVERAGE) for name in acting)


@pytest.mark.trains
def test_a_new_segment_begins_an_average_and_ends_one(pixels: Path, tmp_path: Path) -> None:
    trainer.train(small_run(pixels, tmp_path, *STATES, "training.steps=2"), progress=False)
    with_average = small_run(pixels, tmp_path, *STATES, *EMA)
    with pytest.raises(GtpVisionError, match=r"ema: 0\.0 -> 0\.9"):
        trainer.train(with_average, progress=False, resume=True)
    trainer.train(with_average, progress=False, resume=True, new_segment=True)
    assert any(name.startswith(AVERAGE) for name in saved(tmp_path))
    trainer.train(small_run(pixels, tmp_path, *STATES, "training.steps=5"), resume=True, new_segment=True)
    assert not any(name.startswith(AVERAGE) for name in saved(tmp_path))


@pytest.mark.trains
def test_a_warm_start_averages_from_the_weights_that_it_begins_with(pixels: Path, tmp_path: Path) -> None:
    trainer.train(small_run(pixels, tmp_path, *STATES, *EMA), progress=False)
    source = open_run(str(tmp_path))
    parts = build(small_run(pixels, "unused", *STATES, *EMA, "seed=1"), source=source)
    begun, known = parts.agent.state_dict(), saved(tmp_path)
    for name in (name for name in begun if name.startswith(AVERAGE)):
        assert torch.equal(begun[name], known[averaged_name(name)])
