"""The sampler as a graph answers as PyTorch does."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gtp_vision
from gtp_vision.cli.main import main
from gtp_vision.config.compose import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.serving import graphs
from gtp_vision.serving.policy import Policy
from gtp_vision.training.trainer import train

SMALL = [
    *("task=own", "agent.policy.hidden=[16]", "training.device=cpu", "training.batch_size=8", "training.steps=2"),
    *("training.engine=eager", "training.probe_rows=0"),
]
BOUNDS = {"attributes": {"action_low": [-3.0, 0.0], "action_high": [1.0, 250.0]}}
POLICIES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "gtp": (["agent=gtp", "encoder=impala_small", "task.frame_stack=2"], {"cameras": {"front": (16, 16, 3)}, **BOUNDS}),
    "chunks": (["agent=gtp_bc", "encoder=state", "agent.action_chunk=4", "task.frame_stack=1"], {}),
    "fql": (["agent=fql", "encoder=state", "task.frame_stack=1"], BOUNDS),
    "gaussian": (["agent=gaussian_bc", "encoder=state", "task.frame_stack=1"], {}),
    "candidates": (["agent=gtp", "acting=best_of_n", "encoder=state", "task.frame_stack=1"], {}),
    "softmax": (["agent=gtp", "acting=softmax", "encoder=state", "task.frame_stack=1"], {}),
}
Exported = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The artifact of a row of `POLICIES`."""
    folder = tmp_path_factory.mktemp("graphs")

    def make(name: str) -> Path:
        out = folder / name / "policy"
        if not out.exists():
            settings, shown = POLICIES[name]
            data = native.write(folder / name / "data.h5", make_store((30, 20), **shown))
            run = folder / name / "run"
            train(from_command_line([*SMALL, *settings, f"task.dataset={data}", f"run_dir={run}"]), progress=False)
            assert main(["export", str(run), str(out)]) == 0
        return out

    return make


def drawn(policy: Policy, noise: dict[str, tuple[int, ...]], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(seed)
    stacks = {
        name: random.integers(0, 256, (1, *shape), np.uint8)
        if len(shape) == 4
        else random.normal(size=(1, *shape)).astype(np.float32)
        for name, shape in policy.schema.shapes().items()
    }
    return stacks, {name: random.normal(size=shape).astype(np.float32) for name, shape in noise.items()}


IN_STEPS = [(name, steps) for name in ("candidates", "chunks", "fql", "gtp") for steps in (1, 2, 5)]


@pytest.mark.parametrize(("name", "steps"), [("gaussian", 1), *IN_STEPS])
def test_graphs_answer_as_pytorch_does(exported: Exported, tmp_path: Path, name: str, steps: int) -> None:
    policy = gtp_vision.load_policy(exported(name))
    graph = graphs.Graph(graphs.write(policy, tmp_path, steps))
    assert (graph.schema, graph.steps) == (policy.schema, steps)
    sampler, program = graphs.sampler_of(policy, steps), graphs.program(policy, steps).module()
    low, high = np.array(policy.schema.action_low), np.array(policy.schema.action_high)
    for seed in range(5):
        stacks, noise = drawn(policy, graph.noise, seed)
        given = [torch.from_numpy(x) for x in (*stacks.values(), *noise.values())]
        with torch.no_grad():
            wanted = sampler(*given).numpy()
            again = program(*given).numpy()
        found = graph.plan(stacks, noise)
        assert found.shape == (policy.schema.chunk, policy.schema.actions)
        # 1e-5 of the bounds, which are [-1, 1] before they are scaled
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * (high - low).max() / 2)
        np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-5 * (high - low).max() / 2)
        assert ((low <= found) & (found <= high)).all()


