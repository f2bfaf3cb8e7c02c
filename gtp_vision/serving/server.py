"""A policy for robots on the network: websocket and msgpack, compatible with openpi's public client.

    client -> observation (msgpack)    answered by {"actions": (H, A), "server_timing": {...}}, or by an error as text;
                                       with limits also by "clamps", the numbers of actions that each of them changed;
                                       with calibrated doubt by "doubt", above 1 where the observation is unlike the
                                       training data, "because", by which signal, and "reaction", see `reactions`;
                                       with "executed", the actions of the last plan that the robot has executed, the
                                       plan continues it, and "delay" is answered: after how many more it is assumed
                                       to arrive, by the times of earlier answers unless the message has a "delay"
    client <- on connecting, the policy's observations and actions

Every connection is a robot with its own frame stack, episode and noise. One thread acts, in the order in which
observations arrived; a client that sends faster than the policy answers loses its own oldest ones. Clients are
untrusted: `protocol` checks their messages, and `Server` checks who may connect.
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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from gtp_vision.agents.settings import CUT
from gtp_vision.core.errors import GtpVisionError, reason
from gtp_vision.serving.answer import PLAN, Answered, answer
from gtp_vision.serving.delays import Delays
from gtp_vision.serving.metrics import Metrics, Times
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.protocol import Reader, Request, packed
from gtp_vision.serving.reactions import Doubt, DoubtError
from gtp_vision.serving.settings import Settings, check, encryption
from gtp_vision.serving.worker import Lane, PendingRequest, Worker

if TYPE_CHECKING:
    from gtp_vision.serving.recorder import Recorder  # which reads data sets: a server that records none does not

_HANDSHAKE = 10.0  # seconds
_PING = 20.0  # seconds between pings, and to answer one
_CLOSING = 5.0  # seconds for a closing handshake
_STOPPING = "the server is stopping"
_MAX_UNREAD = 8  # answers that a client may leave unread before its messages are no longer read


@dataclass(eq=False)
class Client:
    """A connected client.

    `last_message` is when its last message arrived, in the loop's seconds; `number` counts connections; `lane` holds
    requests that wait for the policy, `answers` all in order until they are answered, `pending` counts messages not
    answered yet, `delays` has the times of answered ones.
    """

    connection: ServerConnection
    session: Session
    last_message: float
    number: int
    lane: Lane = field(default_factory=Lane)
    answers: asyncio.Queue[PendingRequest] = field(default_factory=lambda: asyncio.Queue(_MAX_UNREAD))
    pending: int = 0
    delays: Delays = field(default_factory=Delays)


class Server:
    """Serves a policy until it is stopped; `log` is called with a line when a client connects or disconnects.

    `recorder` gets every observation that is answered with actions; it is not closed.

    Raises GtpVisionError: settings that contradict each other or do not fit the policy.
    """

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        log: Callable[[str], None] = lambda line: None,
        recorder: Recorder | None = None,
    ) -> None:
        check(settings)
        policy.check_steps(settings.steps)
        schema = policy.schema
        self._policy, self._settings, self._log, self._recorder = policy, settings, log, recorder
        self._reader = Reader(
            schema.cameras,
            schema.states,
            recorded=schema.recorded,
            renamed=settings.renamed,
            ignored=settings.ignored,
            instructions=schema.table,
        )
        self._metrics, self._clients = Metrics(), set[Client]()
        self._rate = None if schema.limits is None else schema.limits.rate
        self._encryption = encryption(settings)
        self._worker = Worker(settings.queue)
        self._ending, self._admitted = False, 0
        keys = ("cameras", "states", "frame_stack", "agent", "task", "actions", "action_low", "action_high")
        metadata = {key: getattr(schema, key) for key in keys}
        metadata["instructions"] = None if schema.table is None else list(schema.table.texts)
        metadata["join"] = policy.agent.config.acting.join
        metadata["on_doubt"] = None if policy.doubter() is None else policy.on_doubt.reaction
        metadata["limits"] = None if schema.limits is None else asdict(schema.limits)
        metadata["chunk"] = schema.chunk if settings.answer == PLAN else 1
        self._greeting = packed({**metadata, "steps": settings.steps or schema.steps, "answer": settings.answer})

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serve until `stop` is set; then pending requests are answered and connections closed (1001).

        `ready` is called with the address, e.g. `ws://127.0.0.1:8000`, once clients can connect. Raises GtpVisionError:
        the address cannot be used.
        """
        settings = self._settings
        await self._warm_up()
        gc.freeze()  # hundreds of thousands of permanent objects, which take milliseconds to scan
        quiet = logging.getLogger("gtp_vision.serving.silent")  # untrusted clients must not fill the log
        quiet.setLevel(logging.CRITICAL + 1)
        try:
            listener = await serve(
                self._handle,
                settings.host,
                settings.port,
                ssl=self._encryption,
                process_request=self._admit,
                origins=[None],  # browsers send an origin: a web page must not move a robot
                compression=None,
                open_timeout=_HANDSHAKE,
                ping_interval=_PING,
                ping_timeout=_PING,
                close_timeout=_CLOSING,
                max_size=self._reader.max_size,
                max_queue=1,
                server_header=None,
                logger=quiet,
            )
        except (OSError, OverflowError) as error:
            self._worker.stop(_CLOSING)
            raise GtpVisionError(
                f"cannot listen on {settings.host}:{settings.port} ({reason(error)}); choose another --port or --host"
            ) from error
        host, port = next(iter(listener.sockets)).getsockname()[:2]
        scheme = "wss" if self._encryption else "ws"
        closing = asyncio.create_task(self._close_idle())
        try:
            ready(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
            await stop.wait()
        finally:
            closing.cancel()
            await self._end(listener)

    async def _warm_up(self) -> None:
        """Act once before clients connect, as the first action takes longest."""
        loop = asyncio.get_running_loop()

        def act() -> None:
            if self._settings.threads is not None:
                torch.set_num_threads(self._settings.threads)  # of this thread, the worker's
            schema = self._policy.schema
            zeros: dict[str, np.ndarray] = {name: np.zeros(shape, np.uint8) for name, shape in schema.cameras.items()}
            zeros |= {name: np.zeros(width, np.float32) for name, width in schema.states.items()}
            session, kind = self._policy.session(), self._settings.answer
            acting = self._policy.agent.config.acting
            last = 0 if acting.join == CUT else 1 if kind == PLAN else acting.horizon(schema.chunk)
            with contextlib.suppress(DoubtError):  # these zeros are not like the data
                for step in range(last + 1):  # to the first plan that continues another
                    executed = step if kind == PLAN else None
                    self._answer(session, Request(zeros, reset=False, seed=None, executed=executed), 0)

        pending = PendingRequest(act, loop, time.perf_counter())
        self._worker.submit(Lane(), pending)
        await pending.answer

    async def _end(self, listener: Listener) -> None:
        """Answer pending requests, then close."""
        self._ending = True
        deadline = time.monotonic() + self._settings.timeout
        while any(client.pending for client in self._clients) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        listener.close(reason=_STOPPING)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listener.wait_closed(), 2 * _CLOSING)
        self._worker.stop(_CLOSING)

    # Admission -------------------------------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """None to open a websocket, else the response to an HTTP request."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        if not self._has_token(request):
            self._metrics.refused.labels("token").inc()
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self._metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        if self._ending:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{_STOPPING}\n")
        if len(self._clients) >= self._settings.clients:
            self._metrics.refused.labels("full").inc()
            full = f"all {self._settings.clients} connections are in use; start the server with more --clients\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, full)
        return None

    def _has_token(self, request: HttpRequest) -> bool:
        if self._settings.token is None:
            return True
        headers = request.headers.get_all("Authorization")
        scheme, _, token = (headers[0] if len(headers) == 1 else "").partition(" ")
        is_equal = hmac.compare_digest(token.strip().encode(), self._settings.token.encode())
        return is_equal and scheme.lower() in ("api-key", "bearer")

    async def _close_idle(self) -> None:
        idle, now = self._settings.idle, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(idle / 4, 5.0))
            for client in [client for client in self._clients if now() - client.last_message > idle]:
                with contextlib.suppress(ConnectionClosed):
                    await client.connection.close(1001, f"no message for {idle:g} s")

    # Messages of a client --------------------------------------------------------------------------------------------

    async def _handle(self, connection: ServerConnection) -> None:
        if len(self._clients) >= self._settings.clients:  # several connected at once
            self._metrics.refused.labels("full").inc()
            await connection.close(1013, "too many clients")
            return
        self._admitted += 1
        session = self._policy.session(self._settings.seed)
        client = Client(connection, session, asyncio.get_running_loop().time(), self._admitted)
        self._clients.add(client)
        self._metrics.connections.inc()
        self._metrics.clients.inc()
        address: Any = connection.remote_address
        name = f"{address[0]}:{address[1]}" if address else "a client"
        self._log(f"{name} connected; {len(self._clients)} of {self._settings.clients} clients")
        answering = asyncio.create_task(self._send_answers(client))
        count = 0
        try:
            await connection.send(self._greeting)
            while True:
                message = await connection.recv()
                count += 1
                client.pending += 1
                await client.answers.put(self._submit(client, message))
        except ConnectionClosed:
            pass
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            self._worker.cancel(client.lane)
            if self._recorder is not None:
                self._recorder.end(client.number)
            self._clients.discard(client)
            self._metrics.clients.dec()
            self._log(f"{name} disconnected after {count} messages; {len(self._clients)} clients")

    def _submit(self, client: Client, message: bytes | str) -> PendingRequest:
        """Queue a message's request; an invalid one is answered in its turn."""
        received, loop = time.perf_counter(), asyncio.get_running_loop()
        client.last_message = loop.time()
        try:
            request = self._reader.read(message)
        except GtpVisionError as error:
            pending = PendingRequest(lambda: None, loop, received)
            pending.refuse("request", str(error))
            return pending
        measured = client.delays.steps(self._rate, request.round_trip)

        def reset() -> None:
            if request.seed is not None:
                client.session = self._policy.session(request.seed)
            else:
                client.session.reset()
            if self._recorder is not None:
                self._recorder.end(client.number)

        def act() -> Answered | None:
            if request.observation is None:
                return None
            answered = self._answer(client.session, request, measured)
            if self._recorder is not None:
                now = time.time()
                waited = time.perf_counter() - received
                self._recorder.add(client.number, request.observation, answered, now - waited, now)
            return answered

        pending = PendingRequest(act, loop, received, reset if request.reset else None)
        if self._ending:
            pending.refuse("ending", _STOPPING)
            return pending
        dropped = self._worker.submit(client.lane, pending)
        if dropped is not None:
            dropped.refuse("dropped", "a newer observation replaced this one; wait for the answer, or raise --queue")
        timer = loop.call_later(self._settings.timeout, self._give_up, client, pending)
        pending.answer.add_done_callback(lambda _: timer.cancel())
        return pending

    def _give_up(self, client: Client, pending: PendingRequest) -> None:
        self._worker.cancel(client.lane, pending)
        pending.refuse("timeout", f"the policy gave no answer within {self._settings.timeout:g} s")

    def _answer(self, session: Session, request: Request, measured: int) -> Answered:
        """Answer as configured, in the worker's thread; `measured` is the delay of a request that has none."""
        assert request.observation is not None
        executed, delay = request.executed, request.delay
        if delay is None:
            delay = 0 if executed is None else min(measured, session.remaining(executed))
        kind, steps = self._settings.answer, self._settings.steps
        return answer(session, request.observation, kind, steps=steps, executed=executed, delay=delay)

    async def _send_answers(self, client: Client) -> None:
        """Send answers in order; metrics are updated after sending, as robots wait."""
        while True:
            pending = await client.answers.get()
            try:
                message: bytes | str = _message(pending, await pending.answer)
            except GtpVisionError as error:
                message = str(error)
            try:
                await client.connection.send(message)
            except ConnectionClosed:
                return
            finally:
                client.pending -= 1
                if isinstance(message, bytes):
                    client.delays.add(time.perf_counter() - pending.received)
                self._count(pending, message)

    def _count(self, pending: PendingRequest, message: bytes | str) -> None:
        self._metrics.requests.inc()
        if isinstance(message, str):
            self._metrics.errors.labels(pending.cause).inc()
        elif pending.answer.result() is None:
            self._metrics.resets.inc()
        else:
            answered: Answered = pending.answer.result()
            for limit, numbers in answered.clamps.items():
                self._metrics.clamps.labels(limit).inc(numbers)
            if answered.doubt:
                self._metrics.doubted(Doubt.of(answered.doubt))
            acted = pending.ended - pending.started
            self._metrics.answered(Times(pending.queued, acted, time.perf_counter() - pending.received))


def _message(pending: PendingRequest, answered: Answered | None) -> bytes:
    if answered is None:
        return packed({"reset": True})
    timing = {"infer_ms": 1e3 * (pending.ended - pending.started), "queue_ms": 1e3 * pending.queued}
    more: dict[str, Any] = {"clamps": answered.clamps} if answered.clamps else {}
    if answered.doubt:
        doubt = Doubt.of(answered.doubt)
        more |= {"doubt": doubt.value, "because": doubt.because, "reaction": doubt.reaction}
    if answered.executed is not None:
        more["delay"] = answered.delay
    return packed({"actions": answered.actions, "server_timing": timing, **more})
