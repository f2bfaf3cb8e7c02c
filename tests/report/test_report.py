"""The report page: what it says of runs, and what it makes of damaged and hostile ones."""

import base64
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from report_pages import HOSTILE, Page, a_video, add_metrics, build, edit_results, make_run

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.report import build_report, plots


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return a_video(tmp_path_factory.mktemp("video") / "video.mp4")


# What the page says


def test_nothing_is_outside_the_file(tmp_path: Path, mp4: bytes) -> None:
    page = build(tmp_path, make_run(tmp_path / "a", mp4))
    references = [
        (tag, value)
        for tag, given in page.elements
        for key, value in given.items()
        if key in {"src", "srcset", "href", "xlink:href", "poster", "data", "action", "background"}
    ]
    assert {tag for tag, _ in references} >= {"img", "video"}
    assert [value[:60] for _, value in references if not value.startswith(("data:", "#"))] == []
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base"}
    css = " ".join(page.styles) + " ".join(given.get("style", "") for _, given in page.elements)
    assert "@import" not in css
    assert css.count("url(") == css.count("url(#")
    (policy,) = [given["content"] for given in page.all("meta") if "http-equiv" in given]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert page.open == []


def test_the_table_holds_the_runs_and_the_baselines(tmp_path: Path, mp4: bytes) -> None:
    last = {"episodes": 20, "success": 0.0, "success_interval": [0.0, 0.16], "return": -700.0}
    random = {"agent": "random", "last": last | {"length": 150.0, "seconds": 9.0}}
    run = make_run(tmp_path / "a", mp4, seed=3)
    page = build(tmp_path, run, baselines=[random], notes=["Only a demonstration."])
    assert page.row(0) == {
        "Agent": "gtp",
        "Encoder": "impala",
        "Seed": "3",
        "Steps": "1,500",
        "Success, last": "85\u202f%",
        "95 % interval": "64–95\u202f%",
        "Episodes": "20",
        "Mean of last 3": "73\u202f%",
        "Best": "90\u202f%",
        "Return": "−1,030",
        "Length": "48.0",
        "Train, s": "140.2",
        "Evaluate, s": "180.3",
    }
    assert page.row(1) | {"Return": ""} == {
        **dict.fromkeys(("Encoder", "Seed", "Steps", "Mean of last 3", "Best", "Train, s"), "–"),
        **{"Agent": "random", "Success, last": "0\u202f%", "95 % interval": "0–16\u202f%", "Episodes": "20"},
        **{"Return": "", "Length": "150.0", "Evaluate, s": "9.0"},
    }
    assert page.row(1)["Return"] == "−700"
    assert "Only a demonstration." in page.text


def test_the_head_says_task_environment_data_and_day(tmp_path: Path, mp4: bytes) -> None:
    run, dated = make_run(tmp_path / "a", mp4), make_run(tmp_path / "b", mp4, seed=1)
    for name in ("config.yaml", "metrics.jsonl", "results.json"):
        os.utime(run / name, (86400 * 365, 86400 * 365))
    (run / "report.html").write_text("written today, and no part of the run")
    edit_results(dated, date="1972-02-03T04:05:06")
    about = "reach-pixels · environment Reach-v0 · data set demo/reach-v1 · 1971-01-01"
    assert about in build(tmp_path, run).text
    assert about + " to 1972-02-03" in build(tmp_path, run, dated).text


def test_settings_versions_and_missing_pieces_are_told(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    page = build(tmp_path, run)
    assert len(page.all("details")) == 1
    assert "dataset: demo/reach-v1 frame_stack: 3" in page.text
    assert "1,234,567 parameters" in page.text
    assert "torch 2.13.0" in page.text
    assert "device cpu" in page.text
    assert "no final results" not in page.text
    (run / "images" / "first_batch.png").unlink()
    assert "gtp, seed 0: no picture of the first batch." in build(tmp_path, run).text


# Videos and pictures


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [("sssss", "ssss"), ("ssssf", "sssf"), ("ffffffs", "sfff"), ("sfsfsf", "ssff"), ("f", "f")],
)
def test_videos_are_few_and_show_both_outcomes(tmp_path: Path, mp4: bytes, outcomes: str, shown: str) -> None:
    page = build(tmp_path, make_run(tmp_path / "a", mp4, outcomes=outcomes))
    videos = page.all("video")
    assert "".join(video["aria-label"].split(", ")[-1][0] for video in videos) == shown
    assert (page.text.count("✓ success"), page.text.count("✗ failure")) == (
        shown.count("s"),
        shown.count("f"),
    )
    assert "step 1,500" in page.text  # not the videos of step 500
    for video in videos:
        assert {"muted", "loop", "controls"} <= video.keys()
        assert base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,")) == mp4


