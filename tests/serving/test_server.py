"""The server answers openpi's own client as the policy acts, and strangers in a sentence."""

import asyncio
import contextlib
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import trustme
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gtp_vision import agents
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving import server as module
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.protocol import packed, unpacked
from gtp_vision.serving.schema import Schema
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings

TOKEN = "an-example-of-a-token"


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Untrained: a camera, a state, two frames, chunks of four actions of two numbers, of which three are executed."""
    torch.manual_seed(0)
    words = ["task=demo", "agent=gtp_bc", "encoder=impala_small", "agent.policy.hidden=[16]", "agent.action_chunk=4"]
    config = from_command_line([*words, "agent.acting.execute=3"])
    schema = Schema(
        cameras={"front": (16, 12, 3)},
        states={"arm": 5},
        frame_stack=2,
        action_low=(-3.0, 0.0),
        action_high=(1.0, 250.0),
        chunk=4,
        steps=2,
        candidates=1,
        agent="gtp_bc",
        task="test",
    )
    agent = agents.create(schema.shapes(), 2, config.agent, config.encoder, pretrained=False)
    return Policy(agent, schema, {})


class Running:
    """A server in a thread."""

    def __init__(self, server: Server) -> None:
        self.server, self.address = server, ""
        ready = threading.Event()

        async def run() -> None:
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()

            def here(address: str) -> None:
                self.address = address
                ready.set()

            await server.run(self.stop, here)

        self.thread = threading.Thread(target=lambda: asyncio.run(run()))
        self.thread.start()
        assert ready.wait(60)

    @property
    def http(self) -> str:
        return self.address.replace("ws", "http", 1)

    def end(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(30)
        assert not self.thread.is_alive()


Serve = Callable[..., Running]


@pytest.fixture
def serve(policy: Policy) -> Iterator[Serve]:
    """Start a server with settings."""
    running: list[Running] = []

    def start(policy: Policy = policy, **settings: Any) -> Running:
        running.append(Running(Server(policy, Settings(port=0, **settings))))
        return running[-1]

    yield start
    for one in running:
        one.end()


def observations(count: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [
        {
            "front": random.integers(0, 256, (16, 12, 3), np.uint8),
            "arm": random.normal(size=5).astype(np.float32),
        }
        for _ in range(count)
    ]


def sentence(connection: Any, message: bytes | str) -> str:
    """What a message is answered with, which is no answer."""
    connection.send(message)
    answer = connection.recv(timeout=10)
    assert isinstance(answer, str), answer
    assert "Traceback" not in answer
    assert "\n" not in answer
    return answer


def metric(running: Running, line: str) -> float:
    text = urllib.request.urlopen(f"{running.http}/metrics").read().decode()
    return float(next(one.rpartition(" ")[2] for one in text.splitlines() if one.startswith(line + " ")))


# Robots -------------------------------------------------------------------------------------------------------------


def test_openpis_client_gets_the_policys_plans(serve: Serve, policy: Policy) -> None:
    running = serve(seed=3)
    robot, twin = WebsocketClientPolicy(running.address), policy.session(3)
    told = robot.get_server_metadata()
    assert told["cameras"] == {"front": [16, 12, 3]}
    assert (told["actions"], told["chunk"], told["action_high"]) == (2, 4, [1.0, 250.0])
    for seen in observations(3):
        answer = robot.infer(seen)
        assert np.array_equal(answer["actions"], twin.plan(seen))
        assert answer["actions"].shape == (4, 2)
        assert answer["server_timing"]["infer_ms"] > 0
    robot._ws.close()


def test_openpis_broker_executes_chunks(serve: Serve, policy: Policy) -> None:
    robot = WebsocketClientPolicy(serve().address)
    broker, seen = ActionChunkBroker(robot, 4), observations(2)
    done = [broker.infer(seen[0])["actions"] for _ in range(4)]
    assert np.array_equal(done, policy.session().plan(seen[0]))
    robot._ws.close()


def test_single_actions_are_those_of_act(serve: Serve, policy: Policy) -> None:
    twin = policy.session()
    with connect(serve(answer="action", steps=1).address) as connection:
        assert unpacked(bytes(connection.recv()))["chunk"] == 1
        for seen in observations(5):
            connection.send(packed(seen))
            assert np.array_equal(unpacked(bytes(connection.recv()))["actions"], twin.act(seen, steps=1)[None])


def test_every_robot_has_episodes_of_its_own(serve: Serve, policy: Policy) -> None:
    address = serve().address

    def drive(seed: int) -> list[bool]:
        twin, same = policy.session(seed), []
        with connect(address) as connection:
            connection.recv()
            connection.send(packed({"seed": seed}))
            assert unpacked(bytes(connection.recv())) == {"reset": True}
            for step, seen in enumerate(observations(12, seed)):
                begins = step == 5
                if begins:
                    twin.reset()
                connection.send(packed({**seen, "reset": True} if begins else seen))
                same.append(np.array_equal(unpacked(bytes(connection.recv()))["actions"], twin.plan(seen)))
        return same

    with ThreadPoolExecutor(5) as pool:
        assert all(all(same) for same in pool.map(drive, range(5)))


def test_names_layouts_and_types_of_others(serve: Serve, policy: Policy) -> None:
    running = serve(renamed={"observation/image": "front", "observation/joints": "arm"}, ignored=("prompt",))
    seen = observations(1)[0]
    wanted = policy.session().plan(seen)
    robot = WebsocketClientPolicy(running.address)
    nested = {"image": seen["front"].transpose(2, 0, 1), "joints": seen["arm"].astype(np.float64)}
    assert np.array_equal(robot.infer({"observation": nested, "prompt": "pick it up"})["actions"], wanted)
    robot._ws.close()
    robot = WebsocketClientPolicy(running.address)
    flat = {"observation/image": seen["front"], "observation/joints": [float(x) for x in seen["arm"]]}
    assert np.array_equal(robot.infer(flat)["actions"], wanted)
    robot._ws.close()


# Strangers ----------------------------------------------------------------------------------------------------------


def array(**changed: Any) -> dict[bytes, Any]:
    """The camera's picture as openpi's client packs it, but for what is changed."""
    made = {b"__ndarray__": True, b"data": bytes(576), b"dtype": "|u1", b"shape": [16, 12, 3]}
    return made | {key.encode(): value for key, value in changed.items()}


WRONG: dict[str, tuple[Any, str]] = {
    "text": ("hello", "text; send msgpack"),
    "nothing": (b"", "no msgpack"),
    "cut": (packed(observations(1)[0])[:-7], "no msgpack"),
    "no map": (msgpack.packb([1, 2]), "holds a list"),
    "empty": ({}, "'front' (16, 12, 3) is missing"),
    "unknown": ({"fornt": array()}, "'fornt' is no camera or state"),
    "key": ({b"front": array()}, "a key of the message is bytes"),
    "number as key": ({7: array()}, "no msgpack"),
    "object": ({"front": array(dtype="|O"), "arm": [0.0] * 5}, "of type |O"),
    "structured": ({"front": array(dtype=[["x", "<f4"]]), "arm": [0.0] * 5}, "of type a list"),
    "float pictures": ({"front": array(dtype="<f4"), "arm": [0.0] * 5}, "of type <f4; send uint8"),
    "size": ({"front": array(shape=[8, 12, 3]), "arm": [0.0] * 5}, "has shape (8, 12, 3)"),
    "negative": ({"front": array(shape=[-16, -12, 3]), "arm": [0.0] * 5}, "has shape (-16, -12, 3)"),
    "huge": ({"front": array(shape=[1 << 40, 1 << 20, 3]), "arm": [0.0] * 5}, "has shape (1099511627776"),
    "bytes": ({"front": array(data=bytes(10)), "arm": [0.0] * 5}, "holds 10 bytes; send 576"),
    "extension": ({"front": msgpack.ExtType(5, b"x"), "arm": [0.0] * 5}, "no msgpack"),
    "list": ({"front": array(), "arm": [0.0] * 4}, "'arm' is a list of 4 items"),
    "words": ({"front": array(), "arm": ["a"] * 5}, "'arm' is a list of 5 items"),
    "not finite": ({"front": array(), "arm": [float("nan")] * 5}, "not finite"),
    "beyond": ({"front": array(), "arm": [1e300] * 5}, "not finite"),
    "deep": ({"a": {"b": {"c": {"d": {"e": 1}}}}}, "deeper than 4 maps"),
    "many": ({str(i): {} for i in range(200)} | {"x": [[]] * 100}, "more than 256 maps and lists"),
    "seed": ({"seed": -1}, "'seed' is -1"),
    "reset": ({"reset": 1}, "'reset' is of type int"),
    "twice": ({"front": array(), "camera": array(), "arm": [0.0] * 5}, "'front' came twice"),
}


@pytest.fixture(scope="module")
def shared(policy: Policy) -> Iterator[Running]:
    running = Running(Server(policy, Settings(port=0, renamed={"camera": "front"})))
    yield running
    running.end()


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_is_wrong_is_told_and_the_robot_goes_on(name: str, shared: Running, policy: Policy) -> None:
    message, told = WRONG[name]
    twin, seen = policy.session(), observations(2)
    with connect(shared.address) as connection:
        connection.recv()
        connection.send(packed(seen[0]))
        assert np.array_equal(unpacked(bytes(connection.recv()))["actions"], twin.plan(seen[0]))
        assert told in sentence(connection, message if isinstance(message, (bytes, str)) else msgpack.packb(message))
        connection.send(packed(seen[1]))
        assert np.array_equal(unpacked(bytes(connection.recv()))["actions"], twin.plan(seen[1]))


def test_mutated_messages_are_answered(shared: Running) -> None:
    good, random = packed(observations(1)[0]), np.random.default_rng(0)
    with connect(shared.address) as connection:
        connection.recv()
        for number in range(200):
            message = bytearray(good)
            for _ in range(random.integers(1, 6)):
                # the headers of arrays and names, seldom a picture's bytes, which may be any
                place = int(random.choice([*range(40), *range(len(message) - 80, len(message)), 300]))
                message[place] = random.integers(256)
            connection.send(bytes(message if number % 5 else message[: random.integers(len(message))]))
            answer = connection.recv(timeout=5)
            assert isinstance(answer, bytes) or ("\n" not in answer and "Traceback" not in answer)


def test_a_message_too_large_ends_the_connection_alone(shared: Running) -> None:
    with connect(shared.address) as other:
        other.recv()
        with connect(shared.address) as connection:
            connection.recv()
            connection.send(bytes(4 << 20))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd
            assert closed.value.rcvd.code == 1009
        other.send(packed(observations(1)[0]))
        assert isinstance(other.recv(timeout=10), bytes)


def test_a_page_in_a_browser_is_not_let_in(shared: Running) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(shared.address, origin="http://localhost")  # type: ignore[arg-type]


# Who is let in ------------------------------------------------------------------------------------------------------


def test_the_token_opens(serve: Serve) -> None:
    running = serve(token=TOKEN)
    robot = WebsocketClientPolicy(running.address, api_key=TOKEN)
    assert robot.infer(observations(1)[0])["actions"].shape == (4, 2)
    robot._ws.close()
    for headers in (
        {},
        {"Authorization": "Api-Key wrong"},
        {"Authorization": TOKEN},
        {"Authorization": "Basic " + TOKEN},
    ):
        with pytest.raises(InvalidStatus, match="401"):
            connect(running.address, additional_headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{running.http}/metrics")
    assert urllib.request.urlopen(f"{running.http}/healthz").read() == b"ok\n"
    asked = urllib.request.Request(f"{running.http}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert 'gtp_vision_refused_total{why="token"} 5.0' in urllib.request.urlopen(asked).read().decode()


def test_encrypted(serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    running = serve(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    assert running.address.startswith("wss://")
    with connect(running.address, ssl=trusting) as connection:
        connection.recv()
        connection.send(packed(observations(1)[0]))
        assert isinstance(connection.recv(), bytes)
    with pytest.raises(ssl.SSLError):
        connect(running.address)


def test_no_more_clients_than_allowed(serve: Serve) -> None:
    running = serve(clients=1)
    with connect(running.address) as connection:
        connection.recv()
        with pytest.raises(InvalidStatus, match="503"):
            connect(running.address)
    assert metric(running, 'gtp_vision_refused_total{why="full"}') == 1


def test_who_is_silent_is_sent_away(serve: Serve) -> None:
    with connect(serve(idle=0.3).address) as connection:
        connection.recv()
        with pytest.raises(ConnectionClosed, match=r"no message for 0\.3 s"):
            connection.recv(timeout=10)


def test_settings_that_contradict_each_other() -> None:
    def refused(**settings: Any) -> str:
        with pytest.raises(GtpVisionError) as mistake:
            module.check(Settings(**settings))
        return str(mistake.value)

    assert "--token-file, or --open" in refused(host="0.0.0.0")
    assert "--token-file" in refused(host="robot.local")
    assert "16 or more" in refused(token="short")
    assert "belong together" in refused(certificate=Path("cert.pem"))
    for name in ("clients", "queue", "timeout", "idle"):
        assert f"--{name} 0" in refused(**{name: 0})
    assert "--timeout nan" in refused(timeout=float("nan"))
    assert "--answer plan" in refused(answer="plan")
    module.check(Settings(host="0.0.0.0", open=True))
    module.check(Settings(host="::1"))
    module.check(Settings(host="0.0.0.0", token=TOKEN))


def test_what_cannot_be_served(policy: Policy, shared: Running, tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match="'x=fornt' leads to no camera or state"):
        Server(policy, Settings(renamed={"x": "fornt"}))
    with pytest.raises(GtpVisionError, match="no number of jumps"):
        Server(policy, Settings(steps=0))
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("-----BEGIN NOTHING-----\n")
    with pytest.raises(GtpVisionError, match="no certificate and key"):
        Server(policy, Settings(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem"))
    taken = Server(policy, Settings(port=int(shared.address.rpartition(":")[2])))
    with pytest.raises(GtpVisionError, match="cannot be listened at"):
        asyncio.run(taken.run(asyncio.Event(), print))


# Too much, too slow, and the end --------------------------------------------------------------------------------------


class Slow(Session):
    """Acts when it may."""

    may = threading.Event()
    begun = 0

    def plan(self, observation: Any, *, steps: int | None = None) -> np.ndarray:
        Slow.begun += 1
        if not self.may.wait(10):
            raise ValueError("never")
        return super().plan(observation, steps=steps)


@pytest.fixture
def slow(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    Slow.may, Slow.begun = threading.Event(), 0
    Slow.may.set()  # for the first action, which is nobody's
    monkeypatch.setattr(policy, "session", lambda seed=0: Slow(policy, seed))
    return Slow


def until(true: Callable[[], bool]) -> None:
    """Wait for the server."""
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def asked(running: Running) -> list[int]:
    """Messages of each client that have come and are not answered."""
    return sorted(client.pending for client in running.server._clients)


def test_the_oldest_is_dropped_and_its_episode_begins_all_the_same(
    serve: Serve, slow: type[Slow], policy: Policy
) -> None:
    running = serve()
    twin, seen = Session(policy, 9), observations(4)
    with connect(running.address) as connection:
        connection.recv()
        slow.may.clear()
        connection.send(packed(seen[0]))  # is acted on
        until(lambda: slow.begun == 2)
        for message in ({**seen[1], "seed": 9}, seen[2], seen[3]):  # one may wait
            connection.send(packed(message))
        until(lambda: asked(running) == [4])
        time.sleep(0.1)  # its figures are looked at below
        slow.may.set()
        answers = [connection.recv(timeout=10) for _ in range(4)]
    assert [type(answer) for answer in answers] == [bytes, str, str, bytes]
    assert "a newer observation came" in answers[1]
    assert np.array_equal(unpacked(bytes(answers[3]))["actions"], twin.plan(seen[3]))
    assert metric(running, 'gtp_vision_errors_total{why="dropped"}') == 2
    assert metric(running, "gtp_vision_answers_total") == 2
    assert metric(running, 'gtp_vision_seconds{part="acted",quantile="0.99"}') > 0.1


def test_who_floods_loses_only_his_own(serve: Serve, slow: type[Slow]) -> None:
    running = serve()
    with connect(running.address) as flood, connect(running.address) as robot:
        flood.recv(), robot.recv()
        slow.may.clear()
        flood.send(packed(observations(1)[0]))
        until(lambda: slow.begun == 2)
        for _ in range(4):
            flood.send(packed(observations(1)[0]))
        robot.send(packed(observations(1)[0]))
        until(lambda: asked(running) == [1, 5])
        slow.may.set()
        assert isinstance(robot.recv(timeout=10), bytes)


def test_an_answer_that_does_not_come(serve: Serve, slow: type[Slow]) -> None:
    with connect(serve(timeout=2).address) as connection:
        connection.recv()
        slow.may.clear()
        assert "no answer within 2 s" in sentence(connection, packed(observations(1)[0]))
        slow.may.set()
        connection.send(packed(observations(1)[0]))
        assert isinstance(connection.recv(timeout=10), bytes)


def test_a_defect_inside_is_not_told_to_strangers(
    serve: Serve, policy: Policy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    running = serve()
    monkeypatch.setattr(Session, "plan", lambda *a, **k: 1 // 0)
    with connect(running.address) as connection:
        connection.recv()
        assert "log says how" in sentence(connection, packed(observations(1)[0]))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_at_the_end_what_was_asked_is_answered(serve: Serve, slow: type[Slow]) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    running = serve()
    with connect(running.address) as connection:
        connection.recv()
        slow.may.clear()
        connection.send(packed(observations(1)[0]))
        until(lambda: asked(running) == [1])
        running.loop.call_soon_threadsafe(running.stop.set)
        until(lambda: running.server._ending)
        slow.may.set()
        assert isinstance(connection.recv(timeout=10), bytes)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1001
    running.end()
    assert not [thread for thread in threading.enumerate() if thread.ident not in before]
