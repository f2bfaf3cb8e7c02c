"""The script of docs/processes.md on a cluster of Ray with two nodes, both on this machine."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import ended
from commands_of_docs import blocks
from small_runs import STATES, assert_equal, saved, small, small_run
from stores import make_store

from gtp_vision.datasets.formats import native
from gtp_vision.training import trainer

pytestmark = pytest.mark.cluster
MORE = ["training.steps=6", "training.engine=eager"]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of two nodes with a processor each."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray")  # a path of pytest's would be too long for its sockets
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    head = [f"--port={address.partition(':')[2]}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    environment = os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "90"}  # of two seconds, until the head answers
    nodes: list[subprocess.Popen] = []

    def start(*options: str) -> None:
        """Start a node; Ray itself waits 30 s for it, which a busy machine may exceed."""
        for attempt in range(4):
            path = Path(folder) / f"node{len(nodes)}.{attempt}.log"
            with path.open("w") as log:
                node = subprocess.Popen([RAY, "start", *options, *common], stdout=log, stderr=log, env=environment)
            nodes.append(node)
            while node.poll() is None and "Ray runtime started" not in path.read_text():
                time.sleep(0.2)
            if node.poll() is None:
                return
        pytest.fail(path.read_text())

    try:
        start("--head", *head, f"--temp-dir={folder}")
        start(f"--address={address}")
        yield address
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_documented_sweep_trains_on_two_nodes_as_without_ray(cluster: str, tmp_path: Path) -> None:
    native.write(tmp_path / "my.h5", make_store((30, 40), terminals={29}))
    words = [*STATES, *small("gtp"), *MORE]
    pairs = dict(word.split("=", 1) for word in words if "." in word.split("=", 1)[0])
    settings = repr({key: yaml.safe_load(value) for key, value in pairs.items()})[1:-1]
    (script,) = (block for block in blocks("docs/processes.md", "python") if "import ray" in block)
    script = re.sub(r'"training.steps": \d+', lambda _: settings, script.replace("/shared", str(tmp_path)))
    script = re.sub(r"range\(\d\)", "range(2)", script.replace('agent="gtp"', 'agent="gtp", encoder="state"'))
    nodes = "print(sum(node['Alive'] for node in ray.nodes()), 'nodes')\n"
    (tmp_path / "sweep.py").write_text(script + nodes)
    output, _ = ended(tmp_path / "sweep.py", environment={"RAY_ADDRESS": cluster})
    assert "2 nodes\n" in output
    for seed in range(2):
        trainer.train(small_run(tmp_path / "my.h5", tmp_path / f"alone{seed}", *MORE, f"seed={seed}"), progress=False)
        assert_equal(saved(tmp_path / "runs" / f"seed{seed}"), saved(tmp_path / f"alone{seed}"))
