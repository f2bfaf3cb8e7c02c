"""The judgement on policies as text, as `judge.json`, and as `judge.html`, one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_vision.core import html
from gtp_vision.core.files import atomic_write
from gtp_vision.report import text

_TRUSTED = 0.9  # of a policy; below, a sentence says so
_TEMPLATES = Path(__file__).parent / "templates"


def write(folder: Path, results: Mapping[str, Any], pictures: Sequence[Sequence[Sequence[str]]]) -> Path:
    """Write judge.json and judge.html into a folder, and return the page's path.

    Args:
        folder: created if it is missing.
        results: as `training.judge.judge` returns them.
        pictures: of each policy and each of its worst moments, `data:` URIs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "judge.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    environment = html.environment(_TEMPLATES)
    environment.filters |= {"number": text.number_text, "percent": text.percent_text}
    page = environment.get_template("judge.html.j2").render(
        results=results,
        facts=list(facts(results)),
        ranking=_ranking(results),
        moments=[list(zip(policy["moments"], of, strict=True)) for policy, of in _pairs(results, pictures)],
        axis=_axis(results),
    )
    with atomic_write(folder / "judge.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return folder / "judge.html"


def table(results: Mapping[str, Any]) -> str:
    """The judgement as text: a line for each policy, the best one first."""
    ranking = _ranking(results)
    width = max(len("policy"), *(len(policy["name"]) for policy in ranking))
    has_value = results["measure"] is not None
    head = f"discounted {results['measure']} (90 %)" if has_value else ""
    lines = [f"{'policy':<{width}}  {head:>26}  {'is best' if has_value else '':>8}  near data  action error"]
    for policy in ranking:
        value = (
            f"{policy['value']:.3f} ({policy['interval'][0]:.3f} to {policy['interval'][1]:.3f})" if has_value else ""
        )
        best = f"{policy['best']:.0%}" if has_value else ""
        lines.append(
            f"{policy['name']:<{width}}  {value:>26}  {best:>8}  {policy['coverage']:>9.0%}  "
            f"{policy['action_error']:>12.4f}"
        )
    return "\n".join([*lines, *facts(results)])


def facts(results: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what the values are of, and from what they were estimated."""
    if results["measure"] is None:
        yield (
            f"{results['data']} holds neither rewards nor marks of success, so no value can be estimated; label its "
            f"episodes with: gtp-vision data label {results['data']}"
        )
    else:
        yield f"discounted {results['measure']}: {results['meaning']}"
        if results["starts"]:
            yield f"values are of the starts of {results['starts']}"
        else:
            yield f"the recorded episodes themselves reached {results['recorded']:.3f} from the same starts"
    for policy in results["policies"]:
        if results["measure"] is not None and policy["trust"] < _TRUSTED:
            yield (
                f"{policy['name']} acts farther from the recordings than their own actions are: its value is trusted "
                f"by {policy['trust']:.0%}, for the rest the worst value counts; the interval reaches to the fitted one"
            )
    held_out = f"{results['held_out']} of them held out"
    if results["trained_on_held_out"]:
        held_out += ", on which the policies may have been trained: the action error is then too low"
    yield f"from {results['rows']} rows of {results['episodes']} episodes of {results['data']}, {held_out}"


def _ranking(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The policies with their `number` in the order given, the best value first, or the smallest action error."""
    numbered = [{**policy, "number": number} for number, policy in enumerate(results["policies"])]
    if results["measure"] is None:
        return sorted(numbered, key=lambda policy: policy["energy"])
    return sorted(numbered, key=lambda policy: -policy["value"])


def _pairs(
    results: Mapping[str, Any], pictures: Sequence[Sequence[Sequence[str]]]
) -> Iterator[tuple[dict[str, Any], Sequence[Sequence[str]]]]:
    return zip(results["policies"], pictures, strict=True)


def _axis(results: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the largest number on the axis of values."""
    ends = [end for policy in results["policies"] for end in policy.get("interval", ())]
    ends += [] if results["recorded"] is None or results["starts"] else [results["recorded"]]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    return low, high if high > low else low + 1.0
