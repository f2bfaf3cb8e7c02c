import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from engines_of import CPU, engine_of, members_of
from small_runs import assert_close, assert_equal, lines, saved, small
from stores import make_store
from torch.profiler import ProfilerActivity, profile

from gtp_vision.agents.gtp import advantage_weights
from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.config.schema import TrainingConfig
from gtp_vision.core.distributed import any_rank
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.sources import HostSource
from gtp_vision.envs import EnvSpec
from gtp_vision.evaluation.evaluator import Evaluator, StoppedError, random_actor
from gtp_vision.training import checkpoint, engines, run_lock, trainer
from gtp_vision.training import eager as updates
from gtp_vision.training.build import build
from gtp_vision.training.ranks import accelerator_of, batch_shares, global_batch
from gtp_vision.training.run import InterruptedRunError

pytestmark = pytest.mark.processes
ENV, STATE, ACTIONS, EPISODES = "puzzle-3x3-play-singletask-task1", 55, 5, 3
SMALL = [
    *("task=own", f"task.env={ENV}", "task.max_episode_steps=20", "encoder=state", "training.device=cpu"),
    *("training.batch_size=12", "training.steps=4", "training.log_every=1", "training.checkpoint_every=2"),
    *("training.eval_envs=1", f"training.eval_episodes={EPISODES}", "training.videos=0"),
    *("training.clip_gradient=1.0", "training.keep_checkpoints=9", "training.engine=eager"),
]
UNSEEN = "training.eval_episodes=0"
TINY = ["agent.policy.hidden=[16,16]", "agent.critic.hidden=[16]"]
ROW, LONGER = 17, [UNSEEN, "training.steps=12"]  # the row whose reward overflows
STAGED = [UNSEEN, "agent.clone_steps=2", "agent.policy.alternate=true"]
PIXELS = [UNSEEN, "encoder=impala_tiny", "encoder.features=8"]
BAD = torch.tensor([-900.0, -700.0, -701.0, -702.0])  # advantages of which all weights would underflow
# Settings and data of steps in every engine
STEPPED: dict[str, tuple[list[str], dict[str, str]]] = {
    "states": (["training.on_nonfinite=skip"], {}),
    "frames": (["encoder=impala_tiny", "encoder.features=8"], {"agent": "gtp_ql", "data": "pixels.h5"}),
}
AGENTS = ["bdm", "qgpo", "fql", "idql", "rebrac"]  # besides gtp


def overrides_of(folder: Path, name: str, agent: str = "gtp", data: str = "data.h5") -> list[str]:
    return [*SMALL, *TINY, *small(agent), f"task.dataset={folder / data}", f"run_dir={folder / name}"]


def train(folder: Path, name: str, *overrides: str, resume: bool = False, **data: str) -> dict[str, Any]:
    config = from_command_line([*overrides_of(folder, name, **data), *overrides])
    return trainer.train(config, resume=resume, progress=False)


def communications(folder: Path) -> dict[str, int]:
    """The number of collective operations in a step of a GTP agent of the default size, by their name."""
    config = from_command_line(
        [*SMALL, "agent=gtp", f"task.dataset={folder / 'data.h5'}", f"run_dir={folder / 'none'}"]
    )
    parts = build(config)
    for step in range(3):  # before the second the buckets are laid out anew
        batch = parts.sampler.batch(step, parts.accelerator.process_index, parts.accelerator.num_processes)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            updates.Eager(HostSource(parts.sampler), config, parts).step(step, batch)[0]
    found = {event.key: event.count for event in seen.key_averages() if event.key.startswith("c10d::")}
    size = sum(p.numel() * p.element_size() for group in parts.optimizer.param_groups for p in group["params"])
    return found | {"bytes": size}


def stepped(folder: Path, kind: str, *overrides: str, backend: Any = "aot_eager", **data: str) -> Any:
    """What three steps by an engine leave, its name after them, and what it told."""
    told: list[str] = []
    config = from_command_line([*overrides_of(folder, "none", **data), UNSEEN, *overrides])
    members = members_of(config)
    engine = engine_of(kind, config, members, backend, told.append)
    where = members[0].accelerator
    for step in range(3):
        engine.step(step, engine.source.fetch(step, where.process_index, where.num_processes).to(CPU))
    moved = checkpoint._optimizer_tensors(members[0].optimizer, members[0].agent)
    return moved | dict(members[0].agent.named_parameters()), engine.name, told


