import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import d4rl
from gtp_vision.envs.scores import normalised
from gtp_vision.training import run as training_run
from gtp_vision.training.evaluate import _grippers, evaluate_run

SMALL = [
    *("task=own", "task.env=hopper-medium-replay-v2", "task.max_episode_steps=10", "encoder=state", "agent=gtp"),
    *("agent.policy.hidden=[16]", "agent.critic.hidden=[16]", "training.batch_size=16", "training.device=cpu"),
    *("training.steps=2", "training.eval_every=1", "training.eval_episodes=2", "training.eval_envs=1"),
    *("training.videos=0", "task.frame_stack=1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file in D4RL's format, evaluated with 1 and with 5 candidates, and by beam search."""
    folder = tmp_path_factory.mktemp("hopper")
    rng = np.random.default_rng(0)
    store = make_store((40, 60), terminals={39}, state=11)
    store.actions = rng.uniform(-1, 1, (100, 3)).astype(np.float32)
    path = d4rl.write(folder / "hopper.hdf5", store)
    settings = [*SMALL, f"task.dataset={path}", f"run_dir={folder / 'run'}", "training.eval_candidates=[5]"]
    settings += ["training.eval_acting=[beam]"]
    assert main(["train", *settings]) == 0
    return folder / "run"


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


@pytest.mark.trains
@pytest.mark.simulates
def test_runs_on_a_d4rl_task_are_scored_and_the_best_is_linked(run: Path) -> None:
    results = read(run, "results.json")
    for found in (results["last"], *read(run, "evaluations.json")):
        assert found["score"] == pytest.approx(100 * (found["return"] + 20.272305) / (3234.3 + 20.272305))
        assert (found["success"], found["success_interval"]) == (None, None), "hopper reports none"
    assert len(training_run._read_evaluations(run, 2)) == 2, "a resumed run reads them"
    assert results["mean_last_3"]["success"] is None
    scores = [found["score"] for found in results["evaluations"]]
    assert results["mean_last_3"]["score"] == pytest.approx(np.mean(scores))
    assert results["best"]["score"] == max(scores)
    assert (run / "checkpoints" / "best").resolve().name == f"step_{results['best']['step']}"


@pytest.mark.trains
@pytest.mark.simulates
def test_every_evaluation_is_repeated_with_several_candidates_and_ways_of_acting(run: Path) -> None:
    last = read(run, "results.json")["last"]
    assert last["candidates"]["5"]["return"] != last["return"]
    again = evaluate_run(run, episodes=2, candidates=5, seed=100_000, progress=False)
    assert again["return"] == pytest.approx(last["candidates"]["5"]["return"])
    assert again["score"] == pytest.approx(normalised("hopper-medium-replay-v2", again["return"]))
    beam = evaluate_run(run, episodes=2, acting=["acting=beam"], seed=100_000, progress=False)
    assert beam["return"] == pytest.approx(last["acting"]["beam"]["return"])
    assert beam["return"] not in (last["return"], again["return"])
    alone = evaluate_run(run, episodes=2, seed=100_000, progress=False)
    assert alone["return"] == pytest.approx(last["return"])
    with pytest.raises(GtpVisionError, match=r"agent\.acting\.delay=1 is more than 0"):
        evaluate_run(run, delay=1)


def test_grippers_are_the_dimensions_of_two_values() -> None:
    random = np.random.default_rng(0)
    moves = np.stack([random.normal(size=90), np.sign(random.normal(size=90)), np.zeros(90), np.tile([0, 1, 9], 30)], 1)
    statistics = {"mean": moves.mean(0), "std": moves.std(0), "min": moves.min(0), "max": moves.max(0)}
    assert _grippers({name: [float(f"{x:.6g}") for x in values] for name, values in statistics.items()}) == [1, 2]


def test_the_best_evaluation_has_the_highest_score_and_else_success_and_return() -> None:
    def found(success: float, total: float, **more: float) -> tuple[float, ...]:
        return training_run._merit({"success": success, "return": total, **more})

    assert found(0.0, 9.0, score=3.0) > found(0.0, 99.0, score=2.0)
    assert found(0.5, -9.0) > found(0.4, 9.0)
    assert found(0.0, 2.0) > found(0.0, 1.0) > ()


@pytest.mark.trains
@pytest.mark.simulates
def test_steps_of_an_agent_that_acts_in_one_jump_are_said_to_change_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((run / "results.json").read_text())["dataset"]
    assert main(["train", *SMALL, f"task.dataset={data}", f"run_dir={tmp_path / 'run'}", "agent=fql"]) == 0
    capsys.readouterr()
    found = [evaluate_run(tmp_path / "run", episodes=1, steps=steps, progress=False)["return"] for steps in (None, 2)]
    assert found[0] == found[1]
    assert capsys.readouterr().err == "gtp-vision: fql acts in one jump, so --steps 2 changes nothing\n"
