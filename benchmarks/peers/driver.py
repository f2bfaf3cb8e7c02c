"""What the drivers of official code share: options, checks, data, evaluation, records, resuming.

A driver runs in a Python environment of its own (requirements.txt), without gtp-vision. It imports the agents and data
sets of a checkout that the user names, and nothing else of it. Each run leaves, for `gtp-vision bench suite --peers`:

    OUT/TASK/LABEL/seed_N/evaluations.json   as a run of gtp-vision writes it
    OUT/TASK/LABEL/seed_N/peer.json          repository, commit, protocol, settings, versions, critic values
    OUT/TASK/LABEL/seed_N/checkpoint.msgpack the whole agent and the state of NumPy's generator

The same command resumes a run that was killed.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "flax", "optax", "distrax", "ml_collections", "tensorflow_probability", "ogbench", "mujoco")
_EVAL_SEED = 100_000  # episode e of seed s is reset with 100000 (1 + s) + e, as gtp_vision.training.evaluate does
_ACTION_LIMIT = 1 - 1e-5  # to which all three repositories clip the data's actions
_FEATURES, _ACTIONS = 29, 8  # of the noise whose steps are timed: AntMaze's, as in `gtp-vision bench step`
_COMPILING = 2  # calls of each stage that JAX compiles, whose seconds are not those of training


class PeerError(Exception):
    """What the user can fix, in one sentence."""


class Peer(ABC):
    """One official agent; a file beside this one for each repository.

    Attributes:
        repository: owner and name on GitHub.
        commit: the one that the driver was written for.
        agent: module of the checkout with `get_config`, and the agent's class in it.
        own_settings: options that go into the agent's configuration, by its key.
    """

    repository: str
    commit: str
    agent: tuple[str, str]
    own_settings: tuple[str, ...] = ()

    @abstractmethod
    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of this agent."""

    @abstractmethod
    def label(self, options: argparse.Namespace) -> str:
        """The name of the rows in a suite's tables."""

    @abstractmethod
    def example(self, data: Any) -> Any:
        """The example batch of the repository's main."""

    @abstractmethod
    def batch(self, data: Any, options: argparse.Namespace) -> dict[str, Any]:
        """A batch, sampled as the repository's main does."""

    @abstractmethod
    def actions(self, agent: Any, observation: Any, key: Any) -> Any:
        """Actions to execute one after the other before the next call: any shape, the action's axis last."""

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """What the agent's default configuration is updated with."""
        shared = {
            "lr": options.learning_rate,
            "batch_size": options.batch_size,
            "discount": options.discount,
            "tau": options.tau,
            "actor_hidden_dims": tuple(options.hidden),
            "value_hidden_dims": tuple(options.hidden),
        }
        own = {key: getattr(options, key) for key in self.own_settings if getattr(options, key) is not None}
        return shared | own

    def create(self, options: argparse.Namespace, data: Any, step: int) -> Any:
        """A new agent, as step `step`, from 0, trains it."""
        module = importlib.import_module(self.agent[0])
        config, example = module.get_config(), self.example(data)
        config.update(self.settings(options))
        return getattr(module, self.agent[1]).create(options.seed, example["observations"], example["actions"], config)

    def next_stage(self, agent: Any, options: argparse.Namespace, data: Any, step: int) -> Any:
        """The agent with which to train step `step`, from 0: another one where a stage begins."""
        return agent

    def acting(self, agent: Any, options: argparse.Namespace, data: Any, step: int) -> Any:
        """The agent to evaluate after `step` steps."""
        return agent


