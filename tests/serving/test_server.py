import asyncio
import io
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
import trustme
from commands import wait_for
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image
from running import Running
from small_policies import knowing, observations, untrained
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.limits import Limits
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.serving.protocol import Reader, packed, unpacked
from gtp_vision.serving.reactions import OnDoubt
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings, check

TOKEN = "an-example-of-a-token"
SEEN = observations(SimpleNamespace(cameras={"front": (16, 12, 3)}, states={"arm": 5}), 6)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A camera, a state, two frames, chunks of four actions of two numbers, of which three are executed."""
    return untrained("agent=gtp_bc", "agent.action_chunk=4", "agent.acting.execute=3")


Serve = Callable[..., Running]


@pytest.fixture
def serve(policy: Policy) -> Iterator[Serve]:
    running: list[Running] = []

    def start(served: Policy = policy, **settings: Any) -> Running:
        running.append(Running(Server(served, Settings(port=0, **settings))))
        return running[-1]

    yield start
    for server in running:
        server.end()


@pytest.fixture(scope="module")
def shared(policy: Policy) -> Iterator[Running]:
    """A server of default settings for tests that leave no trace."""
    running = Running(Server(policy, Settings(port=0, seed=3, renamed={"camera": "front"})))
    yield running
    running.end()


def actions_of(connection: Any, message: dict[str, Any]) -> np.ndarray:
    connection.send(packed(message))
    return unpacked(bytes(connection.recv(timeout=10)))["actions"]


def error_of(connection: Any, message: bytes | str) -> str:
    connection.send(message)
    answer = connection.recv(timeout=10)
    assert isinstance(answer, str), answer
    assert "Traceback" not in answer
    assert "\n" not in answer
    return answer


def metric(running: Running, line: str) -> float:
    text = urllib.request.urlopen(f"{running.http}/metrics").read().decode()
    return float(next(other.rpartition(" ")[2] for other in text.splitlines() if other.startswith(line + " ")))


def test_doubt_is_answered_and_counted_and_stops_until_a_reset(policy: Policy) -> None:
    doubting = knowing(policy, OnDoubt("stop", 2), threshold=1e-6)
    running = Running(Server(doubting, Settings(port=0)))
    try:
        with connect(running.address, compression=None) as robot:
            assert unpacked(bytes(robot.recv()))["on_doubt"] == "stop"
            robot.send(packed(SEEN[0]))
            answer = unpacked(bytes(robot.recv(timeout=10)))
            assert answer["doubt"] > 1
            assert answer["because"] in ("camera front", "state arm")
            assert answer["reaction"] == "none"
            for seen in SEEN[1:3]:
                assert "stopped because of doubt" in error_of(robot, packed(seen))
            assert actions_of(robot, SEEN[3] | {"reset": True}).shape == (4, 2)
            metrics = urllib.request.urlopen(f"{running.http}/metrics", timeout=10).read().decode()
            assert 'gtp_vision_errors_total{why="doubt"} 2.0' in metrics
            assert f'gtp_vision_doubts_total{{because="{answer["because"]}"}}' in metrics
    finally:
        running.end()


def test_openpis_client_and_broker_get_the_policys_plans(shared: Running, policy: Policy) -> None:
    robot, twin, seen = WebsocketClientPolicy(shared.address), policy.session(3), SEEN
    metadata = robot.get_server_metadata()
    assert metadata["cameras"] == {"front": [16, 12, 3]}
    assert (metadata["actions"], metadata["chunk"], metadata["action_high"]) == (2, 4, [1.0, 250.0])
    for observation in seen[:2]:
        answer = robot.infer(observation)
        assert np.array_equal(answer["actions"], twin.plan(observation))
        assert answer["server_timing"]["infer_ms"] > 0
    broker = ActionChunkBroker(robot, 4)
    assert np.array_equal([broker.infer(seen[2])["actions"] for _ in range(4)], twin.plan(seen[2]))
    robot._ws.close()


def test_single_actions_are_those_of_act(serve: Serve, policy: Policy) -> None:
    twin = policy.session()
    with connect(serve(answer="action", steps=1).address) as connection:
        assert unpacked(bytes(connection.recv()))["chunk"] == 1
        for seen in SEEN:
            assert np.array_equal(actions_of(connection, seen), twin.act(seen, steps=1)[None])


def test_answers_and_metrics_hold_what_limits_changed(policy: Policy) -> None:
    schema = policy.schema
    limits = replace(Limits.position(schema.action_low, schema.action_high, 10.0), speed=(1.0, None))
    limited = Policy(policy.agent, replace(schema, limits=limits), policy.card)
    running, twin, total = Running(Server(limited, Settings(port=0, answer="action"))), limited.session(), 0
    try:
        with connect(running.address) as connection:
            assert unpacked(bytes(connection.recv()))["limits"]["speed"] == [1.0, None]
            for seen in SEEN:
                connection.send(packed(seen))
                answer = unpacked(bytes(connection.recv(timeout=10)))
                assert np.array_equal(answer["actions"], twin.act(seen)[None])
                assert answer["clamps"] == twin.clamps
                total += twin.clamps["speed"]
        assert total > 0
        assert metric(running, 'gtp_vision_clamps_total{limit="speed"}') == total
        assert metric(running, 'gtp_vision_clamps_total{limit="position"}') == 0
    finally:
        running.end()


def test_every_connection_has_its_own_episodes(shared: Running, policy: Policy) -> None:
    def drive(seed: int) -> list[bool]:
        twin, equal = policy.session(seed), []
        with connect(shared.address) as connection:
            connection.recv()
            connection.send(packed({"seed": seed}))
            assert unpacked(bytes(connection.recv())) == {"reset": True}
            for step, seen in enumerate(SEEN):
                if step == 3:
                    twin.reset()
                answer = actions_of(connection, {**seen, "reset": True} if step == 3 else seen)
                equal.append(np.array_equal(answer, twin.plan(seen)))
        return equal

    with ThreadPoolExecutor(3) as pool:
        assert all(all(equal) for equal in pool.map(drive, range(3)))


def test_other_names_layouts_and_types_are_accepted(serve: Serve, policy: Policy) -> None:
    running = serve(renamed={"observation/image": "front", "observation/joints": "arm"}, ignored=("prompt",))
    seen = SEEN[0]
    nested = {"image": seen["front"].transpose(2, 0, 1), "joints": seen["arm"].astype(np.float64)}
    flat = {"observation/image": seen["front"], "observation/joints": [float(x) for x in seen["arm"]]}
    for message in ({"observation": nested, "prompt": "pick it up"}, flat):
        robot = WebsocketClientPolicy(running.address)
        assert np.array_equal(robot.infer(message)["actions"], policy.session().plan(seen))
        robot._ws.close()


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG")
    return file.getvalue()


def test_a_frame_may_be_a_jpeg_file(shared: Running, policy: Policy) -> None:
    encoded = jpeg(SEEN[0]["front"])
    seen = np.asarray(Image.open(io.BytesIO(encoded)))
    message = {**SEEN[0], "front": encoded, "seed": 3}
    with connect(shared.address) as connection:
        connection.recv()
        connection.send(msgpack.packb(message, default=openpis))
        expected = policy.session(3).plan({**SEEN[0], "front": seen})
        assert np.array_equal(unpacked(bytes(connection.recv()))["actions"], expected)
        for wrong, words in (
            (jpeg(np.zeros((16, 13, 3), np.uint8)), "'front' is not a JPEG image of 16x12x3 (it is 16x13x3)"),
            (encoded[:40], "'front' is not a JPEG image of 16x12x3 ("),
            (b"not one", "(its bytes are of another format); send one, or an array"),
        ):
            connection.send(msgpack.packb({**message, "front": wrong}, default=openpis))
            assert words in str(connection.recv())


def test_frames_of_the_recorded_size_are_read_where_the_policy_resizes_them() -> None:
    reader = Reader({"front": (6, 8, 3)}, {}, recorded={"front": (30, 40, 3)})
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    for sent in (frame, np.ascontiguousarray(frame.transpose(2, 0, 1))):
        read = reader.read(msgpack.packb({"front": sent}, default=openpis)).observation
        assert read is not None
        assert np.array_equal(read["front"], frame)
    with pytest.raises(GtpVisionError, match=r"shape \(7, 8, 3\); send \(6, 8, 3\) or \(30, 40, 3\) or \(3, 6, 8\)"):
        reader.read(msgpack.packb({"front": frame[:7, :8]}, default=lambda x: openpis(np.ascontiguousarray(x))))


def openpis(value: object) -> dict[bytes, Any]:
    """As openpi's client packs NumPy's values."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    assert isinstance(value, np.generic)
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def msgpack_numpys(value: object) -> dict[bytes, Any]:
    """As PyPI's msgpack-numpy 0.4.8 packs them (https://github.com/lebedov/msgpack-numpy)."""
    assert isinstance(value, np.ndarray | np.generic)
    packed = {b"nd": isinstance(value, np.ndarray), b"type": value.dtype.str, b"data": value.tobytes()}
    return {**packed, b"kind": b"", b"shape": value.shape} if isinstance(value, np.ndarray) else packed


