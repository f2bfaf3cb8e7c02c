"""An artifact acts as its run's agent did, alone, and refuses what is not whole."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gtp_vision
from gtp_vision.cli.main import main
from gtp_vision.config.schema import from_command_line
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.core.random import EpisodeNoise
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.evaluation.evaluator import to_tensors
from gtp_vision.serving import artifact
from gtp_vision.serving.policy import Policy, Session
from gtp_vision.training.evaluate import actor_of, restore
from gtp_vision.training.trainer import train

SMALL = [
    *("task=own", "agent.policy.hidden=[16]", "training.device=cpu", "training.batch_size=8", "training.steps=2"),
    *("training.engine=eager", "training.probe_rows=0"),
]
PIXELS = {"front": (16, 16, 3), "wrist": (12, 12, 3)}
RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "pixels": (["agent=gtp", "encoder=impala_small", "task.frame_stack=2"], {"cameras": PIXELS}),
    "states": (["agent=fql", "encoder=state", "task.frame_stack=1"], {"state": 5}),
    "chunks": (
        ["agent=gtp_bc", "encoder=state", "agent.action_chunk=4", "agent.acting.execute=3", "task.frame_stack=3"],
        {},
    ),
    "candidates": (["agent=idql", "encoder=impala_small", "task.frame_stack=1"], {"cameras": PIXELS}),
    "guidance": (["agent=qgpo", "encoder=state", "task.frame_stack=1"], {}),
    "units": (
        ["agent=gtp", "encoder=state", "task.frame_stack=1"],
        {"attributes": {"action_low": [-3.0, 0.0], "action_high": [1.0, 250.0]}},
    ),
    "goals": (["agent=gtp_bc", "encoder=state", "task.goals=hindsight", "task.frame_stack=2"], {}),
}
Exported = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run and the artifact of a row of `RUNS`."""
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str) -> tuple[Path, Path]:
        run, out = folder / name / "run", folder / name / "policy"
        if not out.exists():
            settings, shown = RUNS[name]
            data = native.write(folder / name / "data.h5", make_store((30, 20), **shown))
            config = from_command_line([*SMALL, *settings, f"task.dataset={data}", f"run_dir={run}"])
            train(config, progress=False)
            assert main(["export", str(run), str(out)]) == 0
        return run, out

    return make


