import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ended
from small_policies import untrained

import gtp_vision
from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving import graphs
from gtp_vision.serving.limits import Limiter, Limits
from gtp_vision.serving.policy import Policy

pytestmark = pytest.mark.compiles

STATE: dict[str, Any] = {"cameras": {}, "states": {"arm": 3}, "frame_stack": 1}


@cache
def policy_of(name: str) -> Policy:
    if name == "gtp":
        return untrained("agent=gtp", states={})
    overrides = {
        "chunks": "agent=gtp_bc agent.action_chunk=4",
        "constant": "agent=gtp_bc agent.action_chunk=2",
        "fql": "agent=fql",
        "gaussian": "agent=gaussian_bc",
        "candidates": "agent=gtp acting=best_of_n",
        "softmax": "agent=gtp acting=softmax",
        "beam": "agent=gtp acting=beam",
        "gradient": "agent=gtp agent.acting.gradient_step=0.1",
    }
    low_is_high = {"action_low": (2.5, 0.0), "action_high": (2.5, 250.0)} if name == "constant" else {}
    policy = untrained("encoder=state", *overrides[name].split(), **STATE, **low_is_high)
    if name == "constant":
        policy.agent.policy.hold(torch.tensor([[0.0, -0.6], [0.0, -0.6]]))
    return policy


def drawn(policy: Policy, noise: dict[str, tuple[int, ...]], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(seed)
    stacks = {
        name: random.integers(0, 256, (1, *shape), np.uint8)
        if len(shape) == 4
        else random.normal(size=(1, *shape)).astype(np.float32)
        for name, shape in policy.schema.shapes().items()
    }
    return stacks, {name: random.normal(size=shape).astype(np.float32) for name, shape in noise.items()}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("beam", 1),
        ("candidates", 2),
        ("chunks", 1),
        ("constant", 2),
        ("fql", 1),
        ("gaussian", 1),
        ("gtp", 1),
        ("gtp", 5),
    ],
)
def test_graphs_answer_as_pytorch_does(tmp_path: Path, name: str, steps: int) -> None:
    policy = policy_of(name)
    graph = graphs.Graph(graphs.write(policy, tmp_path, steps))
    assert (graph.schema, graph.steps) == (policy.schema, steps)
    sampler, program = graphs.sampler_of(policy, steps), graphs.program(policy, steps).module()
    low, high = np.array(policy.schema.action_low), np.array(policy.schema.action_high)
    for seed in range(3):
        stacks, noise = drawn(policy, graph.noise, seed)
        inputs = [torch.from_numpy(x) for x in (*stacks.values(), *noise.values())]
        with torch.no_grad():
            expected, traced = sampler(*inputs).numpy(), program(*inputs).numpy()
        actions = graph.plan(stacks, noise)
        assert actions.shape == (policy.schema.chunk, policy.schema.actions)
        # 1e-5 of the bounds, which are [-1, 1] before they are scaled
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5 * (high - low).max() / 2)
        np.testing.assert_allclose(traced, expected, rtol=0, atol=1e-5 * (high - low).max() / 2)
        assert ((low <= actions) & (actions <= high)).all()
        assert name != "constant" or np.allclose(actions, [2.5, 50.0], rtol=1e-6, atol=0)


def test_a_graph_holds_the_position_limits_and_its_user_the_others(tmp_path: Path) -> None:
    policy = policy_of("chunks")
    low, high = np.add(policy.schema.action_low, (1.0, 60.0)), np.subtract(policy.schema.action_high, (1.0, 60.0))
    limits = replace(Limits.position(low, high), speed=(0.05, 5.0), jerk=(None, 1.0))
    limited = Policy(policy.agent, replace(policy.schema, limits=limits), policy.card)
    graph, sampler = graphs.Graph(graphs.write(limited, tmp_path, 1)), graphs.sampler_of(limited, 1)
    program = graphs.program(limited, 1).module()
    assert graph.schema.limits == limits
    reached = 0
    for seed in range(3):
        stacks, noise = drawn(limited, graph.noise, seed)
        inputs = [torch.from_numpy(x) for x in (*stacks.values(), *noise.values())]
        with torch.no_grad():
            free = graphs.sampler_of(policy, 1)(*inputs).numpy()
            expected, traced = sampler(*inputs).numpy(), program(*inputs).numpy()
        actions = graph.plan(stacks, noise)
        for found in (actions, traced):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(expected, np.clip(free, np.float32(low), np.float32(high)))
        reached += int((expected != free).sum())
        np.testing.assert_allclose(Limiter(limits)(actions), Limiter(limits)(free), rtol=0, atol=5e-3)
    assert reached > 0