def cannot(graph: Any, inputs: Any) -> Any:
    """A compiler's backend that fails in the second process."""
    if torch.distributed.get_rank() == 1:
        raise OSError("no space left on device")
    return graph


def evaluation(rank: int, world_size: int) -> tuple[str, list[int]]:
    """The end of an evaluation that only the last process is requested to stop, and this process's episodes."""
    spec, acted, calls = EnvSpec(ENV, pixels=False, max_episode_steps=20), set(), iter(range(10**9))

    def stop() -> bool:
        return next(calls) > 1 and rank == world_size - 1

    def act(observation: Mapping[str, torch.Tensor], noise: EpisodeNoise) -> torch.Tensor:
        acted.update(noise.episodes)
        return random_actor(ACTIONS)(observation, noise)

    with Evaluator(spec, frame_stack=1, envs=1, progress=False, rank=rank, world_size=world_size) as evaluator:
        _, episodes = evaluator.run(act, EPISODES + 1)
        assert [episode.number for episode in episodes] == list(range(EPISODES + 1))
        try:
            evaluator.run(random_actor(ACTIONS), 100, stop=stop)
        except StoppedError:
            return "stopped", sorted(acted)
    return "finished", sorted(acted)


def interrupted(folder: Path, rank: int) -> str:
    """The end of a training of which one process gets SIGTERM."""

    def send() -> None:
        log = folder / "interrupted" / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    if rank == 1:
        threading.Thread(target=send, daemon=True).start()
    try:
        train(folder, "interrupted", UNSEEN, "training.steps=100000", "training.checkpoint_every=100000")
    except InterruptedRunError as error:
        return str(error)
    return "finished"


def refused(folder: Path, *overrides: str, name: str = "refused", data: str = "data.h5") -> str:
    try:
        train(folder, name, *overrides, data=data)
    except GtpVisionError as error:
        return str(error)
    return "trained"


def recorded(folder: Path) -> set[str]:
    """Paths in a folder that this process writes, makes or renames from now on."""
    wrote: set[str] = set()

    def see(event: str, arguments: tuple) -> None:
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in ("os.mkdir", "os.rename")) and str(arguments[0]).startswith(str(folder)):
            wrote.add(str(Path(str(arguments[0])).relative_to(folder)))

    sys.addaudithook(see)
    return wrote


