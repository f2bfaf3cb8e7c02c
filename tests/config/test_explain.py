"""`--explain` names each setting, its value and what set it."""

import pytest

from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.explain import explain
from gtp_vision.core.settings import settings_of


def test_each_setting_has_a_line_with_what_set_it() -> None:
    overrides = ["task=own", "task.dataset=x", "agent=qgpo", "encoder=drq", "agent.improvement.alpha=2", "seed=1"]
    lines = {line.split()[0]: line.split()[1:] for line in explain(overrides).splitlines()}
    assert list(lines) == [key for key, _, _ in settings_of(from_command_line(overrides))]
    expected = {
        "seed": ("1", "command", "line"),
        "data_dir": ("~/.ogbench/data", "config.yaml"),
        "task.name": ("own", "task/own.yaml"),
        "agent.policy.activation": ("silu", "family/diffusion.yaml"),
        "agent.critic.backup": ("softmax", "agent/qgpo.yaml"),
        "agent.improvement.alpha": ("2.0", "command", "line"),
        "agent.tau": ("0.005", "default", "Polyak", "rate"),
        "encoder.features": ("50", "encoder/drq.yaml"),
        "training.eval_episodes": ("0", "task.env=null"),
    }
    assert {key: tuple(lines[key][: len(words)]) for key, words in expected.items()} == expected


def test_the_command_explains_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "task=demo", "--explain"]) == 0
    assert capsys.readouterr().out.startswith("seed ")
    assert main(["train", "task=demo", "training.stesp=1", "--explain"]) == 2
    assert main(["train", "task=demo", "--explain", "-m"]) == 2
