"""`gtp-vision serve` and `gtp-vision bench serve` as their users run them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

import gtp_vision
from gtp_vision.bench.serve import bench_serve, count_wrong, untrained_artifact
from gtp_vision.cli.main import main
from gtp_vision.serving.protocol import packed, unpacked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_artifact(tmp_path_factory.mktemp("served") / "policy")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(folder: Path, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("an-example-of-a-token\n")
    command = [sys.executable, "-P", "-m", "gtp_vision", "serve", str(folder), "--port", "0", "--steps", "1"]
    command += ["--token-file", str(tmp_path / "token"), "--map", "image=front", "--ignore", "prompt", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            said = server.stdout.readline()
            assert said.startswith("gtp on measurement at ws://127.0.0.1:"), server.stderr and server.stderr.read()
            address = "ws://" + said.partition("ws://")[2].split(",")[0]
            random = np.random.default_rng(0)
            seen = {name: random.integers(0, 256, (84, 84, 3), np.uint8) for name in ("front", "wrist")}
            seen["proprioception"] = np.zeros(9, np.float32)
            theirs = {("image" if name == "front" else name): value for name, value in seen.items()}
            with connect(address, additional_headers={"Authorization": "Api-Key an-example-of-a-token"}) as robot:
                robot.recv()
                robot.send(packed({**theirs, "prompt": "go"}))
                actions = unpacked(bytes(robot.recv(timeout=20)))["actions"]
            wanted = gtp_vision.load_policy(folder).plan(seen, steps=1)
            assert np.allclose(actions, wanted, atol=1e-6)
        finally:
            server.send_signal(number)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0, errors
    assert "is here; 1 of 16 clients" in errors
    assert "is gone after 1 messages" in errors
    assert "Traceback" not in errors


def test_mistakes_are_sentences(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert main(["serve", *words]) == 2
        return capsys.readouterr().err

    assert "is no policy artifact" in told(str(tmp_path))
    assert "--token-file" in told(str(folder), "--host", "0.0.0.0")
    assert "must be THEIRS=OURS" in told(str(folder), "--map", "image")
    assert "cannot be read" in told(str(folder), "--token-file", str(tmp_path / "none"))
    (tmp_path / "token").write_text("short")
    assert "16 or more" in told(str(folder), "--token-file", str(tmp_path / "token"))
    assert "--clients 0" in told(str(folder), "--clients", "0")
    assert "cannot be listened at" in told(str(folder), "--host", "256.1.1.1", "--open")


def test_the_measurement_counts_and_compares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", str(folder), "--clients", "2", "--requests", "80", "--rate", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["errors"], found["wrong"], found["lost"]) == (80, 0, 0, 0)
    assert 0 < found["added_ms_p50"] <= found["added_ms_p99"]
    assert found["act_ms_p50"] < found["round_trip_ms_p50"]
    policy = gtp_vision.load_policy(folder)
    assert count_wrong(policy, 0, np.zeros((3, 1, 7), np.float32)) == 3, "a wrong answer is found"
    with pytest.raises(gtp_vision.core.errors.GtpVisionError, match="at least one client"):
        bench_serve(folder, clients=0)


def test_the_environment_holds_a_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GTP_VISION_TOKEN", "short")
    assert main(["serve", str(folder)]) == 2
    assert "16 or more" in capsys.readouterr().err
    assert os.environ["GTP_VISION_TOKEN"] == "short"
