import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_pages import HOSTILE, MakeRun, add_metrics, build, edit_results
from scipy import stats

from gtp_vision.report import compare as comparing
from gtp_vision.report.compare import Mean, compare, mean_of
from gtp_vision.report.health import MAX_LENGTH, MAX_WARNINGS, health_of
from gtp_vision.report.plots import set_styles
from gtp_vision.report.run_folder import RunFolder, read_run


def edit_config(run: Path, **changes: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"] |= changes
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def read(*runs: Path) -> list[RunFolder]:
    folders = [read_run(run) for run in runs]
    set_styles(folders)
    return folders


def test_speed_is_without_evaluations(new_run: MakeRun) -> None:
    run = new_run()
    lines = [{"step": 0, "seconds": 1}, {"step": 100, "seconds": 11, "time/data_share": 0.25}]
    lines += [{"step": 200, "seconds": 61, "eval/seconds": 30, "time/data_share": 0.5}]
    lines += [{"step": 300, "seconds": 66, "time/data_share": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder,) = read(run)
    health = health_of(folder)
    assert folder.series["health/steps_per_second"] == {100: 10, 200: 5, 300: 20}
    assert (health.speed, health.waiting, health.holes, health.skipped) == (10, 0.5, 0, None)


def test_warnings_and_steps_that_were_not_finite_are_listed(new_run: MakeRun) -> None:
    run = new_run()
    warnings = [{"step": 900, "kind": "collapse", "told": "step 900: success fell from 80 % to 10 %"}]
    warnings += [{"step": 400, "kind": "few_rows", "told": "step 400: weights leave 1 % of a batch"}]
    (run / "health.json").write_text(json.dumps(warnings))
    bad = {"step": 700, "found": ["critic/loss", "loss"], "told": "it comes of 1 of the 8 rows of its batch"}
    (run / "nonfinite.json").write_text(json.dumps([bad]))
    add_metrics(run, '{"step": 800, "skipped": 3, "train/q_mean": NaN}', '{"step": 810, "skipped": 4}')
    page = build(run)
    (row,) = [row for row in page.rows if "Skipped steps" in row]
    assert (row["Warnings"], row["Not finite"], row["Skipped steps"]) == ("3", "1", "7")
    first = page.text.index("at step 400 : weights leave 1 %")
    second = page.text.index("at step 700 : critic/loss, loss not finite; it comes of 1 of the 8 rows")
    assert first < second < page.text.index("at step 900 : success fell")
    (run / "health.json").unlink()
    edit_results(run, health=[{"step": 3, "kind": "dead_policy", "told": "step 3: actions hardly differ"}])
    assert "at step 3 : actions hardly differ" in build(run).text, "from the results if the file is missing"


def test_untrusted_warnings_are_few_short_and_text(new_run: MakeRun) -> None:
    run = new_run()
    odd: list[Any] = [{"step": HOSTILE, "told": HOSTILE}, {"step": [1], "kind": {}}, 5, {"told": "x" * 9999}]
    odd += [{"step": step, "told": f"the warning {step}"} for step in range(1, 60)]
    (run / "health.json").write_text(json.dumps(odd))
    (run / "nonfinite.json").write_text('[{"step": 1, "found": [[], {}], "told": 5}, {"found": "x"}]')
    health = health_of(read(run)[0])
    assert len(health.warnings) == MAX_WARNINGS
    assert health.more == len(odd) - 2 + 2 - MAX_WARNINGS
    assert max(len(sentence) for _, sentence in health.warnings) == MAX_LENGTH
    page = build(run)
    assert "script" not in {tag for tag, _ in page.elements}
    assert f"{health.more} more in its health.json" in page.text
    (run / "health.json").write_text("[{")
    assert "health.json is damaged" in build(run).text


def test_a_mean_has_students_interval() -> None:
    values = [0.2, 0.5, 0.9, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    mean = mean_of(values)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, low, high))
    assert mean_of(values, fraction=True).high == pytest.approx(min(1, high))
    assert mean_of([0.0, 1.0], fraction=True) == Mean(0.5, 0.0, 1.0)
    assert mean_of([0.7]) == Mean(0.7)


def test_seeds_are_one_agent_and_other_settings_another(new_run: MakeRun) -> None:
    runs = [new_run(f"gtp{seed}", seed=seed) for seed in (0, 1, 2)]
    for run, success in zip(runs, (0.5, 0.6, 0.7), strict=True):
        last = {"step": 1500, "episodes": 20, "success": success, "return": -100.0 * success}
        edit_results(run, last=last, best=last)
    other = new_run("wide", seed=0)
    edit_config(other, batch_size=256)
    alone = new_run("fql", agent="fql", seed=1)
    comparison = compare(read(*runs, other, alone))
    assert comparison
    assert [(group.label, group.seeds) for group in comparison.groups] == [
        ("gtp (batch_size=32)", "0, 1, 2"),
        ("gtp (batch_size=256)", "0"),
        ("fql", "1"),
    ]
    _, (last_mean, _, best) = comparison.tables["success"][0]
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert last_mean
    assert (last_mean.value, last_mean.low) == pytest.approx((0.6, 0.6 - half))
    assert best == last_mean
    differing = dict(comparison.differing)
    assert differing["training.batch_size"] == ["32", "256", "32"]
    assert differing["agent.name"] == ["gtp", "gtp", "fql"]
    assert not {"seed", "run_dir"} & set(differing)
    page = build(*runs, other, alone)
    row = next(row for row in page.rows if row.get("Seeds") == "0, 1, 2")
    assert row["Last"].startswith("60\u202f% 35")
    assert "Comparison" in page.text


def test_unfinished_seeds_leave_a_dash(new_run: MakeRun) -> None:
    runs = [new_run("0"), new_run("1", seed=1, finished=False)]
    comparison = compare(read(*runs))
    assert comparison
    _, (last_mean, _, _) = comparison.tables["success"][0]
    assert last_mean
    assert last_mean.value == pytest.approx((0.85 + 0.5) / 2), "the curve of the unfinished one stands for it"
    (runs[1] / "metrics.jsonl").write_text('{"step": 100, "train/actor_loss": 1.0}\n')
    comparison = compare(read(*runs))
    assert comparison
    assert comparison.tables["success"][0][1] == [None, None, None]
    assert compare(read(runs[0])) is None


def test_untrusted_settings_are_bounded(new_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MAX_SETTINGS", 40)
    monkeypatch.setattr(comparing, "MAX_DIFFERENCES", 5)
    runs = [new_run(name, agent=name) for name in ("a", "b")]
    deep: Any = HOSTILE
    for _ in range(40):
        deep = {"x": deep}
    edit_config(runs[1], **{f"odd_{n}": n for n in range(60)}, deep=deep, steps=[HOSTILE] * 500)
    comparison = compare(read(*runs))
    assert comparison
    assert len(comparison.differing) == 5
    assert comparison.left_out > 0
    assert all(len(group.settings) <= 40 for group in comparison.groups)
    page = build(*runs)
    assert "more settings differ" in page.text
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert not [tag for tag, attributes in page.elements if "onerror" in attributes]


def test_an_episode_is_shown_side_by_side_and_once(new_run: MakeRun) -> None:
    runs = [
        new_run("gtp", outcomes="sfs"),
        new_run("fql", agent="fql", outcomes="ff"),
        new_run("other_seed", seed=5, outcomes="ss"),
    ]
    page = build(*runs)
    labels = [video["aria-label"] for video in page.all("video")]
    first = [f"{agent}, seed 0, episode {n}" for n in (0, 1) for agent in ("gtp", "fql")]
    assert [label.rpartition(",")[0] for label in labels[:4]] == first
    assert sorted(labels) == sorted(set(labels)), "no video is there twice"
    assert sum("seed 5" in label for label in labels) == 2
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "script-src 'sha256-" in policy
