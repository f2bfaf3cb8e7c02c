"""Results of `gtp-vision bench step`: as text, as a stored baseline, compared with it and with the eager engine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_vision.bench import official
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.files import atomic_write

STEPS_K = (1, 2, 5)
_MAX_WORSE = 1.15
_MAX_GAP = 1e-2  # relative, of the losses of three steps; GPUs convolve in other orders


def ratios(results: Mapping[str, Any]) -> dict[str, float]:
    """Ratios that must not grow: fast engines over eager, seeds over one, acting, agents over their geometric mean."""
    engines, eager = results["engines"], results["engines"]["eager"]
    by_name = {
        f"{name} over eager, {key}": engine[key] / eager[key]
        for name, engine in engines.items()
        for key in engine
        if name != "eager"
    }
    for key in ("seeds", "seeds_32"):
        by_name |= {f"{count} {key} over one": ratio for count, ratio in results[key].items()}
    acts = results["act_ms"]
    by_name |= {
        f"acting, {name} over eager, K={k}": ms / acts["eager"][k]
        for name, by_k in acts.items()
        for k, ms in by_k.items()
        if name != "eager"
    }
    mean = statistics.geometric_mean(results["agents"].values())
    by_name |= {f"{agent} over the mean agent": ms / mean for agent, ms in results["agents"].items()}
    return {name: round(ratio, 4) for name, ratio in by_name.items()}


def compare(results: Mapping[str, Any], path: Path, stored: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Compare ratios with those of a stored baseline.

    Returns:
        A table, and sentences about the ratios that got worse by more than 15 % and those that were not measured.

    Raises:
        GtpVisionError: the baseline is from another kind of device.
    """
    if (stored["device"] == "cpu") != (results["device"] == "cpu"):
        raise GtpVisionError(
            f"{path} was measured on {stored['device']}, but this is {results['device']}; compare with a baseline of "
            f"the same kind of device"
        )
    lines, worse = [f"{'lower is better':<44}{'now':>8}{'before':>9}{'change':>9}"], []
    for name, now in results["ratios"].items():
        before = stored["ratios"].get(name)
        if before is None:
            lines.append(f"{name:<44}{now:>8.3f}{'new':>9}")
            continue
        lines.append(f"{name:<44}{now:>8.3f}{before:>9.3f}{now / before - 1:>+9.0%}")
        if now > _MAX_WORSE * before:
            worse.append(f"{name} is {now:.3f} and was {before:.3f}, which is more than {_MAX_WORSE - 1:.0%} worse")
    missing = [name for name in stored["ratios"] if name not in results["ratios"]]
    worse += [f"{name} is in the baseline but was not measured" for name in missing]
    return "\n".join(lines), worse


def disagreement(results: Mapping[str, Any]) -> str:
    """A sentence if losses or actions differ from the eager engine's, or an engine fell back to it; else empty."""
    differing = [f"{name} by {gap:.1e}" for name, gap in results["gap"].items() if not gap <= _MAX_GAP]
    if differing:
        return f"losses or actions differ from the eager engine's by more than {_MAX_GAP:.0%}: {', '.join(differing)}"
    return "; ".join(results["fallbacks"])


def save(results: Mapping[str, Any], path: Path) -> None:
    """Write results as a baseline for `compare`."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


def check_writable(path: Path) -> None:
    """Raise unless a file can be written there."""
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        probe = path.with_name(f".{path.name}.try")
        with atomic_write(probe) as temporary:
            temporary.touch()
        probe.unlink()
    except OSError as error:
        raise GtpVisionError(
            f"--save {path} cannot be written ({error.strerror or error}); choose another file"
        ) from error


def check_baseline(path: Path, engines: Sequence[str] = ()) -> dict[str, Any]:
    """Read a file that `save` has written; refuse another one, and one with engines that will not be measured."""
    try:
        stored = json.loads(path.read_text())
        if not all(isinstance(ratio, int | float) and ratio > 0 for ratio in stored["ratios"].values()):
            raise ValueError("a ratio is not a number above 0")
        str(stored["device"]), list(stored["engines"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GtpVisionError(
            f"{path} is not a baseline of 'gtp-vision bench step' ({error}); write one with --save"
        ) from error
    missing = set(stored["engines"]) - {"eager", *engines} if engines else set()
    if missing:
        raise GtpVisionError(
            f"{path} also holds {', '.join(sorted(missing))}; name all of its engines, or omit --engines"
        )
    return dict(stored)


def table(results: Mapping[str, Any]) -> str:
    """The results as text."""
    floor, wait = results["floor"], results["data_wait"]
    pixels = f"pixels, {results['pixel_batch']}"
    lines = [f"{'ms a step (GTP, 3 x 256)':<32}{'batch 256':>11}{'batch 32':>11}{pixels:>13}"]
    for name, engine in results["engines"].items():
        lines.append(f"{name:<32}{engine['step_ms']:>11.3f}{engine['step_ms_32']:>11.3f}{engine['pixels_ms']:>13.2f}")
    ratios = [results[key] for key in ("best_vs_eager", "best_vs_eager_32", "best_vs_eager_pixels")]
    lines.append(f"{'times faster than eager':<32}{ratios[0]:>11.2f}{ratios[1]:>11.2f}{ratios[2]:>13.2f}")
    for count, ratio in results["seeds"].items():
        head = f"{count} seeds over one"
        lines.append(f"{head:<32}{ratio:>11.2f}{results['seeds_32'][count]:>11.2f}")
        eager = [results[f"seeds_vs_eager{batch}"][count] for batch in ("", "_32")]
        lines.append(f"{head + ' in eager':<32}{eager[0]:>11.2f}{eager[1]:>11.2f}")
    lines += ["", f"{'ms an action (batch 1)':<32}" + "".join(f"{'K = ' + str(k):>11}" for k in STEPS_K)]
    for name, by_k in results["act_ms"].items():
        lines.append(f"{name:<32}" + "".join(f"{ms:>11.3f}" for ms in by_k.values()))
    lines += ["", "an eager step in parts, ms: " + _join(results["parts"].items(), ".2f")]
    lines.append("agents, eager, ms: " + _join(results["agents"].items(), ".1f"))
    if "alternate" in results:  # not in earlier files
        lines.append("alternating the two losses over rows, over both: " + _join(results["alternate"].items(), ".2f"))
    if "two_cameras" in results:
        two = results["two_cameras"]
        lines.append(
            f"two cameras at 224x224, ResNet-18, batch 64: {two['step_ms'] / 1e3:.1f} s a step, of which "
            f"{two['data_wait']:.1%} wait for data; {two['private_mb']:,.0f} MB private"
        )
    if "official_fql" in results:
        lines.append(official.line(results["official_fql"]))
    lines.append(f"waiting for data: states {wait['state']:.1%}, frames {wait['pixels']:.1%} of the time")
    lines.append(
        f"floor: {floor['gflop']:.2f} Gflop at {floor['gflops']:.0f} Gflop/s and {floor['mbytes']:.1f} MB at "
        f"{floor['copy_gb_s']:.1f} GB/s take {floor['floor_ms']:.3f} ms, {floor['fraction']:.0%} of the best step "
        f"(products alone {floor['matrix_fraction']:.0%})"
    )
    lines.append("largest difference from eager: " + _join(results["gap"].items(), ".1e"))
    lines += results["fallbacks"]
    lines.append(
        f"medians of {results['rounds']} interleaved rounds; {results['device']}, {results['threads']} threads, torch "
        f"{results['torch']}, {results['resident_mb']} MB resident"
    )
    return "\n".join(lines)


def _join(items: Iterable[tuple[str, float]], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in items)
