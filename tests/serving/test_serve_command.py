"""`gtp-vision serve` and `gtp-vision bench serve` as their users run them."""

from pathlib import Path

import numpy as np
import pytest
from small_policies import untrained, write

import gtp_vision
from gtp_vision.bench.serve import bench_serve, count_wrong
from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = untrained("agent=gtp_bc")
    parts = [name for name, _ in policy.agent.named_children()]
    return write(tmp_path_factory.mktemp("served") / "policy", policy, *parts)


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
    folder: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not options:
        monkeypatch.setenv("GTP_VISION_TOKEN", "short")
    assert main(["serve", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_bench_serve_counts_wrong_answers_and_needs_a_client(folder: Path) -> None:
    assert count_wrong(gtp_vision.load_policy(folder), 0, np.zeros((3, 1, 2), np.float32)) == 3
    with pytest.raises(GtpVisionError, match="at least one client"):
        bench_serve(folder, clients=0)
