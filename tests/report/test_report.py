import base64
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from report_pages import HOSTILE, MakeRun, Page, add_metrics, build, edit_results

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.report import build_report, plots

# Contents


def test_nothing_is_outside_the_file(new_run: MakeRun) -> None:
    page = build(new_run(curves=True))
    keys = {"src", "srcset", "href", "xlink:href", "poster", "data", "action", "background"}
    references = [value for _, attributes in page.elements for key, value in attributes.items() if key in keys]
    assert [value[:60] for value in references if not value.startswith(("data:", "#"))] == []
    tags = {tag for tag, _ in page.elements}
    assert tags & {"img", "video", "script", "link", "iframe", "object", "embed", "base"} == {"img", "video"}
    css = " ".join(page.texts["style"]) + " ".join(attributes.get("style", "") for _, attributes in page.elements)
    assert "@import" not in css
    assert css.count("url(") == css.count("url(#")
    (policy,) = [attributes["content"] for attributes in page.all("meta") if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_the_table_holds_the_runs_and_the_baselines(new_run: MakeRun) -> None:
    last = {"episodes": 20, "success": 0.0, "success_interval": [0.0, 0.16], "return": -700.0}
    random = {"agent": "random", "last": last | {"length": 150.0, "seconds": 9.0}}
    page = build(new_run(seed=3), baselines=[random], notes=["Only a demonstration."])
    assert page.row(0) == {
        **{"Agent": "gtp", "Encoder": "impala", "Seed": "3", "Steps": "1,500", "Success, last": "85\u202f%"},
        **{"95 % interval": "64–95\u202f%", "Episodes": "20", "Mean of last 3": "73\u202f%", "Best": "90\u202f%"},
        **{"Return": "−1,030", "Length": "48.0", "Train, s": "140.2", "Evaluate, s": "180.3"},
    }
    assert page.row(1) == {
        **dict.fromkeys(("Encoder", "Seed", "Steps", "Mean of last 3", "Best", "Train, s"), "–"),
        **{"Agent": "random", "Success, last": "0\u202f%", "95 % interval": "0–16\u202f%", "Episodes": "20"},
        **{"Return": "−700", "Length": "150.0", "Evaluate, s": "9.0"},
    }
    assert "Only a demonstration." in page.text


def test_unknown_success_is_not_zero(new_run: MakeRun) -> None:
    run, other = new_run("a"), new_run("b", seed=1)
    unknown = {"episodes": 20, "success": None, "return": -5.0}
    for each in (run, other):
        edit_results(each, last=unknown | {"success_interval": None}, mean_last_3=unknown, best=unknown)
    page = build(run, other)
    row = page.row(0)
    assert [row[key] for key in ("Success, last", "Mean of last 3", "Best")] == ["unknown"] * 3
    assert row["95 % interval"] == "–"
    (means,) = [row for row in page.rows if row.get("Seeds") == "0, 1" and "unknown" in row["Last"]]
    assert [means[title] for title in ("Last", "Mean of last three", "Best")] == ["unknown"] * 3


def test_success_by_task_has_a_table(new_run: MakeRun) -> None:
    run, other = new_run("a"), new_run("b", seed=1)
    assert "Success by task" not in build(run, other).text
    for each, tasks in ((run, {"reach": 1.0, "<b>push": 0.25}), (other, {"reach": 0.5, "pull": [1]})):
        edit_results(each, last={"episodes": 8, "success": 0.5, "success_interval": None, "tasks": tasks})
    page = build(run, other)
    assert "Success by task" in page.text
    assert "<b>push" in page.text, "as text"
    assert [row["Task"] for row in page.rows if "Task" in row] == ["reach", "<b>push", "pull"]
    shown = [row["gtp, seed 1"] for row in page.rows if "Task" in row]
    assert [text.split() for text in shown] == [["50", "%"], ["–"], ["–"]]


def test_the_head_shows_task_environment_data_and_day(new_run: MakeRun) -> None:
    run, dated = new_run("a"), new_run("b", seed=1)
    for name in ("config.yaml", "metrics.jsonl", "results.json"):
        os.utime(run / name, (86400 * 365, 86400 * 365))
    (run / "report.html").write_text("written today, and not a part of the run")
    edit_results(dated, date="1972-02-03T04:05:06")
    page = build(run, dated)
    assert "reach-pixels · environment Reach-v0 · data set demo/reach-v1 · 1971-01-01 to 1972-02-03" in page.text
    assert "dataset: demo/reach-v1 frame_stack: 3" in page.text
    assert "1,234,567 parameters" in page.text


@pytest.mark.parametrize(("outcomes", "shown"), [("ssssf", "sssf"), ("ffffffs", "sfff"), ("f", "f")])
def test_videos_are_few_and_show_both_outcomes(mp4: bytes, new_run: MakeRun, outcomes: str, shown: str) -> None:
    page = build(new_run(outcomes=outcomes))
    videos = page.all("video")
    assert "".join(video["aria-label"].split(", ")[-1][0] for video in videos) == shown
    assert "step 1,500" in page.text, "not the videos of step 500"
    for video in videos:
        assert {"muted", "loop", "controls"} <= video.keys()
        assert base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,")) == mp4


def test_a_large_or_damaged_video_is_left_out_and_named(mp4: bytes, new_run: MakeRun) -> None:
    run = new_run(outcomes="sss")
    folder = run / "videos" / "step_1500"
    (folder / "episode_000_success.mp4").write_bytes(mp4 + bytes(9 * 2**20))
    (folder / "episode_001_success.mp4").write_bytes(mp4[: mp4.index(b"moov")])
    page = build(run)
    assert [video["aria-label"] for video in page.all("video")] == ["gtp, seed 0, episode 2, success"]
    assert "episode_000_success.mp4 left out: 9.0 MB, the limit is 8 MB" in page.text
    assert "episode_001_success.mp4 left out: the file is damaged" in page.text


def shown_pictures(page: Page) -> list[bytes]:
    return [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.all("img")]


def test_a_picture_is_shown_once_for_all_runs_that_share_it(new_run: MakeRun) -> None:
    runs = [new_run(name, agent=name, shade=shade) for name, shade in (("a", 9), ("b", 9), ("c", 70))]
    page = build(*runs)
    assert shown_pictures(page) == [(run / "images/first_batch.png").read_bytes() for run in runs[::2]]
    assert "a, seed 0; b, seed 0" in page.text
    picture = runs[0] / "images" / "augmentation.png"
    Image.fromarray(np.full((8, 16, 3), 71, np.uint8)).save(picture)
    page = build(runs[0])
    assert shown_pictures(page)[-1] == picture.read_bytes()
    assert "draws of the whole augmentation at full strength" in page.text


def test_a_link_out_of_the_run_is_not_published(new_run: MakeRun) -> None:
    run, other = new_run(outcomes="s", curves=True), new_run("b", shade=70, curves=True)
    for name in ("images/first_batch.png", "videos/step_1500/episode_000_success.mp4", "metrics.jsonl"):
        (run / name).unlink()
        (run / name).symlink_to(other / name)
    page = build(run)
    assert page.all("img") == []
    assert page.panels == {}
    assert "no metrics.jsonl" in page.text
    assert "step 1,500" not in page.text


def test_saliency_probes_and_feature_drift_have_a_section(mp4: bytes, new_run: MakeRun) -> None:
    runs = [new_run(name, agent=name, outcomes="sf") for name in ("a", "b")]
    assert "What it sees" not in build(*runs).text, "older runs have measured nothing"
    (runs[0] / "videos" / "step_1500" / "episode_001_failure_saliency.mp4").write_bytes(mp4)
    edit_results(runs[0], probe={"before": {"eef_pos": 0.25, "qpos": -0.5}, "after": {"eef_pos": 0.875, "qpos": None}})
    edit_results(runs[1], probe={"note": "no linear probe: the data set records no states"})
    lines = [f'{{"step": {step}, "features/drift_front": 0.{step}, "train/loss": 1}}' for step in (1, 2)]
    add_metrics(runs[0], *lines)
    page = build(*runs)
    section = page.text.split("What it sees")[1]
    assert [(row["State"], row["Before training"], row["After"]) for row in page.rows if "State" in row] == [
        ("eef_pos", "0.25", "0.88"),
        ("qpos", "−0.50", "–"),
    ]
    assert "b, seed 0: no linear probe: the data set records no states." in section
    assert plots.COLORS[0] in page.panels["drift_front"]
    assert page.text.count("drift_front") == 1, "learning curves do not show the drift again"
    assert len(page.all("video")) == 5
    edit_results(runs[0], probe={"before": [1], "after": {HOSTILE: "x", "some": {"a": 1}}, "note": HOSTILE})
    assert HOSTILE in build(runs[0]).text


def test_every_metric_with_two_points_has_a_panel_with_every_run(new_run: MakeRun) -> None:
    runs = [new_run(name, agent=name, curves=True) for name in ("a", "b")]
    add_metrics(runs[0], '{"step": 5, "new/once": 1}', '{"step": 5, "new/twice": 1}', '{"step": 6, "new/twice": 2}')
    add_metrics(runs[0], *(f'{{"step": {step}, "new/text": "1", "new/flag": true}}' for step in (5, 6)))
    page = build(*runs)
    learned = ["success", "return", "length", "actor_loss", "q_mean", "twice"]
    assert list(page.panels) == ["steps_per_second", *learned, "seconds", "data_ms", "update_ms", "eval_seconds"]
    for name, panel in page.panels.items():
        drawn = [color for color in plots.COLORS if f"stroke: {color}" in panel]
        assert drawn == list(plots.COLORS[: 1 if name == "twice" else 2]), name
        assert "currentColor" in panel
        assert plots.INK not in panel
    meters = [(row["update_ms"], row["data_ms"]) for row in page.rows if "update_ms" in row]
    assert meters == [("190.0", "1.2")] * 2


def test_held_out_and_trained_episodes_share_a_panel(new_run: MakeRun) -> None:
    run = new_run("a", agent="a", curves=True)
    both = [f'{{"step": {step}, "valid/energy": {step}, "valid/energy_training": 1}}' for step in (5, 6)]
    add_metrics(run, *both)
    panels = build(run).panels
    assert "energy_training" not in panels
    assert panels["energy, thin: on trained episodes"].count(f"stroke: {plots.COLORS[0]}") >= 2


def test_seeds_of_one_agent_share_the_color_and_differ_in_dashes(new_run: MakeRun) -> None:
    runs = [new_run(name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 1))]
    for run in runs:
        add_metrics(run, '{"step": 5, "a/b": 1}', '{"step": 6, "a/b": 2}')
    page = build(*runs[:2])
    assert [color for color in plots.COLORS if color in page.panels["b"]] == [plots.COLORS[0]]
    assert page.panels["b"].count("stroke-dasharray") == 1
    page = build(*runs)
    assert all(label in page.text for label in ("gtp, seed 0", "gtp, seed 1 (b)", "gtp, seed 1 (c)"))


