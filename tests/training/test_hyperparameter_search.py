import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import STATES, small

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.training.search import SWEEPER, Search, objective

SPACE = ["training.learning_rate=tag(log, interval(1e-5,1e-2))", "training.clip_gradient=choice(0.5,1.0)"]


def validated(energy: float) -> dict[str, object]:
    return {"validation": {"last": {"energy": energy}}}


def test_a_search_maximizes_scores_then_success_then_returns_then_closeness_to_held_out_actions() -> None:
    last = {"score": 50.0, "success": 0.5, "return": -7.0}
    assert objective({"last": last} | validated(1.0)) == ("score", 50.0)
    assert objective({"last": {"success": 0.5, "return": -7.0}}) == ("success", 0.5)
    assert objective({"last": {"success": None, "return": -7.0}}) == ("return", -7.0)
    assert objective(validated(0.25)) == ("negative energy score", -0.25)
    assert objective({"runs": [validated(0.25), validated(0.75)]}) == ("negative energy score", -0.5)
    with pytest.raises(GtpVisionError, match=r"this run has none; set task\.env"):
        objective({"last": {}})


def test_a_search_has_a_folder_and_a_direction() -> None:
    assert Search.of(["task=own", "run_dir=runs/x"]) is None
    found = Search.of([SWEEPER, "run_dir=runs/x", *SPACE])
    assert found is not None
    assert {"hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1"} < set(found.overrides)
    assert found.trial(3) == 'run_dir="runs/x/trial_3"'
    with pytest.raises(GtpVisionError, match="needs a folder for its trials; add run_dir"):
        Search.of([SWEEPER, *SPACE])
    with pytest.raises(GtpVisionError, match="a search maximizes"):
        Search.of([SWEEPER, "run_dir=x", "hydra.sweeper.direction=minimize"])


@pytest.mark.trains
def test_a_search_trains_its_trials_and_says_what_mattered(
    make_store: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    data = native.write(tmp_path / "data.h5", make_store((12,) * 12))
    own = [*STATES, *small("gtp_bc"), "agent.critic.hidden=[16]", "task.env=null", f"task.dataset={data}"]
    command = ["train", "-m", SWEEPER, "hydra.sweeper.n_trials=4", *own, *SPACE, "training.steps=6", "run_dir=found"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "4 trials, best first (negative energy score: higher is better)" in shown
    stored = json.loads(Path("found/search.json").read_text())
    values = [trial["value"] for trial in stored["trials"]]
    assert values == sorted(values, reverse=True)
    assert stored["best"]["run"] in {f"trial_{number}" for number in range(4)}
    assert set(stored["importances"]) == {"training.learning_rate", "training.clip_gradient"}
    assert sum(stored["importances"].values()) == pytest.approx(1)
    settings = [trial["settings"]["training.learning_rate"] for trial in stored["trials"]]
    assert len(set(settings)) == 4
    assert all(1e-5 <= rate <= 1e-2 for rate in settings)
    before = stored
    assert main([*command, "--resume"]) == 0  # the same trials, which have ended
    assert json.loads(Path("found/search.json").read_text()) == before
