"""All engines take the same steps, alone and side by side, and say so when they cannot."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gtp_vision.agents import AGENTS
from gtp_vision.config.schema import Config, from_command_line, to_yaml
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import batch_source, batch_source_of_seeds
from gtp_vision.datasets.store import Store
from gtp_vision.training import checkpoint, engines
from gtp_vision.training.build import Components, build, components_for_seed
from gtp_vision.training.engines import Eager, Engine, Functional, choose
from gtp_vision.training.seeds import seeds_of

CPU = torch.device("cpu")
STEPS = 4
SMALL = [
    *("task=own", "task.name=small", "encoder=state", "encoder.share=true", "training.device=cpu"),
    *("training.batch_size=16", "training.learning_rate=1e-3", "training.eval_episodes=0", "run_dir=unused"),
    *("agent.tau=0.5", "agent.policy_tau=0.5"),  # targets that stood still would be seen
    *("agent.policy.hidden=[16,16]", "agent.policy.grid=2", "agent.critic.hidden=[16]", "agent.critic.next_steps=2"),
    *("agent.acting.steps=2", "agent.improvement.value_samples=3", "agent.improvement.q_steps=2"),
    *("agent.improvement.distill_steps=2", "agent.improvement.support_actions=4", "agent.improvement.support_steps=2"),
]
PIXELS = ["encoder=impala_tiny", "encoder.features=8", "encoder.augmentation.shift=2", "task.frame_stack=2"]


@pytest.fixture(scope="module")
def states(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "states.h5"
    return native.write(path, make_store((30, 40), terminals={29}))


@pytest.fixture(scope="module")
def pixels(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pixels.h5"
    return native.write(path, make_store((30, 40), terminals={29}, cameras={"front": (12, 12, 3)}))


def config_of(data: Path, name: str = "gtp", *more: str) -> Config:
    own = ["agent.improvement.pretrain_steps=2"] if AGENTS[name].improvement == "alignment" else []
    own += ["agent.critic.next_actions=3"] if AGENTS[name].backup == "softmax" else []
    return from_command_line([*SMALL, f"task.dataset={data}", f"agent={name}", *own, *more])


def functional(config: Config, members: Sequence[Components], backend: str = "") -> Functional:
    """The engine of functions, compiled if a backend is given."""
    source = batch_source_of_seeds([member.sampler for member in members], CPU)
    name = "compile" if backend else "eager"
    return Functional(source, config, members, name, only_compiling, backend=backend or "inductor")


def only_compiling(line: str) -> None:
    """What an engine tells that works."""
    assert line.startswith("compiling the step")


def stepped(engine: Engine) -> list[list[dict[str, float]]]:
    """Metrics of each member, step by step."""
    told = [engine.step(step, engine.source.fetch(step)) for step in range(STEPS)]
    return [[{name: float(value) for name, value in one.items()} for one in all_of] for all_of in told]


def assert_alike(
    ours: Components, theirs: Components, mine: list[dict[str, float]], his: list[dict[str, float]]
) -> None:
    """The same metrics, parameters and moments, up to rounding."""
    for one, other in zip(mine, his, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-4), name
    for (name, first), second in zip(ours.agent.named_parameters(), theirs.agent.parameters(), strict=True):
        # Adam moves a parameter whose gradient is nothing but rounding by as much as any other
        idle = name.startswith("improvement.energy") and name.endswith("bias")
        torch.testing.assert_close(first, second, rtol=1e-3, atol=2e-2 if idle else 2e-4, msg=name)
    first, second = (checkpoint._optimizer_tensors(parts.optimizer, parts.agent) for parts in (ours, theirs))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=2e-2, atol=1e-4, msg=name)


def check_alone(config: Config, backend: str = "") -> None:
    """One run's function against PyTorch's own step."""
    ours, theirs = build(config), build(config)
    eager = Eager(batch_source(theirs.sampler, CPU), config, theirs)
    mine, his = stepped(functional(config, [ours], backend)), stepped(eager)
    assert_alike(ours, theirs, [m[0] for m in mine], [m[0] for m in his])


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_step_as_a_function_is_pytorchs_step(states: Path, name: str) -> None:
    check_alone(config_of(states, name, "training.clip_gradient=0.5", "training.schedule=cosine", "training.steps=9"))


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_each_of_several_seeds_takes_the_steps_that_it_takes_alone(states: Path, name: str) -> None:
    config = config_of(states, name, "training.seeds=3", "training.clip_gradient=0.5")
    alone = seeds_of(config)
    first = build(alone[0])
    members = [first, *(components_for_seed(first, other) for other in alone[1:])]
    together = stepped(functional(config, members))
    for index, own in enumerate(alone):
        theirs = build(own)
        his = stepped(Eager(batch_source(theirs.sampler, CPU), own, theirs))
        assert_alike(members[index], theirs, [m[index] for m in together], [m[0] for m in his])
    weights = [next(member.agent.policy.parameters()) for member in members]
    assert not torch.allclose(weights[0], weights[1]), "seeds that are one and the same prove nothing"


def test_a_compiled_step_is_pytorchs_step(states: Path) -> None:
    check_alone(config_of(states), "inductor")


@pytest.mark.parametrize(
    ("name", "more"),
    [("bdm", []), ("gtp", PIXELS), ("gtp", [*PIXELS, "encoder.tuning=layerwise", "encoder.unfreeze_step=2"])],
    ids=["stages", "frames", "groups"],
)
def test_what_is_compiled_follows_stages_frames_and_groups(
    states: Path, pixels: Path, name: str, more: list[str]
) -> None:
    check_alone(config_of(pixels if more else states, name, *more), "aot_eager")


def test_compiled_seeds_are_those_of_single_runs(states: Path) -> None:
    config = config_of(states, "gtp", "training.seeds=2")
    alone = seeds_of(config)
    first = build(alone[0])
    members = [first, components_for_seed(first, alone[1])]
    together = stepped(functional(config, members, "aot_eager"))
    theirs = build(alone[1])
    his = stepped(Eager(batch_source(theirs.sampler, CPU), alone[1], theirs))
    assert_alike(members[1], theirs, [m[1] for m in together], [m[0] for m in his])


def test_frames_on_the_device_change_no_step(pixels: Path) -> None:
    config = config_of(pixels, "gtp", *PIXELS)
    placed = config_of(pixels, "gtp", *PIXELS, "training.placement=device")
    ours, theirs = build(placed), build(config)
    mine = stepped(functional(placed, [ours]))
    his = stepped(Eager(batch_source(theirs.sampler, CPU), config, theirs))
    assert_alike(ours, theirs, [m[0] for m in mine], [m[0] for m in his])


def test_seeds_hold_a_frozen_backbone_once_and_see_its_features(pixels: Path, tmp_path: Path) -> None:
    config = config_of(pixels, "gtp", *PIXELS, "encoder.augmentation.shift=0", f"run_dir={tmp_path}")
    begun = build(config)
    checkpoint.save(tmp_path / "checkpoints", 1, begun.agent, begun.optimizer, {})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    frozen = [f"encoder.weights={tmp_path}", "encoder.tuning=frozen", "encoder.cache=true", "training.seeds=2"]
    config = config_of(pixels, "gtp", *PIXELS, "encoder.augmentation.shift=0", *frozen)
    alone = seeds_of(config)
    first = build(alone[0])
    members = [first, components_for_seed(first, alone[1])]
    engine = functional(config, members)
    towers = {name for name, _ in first.agent.named_parameters() if ".towers." in name}
    assert towers
    assert engine._state.shared >= towers
    together = stepped(engine)
    theirs = build(alone[1])
    his = stepped(Eager(batch_source(theirs.sampler, CPU), alone[1], theirs))
    assert_alike(members[1], theirs, [m[1] for m in together], [m[0] for m in his])


def test_an_agent_acts_and_is_saved_as_the_step_left_it(states: Path, tmp_path: Path) -> None:
    config = config_of(states, "gtp", "training.seeds=2")
    alone = seeds_of(config)
    first = build(alone[0])
    members = [first, components_for_seed(first, alone[1])]
    before = copy.deepcopy(members[1].agent.state_dict())
    stepped(functional(config, members))
    saved = checkpoint.save(tmp_path, STEPS, members[1].agent, members[1].optimizer, {})
    restored = build(alone[1])
    assert checkpoint.load(saved, restored.agent, restored.optimizer)["step"] == STEPS
    for name, value in members[1].agent.state_dict().items():
        assert torch.equal(restored.agent.state_dict()[name], value)
    assert not torch.equal(before["policy.observe.weight"], restored.agent.policy.observe.weight)
    observation = {"state": torch.zeros(1, 3, 3)}
    noise = restored.stream(0)
    again = members[1].agent.act(observation, members[1].stream(0))
    assert torch.equal(restored.agent.act(observation, noise), again)


def test_what_cannot_be_compiled_goes_on_eagerly_and_says_so(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = config_of(states, "gtp_bc"), list[str]()

    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no such luck\nand more of it")

    ours, theirs = build(config), build(config)
    engine = Functional(batch_source(ours.sampler, CPU), config, [ours], "compile", told.append, backend=broken)
    mine, his = stepped(engine), stepped(Eager(batch_source(theirs.sampler, CPU), config, theirs))
    assert_alike(ours, theirs, [m[0] for m in mine], [m[0] for m in his])
    assert engine.name == "eager"
    assert len(told) == 2
    assert told[1].startswith("engine: eager, because training.engine=compile does not work here: ")
    assert "no such luck" in told[1]


def test_the_engine_is_told_with_its_reason(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    parts = build(config_of(states))
    assert choose(config_of(states, "gtp", "training.steps=100"), [parts], told.append).name == "eager"
    assert choose(config_of(states, "gtp", "training.steps=100000"), [parts], told.append).name == "compile"
    monkeypatch.setattr(engines, "has_compiler", lambda: False)
    assert choose(config_of(states, "gtp", "training.steps=100000"), [parts], told.append).name == "eager"
    assert told == [
        "engine: eager (compiling takes half a minute, which pays from 10000 steps on: training.engine=compile)",
        "engine: compile",
        "engine: eager (there is no C++ compiler to compile with)",
    ]


def test_engines_that_cannot_be_are_refused(states: Path, pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(states, "gtp", "training.engine=graph")
    with pytest.raises(GtpVisionError, match=r"training\.engine=graph captures a CUDA graph, and training runs on cpu"):
        choose(config, [build(config)], pytest.fail)
    warm = ["encoder.augmentation.brightness=0.1", "encoder.augmentation.warmup_steps=100", "training.engine=compile"]
    config = config_of(pixels, "gtp_bc", *PIXELS, *warm)
    with pytest.raises(GtpVisionError, match=r"warmup_steps changes every step; set training\.engine=auto"):
        choose(config, [build(config)], pytest.fail)
    monkeypatch.setattr(engines, "has_compiler", lambda: False)
    config = config_of(states, "gtp", "training.engine=compile")
    with pytest.raises(GtpVisionError, match=r"needs a C\+\+ compiler"):
        choose(config, [build(config)], pytest.fail)


def test_a_trained_batch_normalisation_is_trained_eagerly(pixels: Path) -> None:
    told: list[str] = []
    more = ["encoder=resnet18", "encoder.pooling=average", "encoder.features=8", "encoder.batch_norm=train"]
    config = config_of(pixels, "gtp_bc", *more, "training.steps=100000")
    assert choose(config, [build(config)], told.append).name == "eager"
    assert told == ["engine: eager (batch normalisation moves its statistics while it computes)"]
    config = config_of(pixels, "gtp_bc", *more, "training.engine=compile")
    with pytest.raises(GtpVisionError, match=r"batch_norm=train moves statistics while it computes; set training\.eng"):
        choose(config, [build(config)], pytest.fail)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_is_pytorchs_step(states: Path) -> None:
    config = config_of(states, "gtp", "training.device=cuda")
    ours, theirs = build(config), build(config)
    device = ours.accelerator.device
    graph = Functional(batch_source(ours.sampler, device), config, [ours], "graph", only_compiling)
    eager = Eager(batch_source(theirs.sampler, device), config, theirs)
    told = []
    for engine in (graph, eager):
        moved = [engine.source.fetch(step).to(device) for step in range(STEPS)]
        found = [engine.step(step, inputs)[0] for step, inputs in enumerate(moved)]
        told.append([{name: float(value) for name, value in one.items()} for one in found])
    assert_alike(ours, theirs, *told)