def main(peer: Peer, description: str) -> None:
    """Run a driver's command line; exits with 2 and one sentence for what the user can fix."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkout", type=Path, required=True, help=f"of github.com/{peer.repository} at {peer.commit[:7]}")
    add("--accept-checkout", action="store_true", help="also at another commit, or with changes; peer.json says so")
    times = "--time" in sys.argv
    add("--time", action="store_true", help="train nothing: answer each number of steps that is read with milliseconds")
    add("--data", type=Path, required=not times, help="folder with NAME.npz and NAME-val.npz in OGBench's layout")
    add("--env", required=not times, help="single task of OGBench, e.g. cube-single-play-singletask-task2-v0")
    add("--out", type=Path, required=not times, help="folder of records, for `gtp-vision bench suite --peers`")
    add("--task", help="the suite's name of the task; default: --env without its version")
    add("--seed", type=int, default=0)
    add("--steps", type=count, default=100_000, help="gradient steps; default %(default)s")
    add("--eval-every", type=count, default=10_000, help="steps; default %(default)s")
    add("--episodes", type=count, default=25, help="of each evaluation; default %(default)s")
    add("--checkpoint-every", type=count, default=5_000, help="steps; default %(default)s")
    add("--log-every", type=count, default=1_000, help="steps; default %(default)s")
    add("--hidden", type=_widths, default=[256, 256, 256], help="hidden layers, e.g. 256,256,256")
    add("--batch-size", type=count, default=256)
    add("--discount", type=float, default=0.99)
    add("--learning-rate", type=float, default=3e-4, help="constant; default %(default)s")
    add("--tau", type=float, default=0.005, help="rate of the slow critic; default %(default)s")
    add("--threads", type=count, default=1, help="of the training; default %(default)s")
    peer.options(parser)
    options = parser.parse_args()
    try:
        (_time if times else _run)(peer, options)
    except PeerError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def check_checkout(peer: Peer, folder: Path, accept: bool) -> str:
    """The commit of a checkout, with `+changes` if files differ from it.

    PeerError unless both are as the driver was written for, or accepted.
    """
    address = f"https://github.com/{peer.repository}"
    get = f"git clone {address} {folder} && git -C {folder} checkout {peer.commit[:7]}"
    if not (folder / ".git").exists() or not (folder / "agents").is_dir():
        raise PeerError(f"{folder} is not a checkout of {peer.repository}; run: {get}")
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if commit != peer.commit and not accept:
        raise PeerError(
            f"{folder} is at commit {commit[:7]}, and this driver was written for {peer.commit[:7]}; run: "
            f"git -C {folder} checkout {peer.commit[:7]}, or add --accept-checkout"
        )
    if changes and not accept:
        first = changes.splitlines()[0].split()[-1]
        raise PeerError(
            f"{folder} differs from its commit (e.g. {first}); run: git -C {folder} stash -u, or add --accept-checkout"
        )
    return commit + ("+changes" if changes else "")


def data_file(folder: Path, env: str) -> Path:
    """The data set of a single task, whose name has the kind of data: PeerError if there is none."""
    match = re.fullmatch(r"(.+)-singletask(?:-task\d+)?-(v\d+)", env)
    if not match:
        raise PeerError(f"--env {env} is not a single task of OGBench, e.g. cube-single-play-singletask-task2-v0")
    path = folder / f"{match[1]}-{match[2]}.npz"
    for each in (path, path.with_name(f"{path.stem}-val.npz")):
        if not each.is_file():
            make = f"gtp-vision data collect ogbench/{match[1]} --out {folder}"
            raise PeerError(f"there is no data set {each}; check --data and --env, or make it with: {make}")
    return path


def check_packages() -> None:
    """Refuse an environment without the packages of requirements.txt."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        file = Path(__file__).with_name("requirements.txt")
        raise PeerError(f"{', '.join(missing)} cannot be imported; run: {sys.executable} -m pip install -r {file}")


