import signal
from pathlib import Path

import numpy as np
import pytest
from commands import CLI, started
from small_policies import observations, untrained, write
from websockets.sync.client import connect

import gtp_vision
from gtp_vision.bench.serve import bench_serve, count_wrong
from gtp_vision.bench.soak import bench_soak
from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.protocol import packed, unpacked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = untrained("agent=gtp_bc")
    parts = [name for name, _ in policy.agent.named_children()]
    return write(tmp_path_factory.mktemp("served") / "policy", policy, *parts)


@pytest.mark.processes
def test_it_serves_the_clients_names_for_a_token_until_it_is_stopped(folder: Path, tmp_path: Path) -> None:
    token = "an-example-of-a-token"
    (tmp_path / "token").write_text(token + "\n")
    command = [*CLI, "serve", folder, "--port", "0", "--threads", "1", "--token-file", tmp_path / "token"]
    command += ["--map", "image=front", "--ignore", "prompt"]
    policy = gtp_vision.load_policy(folder)
    (seen,) = observations(policy.schema, 1)
    with started(*command) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().partition("ws://")[2].split(",")[0]
            with connect(
                f"ws://{address}", additional_headers={"Authorization": "Api-Key an-example-of-a-token"}
            ) as robot:
                robot.recv()
                robot.send(packed({"image": seen.pop("front"), "prompt": "go"} | seen))
                actions = unpacked(bytes(robot.recv(timeout=60)))["actions"]
        finally:
            server.send_signal(signal.SIGTERM)
        errors = server.communicate(timeout=60)[1]
    np.testing.assert_allclose(actions, policy.plan(observations(policy.schema, 1)[0]), atol=1e-6)
    assert server.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--map", "image"], "--map image"),
        (["--token-file", "missing"], "missing cannot be read"),
        (["--clients", "0"], "--clients 0"),
        (["--host", "256.1.1.1", "--open"], "cannot listen on 256.1.1.1"),
        ([], "16 or more"),  # what the environment holds
    ],
)
def test_invalid_options_are_refused(
    folder: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not options:
        monkeypatch.setenv("GTP_VISION_TOKEN", "short")
    assert main(["serve", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_bench_serve_counts_wrong_answers_and_needs_a_client(folder: Path) -> None:
    assert count_wrong(gtp_vision.load_policy(folder), 0, np.zeros((3, 1, 2), np.float32)) == 3
    with pytest.raises(GtpVisionError, match="at least one client"):
        bench_serve(folder, clients=0)


@pytest.mark.processes
def test_robots_come_and_go_while_the_server_records(folder: Path) -> None:
    found = bench_soak(folder, minutes=0.1, clients=2, rate=50, record=True)
    assert found["connections"] >= 2
    assert found["answers"] >= 10
    assert found["wrong"] + found["refused"] == 0
    assert all(of["start"] > 1 and of["end"] > 1 for of in found["memory"].values())
    assert set(found["memory"]) == {"server", "recording"}
