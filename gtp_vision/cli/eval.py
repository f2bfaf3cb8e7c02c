"""`gtp-vision eval`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gtp_vision.cli.verb import Verb

_HELP = """\
Evaluate a trained run in its simulator. How it acts is chosen here: acting=OPTION, agent.acting.KEY=VALUE.

  gtp-vision eval RUN --episodes 50 --steps 2
  gtp-vision eval RUN acting=beam agent.acting.renoise=0.3     beam search by the critic
  gtp-vision eval RUN agent.acting.noise=0.5
  gtp-vision eval RUN agent.acting.join=rtc --delay 2          plans arrive two steps late, and continue the one before
"""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN")
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or step_N")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", type=int, help="K, jumps an action; default: the agent's")
    parser.add_argument("--candidates", type=int, help="N actions, one chosen by the critic; default: the agent's")
    parser.add_argument("--delay", type=int, help="steps until a plan arrives, as on a robot; default: the agent's")
    parser.add_argument("--seed", type=int, default=50_000, help="of the first episode")
    parser.add_argument("--videos", type=Path, help="folder for videos")
    parser.add_argument("--saliency", action="store_true", help="and videos of where the policy looks")
    parser.add_argument("--json", action="store_true")


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.evaluation.metrics.jerk import jerk_text
    from gtp_vision.evaluation.metrics.success import success_text
    from gtp_vision.training.evaluate import evaluate_run

    found = evaluate_run(
        arguments.run_dir,
        which=arguments.checkpoint,
        episodes=arguments.episodes,
        steps=arguments.steps,
        candidates=arguments.candidates,
        delay=arguments.delay,
        acting=overrides,
        seed=arguments.seed,
        videos=arguments.videos,
        saliency=arguments.saliency,
        progress=not arguments.json,
    )
    if arguments.json:
        print(json.dumps(found))
    else:
        print(
            f"{success_text(found)}, return {found['return']:.1f}, length {found['length']:.1f}, "
            f"{found['seconds']:.0f} s"
        )
        for task, success in found.get("tasks", {}).items():
            print(f"  {success:.0%} {task}")
        if "jerk" in found:
            print(jerk_text(found))
    return 0


EVAL = Verb("eval", "evaluate a trained run", _options, _run, order=30, description=_HELP, has_overrides=True)
