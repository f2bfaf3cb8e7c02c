import json
import multiprocessing
from dataclasses import fields

import pytest

from gtp_vision.cli.main import main
from gtp_vision.experiments import ablation
from gtp_vision.experiments.maps import DATA, SETTINGS, table
from gtp_vision.experiments.multigoal import METHODS, one_method
from gtp_vision.models import PolicyConfig
from gtp_vision.training.jobs import run_parallel

KS = ["1", "2", "3", "5", "10"]


def test_the_command_tells_all_problems_and_both_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "maps", "--train-steps", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for name in ("modes", "modes_data", "gaussian", "mixture1d"):
        assert told[name]["rel_error"] > 0.03, "two steps learn nothing"
        for what in ("on_mode", "share", "wasserstein"):
            assert list(told[name][what]) == KS
    assert set(told["multigoal"]) == set(METHODS)
    assert set(told["cost"]) == {"model", "data"}
    assert told["settings"]["teacher"] == "model"
    assert told["seconds"] > 0
    assert "teacher=data" in table(told), "read back from JSON"


def test_the_targets_hold_for_the_default_but_for_its_width() -> None:
    assert {f.name for f in fields(PolicyConfig) if getattr(SETTINGS, f.name) != getattr(PolicyConfig(), f.name)} == {
        "hidden"
    }
    assert DATA.teacher == "data"


def test_an_error_in_one_job_ends_them_all() -> None:
    endless = {"method": "gtp", "steps": 10**9, "seed": 0}
    wrong = {"method": "nobody", "steps": 1, "seed": 0}
    with pytest.raises(KeyError, match="nobody"):
        run_parallel({"one": (one_method, wrong), "two": (one_method, endless)}, progress=False)
    assert not multiprocessing.active_children()


def test_every_variant_of_the_ablation_is_another_and_its_settings_exist() -> None:
    variants = [(q, ablation.label(changed)) for q, several in ablation.QUESTIONS.items() for changed in several]
    assert len(set(variants)) == len(variants)
    known = {f.name for f in fields(PolicyConfig)} | {"tau"}
    assert all(set(changed) <= known for several in ablation.QUESTIONS.values() for changed in several)


def test_the_ablations_table_has_a_row_a_variant_and_a_number_a_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "QUESTIONS", {"first": [{}], "second": [{"tau": 0.2, "teacher": "data"}]})
    assert main(["experiment", "ablation", "--train-steps", "2", "--seeds", "2"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "**first**",
        "as it is",
        "**second**",
        "tau=0.2 teacher=data",
    ]
    assert rows[3].count(",") == 5, "two seeds in five columns"