def test_a_large_or_damaged_video_is_left_out_and_told(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4, outcomes="sss")
    folder = run / "videos" / "step_1500"
    (folder / "episode_000_success.mp4").write_bytes(mp4 + bytes(9 * 2**20))
    (folder / "episode_001_success.mp4").write_bytes(mp4[: mp4.index(b"moov")])
    page = build(tmp_path, run)
    assert [video["aria-label"] for video in page.all("video")] == ["gtp, seed 0, episode 2, success"]
    assert "episode_000_success.mp4 left out: 9.0 MB, the limit is 8 MB" in page.text
    assert "episode_001_success.mp4 left out: the file is damaged" in page.text


def test_a_picture_is_shown_once_for_all_runs_that_share_it(tmp_path: Path, mp4: bytes) -> None:
    runs = [make_run(tmp_path / name, mp4, agent=name, shade=shade) for name, shade in (("a", 9), ("b", 9), ("c", 70))]
    page = build(tmp_path, *runs)
    shown = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.all("img")]
    assert shown == [
        (runs[0] / "images/first_batch.png").read_bytes(),
        (runs[2] / "images/first_batch.png").read_bytes(),
    ]
    assert "a, seed 0; b, seed 0" in page.text


def test_augmented_frames_are_shown_where_there_are_some(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    page = build(tmp_path, run)
    assert len(page.all("img")) == 1
    assert "augmentation" not in page.text
    Image.fromarray(np.full((8, 16, 3), 70, np.uint8)).save(run / "images" / "augmentation.png")
    page = build(tmp_path, run)
    shown = page.all("img")[-1]["src"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(shown) == (run / "images" / "augmentation.png").read_bytes()
    assert "draws of the whole augmentation at full strength" in page.text


def test_a_link_out_of_the_run_is_not_published(tmp_path: Path, mp4: bytes) -> None:
    run, other = make_run(tmp_path / "a", mp4, outcomes="s"), make_run(tmp_path / "b", mp4, shade=70)
    for name, target in (
        ("images/first_batch.png", other / "images/first_batch.png"),
        ("videos/step_1500/episode_000_success.mp4", other / "videos/step_1500/episode_000_success.mp4"),
        ("metrics.jsonl", other / "metrics.jsonl"),
    ):
        (run / name).unlink()
        (run / name).symlink_to(target)
    page = build(tmp_path, run)
    assert page.all("img") == []
    assert page.panels == {}
    assert "no metrics.jsonl" in page.text
    assert "step 1,500" not in page.text


# What it sees


def test_what_it_sees_has_a_section(tmp_path: Path, mp4: bytes) -> None:
    runs = [make_run(tmp_path / name, mp4, agent=name, outcomes="sf") for name in ("a", "b")]
    assert "What it sees" not in build(tmp_path, *runs).text, "older runs have measured nothing"
    (runs[0] / "videos" / "step_1500" / "episode_001_failure_saliency.mp4").write_bytes(mp4)
    edit_results(runs[0], probe={"before": {"eef_pos": 0.25, "qpos": -0.5}, "after": {"eef_pos": 0.875, "qpos": None}})
    edit_results(runs[1], probe={"note": "no linear probe: the data set records no states"})
    add_metrics(runs[0], *(f'{{"step": {step}, "features/drift_front": 0.{step}}}' for step in (1, 2)))
    page = build(tmp_path, *runs)
    sight = page.text.split("What it sees")[1]
    assert [(row["State"], row["Before training"], row["After"]) for row in page.rows if "State" in row] == [
        ("eef_pos", "0.25", "0.88"),
        ("qpos", "−0.50", "–"),
    ]
    assert "b, seed 0: no linear probe: the data set records no states." in sight
    assert page.panels["drift_front"].count(plots.COLOURS[0]) >= 1
    assert "Learning curves" in sight, "which come after it, and do not show the drift again"
    assert page.text.count("drift_front") == 1
    labels = [video["aria-label"] for video in page.all("video")]
    assert labels.count("a, seed 0, episode 1, failure") == 2
    assert len(labels) == 5


def test_a_hostile_probe_is_text_or_nothing(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    edit_results(run, probe={"before": [1], "after": {HOSTILE: "x", "some": {"a": 1}}, "note": HOSTILE})
    page = build(tmp_path, run)
    assert not {tag for tag, _ in page.elements} & {"script"}
    assert HOSTILE in page.text
    edit_results(run, probe=[HOSTILE])
    assert "What it sees" not in build(tmp_path, run).text


# Curves


def test_every_metric_with_two_points_has_a_panel_with_every_run(tmp_path: Path, mp4: bytes) -> None:
    runs = [make_run(tmp_path / name, mp4, agent=name) for name in ("a", "b")]
    add_metrics(runs[0], '{"step": 5, "new/once": 1}', '{"step": 5, "new/twice": 1}', '{"step": 6, "new/twice": 2}')
    add_metrics(
        runs[0],
        '{"step": 5, "new/text": "1", "new/flag": true}',
        '{"step": 6, "new/text": "2", "new/flag": false}',
    )
    page = build(tmp_path, *runs)
    learned = ["success", "return", "length", "actor_loss", "q_mean", "twice"]
    assert list(page.panels) == ["steps_per_second", *learned, "seconds", "data_ms", "update_ms", "eval_seconds"]
    for name, panel in page.panels.items():
        drawn = [colour for colour in plots.COLOURS if f"stroke: {colour}" in panel]
        assert drawn == list(plots.COLOURS[: 1 if name == "twice" else 2]), name
        assert "currentColor" in panel
        assert plots.INK not in panel
    meters = [row for row in page.rows if "update_ms" in row]
    assert [row["update_ms"] for row in meters] == ["190.0", "190.0"]
    assert [row["data_ms"] for row in meters] == ["1.2", "1.2"]


def test_seeds_of_one_agent_share_the_colour_and_differ_in_dashes(tmp_path: Path, mp4: bytes) -> None:
    page = build(tmp_path, *(make_run(tmp_path / str(seed), mp4, seed=seed) for seed in (0, 1)))
    panel = page.panels["actor_loss"]
    assert [colour for colour in plots.COLOURS if colour in panel] == [plots.COLOURS[0]]
    assert panel.count("stroke-dasharray") == 1
    assert "gtp, seed 1" in page.text


def test_runs_of_one_agent_and_seed_are_told_apart_by_their_folder(tmp_path: Path, mp4: bytes) -> None:
    page = build(tmp_path, make_run(tmp_path / "first", mp4), make_run(tmp_path / "second", mp4))
    assert "gtp, seed 0 (first)" in page.text
    assert "gtp, seed 0 (second)" in page.text


def curve(page: Page, name: str) -> list[str]:
    """The drawn pieces of the only run's curve: a piece ends where a value is not finite."""
    (path,) = [
        part
        for part in page.panels[name].split("<path ")
        if plots.COLOURS[0] in part and 'd="M' in part and "L" in part
    ]
    return path.split('d="M')[1].split('"')[0].split("M")


def test_values_that_are_not_finite_break_the_curve_and_nothing_else(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    values = [
        "1",
        "2",
        "NaN",
        "3",
        "4",
        "-Infinity",
        "1e999",
        "null",
        "1" + "0" * 400 + ".0",
        "5",
        "6",
        "1e99",
    ]
    add_metrics(run, *(f'{{"step": {step}, "odd/some": {value}}}' for step, value in enumerate(values)))
    add_metrics(run, *(f'{{"step": {step}, "odd/all": NaN, "time/odd": NaN}}' for step in range(3)))
    page = build(tmp_path, run)
    assert len(curve(page, "some")) == 3
    assert "some 5 not finite" in page.text
    assert "all 3 not finite" in page.text
    assert [row["odd"] for row in page.rows if "odd" in row] == ["–"]
    assert "nan" not in page.panels["some"] + page.panels["all"]


def test_a_long_curve_is_drawn_as_means(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    steps = range(8 * plots.MAX_POINTS)  # every eight steps hold four zeros and four ones, in changing order
    add_metrics(run, *(f'{{"step": {step}, "long/zigzag": {(step + step // 8) % 2}}}' for step in steps))
    (line,) = curve(build(tmp_path, run), "zigzag")
    heights = {point.split()[1] for point in line.replace("L", "").strip().splitlines()}
    assert len(heights) == 1


# Unfinished, damaged, hostile, missing


def test_an_unfinished_run_shows_what_it_has(tmp_path: Path, mp4: bytes) -> None:
    page = build(tmp_path, make_run(tmp_path / "a", mp4, finished=False))
    row = page.row(0)
    assert row["Agent"].split() == ["gtp", "no", "final", "results"]
    assert (row["Steps"], row["Success, last"], row["95 % interval"]) == ("1,000", "50\u202f%", "–")
    assert (row["Return"], row["Evaluate, s"]) == ("−20.5", "62.0")
    assert "gtp, seed 0: not finished (no results.json)." in page.text
    assert len(page.all("video")) == 1


def test_a_run_of_nothing_but_a_configuration_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("seed: 4\n")
    page = build(tmp_path, tmp_path / "a")
    missing = "no metrics.jsonl; not finished (no results.json); no videos; no picture of the first batch."
    assert "a, seed 4: " + missing in page.text
    assert page.row(0)["Success, last"] == "–"


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    whole = build(tmp_path, run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1600, "train/actor_loss": 0.00')
    cut = build(tmp_path, run)
    assert cut.panels == whole.panels
    assert "damaged" not in whole.text
    assert "1 damaged line(s) of metrics.jsonl skipped" in cut.text
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\n\xff\xfe\n[1]\n{"step": "x"}\n' + b"[" * 100_000)
    assert "5 damaged line(s)" in build(tmp_path, run).text


def test_of_a_step_logged_twice_the_later_line_counts(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4, finished=False)
    add_metrics(run, '{"step": 900, "train/actor_loss": 7.0}', '{"step": 950, "train/actor_loss": 7.0}')
    add_metrics(run, '{"step": 1000, "eval/success": 0.25}')
    page = build(tmp_path, run)
    assert page.row(0)["Success, last"] == "25\u202f%"
    (line,) = curve(page, "actor_loss")
    places = [float(point.split()[0]) for point in line.replace("L", "").strip().splitlines()]
    assert places == sorted(places)
    assert len(places) == 11


def test_damaged_results_are_told(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    (run / "results.json").write_text((run / "results.json").read_text()[:100])
    assert "results.json is damaged" in build(tmp_path, run).text


def test_results_of_the_wrong_shape_do_not_break_the_page(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    odd = {
        "success": math.nan,
        "success_interval": ["0", {}],
        "return": [1],
        "length": "long",
        "episodes": None,
    }
    edit_results(run, last=odd, best=[1], mean_last_3=5, versions=["torch"], steps={}, train_seconds=math.inf)
    row = build(tmp_path, run).row(0)
    assert row["Length"] == "long"
    names = (
        "Success, last",
        "95 % interval",
        "Return",
        "Episodes",
        "Best",
        "Mean of last 3",
        "Steps",
        "Train, s",
    )
    assert [row[name] for name in names] == ["–"] * 8


def test_hostile_text_is_shown_as_text(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["task"] |= dict.fromkeys(("name", "env", "dataset"), HOSTILE)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    odd = {"step": HOSTILE, "success": HOSTILE, "return": HOSTILE, "length": HOSTILE, "episodes": HOSTILE}
    edit_results(run, agent=HOSTILE, encoder=HOSTILE, seed=HOSTILE, last=odd, date=HOSTILE, device=HOSTILE)
    edit_results(run, parameters=HOSTILE, versions={HOSTILE: HOSTILE, "half a pair": "\ud800"}, train_seconds=HOSTILE)
    key = json.dumps(HOSTILE + "$\\frac{" + "/" + HOSTILE.replace("/", "|") + "$\\frac{")
    add_metrics(run, f'{{"step": 1, {key}: 1}}', f'{{"step": 2, {key}: 2}}')
    (run / "videos/step_1500/<script>alert(2)<|script>.mp4").write_bytes(mp4)
    page = Page(
        build_report([run], tmp_path / "report.html", title=HOSTILE, notes=[HOSTILE], baselines=[{"agent": HOSTILE}])
    )
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert not [given for _, given in page.elements if any(name.startswith("on") for name in given)]
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.text.count(HOSTILE) > 15
    assert {page.row(0)[name] for name in ("Agent", "Encoder", "Success, last", "Return")} == {HOSTILE}


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "good", mp4)
    out = build_report([run], tmp_path / "report.html", title="t")
    before = out.read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.yaml").write_text("a: [1, 2")
    for name, message in (
        ("nowhere", "no run folder"),
        ("empty", "no config.yaml"),
        ("torn", "damaged YAML"),
    ):
        with pytest.raises(GtpVisionError, match=message) as caught:
            build_report([run, tmp_path / name], out, title="t")
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(GtpVisionError, match="at least one"):
        build_report([], out, title="t")
    with pytest.raises(GtpVisionError, match="give a file name"):
        build_report([run], tmp_path, title="t")
    assert out.read_bytes() == before


def test_the_page_is_replaced_whole_and_is_the_same_for_the_same_runs(tmp_path: Path, mp4: bytes) -> None:
    run = make_run(tmp_path / "a", mp4)
    out = tmp_path / "new" / "folder" / "report.html"
    assert build_report([run], out, title="t") == out
    first = out.read_bytes()
    build_report([run], out, title="t")
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