def observations(out: Path, count: int) -> list[dict[str, np.ndarray]]:
    random, schema = np.random.default_rng(1), gtp_vision.load_policy(out).schema
    goal = {name: random.normal(size=width) for name, width in schema.states.items() if name.startswith("goal/")}
    return [
        {name: random.integers(0, 256, shape, np.uint8) for name, shape in schema.cameras.items()}
        | {name: random.normal(size=width) for name, width in schema.states.items()}
        | goal
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_policy_acts_as_its_run_is_evaluated(exported: Exported, name: str) -> None:
    run, out = exported(name)
    policy = gtp_vision.load_policy(out)
    session, schema = policy.session(seed=7), policy.schema
    config, parts = restore(run)
    actor, frames = actor_of(parts.agent), config.task.frame_stack
    for episode in range(2):
        seen = observations(out, 6)
        for step in range(6):
            # As the evaluator stacks them: an episode begins with its first frame, repeated.
            rows = [max(0, step - back) for back in reversed(range(frames))]
            stacks = {key: torch.from_numpy(np.stack([seen[row][key] for row in rows])[None]) for key in seen[0]}
            shown = {key: to_tensors(x if x.dtype == torch.uint8 else x.float()) for key, x in stacks.items()}
            with torch.no_grad():
                wanted = actor(shown, EpisodeNoise(7, [episode], [step], torch.device("cpu")))[0].numpy()
            action = session.act(seen[step])
            assert action.dtype == np.float32
            np.testing.assert_array_equal(action, schema.in_units(wanted))
        session.reset()


def test_actions_are_in_the_robots_units_and_bounds(exported: Exported) -> None:
    policy = gtp_vision.load_policy(exported("units")[1])
    np.testing.assert_allclose(
        policy.schema.in_units(np.array([[-1, -1], [0, 0], [2, 1]])), [[-3, 0], [-1, 125], [1, 250]]
    )
    low, high = np.array(policy.schema.action_low), np.array(policy.schema.action_high)
    for seen in observations(exported("units")[1], 20):
        action = policy.act(seen)
        assert ((low <= action) & (action <= high)).all()


def test_an_artifact_holds_what_acting_needs_and_no_more(exported: Exported) -> None:
    held = {name: {key.partition(".")[0] for key in load_file(exported(name)[1] / artifact.WEIGHTS)} for name in RUNS}
    assert held["pixels"] == held["chunks"] == {"actor_encoder", "policy"}
    assert held["states"] == {"actor_encoder", "policy", "improvement"}, "FQL acts by its one-step policy"
    assert held["candidates"] == {"actor_encoder", "policy", "critic_target", "critic_encoder_target"}


def test_an_artifact_is_told_where_it_comes_from(exported: Exported) -> None:
    _, out = exported("pixels")
    card = gtp_vision.load_policy(out).card
    assert (card["run"], card["step"], card["data"]["frames"]) == ("pixels/run", 2, 50)
    assert len(card["data"]["sha256"]) == 64
    assert card["licences"] == {"weights": "unknown", "data": "unknown", "backbone": "unknown"}
    assert "license: other" in (out / "README.md").read_text()
    assert "`front` | frames, uint8 (16, 16, 3)" in (out / "README.md").read_text()


def test_licences_and_jumps_are_as_asked(exported: Exported, tmp_path: Path) -> None:
    asked = ["--license", "apache-2.0", "--data-license", "cc-by-4.0", "--steps", "2", "--checkpoint", "step_2"]
    assert main(["export", str(exported("units")[0]), str(tmp_path / "policy"), *asked]) == 0
    policy = gtp_vision.load_policy(tmp_path / "policy")
    assert policy.schema.steps == 2
    assert policy.card["licences"] == {"weights": "apache-2.0", "data": "cc-by-4.0", "backbone": "unknown"}
    assert "license: apache-2.0" in (tmp_path / "policy" / "README.md").read_text()


def test_acting_needs_no_data_no_simulator_and_no_training(exported: Exported) -> None:
    _, out = exported("pixels")
    code = (
        "import sys, numpy as np, gtp_vision\n"
        f"policy = gtp_vision.load_policy({str(out)!r})\n"
        "seen = {name: np.zeros(shape, np.uint8) for name, shape in policy.schema.cameras.items()}\n"
        "policy.act(seen | {name: np.zeros(width) for name, width in policy.schema.states.items()}, steps=2)\n"
        "heavy = ('mujoco', 'ogbench', 'gymnasium', 'robosuite', 'accelerate', 'gtp_vision.training')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    moved = out.with_name("moved")
    shutil.copytree(out, moved)
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.strip() == "[]"


def test_sessions_share_weights_and_nothing_else(exported: Exported) -> None:
    policy, seen = gtp_vision.load_policy(exported("pixels")[1]), observations(exported("pixels")[1], 4)
    alone = policy.session(seed=3)
    wanted = [alone.act(one) for one in seen]
    first, second = policy.session(seed=3), policy.session(seed=4)
    for one, action in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(first.act(one), action)
        assert not np.array_equal(second.act(one), action)


def test_a_plan_is_a_chunk_and_an_episode_is_begun_anew_by_reset(exported: Exported) -> None:
    policy, seen = gtp_vision.load_policy(exported("chunks")[1]), observations(exported("chunks")[1], 2)
    chunk = policy.plan(seen[0], steps=1)
    assert chunk.shape == (4, 2)
    assert policy.plan(seen[1]).shape == (4, 2)
    with pytest.raises(GtpVisionError, match="begun by plan and cannot go on by act; call reset first"):
        policy.act(seen[1])
    policy.reset()
    assert policy.act(seen[0]).shape == (2,)
    assert Session(policy).plan(seen[0], steps=1).shape == (4, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"front": None}, "lacks 'front'"),
        ({"fromt": np.zeros(3)}, "holds 'fromt', which the policy does not know: did you mean 'front'"),
        ({"front": np.zeros((16, 16, 3), np.float32)}, "'front' is float32, and frames are uint8"),
        (
            {"front": np.zeros((3, 16, 16), np.uint8)},
            r"'front' has shape \(3, 16, 16\), .* \(16, 16, 3\) \(height, width",
        ),
        ({"state": np.zeros(4)}, r"'state' has shape \(4,\), .* \(3,\)"),
        ({"state": np.array(["a", "b", "c"])}, "'state' is <U1, and a state is numbers"),
        ({"state": np.array([0, np.nan, 0])}, "'state' holds a number that is not finite"),
    ],
)
def test_observations_of_another_kind_are_refused(exported: Exported, change: dict[str, Any], words: str) -> None:
    policy, seen = gtp_vision.load_policy(exported("pixels")[1]), observations(exported("pixels")[1], 1)[0]
    given = {name: value for name, value in (seen | change).items() if value is not None}
    with pytest.raises(GtpVisionError, match=words):
        policy.act(given)
    with pytest.raises(GtpVisionError, match="a dictionary of arrays by name, and not list"):
        policy.act([seen])  # type: ignore[arg-type]
    policy.act(seen)  # what was refused left no trace


