"""Videos side by side: several runs in the same episode, which begins in the same state for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gtp_vision.report.run_folder import MAX_VIDEOS, Clip, RunFolder, embedded, row_of
from gtp_vision.report.text import scalar


@dataclass(frozen=True)
class Side:
    """One episode.

    Attributes:
        episode: its number in the evaluations.
        seed: of the runs.
        players: each run with its video, as `reading.embedded` makes it.
        steps: of training, of each player.
    """

    episode: int
    seed: str
    players: list[tuple[RunFolder, dict[str, str]]]
    steps: list[str]


def sides_of(runs: Sequence[RunFolder], clips: Mapping[int, Sequence[Clip]]) -> tuple[list[Side], set[Clip]]:
    """A few episodes of which several runs have videos, and the videos that they show.

    Runs of one environment and one seed are evaluated in the same episodes. Those come first that most runs filmed,
    and among them those that some solved and others did not.

    Args:
        runs: of the report.
        clips: of each run, by its place.
    """
    together: dict[tuple[str, str], list[int]] = {}
    for place, run in enumerate(runs):
        task = scalar(run.config, "task", "env") or scalar(run.config, "task", "name")
        if task is not None and any(clip.episode is not None for clip in clips[place]):
            together.setdefault((str(task), str(row_of(run)["seed"])), []).append(place)
    found, used = [], set()
    for (_, seed), places in together.items():
        episodes: dict[int, dict[int, Clip]] = {}
        for place in places:
            for clip in clips[place]:
                if clip.episode is not None and not clip.saliency:
                    episodes.setdefault(clip.episode, {})[place] = clip
        several = [number for number, filmed in episodes.items() if len(filmed) > 1]
        several.sort(key=lambda number: (-len(episodes[number]), len(_outcomes(episodes[number])) == 1, number))
        for number in sorted(several[:MAX_VIDEOS]):
            filmed = sorted(episodes[number].items())
            used |= {clip for _, clip in filmed}
            shown = [(runs[place], embedded(runs[place], clip), clip.step) for place, clip in filmed]
            shown = [one for one in shown if one[1]["address"]]
            if shown:
                found.append(Side(number, seed, [one[:2] for one in shown], [one[2] for one in shown]))
    return found, used


def _outcomes(filmed: Mapping[int, Clip]) -> set[str]:
    return {clip.outcome for clip in filmed.values()}
