"""A policy for robots on the network: websocket and msgpack, as openpi's public client speaks.

    robot -> observation (msgpack)        answered by {"actions": (H, A), "server_timing": {...}}, or by a sentence
    robot <- on connecting, what the policy is shown and answers

Every connection is a robot of its own, with its own frames, episode and noise. One thread acts, in the order in which
observations came; who asks faster than the policy answers loses his own oldest ones. Clients are strangers: see
`protocol` for what is believed of their messages, and here for who is let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import http
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.metrics import Metrics, Times
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.protocol import Reader, Request, packed
from gtp_vision.serving.settings import Settings, check, encryption, reason
from gtp_vision.serving.worker import Lane, PendingRequest, Worker

_HANDSHAKE = 10.0  # seconds
_PING = 20.0  # seconds between signs of life, and to answer one
_FAREWELL = 5.0  # seconds for a closing handshake
_UNREAD = 8  # answers that may wait for a client to read them, before no more of its messages are read


@dataclass(eq=False)
class Client:
    """A connection.

    Attributes:
        connection: to send by.
        session: its robot.
        lane: what waits for the policy.
        answers: what was asked, in order, until it is answered.
        seen: when its last message came, in the loop's seconds.
        pending: messages that are not answered yet.
    """

    connection: ServerConnection
    session: Session
    seen: float
    lane: Lane = field(default_factory=Lane)
    answers: asyncio.Queue[PendingRequest] = field(default_factory=lambda: asyncio.Queue(_UNREAD))
    pending: int = 0


class Server:
    """Serves a policy until it is stopped.

    Args:
        policy: to act by.
        settings: see there.
        tell: is given a sentence when something happens that an operator would want to know.

    Raises:
        GtpVisionError: settings that contradict each other or do not fit the policy.
    """

    def __init__(self, policy: Policy, settings: Settings, tell: Callable[[str], None] = lambda told: None) -> None:
        check(settings)
        policy.check_steps(settings.steps)
        schema = policy.schema
        self._policy, self._settings, self._tell = policy, settings, tell
        self._reader = Reader(schema.cameras, schema.states, renamed=settings.renamed, ignored=settings.ignored)
        self._metrics, self._clients = Metrics(), set[Client]()
        self._encryption = encryption(settings)
        self._worker = Worker(settings.queue)
        self._ending = False
        chunk = settings.answer == "chunk"
        told = {name: getattr(schema, name) for name in ("cameras", "states", "frame_stack", "agent", "task")}
        told |= {"actions": schema.actions, "chunk": schema.chunk if chunk else 1}
        told |= {"action_low": schema.action_low, "action_high": schema.action_high}
        self._greeting = packed({**told, "steps": settings.steps or schema.steps, "answer": settings.answer})

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serve until `stop` is set; then what was asked is answered, and clients are told goodbye (1001).

        Args:
            stop: ends it.
            ready: is given the address, e.g. `ws://127.0.0.1:8000`, once clients can come.

        Raises:
            GtpVisionError: the address cannot be listened at.
        """
        settings = self._settings
        await self._warm_up()
        gc.freeze()  # hundreds of thousands of objects that stay: looking through them takes milliseconds
        quiet = logging.getLogger("gtp_vision.serving.silent")  # what strangers do wrong is no news
        quiet.setLevel(logging.CRITICAL + 1)
        try:
            listener = await serve(
                self._handle,
                settings.host,
                settings.port,
                ssl=self._encryption,
                process_request=self._let_in,
                origins=[None],  # browsers name one: no page that somebody visits shall move a robot
                compression=None,
                open_timeout=_HANDSHAKE,
                ping_interval=_PING,
                ping_timeout=_PING,
                close_timeout=_FAREWELL,
                max_size=self._reader.max_size,
                max_queue=4,
                server_header=None,
                logger=quiet,
            )
        except (OSError, OverflowError) as error:
            self._worker.stop(_FAREWELL)
            raise GtpVisionError(
                f"{settings.host}:{settings.port} cannot be listened at ({reason(error)}); choose another --port or "
                f"--host"
            ) from error
        host, port = next(iter(listener.sockets)).getsockname()[:2]
        scheme = "wss" if self._encryption else "ws"
        watching = asyncio.create_task(self._send_away_the_idle())
        try:
            ready(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
            await stop.wait()
        finally:
            watching.cancel()
            await self._end(listener)

    async def _warm_up(self) -> None:
        """The first action takes longest; it should not be a robot's."""
        loop = asyncio.get_running_loop()

        def act() -> None:
            if self._settings.threads is not None:
                torch.set_num_threads(self._settings.threads)  # of this thread, which is the worker's
            schema = self._policy.schema
            seen: dict[str, np.ndarray] = {name: np.zeros(shape, np.uint8) for name, shape in schema.cameras.items()}
            seen |= {name: np.zeros(width, np.float32) for name, width in schema.states.items()}
            self._act(self._policy.session(), seen)

        job = PendingRequest(act, loop, time.perf_counter())
        self._worker.submit(Lane(), job)
        await job.answer

    async def _end(self, listener: Listener) -> None:
        """Answer what was asked, then close."""
        self._ending = True
        until = time.monotonic() + self._settings.timeout
        while any(client.pending for client in self._clients) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        listener.close(reason="the server is being stopped")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listener.wait_closed(), 2 * _FAREWELL)
        self._worker.stop(_FAREWELL)

    # Who is let in ---------------------------------------------------------------------------------------------------

    def _let_in(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """None for robots that may come in, else the answer to an HTTP request."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        if not self._shows_token(request):
            self._metrics.refused.labels("token").inc()
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self._metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        if self._ending:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the server is being stopped\n")
        if len(self._clients) >= self._settings.clients:
            self._metrics.refused.labels("full").inc()
            told = f"{self._settings.clients} clients are connected, and no more are let in (--clients)\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, told)
        return None

    def _shows_token(self, request: HttpRequest) -> bool:
        if self._settings.token is None:
            return True
        shown = request.headers.get_all("Authorization")
        scheme, _, token = (shown[0] if len(shown) == 1 else "").partition(" ")
        same = hmac.compare_digest(token.strip().encode(), self._settings.token.encode())
        return same and scheme.lower() in ("api-key", "bearer")

    async def _send_away_the_idle(self) -> None:
        patience, now = self._settings.idle, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(patience / 4, 5.0))
            for client in [client for client in self._clients if now() - client.seen > patience]:
                why = f"no message for {patience:g} s"
                with contextlib.suppress(ConnectionClosed):
                    await client.connection.close(1001, why)

    # A client's messages ---------------------------------------------------------------------------------------------

    async def _handle(self, connection: ServerConnection) -> None:
        if len(self._clients) >= self._settings.clients:  # several came in together
            self._metrics.refused.labels("full").inc()
            await connection.close(1013, "too many clients")
            return
        client = Client(connection, self._policy.session(self._settings.seed), asyncio.get_running_loop().time())
        self._clients.add(client)
        self._metrics.connections.inc()
        self._metrics.clients.inc()
        name = _address(connection)
        self._tell(f"{name} is here; {len(self._clients)} of {self._settings.clients} clients")
        answering = asyncio.create_task(self._answer(client))
        count = 0
        try:
            await connection.send(self._greeting)
            while True:
                message = await connection.recv()
                count += 1
                client.pending += 1
                await client.answers.put(self._job(client, message))
        except ConnectionClosed:
            pass
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            self._worker.withdraw(client.lane)
            self._clients.discard(client)
            self._metrics.clients.dec()
            self._tell(f"{name} is gone after {count} messages; {len(self._clients)} clients")

    def _job(self, client: Client, message: bytes | str) -> PendingRequest:
        """What a message asks, on its way; what is wrong with it is answered in its turn."""
        received, loop = time.perf_counter(), asyncio.get_running_loop()
        client.seen = loop.time()
        try:
            request = self._reader.read(message)
        except GtpVisionError as mistake:
            job = PendingRequest(lambda: None, loop, received)
            job.refuse("request", str(mistake))
            return job
        job = PendingRequest(lambda: self._do(client, request), loop, received, self._episode(client, request))
        if self._ending:
            job.refuse("ending", "the server is being stopped")
            return job
        dropped = self._worker.submit(client.lane, job)
        if dropped is not None:
            dropped.refuse(
                "dropped", "a newer observation came before this one's turn; wait for the answer, or use --queue"
            )
        late = f"the policy gave no answer within {self._settings.timeout:g} s"
        timer = loop.call_later(self._settings.timeout, self._give_up, client, job, late)
        job.answer.add_done_callback(lambda _: timer.cancel())
        return job

    def _give_up(self, client: Client, job: PendingRequest, why: str) -> None:
        self._worker.withdraw(client.lane, job)
        job.refuse("timeout", why)

    def _episode(self, client: Client, request: Request) -> Callable[[], None] | None:
        """What begins an episode where one is asked for, in the worker's thread."""

        def begin() -> None:
            if request.seed is not None:
                client.session = self._policy.session(request.seed)
            else:
                client.session.reset()

        return begin if request.reset else None

    def _do(self, client: Client, request: Request) -> np.ndarray | None:
        """In the worker's thread: an answer, if one is asked for."""
        return None if request.observation is None else self._act(client.session, request.observation)

    def _act(self, session: Session, observation: dict[str, np.ndarray]) -> np.ndarray:
        """(H, A), or (1, A) where the server answers actions."""
        if self._settings.answer == "chunk":
            return session.plan(observation, steps=self._settings.steps)
        return session.act(observation, steps=self._settings.steps)[None]

    async def _answer(self, client: Client) -> None:
        """Answer what was asked, one after another; counting comes after sending, as robots wait."""
        while True:
            job = await client.answers.get()
            try:
                answer: bytes | str = _told(job, await job.answer)
            except GtpVisionError as mistake:
                answer = str(mistake)
            try:
                await client.connection.send(answer)
            except ConnectionClosed:
                return
            finally:
                client.pending -= 1
                self._count(job, answer)

    def _count(self, job: PendingRequest, answer: bytes | str) -> None:
        self._metrics.requests.inc()
        if isinstance(answer, str):
            self._metrics.errors.labels(job.why).inc()
        elif job.answer.result() is None:
            self._metrics.resets.inc()
        else:
            acted = job.ended - job.started
            self._metrics.answered(Times(job.behind, acted, time.perf_counter() - job.received))


def _told(job: PendingRequest, actions: np.ndarray | None) -> bytes:
    if actions is None:
        return packed({"reset": True})
    timing = {"infer_ms": 1e3 * (job.ended - job.started), "queue_ms": 1e3 * job.behind}
    return packed({"actions": actions, "server_timing": timing})


def _address(connection: ServerConnection) -> str:
    address: Any = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"
