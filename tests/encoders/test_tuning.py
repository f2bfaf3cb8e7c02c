import copy
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import make_store
from torch import nn

from gtp_vision import agents
from gtp_vision.agents import Agent, AgentConfig
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import RandomStream
from gtp_vision.core.settings import choices_of
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.encoders import EncoderConfig, LoraSettings
from gtp_vision.encoders.backbone import Backbone
from gtp_vision.encoders.backbones import create
from gtp_vision.encoders.tuning import parameter_groups, prepare
from gtp_vision.training import checkpoint

SHAPE = (2, 3, 48, 48)
SHAPES = {"front": SHAPE, "wrist": SHAPE, "state": (2, 3)}
RATE = 1e-2


@functools.cache
def _batch() -> Batch:
    store = make_store((9, 9), cameras={"front": (48, 48, 3), "wrist": (48, 48, 3)}, terminals={4})
    return Sampler(store, 4, 0, frame_stack=2).batch(0)


def _encoder(name: str = "impala_tiny", tuning: str = "full", **more: Any) -> EncoderConfig:
    return EncoderConfig(name=name, tuning=tuning, features=8, share_cameras=True, **more)


def _agent(config: EncoderConfig, preset: str = "gtp", seed: int = 0) -> Agent:
    torch.manual_seed(seed)
    return agents.create(SHAPES, 2, copy.deepcopy(_preset(preset)), config)


@functools.cache
def _preset(name: str) -> AgentConfig:
    small = ["agent.policy.hidden=[8]", "agent.critic.hidden=[8]", "agent.critic.next_steps=1"]
    return from_command_line(["task=demo", f"agent={name}", *small]).agent


def _adam(agent: Agent, config: EncoderConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameter_groups(agent, config), lr=RATE)


