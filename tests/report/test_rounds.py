import json
from pathlib import Path
from typing import Any

from report_pages import HOSTILE, MakeRun, build

from gtp_vision.report.rounds import rounds_of

FIRST = {"run": "runs/a", "step": 1500, "data": [{"path": "old.h5"}], "after": {"energy": 0.2, "error": 0.1}}


def begun(run: Path, **init: Any) -> Path:
    data = [
        {"path": "old.h5", "share": 0.25, "episodes": 50, "succeeded": 40, "failed": 10},
        {"path": "new.h5", "share": 0.75, "episodes": 20, "succeeded": None, "failed": None},
    ]
    (run / "init.json").write_text(json.dumps({"data": data, "rounds": [FIRST]} | init))
    entries = [
        {"step": step, "energy": energy, "energy_training": energy, "by_episode": [], "error": {}}
        for step, energy in ((0, 0.4), (1500, 0.3))
    ]
    (run / "validation.json").write_text(json.dumps({"steps": entries}))
    return run


def test_the_page_shows_the_rounds_with_held_out_errors_before_and_after(new_run: MakeRun) -> None:
    run = begun(new_run())
    first, second = rounds_of(run)
    assert first == FIRST
    assert (second["before"]["energy"], second["after"]["energy"]) == (0.4, 0.3)
    rows = [row for row in build(run).rows if "Energy before" in row or row.get("Data") == "new.h5"]
    assert [row["Round"] for row in rows] == ["1", "2", ""]
    assert (
        rows[1] | {"Energy before": "0.4000", "Energy after": "0.3000", "Share": "25\u202f%", "Failed": "10"} == rows[1]
    )
    assert (rows[2]["Share"], rows[2]["Succeeded"]) == ("75\u202f%", "–")


def test_a_damaged_or_hostile_history_is_shown_as_text_or_not_at_all(new_run: MakeRun) -> None:
    run = new_run()
    assert "Rounds" not in build(run).text
    for history in ([{"run": HOSTILE, "data": [{"path": HOSTILE, "share": "x"}], "step": []}, 3], {"run": 1}, None):
        page = build(begun(run, rounds=history, data=[{"path": HOSTILE}, 1]))
        assert not [tag for tag, _ in page.elements if tag == "script"]
    (run / "init.json").write_text("[")
    build(run)
