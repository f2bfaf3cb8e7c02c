"""The time that serving adds to an action: robots in one process send observations to a server in another.

Of every answer is known how long the robot waited for it (`round_trip`), how long the policy acted (`act`), and for how
long it was busy with the observations of other robots (`queued`). The rest is `added`: packing, the network stack in
both directions, unpacking and checking the message, and switches between threads. Every answer is compared, bit for
bit, with `policy.plan` in this process.

`recording` is what recording adds: servers with and without it take turns, because other processes come and go.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision import agents
from gtp_vision.bench.robot import random_observations
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.processes import start, stop
from gtp_vision.core.timing import seconds
from gtp_vision.serving import artifact
from gtp_vision.serving.limits import Limits
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema

_ALONE = 300  # plans that are timed without a server
_UNTIMED = 10  # of each robot's requests that are compared but not timed: caches fill
_TURNS = 3  # of servers with and without recording
TARGETS = {"added_ms_p50": 0.9, "added_ms_p99": 4.0, "recording_ms_p50": 0.3}


def bench_serve(
    folder: Path | None = None,
    *,
    clients: int = 8,
    requests: int = 10_000,
    rate: float = 10.0,
    record: bool = False,
    limits: bool = False,
) -> dict[str, Any]:
    """Measure milliseconds, and whether every answer arrives and is right.

    `clients` robots send `rate` requests a second each; with `record` a server that records and one that does not
    take turns. Without a `folder` the artifact is an untrained GTP with two cameras of 84x84 and K = 2, with `limits`
    one whose actions are often limited.

    Returns:
        JSON-able: `added_ms_p50`, `added_ms_p99`, and likewise `round_trip`, `act`, `queued`, `act_alone`, with
        `record` of the servers that record; `recording_ms_p50`, what these take longer; `requests`, `errors` (`wrong`,
        `lost`, and `refused` with a message), `clients`, `rate`.

    Raises:
        GtpVisionError: no artifact, arguments out of range, or the server does not start.
    """
    if clients < 1 or requests < clients * 2 * _UNTIMED or not rate > 0:
        raise GtpVisionError(
            f"clients={clients}, requests={requests}, rate={rate:g}: set at least one client, {2 * _UNTIMED} requests "
            f"of each, and a rate above 0"
        )
    turns = [False, True] * _TURNS if record else [False]
    per_client = max(2 * _UNTIMED, -(-requests // (clients * len(turns))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="gtp-vision-serve-") as scratch:
            served = folder or untrained_artifact(Path(scratch) / "policy", limits=limits)
            policy = artifact.load_policy(served)
            alone = _time_alone(policy)
            by_turn: dict[bool, list[dict[str, np.ndarray]]] = {False: [], True: []}
            errors: Counter[str] = Counter(wrong=0, lost=0, refused=0)
            for records in turns:
                with tempfile.TemporaryDirectory(dir=scratch) as place:
                    recorded = Path(place) / "recorded" if records else None
                    with server_of(served, clients, recorded) as (address, _):
                        answers = _run_robots(address, clients, per_client, rate, Path(place))
                for seed, answer in enumerate(answers):
                    if answer is None:
                        errors["lost"] += per_client
                        continue
                    errors["wrong"] += count_wrong(policy, seed, answer["actions"])
                    errors["refused"] += int(np.isnan(answer["round_trip"]).sum())
                    by_turn[records].append(answer)
    finally:
        torch.set_num_threads(threads)
    results: dict[str, Any] = {}
    if record:
        waits = [[answer["round_trip"] - answer["queued"] for answer in by_turn[records]] for records in (True, False)]
        longer, before = (float(np.nanmedian(np.concatenate([each[_UNTIMED:] for each in of]))) for of in waits)
        results["recording_ms_p50"] = longer - before
    times = {
        name: np.concatenate([answer[name][_UNTIMED:] for answer in by_turn[record]] or [np.full(1, np.nan)])
        for name in ("round_trip", "act", "queued")
    }
    times["added"] = times["round_trip"] - times["act"] - times["queued"]
    times["act_alone"] = alone
    return {
        **{f"{name}_ms_p{q}": float(np.nanpercentile(values, q)) for name, values in times.items() for q in (50, 99)},
        **results,
        "requests": per_client * clients * len(turns),
        "errors": errors.total(),
        **errors,
        "clients": clients,
        "rate": rate,
    }


def table(results: Mapping[str, Any]) -> str:
    """What was measured as text, with the targets."""
    lines = [
        f"{results['requests']} requests of {results['clients']} robots, {results['rate']:g} a second each: "
        f"{results['errors']} errors ({results['wrong']} wrong answers, {results['lost']} lost)",
        f"{'ms':<12} {'median':>8} {'99 %':>8}",
    ]
    for name in ("round_trip", "act", "queued", "added", "act_alone"):
        shown = [results[f"{name}_ms_p{q}"] for q in (50, 99)]
        lines.append(f"{name.replace('act_', 'act '):<12} {shown[0]:8.3f} {shown[1]:8.3f}")
    if "recording_ms_p50" in results:
        lines.append(f"{'recording':<12} {results['recording_ms_p50']:8.3f}")
    targets = [f"{name} <= {most:g}" for name, most in TARGETS.items() if name in results]
    return "\n".join([*lines, f"targets: {', '.join(targets)}"])


def untrained_artifact(folder: Path, *, limits: bool = False) -> Path:
    """Write an untrained policy for a common robot: two cameras of 84x84, a state of 9 numbers, 7 actions.

    With `limits` these often change its actions, which are noise.
    """
    config = from_command_line(["task=demo", "agent=gtp", "encoder=impala_small", "agent.acting.steps=2"])
    schema = Schema(
        cameras={"front": (84, 84, 3), "wrist": (84, 84, 3)},
        states={"proprioception": 9},
        frame_stack=1,
        action_low=(-1.0,) * 7,
        action_high=(1.0,) * 7,
        chunk=1,
        steps=2,
        candidates=1,
        agent="gtp",
        task="measurement",
    )
    if limits:
        position = Limits.position(schema.action_low, schema.action_high, 10.0)
        limited = replace(position, speed=(10.0,) * 7, acceleration=(100.0,) * 7, jerk=(2000.0,) * 7)
        schema = replace(schema, limits=limited)
    torch.manual_seed(0)
    agent = agents.create(schema.shapes(), schema.actions, config.agent, config.encoder, pretrained=False)
    folder.mkdir()
    parts = [name for name, _ in agent.named_children()]
    provenance = {"run": "none", "step": 0, "seed": 0, "environment": None, "evaluation": None, "versions": {}}
    provenance |= {"data": {"episodes": 0, "frames": 0}, "licences": {"weights": "unknown"}}
    artifact.write(folder, agent, schema, provenance, parts)
    return folder


def _time_alone(policy: Policy) -> np.ndarray:
    """Milliseconds (N,) of a plan without a server."""
    session, observations = policy.session(), random_observations(0, policy.schema.cameras, policy.schema.states)
    times = [seconds(lambda: session.plan(observations[step % len(observations)])) for step in range(_ALONE)]  # noqa: B023
    return 1e3 * np.array(times[_UNTIMED:])


@contextmanager
def server_of(folder: Path, clients: int, recorded: Path | None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run a server in a separate process, which may record into a folder; yields its address and process."""
    options = ["--port", "0", "--threads", "1", "--clients", str(clients), "--timeout", "60"]
    options += ["--record", str(recorded)] if recorded else []
    with start(
        *("gtp_vision", "serve", str(folder), *options),
        environment={"GTP_VISION_TOKEN": None},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout
            line = server.stdout.readline()
            if "ws://" not in line:
                raise GtpVisionError(f"the server of {folder} did not start; run gtp-vision serve {folder} to see why")
            yield "ws://" + line.partition("ws://")[2].split(",")[0].strip(), server
        finally:
            stop(server)


def _run_robots(
    address: str, clients: int, per_client: int, rate: float, folder: Path
) -> list[dict[str, np.ndarray] | None]:
    """What each robot recorded; None for a robot that did not finish."""
    robots = start("gtp_vision.bench.robot", address, str(clients), str(per_client), str(rate), str(folder))
    try:
        robots.wait(60 + 3 * per_client / rate)
    except subprocess.TimeoutExpired as error:
        raise GtpVisionError(
            f"the server was too slow: {per_client} requests of each of {clients} robots took more than three "
            f"times as long as rate={rate:g} allows; lower --rate or --clients"
        ) from error
    finally:
        stop(robots)
    paths = [folder / f"{seed}.npz" for seed in range(clients)]
    return [dict(np.load(path)) if path.exists() else None for path in paths]


def count_wrong(policy: Policy, seed: int, actions: np.ndarray) -> int:
    """The number of a robot's answers, but for missing ones, that differ from the policy's own plans."""
    session = policy.session(seed)
    observations = random_observations(seed, policy.schema.cameras, policy.schema.states)
    plans = (session.plan(observations[step % len(observations)]) for step in range(len(actions)))
    return sum(
        not (np.isnan(answer).all() or np.array_equal(answer, plan))
        for answer, plan in zip(actions, plans, strict=True)
    )
