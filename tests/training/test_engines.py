import re
from pathlib import Path
from typing import Any

import pytest
import torch
from engines_of import CPU, engine_of, members_of, only_compiling
from small_runs import PIXELS, assert_close, small_run

from gtp_vision.agents import AGENTS
from gtp_vision.config.compose import to_yaml
from gtp_vision.config.schema import Config
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.sources import batch_source
from gtp_vision.training import checkpoint, engines
from gtp_vision.training.build import Components, build
from gtp_vision.training.eager import Eager
from gtp_vision.training.engines import Engine, Functional, choose
from gtp_vision.training.seeds import seeds_of

STEPS = 3
TARGETS = ["agent.tau=0.5", "agent.policy_tau=0.5", "agent.policy.hidden=[16,16]"]  # targets that visibly move


def config_of(pixels: Path, name: str = "gtp", *more: str) -> Config:
    seen = [] if any(override.startswith("encoder=") for override in more) else ["task.observations=[state]"]
    return small_run(pixels, "unused", *TARGETS, *seen, *more, agent=name)


def steps_of(engine: Engine, device: torch.device = CPU, steps: int = STEPS) -> list[list[dict[str, float]]]:
    """Metrics of each member, step by step."""
    metrics = []
    for step in range(steps):
        fetched = engine.source.fetch(step).to(device)
        metrics.append([{n: float(x) for n, x in member.items()} for member in engine.step(step, fetched)])
    return [list(member) for member in zip(*metrics, strict=True)]


def assert_alike(
    ours: Components, theirs: Components, mine: list[dict[str, float]], his: list[dict[str, float]]
) -> None:
    """The same metrics, parameters and moments, up to rounding."""
    for one, other in zip(mine, his, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-4)
    for (name, first), second in zip(ours.agent.named_parameters(), theirs.agent.parameters(), strict=True):
        # Adam moves a parameter whose gradient is nothing but rounding by as much as any other
        idle = name.startswith("improvement.energy") and name.endswith("bias")
        torch.testing.assert_close(first, second, rtol=1e-3, atol=2e-2 if idle else 2e-4, msg=name)
    moments = (checkpoint._optimizer_tensors(parts.optimizer, parts.agent) for parts in (ours, theirs))
    assert_close(*moments, rtol=2e-2, atol=1e-4)


def check(config: Config, kind: str, backend: str = "aot_eager", steps: int = STEPS) -> list[Components]:
    """Each of the runs side by side takes the steps that PyTorch takes for it alone."""
    members = members_of(config)
    together = steps_of(engine_of(kind, config, members, backend), steps=steps)
    for member, metrics, own in zip(members, together, seeds_of(config), strict=True):
        alone = build(own)
        (his,) = steps_of(engine_of("eager", own, [alone]), steps=steps)
        assert_alike(member, alone, metrics, his)
    return members


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_step_as_a_function_equals_pytorchs_step_alone_and_side_by_side(pixels: Path, name: str) -> None:
    more = ["training.clip_gradient=0.5", "training.schedule=cosine", "training.warmup_steps=2"]
    check(config_of(pixels, name, *more, "training.steps=9"), "function")
    members = check(config_of(pixels, name, *more, "training.steps=9", "training.seeds=2"), "function")
    weights = [next(member.agent.policy.parameters()) for member in members]
    assert not torch.allclose(*weights), "equal seeds prove nothing"


@pytest.mark.parametrize(
    ("name", "seeing"),
    [("gtp", []), ("iql", []), ("fql", [*PIXELS, "encoder.share=false", "encoder.tuning=layerwise"])],
)
def test_all_engines_clone_first_alike(pixels: Path, name: str, seeing: list[str]) -> None:
    more = ["agent.clone_steps=2", "training.clip_gradient=0.5", *seeing]
    (alone,) = check(config_of(pixels, name, *more), "function", steps=4)
    counts = {n: int(alone.optimizer.state[x]["step"]) for n, x in alone.agent.named_parameters() if x.requires_grad}
    later = ("critic", "improvement")
    assert {n: 2 if n.startswith(later) else 4 for n in counts} == counts, "Adam begins where training does"
    if not seeing:
        check(config_of(pixels, name, *more, "training.seeds=2"), "function", steps=4)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("name", "backend", "more"),
    [
        ("gtp_bc", "inductor", []),
        ("bdm", "aot_eager", ["training.steps=9", "agent.clone_steps=1"]),
        ("gtp", "aot_eager", [*PIXELS, "encoder.tuning=layerwise", "encoder.unfreeze_step=2"]),
        ("gtp", "aot_eager", ["training.seeds=2", "agent.policy.alternate=true"]),
        ("gtp_ql", "aot_eager", ["training.seeds=2", "agent.improvement.step=0.1", "agent.improvement.q_weight=0"]),
    ],
    ids=["inductor", "stages", "frames and groups", "seeds", "gradient steps"],
)
def test_a_compiled_step_equals_pytorchs_step(pixels: Path, name: str, backend: str, more: list[str]) -> None:
    check(config_of(pixels, name, *more), "compile", backend, steps=4)


