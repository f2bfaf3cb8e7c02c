"""`gtp-vision train`: one run, a run that is resumed, or Hydra's sweep of runs."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gtp_vision.cli.verb import Verb
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.slurm import requeue_sweep_job, was_restarted

if TYPE_CHECKING:
    from gtp_vision.config.schema import Config
    from gtp_vision.training.warm_start import Source

_HELP = """\
Train one run. Settings are Hydra overrides, key=value; groups are task, agent, improvement, acting, encoder,
training.

  gtp-vision train task=demo training=demo agent=gtp
  gtp-vision train task=ogbench/visual-cube-single-play-singletask-task1 training.steps=1000 seed=3
  gtp-vision train task=own task.dataset=my.hdf5 task.name=mine
  gtp-vision train task=demo agent=fql --explain
  gtp-vision train -m task=demo training=demo seed=0,1,2
  gtp-vision train -m hydra/sweeper=optuna task=demo run_dir=runs/search 'training.learning_rate=interval(1e-4,1e-3)'
  gtp-vision train --resume runs/mine training.steps=2000        more steps; --new-segment accepts another schedule
  gtp-vision train --init runs/mine --append new.h5:5           begin with its weights; new rows count five times
  gtp-vision train --init runs/mine online.steps=50000           continue in the simulator, docs/online.md
  accelerate launch --multi_gpu --num_processes 8 -m gtp_vision train task=...
"""


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Train one run, resume one, or start a sweep."""
    from gtp_vision.config.compose import from_command_line, from_run
    from gtp_vision.config.explain import without_effect
    from gtp_vision.config.overrides import repeated
    from gtp_vision.serving.warm_start import open_source
    from gtp_vision.training.trainer import train

    if arguments.new_segment and arguments.resume is None:
        raise GtpVisionError("--new-segment accepts other data or settings on resume; give --resume as well")
    _check_init(arguments)
    if arguments.resume is not None:
        arguments.resume, overrides = _resumed([arguments.resume, *overrides])
        if arguments.overwrite:
            raise GtpVisionError("--resume continues a run and --overwrite replaces it; give one of the two")
    if _is_first():
        for sentence in repeated(overrides):
            print(f"gtp-vision: {sentence}", file=sys.stderr)
    if arguments.explain:
        return _explain(arguments, overrides)
    if arguments.multirun:
        if arguments.resume:
            raise GtpVisionError("--resume RUN resumes one run; give --resume alone to resume a sweep")
        return _sweep(overrides, arguments)
    if arguments.resume:
        config = replace(from_run(Path(arguments.resume), overrides), run_dir=arguments.resume)
    elif arguments.init:
        _, config = _warm_start(arguments, overrides)
    else:
        config = from_command_line(overrides)
        for sentence in without_effect(config, overrides) if _is_first() else ():
            print(f"gtp-vision: {sentence}", file=sys.stderr)
    quiet = os.environ.get("TQDM_DISABLE") == "1"  # tqdm's own switch, which an explicit argument would override
    results = train(config, progress=not quiet, open_source=open_source, **_how(arguments))
    _print_results(config.run_dir, results)
    return 0


def _how(arguments: argparse.Namespace) -> dict[str, bool]:
    if was_restarted():  # by SLURM, with the same command
        return {"resume": True, "new_segment": arguments.new_segment, "overwrite": False}
    resume = arguments.resume is not None
    return {"resume": resume, "new_segment": arguments.new_segment, "overwrite": arguments.overwrite}


def _check_init(arguments: argparse.Namespace) -> None:
    """Refuse options that belong to --init without it, and --init with what begins no new run of its settings."""
    if arguments.init is None:
        for option, value in (("--append", arguments.append), ("--init-optimizer", arguments.init_optimizer)):
            if value:
                raise GtpVisionError(f"{option} is for a run that begins with the weights of another; add --init RUN")
        return
    if arguments.resume is not None:
        raise GtpVisionError("--init begins a new run and --resume continues one; give one of the two")
    if arguments.multirun:
        raise GtpVisionError(
            f"--init takes all settings from {arguments.init}; for -m give a whole command with "
            f"init.source={arguments.init} instead"
        )


def _resumed(words: list[str]) -> tuple[str, list[str]]:
    """The run that --resume names, "" for that of the settings, and the settings, wherever the words stand."""
    settings = [word for word in words if "=" in word and not os.path.isfile(os.path.join(word, "config.yaml"))]
    runs = [os.path.expanduser(word) for word in words if word and word not in settings]
    if len(runs) > 1:
        raise GtpVisionError(f"--resume resumes one run; choose one of {', '.join(runs)}")
    return "".join(runs), settings


def _is_first() -> bool:
    """Whether this is the process of several that prints."""
    return os.environ.get("RANK", "0") == "0"


