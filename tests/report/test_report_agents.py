"""Health, agents over seeds, and videos side by side, on the report page."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_pages import HOSTILE, a_video, add_metrics, build, edit_results, make_run
from scipy import stats

from gtp_vision.report import compare as comparing
from gtp_vision.report.compare import Mean, compare, mean_of
from gtp_vision.report.health import LONGEST, MAX_WARNINGS, health_of
from gtp_vision.report.plots import tell_apart
from gtp_vision.report.run_folder import MAX_VIDEOS, RunFolder, read_run


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return a_video(tmp_path_factory.mktemp("video") / "video.mp4")


def edit_config(run: Path, **changes: Any) -> None:
    """Change settings of the training."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"] |= changes
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def read(*runs: Path) -> list[RunFolder]:
    found = [read_run(run) for run in runs]
    tell_apart(found)
    return found


# Health


def test_a_runs_pace_leaves_out_its_evaluations(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    lines = [{"step": 0, "seconds": 1}, {"step": 100, "seconds": 11, "time/data_share": 0.25}]
    lines += [{"step": 200, "seconds": 61, "eval/seconds": 30, "time/data_share": 0.5}]
    lines += [{"step": 300, "seconds": 66, "time/data_share": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one,) = read(run)
    health = health_of(one)
    assert one.series["health/steps_per_second"] == {100: 10, 200: 5, 300: 20}
    assert (health.speed, health.waiting, health.holes, health.skipped) == (10, 0.5, 0, None)


def test_warnings_and_steps_that_were_not_finite_are_told(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    told = [{"step": 900, "kind": "collapse", "told": "step 900: success fell from 80 % to 10 %"}]
    told += [{"step": 400, "kind": "few_rows", "told": "step 400: weights leave 1 % of a batch"}]
    (run / "health.json").write_text(json.dumps(told))
    bad = {"step": 700, "found": ["critic/loss", "loss"], "told": "it comes of 1 of the 8 rows of its batch"}
    (run / "nonfinite.json").write_text(json.dumps([bad]))
    add_metrics(run, '{"step": 800, "skipped": 3, "train/q_mean": NaN}', '{"step": 810, "skipped": 4}')
    page = build(tmp_path, run)
    (row,) = [row for row in page.rows if "Skipped steps" in row]
    assert (row["Warnings"], row["Not finite"], row["Skipped steps"]) == ("3", "1", "7")
    first = page.text.index("at step 400 : weights leave 1 %")
    second = page.text.index("at step 700 : critic/loss, loss not finite; it comes of 1 of the 8 rows")
    assert first < second < page.text.index("at step 900 : success fell")


def test_results_hold_the_warnings_of_a_run_that_was_copied_without_its_file(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    edit_results(run, health=[{"step": 3, "kind": "dead_policy", "told": "step 3: actions hardly differ"}])
    assert "at step 3 : actions hardly differ" in build(tmp_path, run).text


def test_strange_warnings_are_few_short_and_text(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    odd: list[Any] = [{"step": HOSTILE, "told": HOSTILE}, {"step": [1], "kind": {}}, 5, {"told": "x" * 9999}]
    odd += [{"step": step, "told": f"the warning {step}"} for step in range(1, 60)]
    (run / "health.json").write_text(json.dumps(odd))
    (run / "nonfinite.json").write_text('[{"step": 1, "found": [[], {}], "told": 5}, {"found": "x"}]')
    health = health_of(read(run)[0])
    assert len(health.warnings) == MAX_WARNINGS
    assert health.more == len(odd) - 2 + 2 - MAX_WARNINGS
    assert max(len(told) for _, told in health.warnings) == LONGEST
    page = build(tmp_path, run)
    assert "script" not in {tag for tag, _ in page.elements}
    assert f"{health.more} more in its health.json" in page.text
    (run / "health.json").write_text("[{")
    assert "health.json is damaged" in build(tmp_path, run).text


# Agents over seeds


def test_a_mean_has_students_interval() -> None:
    values = [0.2, 0.5, 0.9, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = mean_of(values)
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert mean_of(values, fraction=True).high == pytest.approx(min(1, high))
    assert mean_of([0.0, 1.0], fraction=True) == Mean(0.5, 0.0, 1.0)
    assert mean_of([0.7]) == Mean(0.7)


def test_seeds_are_one_agent_and_other_settings_another(tmp_path: Path, mp4: bytes) -> None:
    runs = [make_run(tmp_path / f"gtp{seed}", mp4, seed=seed) for seed in (0, 1, 2)]
    for run, success in zip(runs, (0.5, 0.6, 0.7), strict=True):
        last = {"step": 1500, "episodes": 20, "success": success, "return": -100.0 * success}
        edit_results(run, last=last, best=last)
    other = make_run(tmp_path / "wide", mp4, seed=0)
    edit_config(other, batch_size=256)
    alone = make_run(tmp_path / "fql", mp4, agent="fql", seed=1)
    found = compare(read(*runs, other, alone))
    assert found
    assert [(group.label, group.seeds) for group in found.groups] == [
        ("gtp (batch_size=32)", "0, 1, 2"),
        ("gtp (batch_size=256)", "0"),
        ("fql", "1"),
    ]
    group, (last_mean, _, best) = found.tables["success"][0]
    assert group is found.groups[0]
    assert last_mean
    assert last_mean.value == pytest.approx(0.6)
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert last_mean.low == pytest.approx(0.6 - half)
    assert best == last_mean
    differing = dict(found.differing)
    assert differing["training.batch_size"] == ["32", "256", "32"]
    assert differing["agent.name"] == ["gtp", "gtp", "fql"]
    assert not {"seed", "run_dir"} & set(differing)
    page = build(tmp_path, *runs, other, alone)
    row = next(row for row in page.rows if row.get("Seeds") == "0, 1, 2")
    assert row["Last"].startswith("60\u202f% 35")
    assert "Comparison" in page.text


def test_seeds_that_have_not_ended_leave_a_dash(tmp_path: Path, mp4: bytes) -> None:
    runs = [make_run(tmp_path / "0", mp4), make_run(tmp_path / "1", mp4, seed=1, finished=False)]
    found = compare(read(*runs))
    assert found
    _, (last_mean, _, _) = found.tables["success"][0]
    assert last_mean
    assert last_mean.value == pytest.approx((0.85 + 0.5) / 2), "the curve of the unfinished one stands for it"
    (runs[1] / "metrics.jsonl").write_text('{"step": 100, "train/actor_loss": 1.0}\n')
    found = compare(read(*runs))
    assert found
    assert found.tables["success"][0][1] == [None, None, None]
    assert compare(read(runs[0])) is None


def test_settings_of_a_stranger_are_bounded(tmp_path: Path, mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MAX_SETTINGS", 40)
    monkeypatch.setattr(comparing, "MAX_DIFFERENCES", 5)
    runs = [make_run(tmp_path / name, mp4, agent=name) for name in ("a", "b")]
    deep: Any = HOSTILE
    for _ in range(40):
        deep = {"x": deep}
    edit_config(runs[1], **{f"odd_{n}": n for n in range(60)}, deep=deep, steps=[HOSTILE] * 500)
    found = compare(read(*runs))
    assert found
    assert len(found.differing) == 5
    assert found.left_out > 0
    assert all(len(group.settings) <= 40 for group in found.groups)
    page = build(tmp_path, *runs)
    assert "more settings differ" in page.text
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert not [given for _, given in page.elements if "onerror" in given]


# Side by side


def test_an_episode_is_shown_side_by_side_and_once(tmp_path: Path, mp4: bytes) -> None:
    runs = [
        make_run(tmp_path / "gtp", mp4, outcomes="sfs"),
        make_run(tmp_path / "fql", mp4, agent="fql", outcomes="ff"),
        make_run(tmp_path / "other_seed", mp4, seed=5, outcomes="ss"),
    ]
    page = build(tmp_path, *runs)
    labels = [video["aria-label"] for video in page.all("video")]
    assert labels[:4] == [
        "gtp, seed 0, episode 0, success",
        "fql, seed 0, episode 0, failure",
        "gtp, seed 0, episode 1, failure",
        "fql, seed 0, episode 1, failure",
    ]
    assert sorted(labels) == sorted(set(labels)), "no video is there twice"
    assert [label for label in labels if label.startswith("gtp, seed 0")][-1] == "gtp, seed 0, episode 2, success"
    assert sum("seed 5" in label for label in labels) == 2
    (policy,) = [given["content"] for given in page.all("meta") if "http-equiv" in given]
    assert "script-src 'sha256-" in policy


def test_episodes_that_tell_agents_apart_come_first(tmp_path: Path, mp4: bytes) -> None:
    outcomes = ("ffffffs", "fffffff")
    runs = [make_run(tmp_path / o, mp4, agent=o, outcomes=o) for o in outcomes]
    labels = [video["aria-label"] for video in build(tmp_path, *runs).all("video")]
    together = [label for label in labels if label.startswith(outcomes[0])][:MAX_VIDEOS]
    assert [label.split("episode ")[1] for label in together] == [
        "0, failure",
        "1, failure",
        "2, failure",
        "6, success",
    ]


def test_a_damaged_video_has_no_place_beside_another(tmp_path: Path, mp4: bytes) -> None:
    runs = [make_run(tmp_path / name, mp4, agent=name, outcomes="s") for name in ("gtp", "fql")]
    (runs[1] / "videos/step_1500/episode_000_success.mp4").write_bytes(b"no film")
    page = build(tmp_path, *runs)
    assert len(page.all("video")) == 1
    assert "episode_000_success.mp4 left out: the file is damaged" in page.text
