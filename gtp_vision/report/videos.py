"""Videos side by side: several runs in the same episode, which starts in the same state for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gtp_vision.report.run_folder import MAX_VIDEOS, Clip, RunFolder, embed, row_of
from gtp_vision.report.text import scalar


@dataclass(frozen=True)
class Side:
    """One episode."""

    episode: int  # its number in the evaluations
    seed: str  # of the runs
    players: list[tuple[RunFolder, dict[str, str]]]  # each run with its video, as `run_folder.embed` returns it
    steps: list[str]  # of training, of each player


def sides_of(runs: Sequence[RunFolder], clips: Mapping[int, Sequence[Clip]]) -> tuple[list[Side], set[Clip]]:
    """Some episodes of which several runs have videos, and the videos that they show.

    Runs of one environment and one seed are evaluated in the same episodes. Episodes with videos of the most runs come
    first, among them those with different outcomes.
    """
    together: dict[tuple[str, str], list[int]] = {}
    for index, run in enumerate(runs):
        task = scalar(run.config, "task", "env") or scalar(run.config, "task", "name")
        if task is not None and any(clip.episode is not None for clip in clips[index]):
            together.setdefault((str(task), str(row_of(run)["seed"])), []).append(index)
    sides, used = [], set()
    for (_, seed), indices in together.items():
        episodes: dict[int, dict[int, Clip]] = {}
        for index in indices:
            for clip in clips[index]:
                if clip.episode is not None and not clip.saliency:
                    episodes.setdefault(clip.episode, {})[index] = clip
        several = [number for number, filmed in episodes.items() if len(filmed) > 1]
        several.sort(key=lambda number: (-len(episodes[number]), len(_outcomes(episodes[number])) == 1, number))
        for number in sorted(several[:MAX_VIDEOS]):
            filmed = sorted(episodes[number].items())
            used |= {clip for _, clip in filmed}
            players = [(runs[index], embed(runs[index], clip), clip.step) for index, clip in filmed]
            players = [player for player in players if player[1]["address"]]
            if players:
                sides.append(Side(number, seed, [player[:2] for player in players], [step for _, _, step in players]))
    return sides, used


def _outcomes(filmed: Mapping[int, Clip]) -> set[str]:
    return {clip.outcome for clip in filmed.values()}