def _explain(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from gtp_vision.config.explain import explain, explain_warm_start

    if arguments.multirun or arguments.resume is not None:
        raise GtpVisionError("--explain shows the settings of one new run; leave out -m and --resume")
    if arguments.init is None:
        print(explain(overrides))
        return 0
    source, config = _warm_start(arguments, overrides)
    print(explain_warm_start(config, source.config, arguments.init))
    return 0


def _warm_start(arguments: argparse.Namespace, overrides: list[str]) -> tuple[Source, Config]:
    """What --init names, and the settings of the run that begins with its weights."""
    from gtp_vision.serving.warm_start import open_source

    source = open_source(arguments.init)
    given = ["init.optimizer=true", *overrides] if arguments.init_optimizer else overrides
    return source, source.new_run(given, arguments.append)


def _sweep(overrides: list[str], arguments: argparse.Namespace) -> int:
    """Start Hydra's multirun with our configuration, so that its launchers (SLURM, Ray, joblib) work unchanged."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import DictConfig

    from gtp_vision.config.compose import from_command_line
    from gtp_vision.config.overrides import addable, check_overrides
    from gtp_vision.serving.warm_start import open_source
    from gtp_vision.training.search import Search, note_settings, objective
    from gtp_vision.training.trainer import InterruptedRunError, train

    check_overrides(overrides)
    search = Search.of(overrides)
    overrides = list(search.overrides) if search else overrides
    if any(item.startswith("hydra/launcher=submitit_slurm") for item in overrides) and shutil.which("srun") is None:
        raise GtpVisionError(
            "hydra/launcher=submitit_slurm submits jobs to SLURM, and srun is not on the PATH; start the sweep on a "
            "machine that submits jobs, or try it on this one with hydra/launcher=submitit_local"
        )

    @hydra.main(config_path="pkg://gtp_vision.configs", config_name="config", version_base="1.3")
    def train_one(_: DictConfig) -> float | None:
        chosen = list(HydraConfig.get().overrides.task)
        config = from_command_line(chosen if search is None else [*chosen, search.trial(HydraConfig.get().job.num)])
        try:
            results = train(config, open_source=open_source, **_how(arguments))
        except InterruptedRunError:
            requeue_sweep_job()
            raise
        _print_results(config.run_dir, results)
        if search is None:
            return None
        note_settings(Path(config.run_dir), chosen)
        return objective(results)[1]

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main()
    before, sys.argv = sys.argv, ["gtp-vision train", "-m", *map(addable, overrides)]
    try:
        train_one()
    except HydraException as error:
        missing = str(error.missing_cfg_file) if isinstance(error, MissingConfigException) else ""
        fix = "correct the overrides that begin with hydra"
        if "submitit" in missing:
            fix = "the launchers submitit_slurm and submitit_local are missing; run pip install 'gtp-vision[slurm]'"
        if "optuna" in missing:
            fix = "the sweeper optuna is missing; run pip install 'gtp-vision[optuna]'"
        raise GtpVisionError(f"{str(error).splitlines()[0].rstrip('.')}; {fix}") from error
    finally:
        sys.argv = before
    if search:
        print(search.report())
    return 0


def _print_results(run_dir: str, results: dict) -> None:
    if not _is_first():
        return
    if "score" in results.get("last", {}):
        last = results["last"]
        of = f"{len(results['seeds'])} seeds" if "seeds" in results else f"{last['episodes']} episodes"
        print(f"normalised score {last['score']:.1f} (return {last['return']:.1f}), the mean of {of}")
    elif "seeds" in results and "last" in results:
        last = results["last"]
        each = ", ".join("unknown" if value is None else f"{value:.0%}" for value in last["success_by_seed"])
        mean = "" if last["success"] is None else f"{last['success']:.1%} +- {last['success_error']:.1%}, the mean of "
        print(f"success {mean}{each}; return {last['return']:.1f}")
    elif "last" in results:
        from gtp_vision.evaluation.metrics.success import success_text

        print(f"{success_text(results['last'])}, return {results['last']['return']:.1f}")
    elif "validation" in results:
        last = results["validation"]["last"]
        held_out = f"held-out energy score {last['energy']:.4g} at step {last['step']:,}"
        print(f"{held_out}; compare by gtp-vision judge RUN OTHER_RUN")
    print(f"report: {Path(run_dir) / 'report.html'}")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="resume a run (of this configuration)")
    parser.add_argument("--new-segment", action="store_true", help="resume with other data or settings, recorded")
    parser.add_argument("--init", metavar="SOURCE", help="begin with the weights of a run, a checkpoint or an artifact")
    parser.add_argument(
        "--append", action="append", default=[], metavar="DATA[:WEIGHT]", help="with --init: further data, repeatable"
    )
    parser.add_argument("--init-optimizer", action="store_true", help="with --init: begin with its Adam moments, too")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the run folder")
    parser.add_argument("--explain", action="store_true", help="print each setting and what set it, and train nothing")
    parser.add_argument("-m", "--multirun", action="store_true", help="Hydra's sweep: a run for each value in a list")


TRAIN = Verb("train", "train one run", _options, run, order=10, description=_HELP, has_overrides=True)
