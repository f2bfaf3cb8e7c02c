"""One robot round: a policy is served, its episodes are recorded and labelled, and a new policy learns from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import CLI, started
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from pages import Page
from small_runs import composed, small

from gtp_vision.datasets import demo_path, labels
from gtp_vision.datasets.formats import open_store
from gtp_vision.datasets.labels import Label
from gtp_vision.report import build_report
from gtp_vision.serving.export import export
from gtp_vision.serving.warm_start import open_source
from gtp_vision.training import trainer

TINY = (
    *("task=demo", "encoder=impala_tiny", "encoder.features=8", "training.eval_episodes=0", "training.device=cpu"),
    *("training.batch_size=8", "training.steps=1", "agent.policy.hidden=[16]", "agent.policy.grid=2"),
    *("agent.acting.steps=2", "training.probe_rows=0", "training.validation_rows=4"),
)
EPISODES, STEPS = 3, 5


def serve_and_record(policy: Path, folder: Path) -> None:
    """A robot that sees the demo's frames, in an episode for each connection."""
    seen = open_store(demo_path())
    with started(*CLI, "serve", policy, "--port", "0", "--threads", "1", "--record", folder) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().partition("ws://")[2].split(",")[0].rpartition(":")[2])
            for episode in range(EPISODES):
                robot = WebsocketClientPolicy("127.0.0.1", port)
                for row in range(int(seen.episode_starts[episode]), int(seen.episode_starts[episode]) + STEPS):
                    robot.infer({name: np.asarray(array[row]) for name, array in seen.observations.items()})
                robot._ws.close()
        finally:
            server.terminate()
        errors = server.communicate(timeout=120)[1]
    assert server.returncode == 0, errors


@pytest.mark.trains
@pytest.mark.processes
def test_a_round_with_a_robot(tmp_path: Path) -> None:
    config = composed(*TINY, *small("gtp_bc"), f"run_dir={tmp_path / 'first'}")
    trainer.train(config, progress=False)
    export(tmp_path / "first", tmp_path / "policy")

    recorded = tmp_path / "round2"
    serve_and_record(tmp_path / "policy", recorded)
    store = open_store(recorded)
    assert store.episodes == EPISODES
    assert len(store.transitions) == EPISODES * (STEPS - 1)
    marks = {number: Label(success=number > 0) for number in range(EPISODES)}
    labels.set_labels(labels.labels_path(recorded), store, marks, "a person")

    source = open_source(str(tmp_path / "policy"))
    config = source.new_run([f"run_dir={tmp_path / 'second'}"], [f"{recorded}:10"])
    assert config.task.datasets == ["demo", str(recorded)]
    assert config.training.steps == 1
    trainer.train(config, progress=False, open_source=open_source)
    found = json.loads((tmp_path / "second" / "init.json").read_text())
    assert [part["new"] for part in found["parts"]] == [0] * len(found["parts"])
    assert (found["data"][1]["succeeded"], found["data"][1]["failed"]) == (2, 1)
    again = export(tmp_path / "second", tmp_path / "again")
    assert [entry["step"] for entry in again.card["rounds"]] == [1, 1]
    page = build_report([tmp_path / "second"], tmp_path / "report.html", title="rounds")
    rows = [row for row in Page(page).rows if row.get("Data") == str(recorded)]
    assert [(row["Succeeded"], row["Failed"]) for row in rows] == [("2", "1")]
