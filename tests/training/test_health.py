"""What looks wrong in a run is told once, and nothing is told of a run that is well."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtp_vision.config.schema import Config, from_command_line
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training import health, trainer
from gtp_vision.training.build import build
from gtp_vision.training.health import Health, Spread, spread_of, value_bound

SMALL = [
    *("task=own", "task.name=small", "encoder=state", "training.device=cpu", "training.eval_episodes=0"),
    *("training.batch_size=64", "training.log_every=2", "training.checkpoint_every=4", "training.steps=12"),
    *("agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "agent.policy.grid=2", "agent.critic.next_steps=2"),
    *("agent.acting.steps=2", "training.learning_rate=1e-3"),
]
DETERMINISTIC = ["agent=gtp_bc", "agent.policy.family=deterministic"]


@pytest.fixture(scope="module")
def data(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.write(tmp_path_factory.mktemp("data") / "states.h5", make_store((30, 40), terminals={29}))


def config_of(data: Path, run: Path, *more: str) -> Config:
    return from_command_line([*SMALL, "agent=gtp", f"task.dataset={data}", f"run_dir={run}", *more])


def kinds(run: Path) -> list[str]:
    return [one["kind"] for one in health.read(run)]


def watch(folder: Path, store: Store, *more: str, start: int = 0) -> Health:
    return Health(folder, config_of(folder, folder, *more), store, start=start, writes=True)


def test_nothing_is_told_of_a_run_that_is_well(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = trainer.train(config_of(data, tmp_path))
    assert results["health"] == json.loads((tmp_path / "results.json").read_text())["health"] == []
    assert not (tmp_path / "health.json").exists()
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"policy/spread_noise", "policy/spread_observations"} <= line.keys() for line in told[1::2])
    assert "warning: step" not in capsys.readouterr().err


def test_values_that_run_away_are_told_once(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(data, tmp_path, "task.discount=0.5", "training.learning_rate=3")
    results = trainer.train(config)
    (found,) = [one for one in results["health"] if one["kind"] == "q_explosion"]
    assert health.read(tmp_path) == results["health"]
    assert "and the rewards allow " in found["told"]
    assert capsys.readouterr().err.count(f"warning: {found['told']}\n") == 1


def test_weights_that_leave_few_rows_are_told(data: Path, tmp_path: Path) -> None:
    more = ["agent.improvement.eta=20", "agent.improvement.weight_clip=1e30"]
    trainer.train(config_of(data, tmp_path, *more, "training.batch_size=256"), progress=False)
    (found,) = [one for one in health.read(tmp_path) if one["kind"] == "few_rows"]
    assert "% of a batch to learn from" in found["told"]


def test_a_policy_that_sees_nothing_is_told(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store((30, 40))
    store.observations["state"][:] = 1
    data = native.write(tmp_path / "same.h5", store)
    trainer.train(config_of(data, tmp_path / "run"), progress=False)
    (found,) = health.read(tmp_path / "run")
    assert (found["kind"], found["step"]) == ("dead_policy", 8)
    assert "do not depend on the observation (spread over observations 0, " in found["told"]


def test_a_policy_without_noise_is_dead_unless_it_is_meant_so(data: Path, tmp_path: Path) -> None:
    trainer.train(config_of(data, tmp_path / "meant", *DETERMINISTIC), progress=False)
    assert kinds(tmp_path / "meant") == []
    parts = build(config_of(data, tmp_path))
    with torch.no_grad():  # all actions at the bounds
        list(parts.agent.policy.parameters())[-1].fill_(1e6)
    assert health.noisy(parts)
    found = spread_of(parts, 2, 0)
    assert (found.noise, found.observations) == (0, 0)
    own = watch(tmp_path, parts.store)
    seen = Spread(0, 0.5, 0.5)
    assert own.read_spread(4, seen, noisy=True) == []
    (line,) = own.read_spread(8, seen, noisy=True)
    assert line.startswith("warning: step 8: the policy's actions do not depend on the noise")
    assert own.read_spread(12, seen, noisy=True) == []


def test_looking_at_the_policy_changes_nothing_and_its_noise_is_of_the_step(data: Path, tmp_path: Path) -> None:
    parts = build(config_of(data, tmp_path))
    before = {name: x.clone() for name, x in parts.agent.state_dict().items()}
    state = torch.random.get_rng_state()
    found = [spread_of(parts, 2, step) for step in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in parts.agent.state_dict().items())
    assert parts.agent.training


def test_a_loss_that_stands_still_is_told(make_store: Callable[..., Store], tmp_path: Path) -> None:
    data = native.write(tmp_path / "one.h5", make_store((2,), timeouts={1}))  # every row is the same
    trainer.train(config_of(data, tmp_path / "run", *DETERMINISTIC, "training.learning_rate=1e-12"), progress=False)
    (found,) = [one for one in health.read(tmp_path / "run") if one["kind"] == "constant_loss"]
    assert found["step"] == 10


def evaluation(step: int, success: float, reward: float, *, score: float | None = None) -> dict[str, Any]:
    spread = 0.1
    found = {"step": step, "success": success, "return": reward}
    found["success_interval"] = [max(0, success - spread), min(1, success + spread)]
    return found if score is None else found | {"score": score}


@pytest.mark.parametrize(
    ("evaluations", "name"),
    [
        (
            [evaluation(1, 0.2, 0), evaluation(2, 0.8, 0), evaluation(3, 0.3, 0)],
            "success is 0.3, and was 0.8 at step 2",
        ),
        ([evaluation(1, 0, 0), evaluation(2, 0, 10), evaluation(3, 0, 4)], "return is 4, and was 10 at step 2"),
        ([evaluation(1, 0, 0, score=90), evaluation(2, 0, 0, score=30)], "score is 30, and was 90 at step 1"),
        ([evaluation(1, 0.2, 0), evaluation(2, 0.4, 0), evaluation(3, 0.25, 0)], ""),
        ([evaluation(1, 0, 0), evaluation(2, 0, 10), evaluation(3, 0, 8)], ""),
        ([evaluation(1, 0, 0, score=5), evaluation(2, 0, 0, score=1)], ""),
        ([evaluation(1, 0.9, 0)], ""),
    ],
)
def test_an_evaluation_far_below_the_best_is_told(
    make_store: Callable[..., Store], tmp_path: Path, evaluations: list[dict[str, Any]], name: str
) -> None:
    own = watch(tmp_path, make_store())
    told = [line for end in range(len(evaluations)) for line in own.read_evaluations(evaluations[: end + 1])]
    assert len(told) == bool(name)
    if name:
        assert name in told[0]
        assert "checkpoints/best" in told[0]
        assert kinds(tmp_path) == ["collapse"]


def test_the_largest_value_follows_from_rewards_and_discount(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store((5, 7), rewards=np.linspace(-1, 3, 12).astype(np.float32))

    def bound(*more: str) -> float | None:
        return value_bound(config_of(tmp_path, tmp_path, *more), store)

    assert bound("task.discount=0.9") == pytest.approx(30)
    assert bound("task.discount=0.9", "task.reward_shift=-3", "task.reward_scale=2") == pytest.approx(80)
    assert bound("task.discount=1") == pytest.approx(21)
    assert bound("task.discount=0.9", "agent.critic.next_penalty=1") == pytest.approx(110)
    assert bound("task.discount=0.9", "task.goals=hindsight") == pytest.approx(10)
    assert bound("agent=gtp_bc") is None


def test_warnings_of_later_steps_are_forgotten_when_a_run_goes_on(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    store = make_store()
    own = watch(tmp_path, store)
    for step in (3, 6):
        assert own.note(step, "rollback", "went back") == ["warning: went back"]
        assert own.note(step, "rollback", "went back") == []
    assert [one["step"] for one in watch(tmp_path, store, start=5).warnings] == [3]
    (tmp_path / health.FILE).write_text('[{"step": 1, "kind": "a", "told": "b", "more": 1}, {"step": "1"}, 7]')
    assert health.read(tmp_path) == [{"step": 1, "kind": "a", "told": "b"}]
    for text in ("", "{}", "[" * 100_000):
        (tmp_path / health.FILE).write_text(text)
        assert health.read(tmp_path) == []


def test_metrics_without_an_applied_step_are_no_reason_to_warn(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    own = watch(tmp_path, make_store())
    assert [own.read_metrics(step, {"loss": math.nan}) for step in range(9)] == [[]] * 9