def load(env: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """The simulator and the training data, by OGBench's own loader. PeerError: unknown environment, damaged file."""
    import gymnasium
    import numpy as np
    import ogbench

    try:
        with warnings.catch_warnings(action="ignore"):
            simulator, data, _ = ogbench.make_env_and_datasets(env, dataset_path=str(path))
    except gymnasium.error.Error as error:
        raise PeerError(f"ogbench has no environment for --env {env} ({str(error).splitlines()[0]})") from error
    except (ValueError, KeyError, OSError) as error:
        raise PeerError(f"{path} cannot be read ({error}); make it again") from error
    return simulator, data | {"actions": np.clip(data["actions"], -_ACTION_LIMIT, _ACTION_LIMIT)}


def evaluate(peer: Peer, agent: Any, env: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Success, return and length of `options.episodes` episodes, as gtp-vision's evaluator measures them.

    An episode is a function of its seed; NumPy's generator, from which batches are drawn, stays as it was.
    """
    import jax
    import numpy as np

    started, state = time.perf_counter(), np.random.get_state()
    found: list[tuple[float, float, int]] = []
    for episode in range(options.episodes):
        seed = _EVAL_SEED * (1 + options.seed) + episode
        np.random.seed(seed)  # mazes draw from it
        key, (observation, _) = jax.random.PRNGKey(seed), env.reset(seed=seed)
        queue: list[Any] = []
        success, total, length, done = False, 0.0, 0, False
        while not done:
            if not queue:
                key, now = jax.random.split(key)
                plan = np.asarray(peer.actions(agent, observation, now))
                queue = list(np.clip(plan, -1, 1).reshape(-1, env.action_space.shape[0]))
            observation, reward, terminated, truncated, info = env.step(queue.pop(0))
            success, total, length = success or info.get("success", 0) > 0, total + float(reward), length + 1
            done = terminated or truncated
        found.append((float(success), total, length))
    np.random.set_state(state)
    means = [float(value) for value in np.mean(found, axis=0)]
    numbers = dict(zip(("success", "return", "length"), means, strict=True))
    return {"episodes": options.episodes} | numbers | {"seconds": time.perf_counter() - started}


def _prepare(options: argparse.Namespace) -> None:
    """Make a checkout's modules importable, before JAX starts."""
    check_packages()
    if options.threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("NPROC", str(options.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.dont_write_bytecode = True  # the checkout stays as it is
    sys.path.insert(0, str(options.checkout.resolve()))


def _time(peer: Peer, options: argparse.Namespace) -> None:
    """Answer lines, each a number of steps, with the milliseconds of one step on noise; for `bench step --peer`."""
    check_checkout(peer, options.checkout, options.accept_checkout)
    _prepare(options)
    import jax
    import numpy as np
    from utils.datasets import Dataset  # type: ignore[import-not-found]  # of the checkout

    rng = np.random.default_rng(0)
    observations, following = (rng.normal(size=(1000, _FEATURES)).astype(np.float32) for _ in range(2))
    data = Dataset.create(
        observations=observations,
        next_observations=following,
        actions=rng.uniform(-1, 1, (1000, _ACTIONS)).astype(np.float32),
        rewards=rng.normal(size=1000).astype(np.float32),
        terminals=np.zeros(1000, np.float32),
        masks=np.ones(1000, np.float32),
    )
    agent, batch = peer.create(options, data, 0), peer.batch(data, options)
    for _ in range(_COMPILING):
        agent, _ = agent.update(batch)
    jax.block_until_ready(agent)
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            agent, _ = agent.update(batch)
        jax.block_until_ready(agent)
        print((time.perf_counter() - started) / int(line) * 1e3, flush=True)


def _run(peer: Peer, options: argparse.Namespace) -> None:
    commit = check_checkout(peer, options.checkout, options.accept_checkout)
    path = data_file(options.data, options.env)
    _prepare(options)
    from utils.datasets import Dataset  # type: ignore[import-not-found]  # of the checkout

    env, arrays = load(options.env, path)
    task, label = options.task or re.sub(r"-v\d+$", "", options.env), peer.label(options)
    folder = options.out / task.replace("/", "-") / label / f"seed_{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PeerError(f"another process trains {folder}; wait for it, or choose another --seed") from None
        record = _record(peer, options, commit, path, label)
        known = _read(folder / "peer.json") or record
        if differ := [key for key in ("commit", "data", "protocol", "settings") if known.get(key) != record[key]]:
            words = " and ".join(differ)
            raise PeerError(f"{folder} holds a run of another {words}; remove it, or choose another --out")
        _train(peer, options, env, Dataset.create(**arrays), folder, known | {"versions": record["versions"]})


def _train(peer: Peer, options: argparse.Namespace, env: Any, data: Any, folder: Path, record: dict[str, Any]) -> None:
    """Take the steps that are left, from the checkpoint if there is one; `record` is that of peer.json."""
    import flax.serialization
    import jax
    import numpy as np

    np.random.seed(options.seed)
    step, seconds, checkpoint = 0, 0.0, folder / "checkpoint.msgpack"
    agent = peer.create(options, data, 0)
    if checkpoint.exists():
        stored = flax.serialization.msgpack_restore(checkpoint.read_bytes())
        step, seconds = int(stored["step"]), float(stored["seconds"])
        agent = flax.serialization.from_state_dict(peer.create(options, data, max(step - 1, 0)), stored["agent"])
        np.random.set_state(("MT19937", stored["keys"], *stored["place"]))
        print(f"resuming {folder} from step {step}", flush=True)
    evaluations = [found for found in _read(folder / "evaluations.json") or [] if found["step"] <= step]
    record["log"] = [line for line in record["log"] if line["step"] <= step]
    _write(folder / "peer.json", record)

    info: dict[str, Any] = {}
    compiling, since = _COMPILING, time.perf_counter()
    while True:
        is_last, evaluates = step == options.steps, step > 0 and step % options.eval_every == 0
        saves = step > 0 and (is_last or evaluates or step % options.checkpoint_every == 0)
        logs = bool(info) and (is_last or step % options.log_every == 0)
        if saves or logs:
            jax.block_until_ready((agent, info))
            seconds += time.perf_counter() - since
            if logs:
                numbers = {key: float(value) for key, value in info.items() if key.startswith(("critic", "actor"))}
                record["log"].append({"step": step, "seconds": seconds} | numbers)
            if saves and info:
                _, keys, *place = np.random.get_state()
                state = {"agent": flax.serialization.to_state_dict(agent), "step": step, "seconds": seconds}
                _write(folder / "peer.json", record)
                _replace(checkpoint, flax.serialization.msgpack_serialize(state | {"keys": keys, "place": place}))
            if (is_last or evaluates) and all(found["step"] != step for found in evaluations):
                found = evaluate(peer, peer.acting(agent, options, data, step), env, options)
                evaluations.append({"step": step, **found, "train_seconds": seconds})
                _write(folder / "evaluations.json", evaluations)
                print(f"step {step}: success {found['success']:.0%}, {seconds:.0f} s of training", flush=True)
            since = time.perf_counter()
        if is_last:
            return
        staged = peer.next_stage(agent, options, data, step)
        compiling = _COMPILING if staged is not agent else compiling
        if compiling:
            jax.block_until_ready(agent)
            seconds, since = seconds + time.perf_counter() - since, time.perf_counter()
        agent, info = staged.update(peer.batch(data, options))
        step += 1
        if compiling:
            jax.block_until_ready(agent)
            record["compile_seconds"] += time.perf_counter() - since
            compiling, since = compiling - 1, time.perf_counter()


def _record(peer: Peer, options: argparse.Namespace, commit: str, path: Path, label: str) -> dict[str, Any]:
    protocol = ("env", "steps", "eval_every", "episodes", "hidden", "batch_size", "discount", "learning_rate", "tau")
    return {
        "label": label,
        "repository": peer.repository,
        "commit": commit,
        "protocol": {key: getattr(options, key) for key in protocol},
        "settings": json.loads(json.dumps(peer.settings(options))),
        "data": f"{path.name}, {path.stat().st_size} bytes",
        "threads": options.threads,
        "versions": {name: version(name) for name in _PACKAGES},
        "compile_seconds": 0.0,
        "log": [],
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise PeerError(f"{path} is damaged ({error}); remove it, and the run begins anew") from error


def _write(path: Path, value: Any) -> None:
    _replace(path, json.dumps(value, indent=1).encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"git cannot read {folder} ({done.stderr.strip().splitlines()[0]}); clone it again")
    return done.stdout.strip()


def count(text: str) -> int:
    """A number of at least 1, of the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def _widths(text: str) -> list[int]:
    return [count(word) for word in text.split(",")]