@pytest.mark.parametrize("steps", [0, 1001, 1.5, True])
def test_a_number_of_jumps_that_is_none_is_refused(exported: Exported, steps: Any) -> None:
    policy, seen = gtp_vision.load_policy(exported("units")[1]), observations(exported("units")[1], 1)[0]
    with pytest.raises(GtpVisionError, match="no number of jumps"):
        policy.act(seen, steps=steps)


def test_what_stands_there_is_not_replaced_unasked(exported: Exported, tmp_path: Path) -> None:
    run, _ = exported("units")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for more in ([], ["--overwrite"]):
        assert main(["export", str(run), str(tmp_path / "mine"), *more]) == 2
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    out = str(tmp_path / "policy")
    assert main(["export", str(run), out]) == 0
    assert main(["export", str(run), out]) == 2
    assert main(["export", str(run), out, "--overwrite"]) == 0
    assert main(["export", str(run), out, "--overwrite", "--steps", "0"]) == 2
    gtp_vision.load_policy(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "policy"], "nothing is left aside"


def spoiled(out: Path, target: Path, name: str, content: bytes | None) -> Path:
    """A copy of an artifact with another file of that name, and a manifest that fits it."""
    shutil.copytree(out, target)
    if content is None:
        (target / name).unlink()
        return target
    (target / name).write_bytes(content)
    write_manifest(target)
    return target


