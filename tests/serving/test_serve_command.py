"""`gtp-vision serve` and `gtp-vision bench serve` as their users run them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_policies import observations, untrained, write
from websockets.sync.client import connect

import gtp_vision
from gtp_vision.bench.serve import bench_serve, count_wrong
from gtp_vision.cli.main import main
from gtp_vision.serving.protocol import packed, unpacked

TOKEN = "an-example-of-a-token"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = untrained("agent=gtp_bc")
    return write(
        tmp_path_factory.mktemp("served") / "policy", policy, *(name for name, _ in policy.agent.named_children())
    )


@pytest.mark.processes
def test_it_serves_until_ctrl_c(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    command = [sys.executable, "-P", "-m", "gtp_vision", "serve", str(folder), "--port", "0", "--steps", "1"]
    command += ["--token-file", str(tmp_path / "token"), "--map", "image=front", "--ignore", "prompt", "--threads", "1"]
    policy = gtp_vision.load_policy(folder)
    (seen,) = observations(policy.schema, 1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            line = server.stdout.readline()
            assert line.startswith("gtp_bc on test at ws://127.0.0.1:"), server.stderr and server.stderr.read()
            address = "ws://" + line.partition("ws://")[2].split(",")[0]
            with connect(address, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as robot:
                robot.recv()
                robot.send(packed({"image": seen["front"], "arm": seen["arm"], "prompt": "go"}))
                actions = unpacked(bytes(robot.recv(timeout=20)))["actions"]
            assert np.allclose(actions, policy.plan(seen, steps=1), atol=1e-4)
        finally:
            server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0, errors
    assert "connected; 1 of 16 clients" in errors
    assert "disconnected after 1 messages" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--map", "image"], "--map image"),
        (["--token-file", "missing"], "missing cannot be read"),
        (["--clients", "0"], "--clients 0"),
        (["--host", "256.1.1.1", "--open"], "cannot listen on 256.1.1.1"),
    ],
)
def test_invalid_options_are_refused(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_environment_may_hold_the_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GTP_VISION_TOKEN", "short")
    assert main(["serve", str(folder)]) == 2
    assert "16 or more" in capsys.readouterr().err


@pytest.mark.processes
def test_bench_serve_counts_and_compares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", str(folder), "--clients", "2", "--requests", "60", "--rate", "30", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["errors"], found["wrong"], found["lost"]) == (60, 0, 0, 0)
    assert found["added_ms_p50"] > 0
    assert count_wrong(gtp_vision.load_policy(folder), 0, np.zeros((3, 1, 2), np.float32)) == 3, (
        "wrong answers are counted"
    )
    with pytest.raises(gtp_vision.core.errors.GtpVisionError, match="at least one client"):
        bench_serve(folder, clients=0)
