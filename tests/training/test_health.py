import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import lines, small_run
from stores import make_store

from gtp_vision.config.schema import Config
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training import health, trainer
from gtp_vision.training.build import build
from gtp_vision.training.health import Health, Spread, spread_of, value_bound

SMALL = ["training.batch_size=64", "training.checkpoint_every=4", "training.steps=12"]


def config_of(data: Path, run: Path, *more: str, agent: str = "gtp") -> Config:
    return small_run(data, run, *SMALL, *more, agent=agent)


def watch(folder: Path, store: Store, *more: str, start: int = 0) -> Health:
    return Health(folder, config_of(folder, folder, *more), store, start=start, writes=True)


@pytest.mark.trains
def test_a_healthy_run_has_no_warnings(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = trainer.train(config_of(data, tmp_path))
    assert results["health"] == json.loads((tmp_path / "results.json").read_text())["health"] == []
    assert not (tmp_path / "health.json").exists()
    assert all({"policy/spread_noise", "policy/spread_observations"} <= line.keys() for line in lines(tmp_path)[1::2])
    assert "warning: step" not in capsys.readouterr().err


@pytest.mark.trains
def test_what_is_odd_about_the_data_stays_with_each_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store((30, 40))
    store.actions[:] *= 1e-3
    config = config_of(native.write(tmp_path / "small.h5", store), tmp_path / "run", "training.seeds=2")
    trainer.train(config)
    assert capsys.readouterr().err.count("warning: actions stay within 0.00") == 1
    for seed in (0, 1):
        kept = json.loads((tmp_path / f"run/seed_{seed}/health.json").read_text())
        assert [(warning["step"], warning["told"][:19]) for warning in kept] == [(0, "actions stay within")]


@pytest.mark.trains
def test_diverging_values_are_warned_of_once(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = trainer.train(config_of(data, tmp_path, "task.discount=0.5", "training.learning_rate=3"))
    (found,) = [one for one in results["health"] if one["kind"] == "q_explosion"]
    assert health.read_warnings(tmp_path) == results["health"]
    assert capsys.readouterr().err.count(f"warning: {found['told']}\n") == 1


@pytest.mark.trains
def test_a_policy_that_ignores_the_observation_is_warned_of(tmp_path: Path) -> None:
    store = make_store((30, 40))
    store.observations["state"][:] = 1
    data = native.write(tmp_path / "same.h5", store)
    trainer.train(config_of(data, tmp_path / "run"), progress=False)
    of_data, found = health.read_warnings(tmp_path / "run")
    assert of_data["told"].startswith("observations/state: nearly constant")
    assert (found["kind"], found["step"]) == ("dead_policy", 8)
    assert "spread over observations 0, " in found["told"]


def test_a_policy_that_ignores_the_noise_is_warned_of_unless_it_has_none(data: Path, tmp_path: Path) -> None:
    assert not health.has_noise(build(config_of(data, tmp_path, "agent.policy.family=deterministic", agent="gtp_bc")))
    parts = build(config_of(data, tmp_path))
    with torch.no_grad():  # all actions at the bounds
        list(parts.agent.policy.parameters())[-1].fill_(1e6)
    assert health.has_noise(parts)
    found = spread_of(parts, 2, 0)
    assert (found.noise, found.observations) == (0, 0)
    own, seen = watch(tmp_path, parts.store), Spread(0, 0.5, 0.5)
    assert own.check_spread(4, seen, has_noise=False) == own.check_spread(8, seen, has_noise=False) == []
    assert own.check_spread(12, seen, has_noise=True) == []
    (line,) = own.check_spread(16, seen, has_noise=True)
    assert line.startswith("warning: step 16: ")
    assert own.check_spread(20, seen, has_noise=True) == []


def test_measuring_the_spread_changes_nothing_and_depends_on_the_step(data: Path, tmp_path: Path) -> None:
    parts = build(config_of(data, tmp_path))
    before = {name: x.clone() for name, x in parts.agent.state_dict().items()}
    state = torch.random.get_rng_state()
    found = [spread_of(parts, 2, step) for step in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert min(found[0]) > 0
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in parts.agent.state_dict().items())
    assert parts.agent.training


@pytest.mark.parametrize(
    ("metrics", "kind", "at"),
    [
        ({"critic/q_min": -1e4, "critic/q_max": 1.0}, "q_explosion", 0),
        ({"critic/q_min": 0.0, "critic/q_max": 1e4}, "q_explosion", 0),
        ({"critic/q_min": 0.0, "critic/q_max": 1.0}, "", 0),
        ({"weight/effective_share": 0.01}, "few_rows", 1),
        ({"weight/effective_share": 0.5}, "", 0),
        ({"loss": 0.5}, "constant_loss", 4),
        ({"loss": math.nan}, "", 0),  # no step was applied
    ],
)
def test_metrics_are_checked(tmp_path: Path, metrics: dict[str, float], kind: str, at: int) -> None:
    own = watch(tmp_path, make_store(), "task.discount=0.5")
    warned = [bool(own.check_metrics(step, metrics)) for step in range(8)]
    assert warned == [bool(kind) and step == at for step in range(8)]
    assert [one["kind"] for one in health.read_warnings(tmp_path)] == [kind] * bool(kind)


def evaluation(step: int, success: float | None, *rest: float) -> dict[str, Any]:
    interval = None if success is None else [max(0, success - 0.1), min(1, success + 0.1)]
    return {"step": step, "success": success, "success_interval": interval} | dict(
        zip(("return", "score"), rest, strict=False)
    )


@pytest.mark.parametrize(
    ("evaluations", "words"),
    [
        ([(0.2, 0), (0.8, 0), (0.3, 0)], "success is 0.3, and was 0.8 at step 2"),
        ([(0, 0), (0, 10), (0, 4)], "return is 4, and was 10 at step 2"),
        ([(0, 0, 90), (0, 0, 30)], "score is 30, and was 90 at step 1"),
        ([(0.2, 0), (0.4, 0), (0.25, 0)], ""),
        ([(None, 0), (None, 10), (None, 4)], "return is 4, and was 10 at step 2"),
        ([(None, 0), (0.8, 0), (0.3, 0)], "success is 0.3, and was 0.8 at step 2"),
        ([(0.8, 0), (0.3, 0), (None, 0)], "success is 0.3, and was 0.8 at step 1"),
        ([(0, 0), (0, 10), (0, 8)], ""),
        ([(0, 0, 5), (0, 0, 1)], ""),
    ],
)
def test_an_evaluation_far_below_the_best_is_warned_of(
    tmp_path: Path, evaluations: list[tuple[Any, ...]], words: str
) -> None:
    own, found = watch(tmp_path, make_store()), [evaluation(k + 1, *given) for k, given in enumerate(evaluations)]
    warned = [line for end in range(len(found)) for line in own.check_evaluations(found[: end + 1])]
    assert len(warned) == bool(words)
    assert words in "".join(warned)
    assert [one["kind"] for one in health.read_warnings(tmp_path)] == ["collapse"] * bool(words)


@pytest.mark.parametrize(
    ("agent", "more", "bound"),
    [
        ("gtp", ["task.discount=0.9"], 30),
        ("gtp", ["task.discount=0.9", "task.reward_shift=-3", "task.reward_scale=2"], 80),
        ("gtp", ["task.discount=1"], 21),
        ("gtp", ["task.discount=0.9", "agent.critic.next_penalty=1"], 110),
        ("gtp", ["task.discount=0.9", "task.goals=hindsight"], 10),
        ("gtp_bc", [], None),
    ],
)
def test_the_largest_value_follows_from_rewards_and_discount(
    tmp_path: Path, agent: str, more: list[str], bound: float | None
) -> None:
    store = make_store((5, 7), rewards=np.linspace(-1, 3, 12).astype(np.float32))
    found = value_bound(config_of(tmp_path, tmp_path, *more, agent=agent), store)
    assert found == (None if bound is None else pytest.approx(bound))


def test_warnings_are_kept_by_step_and_damaged_files_are_ignored(tmp_path: Path) -> None:
    store = make_store()
    own = watch(tmp_path, store)
    for step in (3, 6):
        assert own.add(step, "rollback", "rolled back") == ["warning: rolled back"]
        assert own.add(step, "rollback", "rolled back") == []
    assert [one["step"] for one in watch(tmp_path, store, start=5).warnings] == [3]
    (tmp_path / health.FILE).write_text('[{"step": 1, "kind": "a", "told": "b", "more": 1}, {"step": "1"}, 7]')
    assert health.read_warnings(tmp_path) == [{"step": 1, "kind": "a", "told": "b"}]
    for text in ("", "{}", "[" * 100_000):
        (tmp_path / health.FILE).write_text(text)
        assert health.read_warnings(tmp_path) == []