def test_seeds_share_a_frozen_backbone_and_its_features(pixels: Path, tmp_path: Path, cache: Path) -> None:
    still = [*PIXELS, "encoder.augmentation.shift=0"]
    config = config_of(pixels, "gtp", *still)
    parts = build(config)
    checkpoint.save(tmp_path / "checkpoints", 1, parts.agent, parts.optimizer, {})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    frozen = [f"encoder.weights={tmp_path}", "encoder.tuning=frozen", "encoder.cache=true", "training.seeds=2"]
    members = check(config_of(pixels, "gtp", *still, *frozen), "function")
    towers = [{n: p.data_ptr() for n, p in member.agent.named_parameters() if ".towers." in n} for member in members]
    assert towers[0] == towers[1] != {}


@pytest.mark.compiles
def test_a_step_that_cannot_be_compiled_runs_eagerly_with_a_message(pixels: Path) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no such luck\nand more of it")

    config, messages = config_of(pixels, "gtp_bc"), list[str]()
    parts = build(config)
    backend: Any = broken
    engine = Functional(batch_source(parts.sampler, CPU), config, [parts], "compile", messages.append, backend=backend)
    assert steps_of(engine, steps=1)
    assert engine.name == "eager"
    assert len(messages) == 2
    assert "training.engine=compile" in messages[1]
    assert "no such luck" in messages[1]


def wrong_by(factor: float) -> Any:
    """A compiler whose code computes `factor` of each number."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        return lambda *arguments: [x * factor if x.is_floating_point() else x for x in graph(*arguments)]

    return backend


@pytest.mark.compiles
def test_an_engine_proves_itself_on_the_runs_first_steps(pixels: Path) -> None:
    config, messages = config_of(pixels, "gtp_bc", "training.steps=9"), list[str]()

    def engine(backend: Any, *, required: bool = False) -> Functional:
        parts = build(config)
        source = batch_source(parts.sampler, CPU)
        return Functional(source, config, [parts], "compile", messages.append, backend=backend, required=required)

    steps_of(engine("aot_eager"), steps=4)
    assert len(messages) == 2
    assert re.fullmatch(r"engine: compile, equal to eager on 3 steps within \de-\d\d", messages[1])

    stepped_back = engine(wrong_by(1.1))
    alone = build(config)
    (mine,), (his,) = steps_of(stepped_back), steps_of(engine_of("eager", config, [alone]))
    assert_alike(stepped_back._members[0], alone, mine, his)
    assert stepped_back.name == "eager"
    assert re.search(r"moves otherwise than eager here, by 0\.\d+ of losses", messages[-1])

    with pytest.raises(GtpVisionError, match=r"training\.engine=compile moves otherwise.*; set training\.engine=eager"):
        steps_of(engine(wrong_by(1.1), required=True))


BATCH_NORM = ["encoder=resnet18", "encoder.pooling=average", "encoder.features=8", "encoder.batch_norm=train"]
WARM = [*PIXELS, "encoder.augmentation.brightness=0.1", "encoder.augmentation.warmup_steps=100"]


def test_the_engine_is_chosen_with_a_reason(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = list[str]()

    def chosen(steps: int, *more: str) -> tuple[str, str]:
        config = config_of(pixels, "gtp_bc", f"training.steps={steps}", *more)
        return choose(config, [build(config)], messages.append).name, messages[-1]

    assert chosen(100)[0] == "eager"
    assert "10000 steps" in messages[-1]
    assert chosen(100_000) == ("compile", "engine: compile")
    monkeypatch.setattr(engines, "has_compiler", lambda: False)
    assert chosen(100_000)[0] == "eager"
    assert "C++ compiler" in messages[-1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["training.engine=graph"], r"training\.engine=graph captures a CUDA graph, and training runs on cpu"),
        ([*WARM, "training.engine=compile"], r"warmup_steps.*; set training\.engine=auto"),
        ([*BATCH_NORM, "training.engine=compile"], r"batch_norm=train.*; set training\.engine=auto"),
        ([*PIXELS, "encoder.recompute=2", "training.engine=compile"], r"recompute.*; set training\.engine=auto"),
        (["training.engine=compile"], r"needs a C\+\+ compiler"),
    ],
)
def test_engines_that_cannot_run_are_refused(
    pixels: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    monkeypatch.setattr(engines, "has_compiler", lambda: False)
    config = config_of(pixels, "gtp_bc", *more)
    with pytest.raises(GtpVisionError, match=words):
        choose(config, [build(config)], pytest.fail)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.compiles
def test_a_captured_step_equals_pytorchs_step(pixels: Path) -> None:
    config = config_of(pixels, "gtp", "training.device=cuda")
    ours, theirs = build(config), build(config)
    device = ours.accelerator.device
    graph = Functional(batch_source(ours.sampler, device), config, [ours], "graph", only_compiling)
    eager = Eager(batch_source(theirs.sampler, device), config, theirs)
    (mine,), (his,) = steps_of(graph, device), steps_of(eager, device)
    assert_alike(ours, theirs, mine, his)
