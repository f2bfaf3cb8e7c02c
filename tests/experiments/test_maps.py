import json
import multiprocessing
from dataclasses import fields
from functools import partial

import pytest

from gtp_vision.cli.main import main
from gtp_vision.experiments import ablation, maps
from gtp_vision.experiments.multigoal import METHODS, train_method
from gtp_vision.models import PolicyConfig
from gtp_vision.training.jobs import run_parallel


@pytest.mark.processes
def test_the_command_measures_all_problems_and_both_teachers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maps, "maps", partial(maps.maps, samples=80))
    assert main(["experiment", "maps", "--train-steps", "2", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    for name in ("modes", "modes_data", "gaussian", "mixture1d"):
        assert results[name]["rel_error"] > 0.03, "two steps learn nothing"
        for measure in ("on_mode", "share", "wasserstein"):
            assert list(results[name][measure]) == ["1", "2", "3", "5", "10"]
    assert set(results["multigoal"]) == set(METHODS)
    assert set(results["cost"]) == {"model", "data"}
    assert "teacher=data" in maps.table(results), "read back from JSON"


@pytest.mark.processes
def test_an_error_in_one_job_ends_them_all() -> None:
    endless = {"method": "gtp", "steps": 10**9, "seed": 0}
    with pytest.raises(KeyError, match="unknown"):
        run_parallel(
            {"one": (train_method, endless | {"method": "unknown"}), "two": (train_method, endless)}, progress=False
        )
    assert not multiprocessing.active_children()


def test_the_ablations_variants_are_unique_and_their_settings_exist() -> None:
    variants = [(q, ablation.label(changed)) for q, several in ablation.QUESTIONS.items() for changed in several]
    assert len(set(variants)) == len(variants)
    known = {f.name for f in fields(PolicyConfig)} | {"tau"}
    assert all(set(changed) <= known for several in ablation.QUESTIONS.values() for changed in several)


@pytest.mark.processes
def test_the_ablations_table_has_a_row_for_each_variant_and_a_number_for_each_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "QUESTIONS", {"first": [{}], "second": [{"tau": 0.2, "teacher": "data"}]})
    monkeypatch.setattr(ablation, "ablation", partial(ablation.ablation, samples=80))
    assert main(["experiment", "ablation", "--train-steps", "2", "--seeds", "2"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [row.split("|")[1].strip() for row in rows[2:]]
    assert names == ["**first**", "as it is", "**second**", "tau=0.2 teacher=data"]
    assert rows[3].count(",") == 5, "two seeds in five columns"
