"""`gtp-vision VERB`: what a person types."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gtp_vision.cli import bench, data, serve
from gtp_vision.core.errors import GtpVisionError, propose
from gtp_vision.core.names import __version__

_ABOUT = """\
Offline reinforcement learning and imitation from cameras with generative trajectory policies.

  gtp-vision demo                                     see it work: about six minutes on two cores
  gtp-vision train task=ogbench/visual-cube-single-play-singletask-task1 agent=gtp encoder=impala
  gtp-vision train --resume runs/...                  go on with an interrupted run
  gtp-vision eval runs/... --episodes 50 --steps 2    evaluate a trained policy, acting in 2 jumps
  gtp-vision report runs/a runs/b --out page.html     one page from one or more runs
  gtp-vision export runs/... DIR                      a trained policy as a folder that is enough to act
  gtp-vision serve DIR                                and for robots that ask it over the network
  gtp-vision data inspect PATH                        what a data set holds and what is wrong with it
  gtp-vision data view PATH                           a page on which to go through its episodes, frame by frame
  gtp-vision data convert SRC DST --to lerobot        write it in another format
  gtp-vision data download ogbench/cube-single-play   fetch a published one
  gtp-vision data collect ENV --out FILE              record demonstrations in the simulator
  gtp-vision bench step                               a step and an action with every engine, and many seeds
  gtp-vision bench loader                             how fast batches come, and what memory they take
  gtp-vision bench profile                            what a step and an action of every agent cost
  gtp-vision experiment bandit                        every agent where the improved policy is known
  gtp-vision experiment multigoal                     the paper's picture: four goals, three ways to reach them
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, or what the error says (2 for mistakes, 130 if interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        chosen, rest = parser.parse_known_args(arguments)
        if rest and not getattr(chosen, "takes_overrides", False):
            raise GtpVisionError(f"'{rest[0]}' is not an option here; see gtp-vision {arguments[0]} --help")
        chosen.words = arguments
        status = int(chosen.run(chosen, rest) or 0)
        sys.stdout.flush()  # a full disk should show here, not while Python shuts down
        return status
    except GtpVisionError as error:
        print(f"gtp-vision: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("gtp-vision: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        then = ", then go on with --resume" if arguments[0] == "train" else ""
        told = os.strerror(error.errno or 0)  # HDF5 adds a page of its own
        print(f"gtp-vision: {where}{told}; make room or choose another folder{then}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2


def _drop_output() -> None:
    """What is still to be printed can be printed no more, and Python would try again when it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
_Raw = argparse.RawDescriptionHelpFormatter


class _Parser(argparse.ArgumentParser):
    """Mistakes are one sentence, with the nearest right word."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise GtpVisionError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            raise GtpVisionError(f"there is no '{value}' here: {propose(str(value), map(str, action.choices))}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gtp-vision",
        description=_ABOUT,
        formatter_class=_Raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gtp-vision {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    train = verbs.add_parser("train", help="train one run", description=_TRAIN_HELP, formatter_class=_Raw)
    train.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with a run (of this configuration)")
    train.add_argument("--overwrite", action="store_true", help="replace what stands in the run folder")
    train.add_argument("-m", "--multirun", action="store_true", help="Hydra's sweep: a run for each value in a list")
    train.set_defaults(run=_train, takes_overrides=True)

    demo = verbs.add_parser("demo", help="the whole pipeline on the data set that this package carries")
    demo.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default runs/demo), replaced")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo, takes_overrides=True)

    evaluate = verbs.add_parser("eval", help="evaluate a trained run")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN")
    evaluate.add_argument("--checkpoint", default="last", help="last (default), best, or step_N")
    evaluate.add_argument("--episodes", type=int, default=50)
    evaluate.add_argument("--steps", type=int, help="K, jumps an action; default: the agent's")
    evaluate.add_argument("--candidates", type=int, help="N actions, one chosen by the critic; default: the agent's")
    evaluate.add_argument("--seed", type=int, default=50_000, help="of the first episode")
    evaluate.add_argument("--videos", type=Path, help="folder for videos")
    evaluate.add_argument("--saliency", action="store_true", help="and videos of where the policy looks")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=_eval)

    report = verbs.add_parser("report", help="one HTML page from one or more runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument("--out", type=Path, help="default: report.html in the first run's folder")
    report.set_defaults(run=_report)

    serve.add(verbs)

    data.add(verbs)

    bench.add(verbs)
    return parser


_TRAIN_HELP = """\
Train one run. Settings are Hydra overrides, key=value; groups are task, agent, improvement, acting, encoder,
training.

  gtp-vision train task=demo training=demo agent=gtp
  gtp-vision train task=ogbench/visual-cube-single-play-singletask-task1 training.steps=1000 seed=3
  gtp-vision train task=own task.dataset=my.hdf5 task.name=mine
  gtp-vision train -m task=demo training=demo seed=0,1,2
  accelerate launch --multi_gpu --num_processes 8 -m gtp_vision train task=...
"""


def _train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.config.schema import from_command_line, from_run
    from gtp_vision.training.trainer import train

    if arguments.multirun:
        if arguments.resume:
            raise GtpVisionError("--resume RUN goes on with one run; give --resume alone to go on with a sweep")
        return _sweep(overrides, resume=arguments.resume is not None, overwrite=arguments.overwrite)
    if arguments.resume:
        if overrides:
            raise GtpVisionError(f"--resume RUN takes its settings from the run; leave out '{overrides[0]}'")
        config = from_run(Path(arguments.resume))
        config.run_dir = arguments.resume
    else:
        for override in overrides:
            if override.startswith(("hydra.", "hydra/")):
                raise GtpVisionError(f"'{override}' is about sweeps: add -m, or leave it out")
        config = from_command_line(overrides)
    quiet = os.environ.get("TQDM_DISABLE") == "1"  # tqdm's own switch, which an explicit argument would override
    results = train(config, resume=arguments.resume is not None, overwrite=arguments.overwrite, progress=not quiet)
    _tell(config.run_dir, results)
    return 0


def _sweep(overrides: list[str], *, resume: bool, overwrite: bool) -> int:
    """Hydra's multirun over the same configuration, so that its launchers (SLURM, Ray, joblib) work unchanged."""
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import DictConfig, OmegaConf

    from gtp_vision.config.schema import check_overrides, checked
    from gtp_vision.training.trainer import train

    check_overrides(overrides)
    if any(item.startswith("hydra/launcher=submitit_slurm") for item in overrides) and shutil.which("srun") is None:
        raise GtpVisionError(
            "hydra/launcher=submitit_slurm hands jobs to SLURM, and there is no srun on the PATH; start the sweep on a "
            "machine that submits jobs, or try it on this one with hydra/launcher=submitit_local"
        )

    @hydra.main(config_path="pkg://gtp_vision.configs", config_name="config", version_base="1.3")
    def one(composed: DictConfig) -> None:
        config = checked(OmegaConf.to_object(composed))
        _tell(config.run_dir, train(config, resume=resume, overwrite=overwrite))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main(), which tells them in a sentence
    before, sys.argv = sys.argv, ["gtp-vision train", "-m", *overrides]
    try:
        one()
    except HydraException as error:
        asked = str(error.missing_cfg_file) if isinstance(error, MissingConfigException) else ""
        mend = "mend the overrides that begin with hydra"
        if "submitit" in asked:
            mend = "the launchers submitit_slurm and submitit_local come with: pip install 'gtp-vision[slurm]'"
        raise GtpVisionError(f"{str(error).splitlines()[0].rstrip('.')}; {mend}") from error
    finally:
        sys.argv = before
    return 0


def _tell(run_dir: str, results: dict) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes the first one speaks
    if "score" in results.get("last", {}):
        last = results["last"]
        of = f"{len(results['seeds'])} seeds" if "seeds" in results else f"{last['episodes']} episodes"
        print(f"normalised score {last['score']:.1f} (return {last['return']:.1f}), the mean of {of}")
    elif "seeds" in results and "last" in results:
        last = results["last"]
        each = ", ".join(f"{success:.0%}" for success in last["success_by_seed"])
        print(
            f"success {last['success']:.1%} +- {last['success_error']:.1%}, the mean of {each}; "
            f"return {last['return']:.1f}"
        )
    elif "last" in results:
        last = results["last"]
        low, high = last["success_interval"]
        print(
            f"success {last['success']:.0%} of {last['episodes']} episodes (95 % interval {low:.0%} to {high:.0%}), "
            f"return {last['return']:.1f}"
        )
    print(f"report: {Path(run_dir) / 'report.html'}")


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.experiments.demo import demo, table

    results = demo(arguments.out, seed=arguments.seed, overrides=overrides, progress=not arguments.json)
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def _eval(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.training.evaluate import evaluate_run

    found = evaluate_run(
        arguments.run_dir,
        which=arguments.checkpoint,
        episodes=arguments.episodes,
        steps=arguments.steps,
        candidates=arguments.candidates,
        seed=arguments.seed,
        videos=arguments.videos,
        saliency=arguments.saliency,
        progress=not arguments.json,
    )
    if arguments.json:
        print(json.dumps(found))
    else:
        low, high = found["success_interval"]
        print(
            f"success {found['success']:.0%} of {found['episodes']} episodes (95 % interval {low:.0%} to {high:.0%}), "
            f"return {found['return']:.1f}, length {found['length']:.1f}, {found['seconds']:.0f} s"
        )
    return 0


def _report(arguments: argparse.Namespace, _: list[str]) -> int:
    from gtp_vision.report import build_report

    out = arguments.out or arguments.runs[0] / "report.html"
    title = " and ".join(run.name for run in arguments.runs)
    print(build_report(arguments.runs, out, title=title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