def with_text_keys(pack: Callable[[object], dict[bytes, Any]]) -> Callable[[object], dict[str, Any]]:
    return lambda value: {key.decode(): part for key, part in pack(value).items()}


DIALECTS: dict[str, tuple[Callable[[object], Any], dict[str, Any]]] = {
    "openpi": (openpis, {}),
    "openpi, text": (with_text_keys(openpis), {}),
    "msgpack-numpy": (msgpack_numpys, {}),
    "msgpack-numpy of Python 2": (with_text_keys(msgpack_numpys), {}),
    "msgpack before 1.0": (msgpack_numpys, {"use_bin_type": False}),
}
FRAME, ARM = SEEN[0]["front"], np.float32([1, 0, -2, 0.5, 3])
MESSAGES: dict[str, tuple[Any, ...]] = {  # of the same frame and numbers
    "arrays": (FRAME, ARM),
    "float64": (FRAME, ARM.astype("f8")),
    "float16": (FRAME, ARM.astype("f2")),
    "big-endian": (FRAME, ARM.astype(">f4")),
    "Fortran order": (np.asfortranarray(FRAME), ARM),
    "channels first": (np.ascontiguousarray(FRAME.transpose(2, 0, 1)), ARM),
    "not contiguous": (np.repeat(FRAME, 2, 1)[:, ::2], np.repeat(ARM, 2)[::2]),
    "numbers": (FRAME, ARM.tolist()),
    "NumPy's numbers": (FRAME, list(ARM)),
    "0-d arrays": (FRAME, [np.array(number, ">f8") for number in ARM]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_of_numpy_in_msgpack_get_the_same_answers(dialect: str, shared: Running, policy: Policy) -> None:
    pack, options = DIALECTS[dialect]
    expected = policy.session(3).plan({"front": FRAME, "arm": ARM})
    with connect(shared.address) as connection:
        connection.recv()
        for frame, arm in MESSAGES.values():
            for episode in ({"seed": np.int64(3)}, {"reset": np.bool_(True), b"seed": np.array(3, ">u2")}):
                message = {b"front": frame, "arm": arm, **episode}
                connection.send(msgpack.packb(message, default=pack, **options))
                answer = connection.recv(timeout=10)
                assert isinstance(answer, bytes), answer
                assert np.array_equal(unpacked(answer)["actions"], expected)


def test_answers_are_arrays_for_openpis_client_and_for_msgpack_numpy() -> None:
    actions = np.float32([[1, 2], [3, 4]])
    (array,) = msgpack.unpackb(packed({"actions": actions})).values()
    assert msgpack.unpackb(msgpack.packb(openpis(actions))).items() <= array.items()
    assert msgpack.unpackb(msgpack.packb(msgpack_numpys(actions))).items() <= array.items()


@pytest.mark.parametrize("ignored", [("hd", "meta"), ("*",)], ids=["by name", "all"])
def test_ignored_values_may_be_large_and_of_any_kind(ignored: tuple[str, ...], serve: Serve, policy: Policy) -> None:
    frame, scan = np.zeros((1080, 1920, 3), np.float32), list(range(4000))
    deep = {"a": {"b": {"c": {"d": frame[0]}}}, "note": "long " * 5000, "time": msgpack.Timestamp(1, 2), "scan": scan}
    with connect(serve(ignored=ignored).address) as connection:
        connection.recv()
        connection.send(msgpack.packb({**SEEN[0], "hd": frame, "meta": deep}, default=openpis))
        assert np.array_equal(unpacked(bytes(connection.recv()))["actions"], policy.session().plan(SEEN[0]))


def array(**changed: Any) -> dict[bytes, Any]:
    """The camera's image as openpi's client packs it, with changes."""
    image = {b"__ndarray__": True, b"data": bytes(576), b"dtype": "|u1", b"shape": [16, 12, 3]}
    return image | {key.encode(): value for key, value in changed.items()}


def with_arm(**message: Any) -> dict[str, Any]:
    return message | {"arm": [0.0] * 5}


WRONG: dict[str, tuple[Any, str]] = {
    "text": ("hello", "text; send msgpack"),
    "cut": (packed(SEEN[0])[:-7], "not valid msgpack"),
    "no map": (msgpack.packb([1, 2]), "holds a list"),
    "empty": ({}, "'front' (16, 12, 3) is missing"),
    "unknown": ({"fornt": array()}, "'fornt' is not a camera or state"),
    "key": ({b"front": array(), "front": array()}, "a name was sent twice, as text and as bytes"),
    "number as key": ({7: array()}, "not valid msgpack"),
    "object": (with_arm(front=array(dtype="|O")), "of type |O, a pickle"),
    "structured": (with_arm(front=array(dtype=[["x", "<f4"]])), "'front' is a structured array"),
    "complex": ({"front": array(), "arm": array(dtype="<c8", shape=[5])}, "'arm' is of type <c8; send float32"),
    "complex number": ({"front": array(), "arm": {b"complex": True, b"data": "1j"}}, "of type complex; send float32"),
    "empty array": ({"front": array(), "arm": array(dtype="<f4", shape=[0], data=b"")}, "'arm' has shape (0,)"),
    "float pictures": (with_arm(front=array(dtype="<f4")), "of type float32; send uint8 from 0 to 255"),
    "large float pictures": (with_arm(front=array(dtype="<f8", data=bytes(8 * 576))), "of type float64; send uint8"),
    "full high definition": (with_arm(front=array(shape=[1080, 1920, 3], data=bytes(6_220_800))), "(1080, 1920, 3)"),
    "unknown camera": (with_arm(front=array(), hd=array(shape=[1080, 1920, 3], data=bytes(6_220_800))), "'hd' is not"),
    "long list": (with_arm(front=[0.0] * 576), "'front' is a list; send an array (16, 12, 3)"),
    "longer list": (with_arm(front=[0.0] * 150_528), "exceeds max_array_len(4096)); send maps of names to arrays"),
    "negative": (with_arm(front=array(shape=[-16, -12, 3])), "has shape (-16, -12, 3)"),
    "huge": (with_arm(front=array(shape=[1 << 40, 1 << 20, 3])), "has shape (1099511627776"),
    "bytes": (with_arm(front=array(data=bytes(10))), "holds 10 bytes; send 576"),
    "extension": (with_arm(front=msgpack.ExtType(5, b"x")), "'front' is of type ExtType; send an array"),
    "list": ({"front": array(), "arm": [0.0] * 4}, "'arm' is a list of 4 items"),
    "words": ({"front": array(), "arm": ["a"] * 5}, "'arm' is a list of 5 items"),
    "not finite": ({"front": array(), "arm": [float("nan")] * 5}, "not finite"),
    "beyond": ({"front": array(), "arm": [1e300] * 5}, "not finite"),
    "deep": ({"a": {"b": {"c": {"d": {"e": 1}}}}}, "'a/b/c/d' is not a camera or state"),
    "many": ({str(i): {} for i in range(200)} | {"x": [[]] * 100}, "more than 256 maps and lists"),
    "seed": ({"seed": -1}, "'seed' is -1"),
    "reset": ({"reset": 1}, "'reset' is of type int"),
    "twice": (with_arm(front=array(), camera=array()), "'front' was sent twice"),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_an_invalid_message_is_answered_with_an_error_and_leaves_no_trace(
    name: str, shared: Running, policy: Policy
) -> None:
    message, error = WRONG[name]
    twin, seen = policy.session(3), SEEN
    with connect(shared.address) as connection:
        connection.recv()
        assert np.array_equal(actions_of(connection, seen[0]), twin.plan(seen[0]))
        assert error in error_of(connection, message if isinstance(message, bytes | str) else msgpack.packb(message))
        assert np.array_equal(actions_of(connection, seen[1]), twin.plan(seen[1]))


def test_a_message_that_is_too_large_ends_its_own_connection_only(shared: Running) -> None:
    with connect(shared.address) as other, connect(shared.address) as connection:
        other.recv(), connection.recv()
        connection.send(bytes(65 << 20))
        with pytest.raises(ConnectionClosed, match=r"1009 .* exceeds limit of 67\d+ bytes"):
            connection.recv(timeout=10)
        assert actions_of(other, SEEN[0]).shape == (4, 2)


def test_web_pages_are_refused(shared: Running) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(shared.address, origin="http://localhost")  # type: ignore[arg-type]


def test_clients_need_the_token(serve: Serve) -> None:
    running = serve(token=TOKEN)
    robot = WebsocketClientPolicy(running.address, api_key=TOKEN)
    assert robot.infer(SEEN[0])["actions"].shape == (4, 2)
    robot._ws.close()
    for header in ("", "Api-Key wrong", TOKEN, "Basic " + TOKEN):
        with pytest.raises(InvalidStatus, match="401"):
            connect(running.address, additional_headers={"Authorization": header} if header else {})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{running.http}/metrics")
    assert urllib.request.urlopen(f"{running.http}/healthz").read() == b"ok\n"
    request = urllib.request.Request(f"{running.http}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert 'gtp_vision_refused_total{why="token"} 5.0' in urllib.request.urlopen(request).read().decode()


def test_connections_are_encrypted(serve: Serve, tmp_path: Path) -> None:
    authority, trusting = trustme.CA(), ssl.create_default_context()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.configure_trust(trusting)
    running = serve(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    assert running.address.startswith("wss://")
    with connect(running.address, ssl=trusting) as connection:
        connection.recv()
        assert actions_of(connection, SEEN[0]).shape == (4, 2)
    with pytest.raises(ssl.SSLError):
        connect(running.address)


def test_clients_are_limited_and_idle_ones_are_disconnected(serve: Serve) -> None:
    running = serve(clients=1, idle=0.3)
    with connect(running.address) as connection:
        connection.recv()
        with pytest.raises(InvalidStatus, match="503"):
            connect(running.address)
        assert metric(running, 'gtp_vision_refused_total{why="full"}') == 1
        with pytest.raises(ConnectionClosed, match=r"no message for 0\.3 s"):
            connection.recv(timeout=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "--token-file, or --open"),
        ({"host": "robot.local"}, "--token-file"),
        ({"token": "short"}, "16 or more"),
        ({"certificate": Path("cert.pem")}, "--tls-cert and --tls-key"),
        *(({name: 0}, f"--{name} 0") for name in ("clients", "queue", "timeout", "idle", "threads")),
        ({"timeout": float("nan")}, "--timeout nan"),
        ({"answer": "plan"}, "--answer plan"),
        ({"renamed": {"x": "fornt"}}, "x=fornt: .*'front'"),
        ({"steps": 0}, "steps=0"),
        ({"certificate": Path(__file__), "key": Path(__file__)}, "cannot be loaded as a certificate"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    policy: Policy, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(GtpVisionError, match=message):
        Server(policy, Settings(**settings))


def test_a_port_in_use_is_an_error(policy: Policy, shared: Running) -> None:
    check(Settings(host="0.0.0.0", open=True))
    check(Settings(host="::1"))
    second = Server(policy, Settings(port=int(shared.address.rpartition(":")[2])))
    with pytest.raises(GtpVisionError, match=r"cannot listen on 127\.0\.0\.1:.*--port"):
        asyncio.run(second.run(asyncio.Event(), print))


class Slow(Session):
    """Plans only while `may_plan` is set."""

    may_plan = threading.Event()
    started = 0

    def plan(self, observation: Any, **options: Any) -> np.ndarray:
        Slow.started += 1
        assert self.may_plan.wait(10)
        return super().plan(observation, **options)


@pytest.fixture
def slow(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    Slow.may_plan, Slow.started = threading.Event(), 0
    Slow.may_plan.set()  # for the warm-up
    monkeypatch.setattr(policy, "session", lambda seed=0: Slow(policy, seed))
    return Slow


def pending(running: Running) -> list[int]:
    """Unanswered messages of each client."""
    return sorted(client.pending for client in running.server._clients)


def test_a_server_continues_plans_by_the_delay_that_it_measures(serve: Serve) -> None:
    limits = Limits.position((-3.0, 0.0), (1.0, 250.0), rate=200.0)
    joining = untrained("agent=gtp_bc", "agent.action_chunk=8", "agent.acting.join=rtc", limits=limits)
    running, twin = serve(joining), joining.session()
    with connect(running.address) as connection:
        assert unpacked(bytes(connection.recv()))["join"] == "rtc"
        for count, seen in enumerate(SEEN):
            sent = {"executed": min(count, 1)} | ({"delay": 3} if count == 4 else {"round_trip_ms": 10 * count})
            connection.send(packed({**seen, **sent}))
            answer = unpacked(bytes(connection.recv(timeout=10)))
            least = 0 if count == 0 else 3 if count == 4 else min(7, 1 + 2 * count)  # 10 ms are two steps
            assert least <= answer["delay"] <= (3 if count == 4 else 7)
            assert np.array_equal(answer["actions"], twin.plan(seen, executed=sent["executed"], delay=answer["delay"]))
        late = packed({**seen, "executed": 4, "delay": 5})
        assert "delay=5 must be between 0 and 4" in error_of(connection, late)
        connection.send(packed(seen))
        assert "delay" not in unpacked(bytes(connection.recv()))
    actions = serve(joining, answer="action")
    with connect(actions.address) as connection:
        connection.recv()
        assert "actions are answered" in error_of(connection, packed({**SEEN[0], "executed": 0}))


def test_the_oldest_request_is_dropped_and_its_episode_starts_all_the_same(
    serve: Serve, slow: type[Slow], policy: Policy
) -> None:
    running, twin, seen = serve(), Session(policy, 9), SEEN
    with connect(running.address) as connection, connect(running.address) as other:
        connection.recv(), other.recv()
        slow.may_plan.clear()
        connection.send(packed(seen[0]))  # is being planned
        wait_for(lambda: slow.started == 2)
        for message in ({**seen[1], "seed": 9}, *seen[2:4]):  # one may wait
            connection.send(packed(message))
        other.send(packed(seen[0]))
        wait_for(lambda: pending(running) == [1, 4])
        time.sleep(0.1)  # so that `acted` below exceeds it
        slow.may_plan.set()
        answers = [connection.recv(timeout=10) for _ in range(4)]
        assert isinstance(other.recv(timeout=10), bytes), "a client that floods loses only its own requests"
    assert [type(answer) for answer in answers] == [bytes, str, str, bytes]
    assert "a newer observation" in answers[1]
    assert np.array_equal(unpacked(bytes(answers[3]))["actions"], twin.plan(seen[3]))
    assert metric(running, 'gtp_vision_errors_total{why="dropped"}') == 2
    assert metric(running, "gtp_vision_answers_total") == 3
    assert metric(running, 'gtp_vision_seconds{part="acted",quantile="0.99"}') > 0.1


def test_a_late_answer_is_an_error(serve: Serve, slow: type[Slow]) -> None:
    running, message = serve(timeout=1), SEEN[0]
    with connect(running.address) as connection:
        connection.recv()
        slow.may_plan.clear()
        assert "no answer within 1 s" in error_of(connection, packed(message))
        slow.may_plan.set()
        assert actions_of(connection, message).shape == (4, 2)


def test_the_traceback_of_a_bug_is_logged_and_not_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    running = serve()
    monkeypatch.setattr(Session, "plan", lambda *a, **k: 1 // 0)
    with connect(running.address) as connection:
        connection.recv()
        assert "the server's log" in error_of(connection, packed(SEEN[0]))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_pending_requests_are_answered_before_the_server_ends(serve: Serve, slow: type[Slow]) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    running = serve()
    with connect(running.address) as connection:
        connection.recv()
        slow.may_plan.clear()
        connection.send(packed(SEEN[0]))
        wait_for(lambda: pending(running) == [1])
        running.loop.call_soon_threadsafe(running.stop.set)
        wait_for(lambda: running.server._ending)
        slow.may_plan.set()
        assert isinstance(connection.recv(timeout=10), bytes)
        with pytest.raises(ConnectionClosed, match="1001"):
            connection.recv(timeout=10)
    running.end()
    assert not [thread for thread in threading.enumerate() if thread.ident not in before]