def _steps(agent: Agent, optimizer: torch.optim.Optimizer, batch: Batch, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = RATE * group["scale"] * (step >= group["after"])
        agent.begin(step)
        loss, _ = agent(batch, RandomStream(0, step), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        agent.update_targets()


def _moving(agent: Agent, tuning: str) -> set[str]:
    """Names of all parameters that a step should change, target networks included."""
    names = {name for name, _ in agent.named_parameters()}
    for prefix, backbone in agent.named_modules():
        if isinstance(backbone, Backbone):
            own = {id(parameter): f"{prefix}.{name}" for name, parameter in backbone.named_parameters()}
            last = {own[id(parameter)] for parameter in backbone.blocks()[-1].parameters()}
            adapters = {name for name in own.values() if ".lora_A." in name or ".lora_B." in name}
            moving = {"partial": last, "frozen": set(), "lora": adapters}.get(tuning, set(own.values()))
            names -= set(own.values()) - moving
    return names


def _changed(agent: Agent, before: dict[str, torch.Tensor]) -> set[str]:
    return {key for key, value in agent.state_dict().items() if not torch.equal(value, before[key])}


TUNINGS = choices_of(EncoderConfig, "tuning")
CASES = [*(("impala_tiny", tuning, "gtp") for tuning in TUNINGS), ("resnet18", "partial", "gtp_bc")]
CASES += [(name, tuning, "gtp_bc") for name in ("timm/test_vit", "timm/test_efficientnet") for tuning in TUNINGS]


@pytest.mark.parametrize(("name", "tuning", "preset"), CASES)
def test_steps_change_exactly_the_trained_parameters(name: str, tuning: str, preset: str) -> None:
    config = _encoder(name, tuning, fusion="transformer" if name == "resnet18" else "concat")
    agent = _agent(config, preset)
    before = copy.deepcopy(agent.state_dict())
    _steps(agent, _adam(agent, config), _batch(), range(2))  # A of an adapter B A waits for B to leave 0
    assert _changed(agent, before) == _moving(agent, tuning)


def test_full_tuning_is_one_group_and_rates_decay_by_block_for_layerwise() -> None:
    (group,) = parameter_groups(_agent(_encoder()), _encoder())
    assert (group["scale"], group["after"]) == (1.0, 0)
    config = _encoder("impala_small", "layerwise", decay=0.5, learning_rate_scale=0.2, unfreeze_step=7)
    agent = _agent(config)
    groups = parameter_groups(agent, config)
    paces = {parameter: (group["scale"], group["after"]) for group in groups for parameter in group["params"]}
    for encoder in (agent.actor_encoder, agent.critic_encoder):
        found = [{paces[parameter] for parameter in block.parameters()} for block in encoder.tower("front").blocks()]
        assert found == [{(0.2 * 0.25, 7)}, {(0.2 * 0.5, 7)}, {(0.2, 7)}]
        assert {paces[parameter] for parameter in encoder.fusion.parameters()} == {(1.0, 0)}
    assert {paces[parameter] for parameter in (*agent.policy.parameters(), *agent.critic.parameters())} == {(1.0, 0)}


@pytest.mark.parametrize("tuning", ["full", "layerwise"])
def test_a_backbone_is_unchanged_until_unfreeze_step(tuning: str) -> None:
    config = _encoder(tuning=tuning, unfreeze_step=2)
    agent, batch = _agent(config), _batch()
    before, optimizer = copy.deepcopy(agent.state_dict()), _adam(agent, config)
    _steps(agent, optimizer, batch, range(2))
    assert _changed(agent, before) == {key for key in _moving(agent, tuning) if ".towers." not in key}
    _steps(agent, optimizer, batch, range(2, 3))
    assert _changed(agent, before) == _moving(agent, tuning)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_batch_statistics_change_with_batch_norm_train(tuning: str) -> None:
    config = _encoder("timm/test_efficientnet", tuning, batch_norm="train")
    agent = _agent(config)
    before = copy.deepcopy(agent.state_dict())
    _steps(agent, _adam(agent, config), _batch(), range(2))
    after, statistics = agent.state_dict(), {key for key in before if "running_" in key}
    assert statistics
    assert statistics <= _changed(agent, before)
    for key in statistics:
        part, _, rest = key.partition(".")
        assert torch.equal(after[f"{part.removesuffix('_target')}_target.{rest}"], after[key])


def test_actor_and_critic_have_the_same_frozen_features() -> None:
    agent, front = _agent(_encoder(tuning="frozen")), _batch().observation["front"]
    features = agent.actor_encoder.camera_features("front", front)
    assert not features.requires_grad
    for encoder in (agent.critic_encoder, agent.actor_encoder_target, agent.critic_encoder_target):
        assert torch.equal(encoder.camera_features("front", front), features)
    apart = _agent(_encoder())
    one, other = (encoder.tower("front").layers[0].weight for encoder in (apart.actor_encoder, apart.critic_encoder))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "tuning"), [*(("impala_tiny", tuning) for tuning in TUNINGS), ("timm/test_efficientnet", "lora")]
)
def test_trained_and_frozen_parameters_survive_a_save_and_a_load(tmp_path: Path, name: str, tuning: str) -> None:
    config, batch = _encoder(name, tuning), _batch()
    agent, other = _agent(config, "gtp_bc"), _agent(config, "gtp_bc", seed=1)
    optimizer, other_optimizer = _adam(agent, config), _adam(other, config)
    _steps(agent, optimizer, batch, range(2))
    checkpoint.load(checkpoint.save(tmp_path, 2, agent, optimizer, {}), other, other_optimizer)
    assert not _changed(agent, other.state_dict())
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in agent.parameters()]
    _steps(agent, optimizer, batch, range(2, 3))
    _steps(other, other_optimizer, batch, range(2, 3))
    assert not _changed(agent, other.state_dict())