def work(rank: int, processes: int, port: int, folder: Path) -> None:
    """One of the processes, as a launcher starts it."""
    torch.set_num_threads(1)
    wrote = recorded(folder / f"whole_{processes}")
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
        **{"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
    }
    run_lock._SEEN_AFTER = 1.0
    results: dict[str, Any] = {}
    if processes == 2:
        results["results"] = train(folder, "whole_2")
        train(folder, "mixed", "training.steps=2", UNSEEN)
        for agent in AGENTS:
            train(folder, f"{agent}_2", UNSEEN, agent=agent)
        train(folder, "staged_2", *STAGED)
        train(folder, "pixels_2", *PIXELS, data="pixels.h5")
        results["weights"] = advantage_weights(BAD[rank::2], 1.0, 10, form="exponential", standardize=False).tolist()
        results["any"] = any_rank(rank == 0, False, device=torch.device("cpu"))
        results["evaluation"] = evaluation(rank, processes)
        results["interrupted"] = interrupted(folder, rank)
        results["seeds"] = refused(folder, "training.seeds=2")
        results["online"] = refused(folder, "online.steps=24", "online.start=8", "online.round=8")
        results["apart_folders"] = refused(folder, name=f"apart/{rank}")
        results["communications"] = communications(folder)
        train(folder, "compiled_2", UNSEEN, "training.engine=compile", agent="gtp_bc")
        for name, (more, data) in STEPPED.items():
            results[name] = [stepped(folder, kind, *more, **data)[0] for kind in ("eager", "function", "compile")]
        results["unable"] = stepped(folder, "compile", backend=cannot)
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setenv("PATH", "")
            results["apart"] = refused(folder, "training.engine=compile")
            long = from_command_line([*overrides_of(folder, "none"), "training.engine=auto", "training.steps=20000"])
            results["together"] = engines.check(long, build(long))
        for mode in ("stop", "skip", "rollback"):
            more = [*LONGER, f"training.on_nonfinite={mode}"]
            results[mode] = refused(folder, *more, name=f"{mode}_2", data="reward.h5")
        results["per_process"] = train(
            folder, "per_process", UNSEEN, "training.batch_per=process", "training.batch_size=6"
        )
    else:
        train(folder, "whole_3", UNSEEN)
        train(folder, "mixed", UNSEEN, resume=True)
        results["indivisible"] = refused(folder, "training.batch_size=16")
    results["wrote"] = wrote
    torch.save(results, folder / f"{processes}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of one, two and three processes, and N_RANK.pt with the results of each rank."""
    folder = tmp_path_factory.mktemp("processes")
    store = make_store((30, 40), state=STATE, actions=ACTIONS)
    native.write(folder / "data.h5", store)
    native.write(folder / "pixels.h5", make_store((30, 40), cameras={"front": (16, 16, 3)}, actions=ACTIONS))
    store.rewards[ROW] = 1e38
    native.write(folder / "reward.h5", store)
    torch.save({"results": train(folder, "whole_1")}, folder / "1_0.pt")
    for agent in AGENTS:
        train(folder, f"{agent}_1", UNSEEN, agent=agent)
    train(folder, "staged_1", *STAGED)
    train(folder, "compiled_1", UNSEEN, agent="gtp_bc")
    train(folder, "pixels_1", *PIXELS, data="pixels.h5")
    for processes in (2, 3):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = int(probe.getsockname()[1])
        mp.spawn(work, (processes, port, folder), nprocs=processes)
    return folder


def results_of(folder: Path, processes: int, key: str) -> list[Any]:
    return [torch.load(folder / f"{processes}_{rank}.pt", weights_only=False)[key] for rank in range(processes)]


ALONE = {f"{name}_2": f"{name}_1" for name in (*AGENTS, "staged", "pixels", "whole", "compiled")}


@pytest.mark.parametrize("run", [*ALONE, "whole_3", "mixed", "per_process"])
def test_a_run_does_not_depend_on_the_number_of_processes(folder: Path, run: str) -> None:
    whole = ALONE.get(run, "whole_1")
    alone, together = (saved(folder / name, "step_4") for name in (whole, run))
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        rounding = 1e-3 if name.startswith("improvement.energy") else 1e-4  # of gradients that are nothing else
        atol = rounding * float(value.abs().max()) + 1e-9
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=atol, msg=name)
    one, other = (
        {(line["step"], key): value for line in lines(folder / name) for key, value in line.items()}
        for name in (whole, run)
    )
    prefixes = ("loss", "actor/", "critic/", "weight/", "gradient", *(["eval/"] if run == "whole_2" else []))
    extremes = ("critic/q_min", "critic/q_max")  # means over processes of the extreme of each
    keys = [key for key in one if key[1].startswith(prefixes) and key[1] not in (*extremes, "eval/seconds")]
    assert len(keys) > 20
    assert {key: other[key] for key in keys} == pytest.approx({key: one[key] for key in keys}, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("name", STEPPED)
def test_every_engine_takes_the_step_of_one_process(folder: Path, name: str) -> None:
    more, data = STEPPED[name]
    alone, _, _ = stepped(folder, "eager", *more, **data)
    for tensors in results_of(folder, 2, name):
        for together in tensors:
            for key, value in alone.items():
                atol = 1e-4 * float(value.detach().abs().max()) + 1e-9
                torch.testing.assert_close(together[key], value, rtol=2e-3, atol=atol, msg=key)


def test_processes_use_one_engine_or_none(folder: Path) -> None:
    eager, _, _ = stepped(folder, "eager")
    first, second = results_of(folder, 2, "unable")
    for moved, name, told in (first, second):
        assert name == "eager"
        assert "engine: eager, because training.engine=compile does not work here" in told[-1]
        assert_close(moved, eager, rtol=2e-3, atol=1e-5)
    assert "another process cannot compile it" in first[2][-1]
    assert "no space left" in second[2][-1]
    first, second = results_of(folder, 2, "apart")
    assert first.startswith("training.engine=compile is compile in this process and another engine, or none, in others")
    assert second.startswith("training.engine=compile needs a C++ compiler")
    assert results_of(folder, 2, "together") == [("eager", "not every process can compile")] * 2


def test_weights_keep_the_largest_of_all_processes(folder: Path) -> None:
    assert results_of(folder, 2, "weights") == [pytest.approx([0.0, np.exp(-1)]), pytest.approx([1.0, np.exp(-2)])]


def test_processes_share_episodes_and_stop_together(folder: Path) -> None:
    (alone,) = results_of(folder, 1, "results")
    for results in results_of(folder, 2, "results"):
        assert (results["processes"], results["batch"]) == (2, 12)
        names = ("episodes", "success", "length", "success_interval")
        assert [results["last"][name] for name in names] == [alone["last"][name] for name in names]
    assert results_of(folder, 2, "evaluation") == [("stopped", [0, 2]), ("stopped", [1, 3])]
    first, second = results_of(folder, 2, "interrupted")
    assert first == second
    step = int(first.removeprefix("stopped at step ").split()[0])
    assert (folder / "interrupted" / "checkpoints" / "last").resolve().name == f"step_{step}"
    assert results_of(folder, 2, "any") == [[True, False]] * 2


def test_steps_that_are_not_finite_are_the_same_in_all_processes(folder: Path) -> None:
    for mode in ("stop", "skip", "rollback"):
        first, second = results_of(folder, 2, mode)
        assert first == second
        assert f"first row {ROW} (episode 0" in first if mode == "stop" else first == "trained"
    train(folder, "skip_1", *LONGER, "training.on_nonfinite=skip", data="reward.h5")
    assert sum(line["skipped"] for line in lines(folder / "skip_2")) > 0
    assert_close(saved(folder / "skip_2"), saved(folder / "skip_1"), rtol=1e-4, atol=1e-5)
    assert_equal(saved(folder / "skip_2"), saved(folder / "rollback_2"))


def test_a_step_reduces_once_for_gradients_and_twice_for_weights(folder: Path) -> None:
    for found in results_of(folder, 2, "communications"):
        assert found.pop("bytes") > 3e6, "the default first bucket, of 1 MB, would not hold it"
        assert found == {"c10d::allreduce_": 3}


def test_only_the_first_process_writes(folder: Path) -> None:
    for processes in (1, 2, 3):
        run = folder / f"whole_{processes}"
        assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 3, 4]
        assert (run / "report.html").exists()
        first, *others = results_of(folder, processes, "wrote") if processes > 1 else [{"metrics.jsonl"}]
        assert "metrics.jsonl" in first
        assert others == [set()] * (processes - 1)
        assert not list(run.rglob("*.tmp*"))