def changed(out: Path, **changes: Any) -> bytes:
    told = json.loads((out / artifact.MADE_OF).read_text())
    for path, value in changes.items():
        *inner, last = path.split("__")
        node = told
        for key in inner:
            node = node[key]
        node[last] = value
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "of format 2, and this version reads 1"),
        ({"schema": []}, "its schema is none"),
        ({"schema__cameras": {"front": [1 << 40, 16, 3]}}, "its schema is none .*no number from 1 to 8192"),
        ({"schema__action_low": [0.0]}, "action bounds that are none"),
        ({"schema__action_high": [float("nan"), 1.0]}, "action bounds that are none"),
        ({"schema__cameras": {}, "schema__states": {}}, "shows the policy nothing"),
        ({"agent__policy__hidden": [32]}, "does not hold the agent that policy.json describes"),
        ({"agent__critic__hidden": [90_000, 90_000, 90_000]}, "describes networks of .* MB"),
        ({"agent__policy__hidden": [1 << 40]}, "beyond all measure"),
        ({"agent__name": "gpt"}, "agent.name=gpt is unknown: did you mean 'gtp'"),
        ({"agent__surprise": 1}, "holds no AgentConfig of this version"),
        ({"encoder": "x"}, "holds no EncoderConfig of this version"),
        ({"parts": [1]}, "does not say which of the agent's parts"),
        ({"parts": ["policy"]}, "does not hold the agent"),
    ],
)
def test_a_strangers_description_is_looked_at(
    exported: Exported, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    _, out = exported("units")
    with pytest.raises(GtpVisionError, match=words):
        gtp_vision.load_policy(spoiled(out, tmp_path / "bad", artifact.MADE_OF, changed(out, **changes)))


def test_damage_is_told(exported: Exported, tmp_path: Path) -> None:
    _, out = exported("units")
    with pytest.raises(GtpVisionError, match=r"is no policy artifact .*gtp-vision export"):
        gtp_vision.load_policy(tmp_path)
    with pytest.raises(GtpVisionError, match=r"policy\.safetensors is missing"):
        gtp_vision.load_policy(spoiled(out, tmp_path / "without", artifact.WEIGHTS, None))
    copy = Path(shutil.copytree(out, tmp_path / "flipped"))
    data = bytearray((copy / artifact.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / artifact.WEIGHTS).write_bytes(data)
    with pytest.raises(GtpVisionError, match=r"policy\.safetensors differs"):
        gtp_vision.load_policy(copy)
    with pytest.raises(GtpVisionError, match=r"policy\.safetensors is not a safetensors file"):
        gtp_vision.load_policy(spoiled(out, tmp_path / "header", artifact.WEIGHTS, b"\xff" * 64))
    with pytest.raises(GtpVisionError, match=r"policy\.json cannot be read"):
        gtp_vision.load_policy(spoiled(out, tmp_path / "json", artifact.MADE_OF, b"{"))
    with pytest.raises(GtpVisionError, match="JSON object"):
        gtp_vision.load_policy(spoiled(out, tmp_path / "list", artifact.PROVENANCE, b"[]"))
    with pytest.raises(GtpVisionError, match="too large"):
        gtp_vision.load_policy(spoiled(out, tmp_path / "large", artifact.PROVENANCE, b" " * (5 << 20)))
    tensors = load_file(out / artifact.WEIGHTS)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(7)}, tmp_path / "other.safetensors")
    other = spoiled(out, tmp_path / "shape", artifact.WEIGHTS, (tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(GtpVisionError, match="differs; export it again"):
        gtp_vision.load_policy(other)
    with pytest.raises(GtpVisionError, match="device=cuda:99 is not to be had here"):
        gtp_vision.load_policy(out, device="cuda:99")


def test_a_policy_goes_to_the_hub_and_comes_back(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = exported("candidates")
    policy, seen = gtp_vision.load_policy(out), observations(out, 1)[0]
    policy.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(artifact.FILES)
    assert (tmp_path / "saved" / "policy.safetensors").read_bytes() == (out / "policy.safetensors").read_bytes()
    again = Policy.from_pretrained(str(tmp_path / "saved"))
    np.testing.assert_array_equal(again.act(seen), policy.act(seen))

    hub = tmp_path / "hub"

    class Api:  # what huggingface_hub asks of the network
        def __init__(self, token: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
            shutil.copytree(folder_path, hub / repo_id)
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert policy.push_to_hub("me/policy") == "done"
    np.testing.assert_array_equal(
        Policy.from_pretrained(str(hub / "me/policy"), engine="eager").act(seen), policy_act(out, seen)
    )
    with pytest.raises(GtpVisionError, match="nobody/nothing cannot be had from the hub"):
        Policy.from_pretrained("nobody/nothing", local_files_only=True)
    (hub / "me/policy" / "policy.safetensors").write_bytes(b"x")
    with pytest.raises(GtpVisionError, match="differs"):
        Policy.from_pretrained(str(hub / "me/policy"))


def policy_act(out: Path, seen: dict[str, np.ndarray]) -> np.ndarray:
    return gtp_vision.load_policy(out).act(seen)