def test_moments_are_restored_by_parameter_where_groups_have_changed(tmp_path: Path) -> None:
    config, faster = _encoder(tuning="layerwise", decay=0.5), _encoder(tuning="layerwise", decay=1.0)
    agent, other = _agent(config), _agent(config, seed=1)
    optimizer, other_optimizer = _adam(agent, config), _adam(other, faster)
    assert len(optimizer.param_groups) > len(other_optimizer.param_groups)
    _steps(agent, optimizer, _batch(), range(1))
    path = checkpoint.save(tmp_path, 1, agent, optimizer, {})
    checkpoint.load(path, other, other_optimizer)
    for one, same in zip(agent.parameters(), other.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(optimizer.state[one]["exp_avg"], other_optimizer.state[same]["exp_avg"])
    partial = _agent(_encoder(tuning="partial"))
    with pytest.raises(GtpVisionError, match=r"12 .*'actor_encoder\.towers\.shared\.layers\.0\.bias'.*encoder\.tuning"):
        checkpoint.load(path, partial, _adam(partial, _encoder(tuning="partial")))


class Odd(Backbone):
    """Layers that adapters fit, and layers that they do not."""

    def __init__(self) -> None:
        super().__init__(SHAPE)
        self.first = nn.Conv2d(6, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2)
        self.norm = nn.LayerNorm(4)
        self.uncalled = nn.Linear(4, 4)
        self.last = nn.Sequential(nn.Linear(4, 5))
        self.width = 5

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.dilated(self.grouped(self.first(x))).mean((2, 3)))
        return self.last(nn.functional.linear(x, self.uncalled.weight))

    def blocks(self) -> list[nn.Module]:
        return [self]


def _with_lora(backbone: Backbone, **settings: Any) -> Backbone:
    return prepare(backbone, _encoder(tuning="lora", lora=LoraSettings(**settings)))


def _adapted(backbone: nn.Module) -> set[str]:
    return {name.partition(".lora_A")[0] for name, _ in backbone.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize("name", ["impala_tiny", "robomimic/ShallowConv", "timm/test_efficientnet", "timm/test_vit"])
def test_adapters_start_without_effect_and_belong_to_blocks(name: str) -> None:
    torch.manual_seed(0)
    backbone = create(SHAPE, _encoder(name)).eval()
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    before, buffers = backbone(images), {key: value.clone() for key, value in backbone.named_buffers()}
    _with_lora(backbone)
    torch.testing.assert_close(backbone(images), before, rtol=0, atol=1e-6)
    assert all(torch.equal(value, buffers[key]) for key, value in backbone.named_buffers())
    assert _adapted(backbone)
    held = [id(parameter) for block in backbone.blocks() for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in backbone.parameters())
    assert all(parameter.requires_grad == ("lora_" in key) for key, parameter in backbone.named_parameters())


def test_an_adapter_adds_b_a_x_times_alpha_over_rank() -> None:
    torch.manual_seed(0)
    backbone = _with_lora(Odd(), rank=2, alpha=6.0, targets=["last.0"])
    layer = backbone.last[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(b)
    x = torch.randn(7, 4)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * x @ a.T @ b.T)
    assert a.shape == (2, 4)


def test_an_adapted_convolution_still_tells_its_sizes() -> None:
    layer = _with_lora(Odd()).first
    assert (layer.kernel_size, layer.stride, layer.in_channels) == ((3, 3), (1, 1), 6)


def test_targets_match_ends_of_names_of_plain_layers_that_are_called() -> None:
    assert _adapted(_with_lora(Odd())) == {"first", "last.0"}
    found = _adapted(_with_lora(create(SHAPE, _encoder("impala_tiny")), targets=["first", "5.second"]))
    assert found == {"layers.2.first", "layers.5.first", "layers.5.second"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["fist"], r"encoder\.lora\.targets=\['fist'\].*'fist': did you mean 'first'"),
        (["first", "norm"], r"encoder\.lora\.targets=.*'norm'"),
        (["grouped"], r"encoder\.lora\.targets=.*'grouped'"),
    ],
)
def test_targets_that_match_no_layer_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        _with_lora(Odd(), targets=targets)


def test_missing_blocks_and_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GtpVisionError, match=r"encoder\.blocks=3, but impala_tiny has 2"):
        prepare(create(SHAPE, _encoder()), _encoder(tuning="partial", blocks=3))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(GtpVisionError, match=r"peft.*pip install 'gtp-vision\[lora\]'"):
        _with_lora(Odd())