def test_the_sampler_is_the_policys_own_plan() -> None:
    policy = policy_of("gtp")
    sampler = graphs.sampler_of(policy)
    (draw,) = sampler.draws
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=draw.numbers).astype(np.float32))

    class Fixed:
        def normal(self, rows: int, *shape: int) -> torch.Tensor:
            return noise

    seen = {name: torch.from_numpy(stack) for name, stack in drawn(policy, {}, 0)[0].items()}
    expected = policy.schema.in_units(policy.agent.plan(seen, Fixed())[0].numpy())  # type: ignore[arg-type]
    np.testing.assert_allclose(sampler(*seen.values(), noise).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.trains
def test_an_artifact_may_carry_its_graphs(exported: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    out = tmp_path / "policy"
    assert main(["export", str(exported("fql")[0]), str(out), "--onnx", "--pt2"]) == 0
    assert {"policy.onnx", "policy.pt2"} <= set(json.loads((out / "manifest.json").read_text()))
    gtp_vision.load_policy(out)
    assert graphs.Graph(out / "policy.onnx").steps == 1
    for flag in ("--onnx", "--pt2"):
        assert main(["export", str(exported("softmax")[0]), str(tmp_path / "other"), flag]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.processes
def test_a_program_needs_no_gtp_vision_and_holds_no_pickle(tmp_path: Path) -> None:
    policy = policy_of("gtp")
    path = graphs.write_program(policy, tmp_path, 2)
    with zipfile.ZipFile(path) as file:
        contents = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    assert contents.pop("data/sample_inputs/model.pt") == b""
    assert [name for name, content in contents.items() if content.startswith((b"PK", b"\x80"))] == []

    stacks, noise = drawn(policy, {"noise_0": (1, 2)}, 0)
    np.savez(tmp_path / "given.npz", **stacks, **noise)
    code = """
import json, sys, numpy as np, torch
files = {"schema": "", "steps": "", "inputs": ""}
plan = torch.export.load("policy.pt2", extra_files=files).module()
given, shapes = np.load("given.npz"), json.loads(files["inputs"])
assert {name: list(given[name].shape) for name in given} == shapes
np.save("found.npy", plan(*(torch.from_numpy(given[name]) for name in shapes)).numpy(force=True))
assert not any(name.startswith("gtp_vision") for name in sys.modules)
print(files["steps"], json.loads(files["schema"])["agent"])
"""
    assert ended("-c", code, cwd=tmp_path)[0] == "2 gtp\n"
    with torch.no_grad():
        wanted = graphs.sampler_of(policy, 2)(*map(torch.from_numpy, (*stacks.values(), *noise.values())))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted.numpy(), rtol=0, atol=1e-5 * 125)


def test_policies_and_files_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (graphs.write, graphs.write_program):
        with pytest.raises(GtpVisionError, match=r"draws uniform numbers.*load_policy"):
            make(policy_of("softmax"), tmp_path)
        with pytest.raises(GtpVisionError, match=r"gradient_step=0\.1, and graphs hold no gradients; use load_policy"):
            make(policy_of("gradient"), tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "policy.onnx").write_bytes(b"no graph")
    with pytest.raises(GtpVisionError, match=r"policy\.onnx .*export it again"):
        graphs.Graph(tmp_path / "policy.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GtpVisionError, match=r"needs onnx, which .*pip install 'gtp-vision\[onnx\]'"):
        graphs.write(policy_of("fql"), tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GtpVisionError, match="needs onnxruntime, which is not installed"):
        graphs.Graph(tmp_path / "policy.onnx")