def test_a_batch_per_process_grows_with_their_number(folder: Path) -> None:
    for results in results_of(folder, 2, "per_process"):
        assert results["batch"] == 12
    assert global_batch(TrainingConfig(batch_size=5, batch_per="process"), 3) == 15
    assert global_batch(TrainingConfig(batch_size=6), 3) == 6
    assert batch_shares(3, 6) == "3 processes, 2 rows each: 6 a step"
    assert batch_shares(1, 6) == ""


def test_unsupported_settings_are_refused(folder: Path) -> None:
    for rank in range(3):
        assert "training.batch_size=16 cannot be divided over 3 processes" in results_of(folder, 3, "indivisible")[rank]
    for message in results_of(folder, 2, "apart_folders"):
        assert "is another one, or missing, on" in message
        assert message.endswith("set run_dir to a folder that all machines share")
    for message in results_of(folder, 2, "seeds"):
        assert message.startswith("training.seeds=2 trains in one process, and there are 2")
    for message in results_of(folder, 2, "online"):
        assert message.startswith("online.steps=24 trains in one process, and 2 were started; start one")
    assert not (folder / "refused").exists()


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(GtpVisionError, match=r"2 processes .* 1 CUDA device.*device=cpu"):
        accelerator_of(TrainingConfig(device="auto"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["-m", "hydra/launcher=submitit_slurm"], "srun is not on the PATH"),
        (["-m", "hydra/launcher=joblib"], "hydra/launcher/joblib"),
        (["-m", "hydra/lancher=basic"], "hydra/lancher"),
        (["hydra/launcher=basic"], "add -m"),
    ],
)
def test_a_wrong_launcher_is_refused(
    overrides: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["train", *overrides, "task=demo", "seed=0"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert words in message
    assert "pip install" not in message