def curve(page: Page, name: str) -> list[str]:
    """The pieces of the only run's curve: a piece ends where a value is not finite."""
    (path,) = [p for p in page.panels[name].split("<path ") if plots.COLORS[0] in p and 'd="M' in p and "L" in p]
    return path.split('d="M')[1].split('"')[0].split("M")


def test_values_that_are_not_finite_break_the_curve_and_nothing_else(new_run: MakeRun) -> None:
    run = new_run()
    values = ["1", "2", "NaN", "3", "4", "-Infinity", "1e999", "null", "1" + "0" * 400 + ".0", "5", "6", "1e99"]
    add_metrics(run, *(f'{{"step": {step}, "odd/some": {value}}}' for step, value in enumerate(values)))
    add_metrics(run, *(f'{{"step": {step}, "odd/all": NaN, "time/odd": NaN}}' for step in range(3)))
    page = build(run)
    assert len(curve(page, "some")) == 3
    assert "some 5 not finite" in page.text
    assert "all 3 not finite" in page.text
    assert [row["odd"] for row in page.rows if "odd" in row] == ["–"]
    assert "nan" not in page.panels["some"] + page.panels["all"]


def test_an_unfinished_run_shows_its_logs(new_run: MakeRun, tmp_path: Path) -> None:
    page = build(new_run(finished=False, curves=True))
    row = page.row(0)
    assert row["Agent"].split() == ["gtp", "no", "final", "results"]
    assert (row["Steps"], row["Success, last"], row["95 % interval"]) == ("1,000", "50\u202f%", "–")
    assert (row["Return"], row["Evaluate, s"]) == ("−20.5", "62.0")
    assert "gtp, seed 0: not finished (no results.json)." in page.text
    assert len(page.all("video")) == 1
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text("seed: 4\n")
    page = build(tmp_path / "bare")
    missing = "no metrics.jsonl; not finished (no results.json); no videos; no picture of the first batch."
    assert "bare, seed 4: " + missing in page.text
    assert page.row(0)["Success, last"] == "–"


