"""What serving adds to the time of an action: robots in a process of their own ask a server in another one.

Of every answer is known how long the robot waited for it (`round_trip`), how long the policy acted (`act`), and for how
long of the wait it was busy with the observations of others (`queued`). What is left is `added`: packing, two ways
through the network's stack, unpacking and looking at the message, and being handed from thread to thread. Every answer
is compared, bit for bit, with what `policy.plan` says here.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision import agents
from gtp_vision.bench.robot import observations
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.processes import start, stop
from gtp_vision.serving import artifact
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.schema import Schema

_ALONE = 300  # plans that are timed without a server
_BEFORE = 10  # of each robot's requests that are compared and not timed: caches fill


def bench_serve(
    folder: Path | None = None, *, clients: int = 8, requests: int = 10_000, rate: float = 10.0
) -> dict[str, Any]:
    """Milliseconds, and whether every answer came and was right.

    Args:
        folder: an artifact; None is an untrained GTP with two cameras of 84x84 and K = 2.
        clients: robots.
        requests: of all of them; rounded up to as many for each.
        rate: requests a second of each.

    Returns:
        JSON-able: `added_ms_p50`, `added_ms_p99`, and likewise `round_trip`, `act`, `queued`, `act_alone`; `requests`,
        `errors` (`wrong` and `lost` ones, and `refused` by a sentence), `clients`, `rate`.

    Raises:
        GtpVisionError: no artifact, arguments out of range, or the server does not start.
    """
    if clients < 1 or requests < clients * 2 * _BEFORE or not rate > 0:
        raise GtpVisionError(
            f"clients={clients}, requests={requests}, rate={rate:g}: at least one client, {2 * _BEFORE} requests of "
            f"each, and a rate above 0 are needed"
        )
    each = -(-requests // clients)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="gtp-vision-serve-") as aside:
            place = folder or _two_cameras(Path(aside) / "policy")
            policy = artifact.load_policy(place)
            alone = _alone(policy)
            with _server(place, clients) as address:
                found = _asked(address, clients, each, rate, Path(aside))
            wrong = sum(_wrong(policy, seed, one["actions"]) for seed, one in enumerate(found) if one)
    finally:
        torch.set_num_threads(before)
    came = [one for one in found if one]
    missing = sum(int(np.isnan(one["round_trip"]).sum()) for one in came)
    lost = each * (clients - len(came))
    times = {
        name: np.concatenate([one[name][_BEFORE:] for one in came] or [np.full(1, np.nan)])
        for name in ("round_trip", "act", "queued")
    }
    times["added"] = times["round_trip"] - times["act"] - times["queued"]
    times["act_alone"] = alone
    return {
        **{f"{name}_ms_p{q}": float(np.nanpercentile(values, q)) for name, values in times.items() for q in (50, 99)},
        "requests": each * clients,
        "errors": wrong + lost + missing,
        "wrong": wrong,
        "lost": lost,
        "refused": missing,
        "clients": clients,
        "rate": rate,
    }


def _two_cameras(folder: Path) -> Path:
    """An untrained policy as robots often have: two cameras of 84x84 and a state of 9 numbers, 7 actions."""
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
    torch.manual_seed(0)
    agent = agents.create(schema.shapes(), schema.actions, config.agent, config.encoder, pretrained=False)
    folder.mkdir()
    parts = [name for name, _ in agent.named_children()]
    untrained = {"run": "none", "step": 0, "seed": 0, "environment": None, "evaluation": None, "versions": {}}
    untrained |= {"data": {"episodes": 0, "frames": 0}, "licences": {"weights": "unknown"}}
    artifact.write(folder, agent, schema, untrained, parts)
    return folder


def _alone(policy: Policy) -> np.ndarray:
    """Milliseconds (N,) of a plan without a server."""
    session, spent = policy.session(), []
    seen = observations(0, policy.schema.cameras, policy.schema.states)
    for step in range(_ALONE):
        began = time.perf_counter()
        session.plan(seen[step % len(seen)])
        spent.append(1e3 * (time.perf_counter() - began))
    return np.array(spent[_BEFORE:])


@contextmanager
def _server(folder: Path, clients: int) -> Iterator[str]:
    """A server in a process of its own; its address."""
    options = ["--port", "0", "--threads", "1", "--clients", str(clients), "--timeout", "60"]
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
                raise GtpVisionError(f"the server of {folder} did not start; see gtp-vision serve {folder}")
            yield "ws://" + line.partition("ws://")[2].split(",")[0].strip()
        finally:
            stop(server)


def _asked(address: str, clients: int, each: int, rate: float, aside: Path) -> list[dict[str, np.ndarray] | None]:
    """What came of each robot's requests; None for one that did not come to its end."""
    words = [address, str(clients), str(each), str(rate), str(aside)]
    robots = start("gtp_vision.bench.robot", *words)
    try:
        robots.wait(60 + 3 * each / rate)
    except subprocess.TimeoutExpired as error:
        raise GtpVisionError("the robots got no answers in three times the time they should take") from error
    finally:
        stop(robots)
    found = [aside / f"{seed}.npz" for seed in range(clients)]
    return [dict(np.load(path)) if path.exists() else None for path in found]


def _wrong(policy: Policy, seed: int, answers: np.ndarray) -> int:
    """How many of a robot's answers are not what the policy says of the same."""
    session, seen = policy.session(seed), observations(seed, policy.schema.cameras, policy.schema.states)
    wrong = 0
    for step, answer in enumerate(answers):
        wanted = session.plan(seen[step % len(seen)])
        wrong += not (np.isnan(answer).all() or np.array_equal(answer, wanted))
    return wrong
