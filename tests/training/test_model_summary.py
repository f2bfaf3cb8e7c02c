import re
from typing import Any

import pytest
import torch
from small_runs import composed

from gtp_vision import agents
from gtp_vision.agents import Agent
from gtp_vision.config.schema import Config
from gtp_vision.training.model_summary import counts, summary

SHAPES = {"front": (1, 3, 32, 32), "wrist": (1, 3, 32, 32), "state": (1, 3)}


def _made(*overrides: str, shapes: dict[str, Any] = SHAPES) -> tuple[Agent, Config]:
    small = ["agent.policy.hidden=[8]", "agent.critic.hidden=[8]", "encoder.features=8", "training.learning_rate=0.001"]
    config = composed("task=own", "task.dataset=none", "run_dir=none", *small, *overrides)
    return agents.create(shapes, 2, config.agent, config.encoder), config


def _size(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _rows(text: str) -> dict[str, tuple[int, int, str]]:
    """Name to numbers of parameters and trained ones, and the last column."""
    found = {}
    for line in text.splitlines()[1:]:
        row = re.fullmatch(r"(.+?) +([\d,]+) +([\d,]+) *(.*)", line)
        assert row, line
        found[row[1]] = (int(row[2].replace(",", "")), int(row[3].replace(",", "")), row[4])
    return found


def test_the_table_adds_up_over_encoders_and_cameras() -> None:
    agent, config = _made("agent=gtp", "encoder=impala_tiny", "encoder.tuning=partial", "encoder.unfreeze_step=5")
    rows = _rows(summary(agent, config))
    towers = [*agent.actor_encoder.towers.values(), *agent.critic_encoder.towers.values()]
    first, last = (_size(*(tower.blocks()[k] for tower in towers)) for k in (0, 1))
    encoders = "actor_encoder + critic_encoder"
    assert rows[f"{encoders}: layers.0 to layers.2"] == (first, 0, "")
    assert rows[f"{encoders}: layers.3 to layers.5"] == (last, last, "1.00e-03 from step 5")
    fusion = _size(agent.actor_encoder.fusion, agent.critic_encoder.fusion)
    assert rows[f"fusion of {encoders}"] == (fusion, fusion, "1.00e-03")
    assert rows["critic"][:2] == (_size(agent.critic),) * 2
    copies = sum(p.numel() for key, p in agent.named_parameters() if "_target" in key)
    assert rows["target networks"] == (copies, 0, "")
    *parts, (total, trained, memory) = rows.values()
    assert total == sum(number for number, _, _ in parts) == _size(agent)
    assert trained == sum(number for _, number, _ in parts)
    assert trained == sum(p.numel() for p in agent.parameters() if p.requires_grad)
    assert memory == f"{4 * (total + 3 * trained) / 1e6:.0f} MB with gradients and moments"
    assert counts(agent) == {"parameters": total - copies, "trained_parameters": trained}


def test_equal_neighbors_share_a_row_and_a_deep_backbone_stays_short() -> None:
    deep = ["agent=gtp_bc", "encoder.name=timm/tf_efficientnet_lite0", "encoder.tuning=layerwise"]
    agent, config = _made(*deep, shapes={"front": SHAPES["front"]})
    assert len(agent.actor_encoder.tower("front").blocks()) > 14
    rows = _rows(summary(agent, config))
    assert len(rows) < 20
    assert any(re.fullmatch(r"\d\.\d\de-\d+ to \d\.\d\de-\d+", message) for _, _, message in rows.values())


@pytest.mark.parametrize("encoder", ["impala_tiny", "state"])
def test_one_line_is_enough_where_all_rates_are_equal(encoder: str) -> None:
    shapes = {"state": (1, 3)} if encoder == "state" else SHAPES
    agent, config = _made("agent=gtp", f"encoder={encoder}", shapes=shapes)
    trained = sum(p.numel() for p in agent.parameters() if p.requires_grad)
    memory = f"{4 * (_size(agent) + 3 * trained) / 1e6:,.0f} MB"
    rate = "learning rate 1.00e-03"
    expected = f"{trained:,} trained parameters, {rate}; {memory} with target networks, gradients and Adam's moments"
    assert summary(agent, config) == expected