def test_damaged_lines_are_skipped_and_counted(new_run: MakeRun) -> None:
    run = new_run(curves=True)
    whole = build(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1600, "train/actor_loss": 0.00')
        file.write(b'\n\xff\xfe\n[1]\n{"step": "x"}\n' + b"[" * 100_000)
    damaged = build(run)
    assert damaged.panels == whole.panels
    assert "damaged" not in whole.text
    assert "5 damaged line(s) of metrics.jsonl skipped" in damaged.text


def test_of_a_step_logged_twice_the_later_line_counts(new_run: MakeRun) -> None:
    run = new_run(finished=False)
    lines = [f'{{"step": {step}, "train/loss": {step}}}' for step in (800, 900, 1000, 900, 950)]
    add_metrics(run, *lines, '{"step": 1000, "eval/success": 0.25}')
    page = build(run)
    assert page.row(0)["Success, last"] == "25\u202f%"
    (line,) = curve(page, "loss")
    places = [float(point.split()[0]) for point in line.replace("L", "").strip().splitlines()]
    assert places == sorted(places)
    assert len(places) == 4


def test_results_of_the_wrong_shape_do_not_break_the_page(new_run: MakeRun) -> None:
    run = new_run()
    odd = {"success": math.nan, "success_interval": ["0", {}], "return": [1], "length": "long", "episodes": None}
    edit_results(run, last=odd, best=[1], mean_last_3=5, versions=["torch"], steps={}, train_seconds=math.inf)
    row = build(run).row(0)
    assert row["Length"] == "long"
    names = ("Success, last", "95 % interval", "Return", "Episodes", "Best", "Mean of last 3", "Steps", "Train, s")
    assert [row[name] for name in names] == ["–"] * 8
    (run / "results.json").write_text((run / "results.json").read_text()[:100])
    assert "results.json is damaged" in build(run).text


def test_hostile_text_is_shown_as_text(mp4: bytes, new_run: MakeRun) -> None:
    run = new_run()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["task"] |= dict.fromkeys(("name", "env", "dataset"), HOSTILE)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    odd = {"step": HOSTILE, "success": HOSTILE, "return": HOSTILE, "length": HOSTILE, "episodes": HOSTILE}
    edit_results(run, agent=HOSTILE, encoder=HOSTILE, seed=HOSTILE, last=odd, date=HOSTILE, device=HOSTILE)
    edit_results(run, parameters=HOSTILE, versions={HOSTILE: HOSTILE, "half a pair": "\ud800"}, train_seconds=HOSTILE)
    key = json.dumps(HOSTILE + "$\\frac{" + "/" + HOSTILE.replace("/", "|") + "$\\frac{")
    add_metrics(run, f'{{"step": 1, {key}: 1}}', f'{{"step": 2, {key}: 2}}')
    (run / "videos/step_1500/<script>alert(2)<|script>.mp4").write_bytes(mp4)
    page = build(run, title=HOSTILE, notes=[HOSTILE], baselines=[{"agent": HOSTILE}])
    assert not page.all("script")
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert page.text.count(HOSTILE) > 15


def test_folders_that_are_not_runs_are_refused(new_run: MakeRun, tmp_path: Path) -> None:
    run, out = new_run("good"), tmp_path / "new" / "folder" / "report.html"
    assert build_report([run], out, title="t") == out
    before = out.read_bytes()
    for name, content in (("torn", "a: [1, 2"), ("aliases", "a: &a [1]\nb: *a"), ("large", " " * (16 << 20) + " a: 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(content)
    (tmp_path / "empty").mkdir()
    messages = {"nowhere": "does not exist", "empty": "config.yaml is missing", "large": "larger than 16 MB"}
    for name, message in (messages | dict.fromkeys(("torn", "aliases"), "damaged YAML")).items():
        with pytest.raises(GtpVisionError, match=message) as caught:
            build_report([run, tmp_path / name], out, title="t")
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(GtpVisionError, match="at least one"):
        build_report([], out, title="t")
    with pytest.raises(GtpVisionError, match="give a file name"):
        build_report([run], tmp_path, title="t")
    assert out.read_bytes() == before
    build_report([run], out, title="t")
    assert out.read_bytes() == before, "the same runs give the same page"
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
