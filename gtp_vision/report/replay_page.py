"""What a replay of recordings found, as text and as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_vision.core import html
from gtp_vision.core.files import atomic_write
from gtp_vision.report import text

_TEMPLATES = Path(__file__).parent / "templates"


def write(path: Path, results: Mapping[str, Any], pictures: Sequence[Sequence[str]]) -> Path:
    """Write the page, and return its path; arguments as `serving.replay.replay` returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = html.environment(_TEMPLATES)
    environment.filters |= {"number": text.number_text}
    page = environment.get_template("replay.html.j2").render(
        results=results, sentence=sentence(results), moments=list(zip(results["moments"], pictures, strict=True))
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def sentence(results: Mapping[str, Any]) -> str:
    """How many answers are the same, and where the first one differs."""
    said = f"{results['equal']} of {results['answers']} answers bit-equal"
    if (first := results["first_difference"]) is not None:
        said += f"; the first difference: {first['file']}, step {first['step']}, by {first['size']:.3g}"
    if results["is_same"] and first is not None and results["recorded_with"] != results["replayed_with"]:
        made, here = (
            ", ".join(f"{name} {value}" for name, value in results[when].items())
            for when in ("recorded_with", "replayed_with")
        )
        said += f" (recorded with {made}; replayed with {here})"
    if skipped := results["skipped"]:
        said += f"; not all of {', '.join(skipped)}, as steps before are missing"
    return said


def table(results: Mapping[str, Any]) -> str:
    """The replay as text: the sentence, and unless all answers are the same their differences."""
    lines = [f"{results['recordings']}, replayed with {results['policy']}: {sentence(results)}"]
    if results["first_difference"] is None:
        return lines[0]
    lines.append(f"{'action':<14} {'median':>10} {'90 %':>10} {'99 %':>10} {'largest':>10}   (the robot's units)")
    for action, quantiles in enumerate(results["differences"]):
        lines.append(f"{action:<14} " + " ".join(f"{value:10.4g}" for value in quantiles))
    lines += _beside(results["clamps"], "clamps", lambda value: f"{value:10d}", 0)
    lines += _beside(results["doubt"], "doubt, median", lambda value: f"{value['median']:10.3g}", None)
    return "\n".join(lines)


def _beside(found: Mapping[str, Mapping[str, Any]], title: str, shown: Any, missing: Any) -> list[str]:
    recorded, replayed = found["recorded"], found["replayed"]
    names = [name for name in dict.fromkeys([*recorded, *replayed]) if recorded.get(name) or replayed.get(name)]
    rows = [[side.get(name, missing) for side in (recorded, replayed)] for name in names]
    head = [f"{title:<14} {'recorded':>10} {'replayed':>10}"] if names else []
    return head + [
        f"{name:<14} " + " ".join(f"{'-':>10}" if value is None else shown(value) for value in row)
        for name, row in zip(names, rows, strict=True)
    ]