def test_the_sampler_is_the_policys_own_plan(exported: Exported) -> None:
    policy = gtp_vision.load_policy(exported("gtp"))
    sampler = graphs.sampler_of(policy)
    (draw,) = sampler.draws
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=draw.numbers).astype(np.float32))

    class Told:
        def normal(self, rows: int, *shape: int) -> torch.Tensor:
            return noise

    stacks, _ = drawn(policy, {}, 0)
    seen = {name: torch.from_numpy(stack) for name, stack in stacks.items()}
    wanted = policy.schema.in_units(policy.agent.plan(seen, Told())[0].numpy())  # type: ignore[arg-type]
    np.testing.assert_allclose(sampler(*seen.values(), noise).numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_an_artifact_may_carry_its_graphs(exported: Exported, tmp_path: Path) -> None:
    run, out = exported("fql").with_name("run"), tmp_path / "policy"
    assert main(["export", str(run), str(out), "--onnx", "--pt2"]) == 0
    assert {"policy.onnx", "policy.pt2"} <= set(json.loads((out / "manifest.json").read_text()))
    gtp_vision.load_policy(out)
    assert graphs.Graph(out / "policy.onnx").steps == 1


def test_a_program_needs_no_gtp_vision_and_holds_no_pickle(exported: Exported, tmp_path: Path) -> None:
    policy = gtp_vision.load_policy(exported("gtp"))
    path = graphs.write_program(policy, tmp_path, 2)
    with zipfile.ZipFile(path) as file:
        contents = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    assert contents.pop("data/sample_inputs/model.pt") == b""
    assert [name for name, content in contents.items() if content.startswith((b"PK", b"\x80"))] == []

    stacks, noise = drawn(policy, {"noise_0": (1, 2)}, 0)
    np.savez(tmp_path / "given.npz", **stacks, **noise)
    code = (
        "import json, sys, numpy as np, torch\n"
        "told = {'schema': '', 'steps': '', 'inputs': ''}\n"
        "plan = torch.export.load('policy.pt2', extra_files=told).module()\n"
        "given, shapes = np.load('given.npz'), json.loads(told['inputs'])\n"
        "assert {name: list(given[name].shape) for name in given} == shapes\n"
        "np.save('found.npy', plan(*(torch.from_numpy(given[name]) for name in shapes)).numpy(force=True))\n"
        "assert not any(name.startswith('gtp_vision') for name in sys.modules)\n"
        "print(told['steps'], json.loads(told['schema'])['agent'])\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "2 gtp\n"
    with torch.no_grad():
        wanted = graphs.sampler_of(policy, 2)(*map(torch.from_numpy, (*stacks.values(), *noise.values())))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted.numpy(), rtol=0, atol=1e-5 * 125)


def test_what_no_graph_can_hold_is_told(exported: Exported, tmp_path: Path) -> None:
    policy = gtp_vision.load_policy(exported("softmax"))
    for make in (
        lambda: graphs.write(policy, tmp_path),
        lambda: graphs.program(policy),
        lambda: graphs.write_program(policy, tmp_path),
    ):
        with pytest.raises(GtpVisionError, match=r"draws uniform numbers when it acts.*act by load_policy"):
            make()
    for flag in ("--onnx", "--pt2"):
        assert main(["export", str(exported("softmax").with_name("run")), str(tmp_path / "out"), flag]) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "policy.onnx").write_bytes(b"no graph")
    with pytest.raises(GtpVisionError, match=r"policy\.onnx is no graph of a policy"):
        graphs.Graph(tmp_path / "policy.onnx")


def test_missing_packages_are_named(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    policy = gtp_vision.load_policy(exported("fql"))
    with pytest.raises(GtpVisionError, match=r"onnx is not installed; pip install 'gtp-vision\[onnx\]'"):
        graphs.write(policy, tmp_path)
    with pytest.raises(GtpVisionError, match="onnxruntime is not installed"):
        graphs.Graph(tmp_path / "policy.onnx")


def test_an_action_is_measured(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "act", str(exported("gtp")), "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ms"]) >= {"eager", "export", "onnx"}
    assert found["against_eager"]["eager"] == 1
    assert found["difference"] < 1e-5 * 125
    assert main(["bench", "act", str(exported("gtp")), "--rounds", "2"]) == 0
    assert "the graphs and PyTorch differ by" in capsys.readouterr().out
    assert main(["bench", "act", str(exported("gtp")), "--rounds", "0"]) == 2
