import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_policies import HIGH, LOW, observations, untrained, write

import gtp_vision
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.manifest import write_manifest
from gtp_vision.serving import artifact
from gtp_vision.serving.limits import Limits
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.reference import REFERENCE


@pytest.fixture(scope="module")
def chunks() -> Policy:
    return untrained("agent=gtp_bc", "agent.action_chunk=4", "agent.acting.execute=3")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = untrained("agent=gtp", "encoder=state", cameras={}, states={"arm": 5})
    return write(tmp_path_factory.mktemp("artifact") / "policy", policy, "actor_encoder", "policy", "improvement")


def test_actions_are_in_the_robots_units_and_bounds(chunks: Policy) -> None:
    np.testing.assert_allclose(
        chunks.schema.in_units(np.array([[-1, -1], [0, 0], [2, 1]])), [[-3, 0], [-1, 125], [1, 250]]
    )
    session = chunks.session()
    for seen in observations(chunks.schema, 8):
        action = session.act(seen)
        assert action.dtype == np.float32
        assert ((np.array(LOW) <= action) & (action <= np.array(HIGH))).all()


def test_an_episode_is_acted_or_planned_until_reset(chunks: Policy) -> None:
    first, second = observations(chunks.schema, 2)
    chunks.reset()
    assert chunks.plan(first, steps=1).shape == (4, 2)
    assert chunks.plan(second).shape == (4, 2)
    with pytest.raises(GtpVisionError, match="call reset"):
        chunks.act(second)
    chunks.reset()
    assert chunks.act(first).shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"front": None}, "lacks 'front'"),
        ({"fromt": np.zeros(3)}, "'fromt': did you mean 'front'"),
        ({"front": np.zeros((16, 12, 3), np.float32)}, "'front' is float32"),
        ({"front": np.zeros((3, 16, 12), np.uint8)}, r"'front' has shape \(3, 16, 12\).* \(16, 12, 3\) \(height, wid"),
        ({"arm": np.zeros(4)}, r"'arm' has shape \(4,\).* \(5,\)"),
        ({"arm": np.array(["a", "b", "c", "d", "e"])}, "'arm' is <U1"),
        ({"arm": np.array([0, np.nan, 0, 0, 0])}, "'arm' .*not finite"),
        ([], "is a list"),
    ],
)
def test_observations_that_do_not_fit_are_refused_without_a_trace(chunks: Policy, change: Any, message: str) -> None:
    first, second = observations(chunks.schema, 2)
    given = {k: v for k, v in (first | change).items() if v is not None} if isinstance(change, dict) else change
    session, twin = chunks.session(), chunks.session()
    np.testing.assert_array_equal(session.act(first), twin.act(first))
    with pytest.raises(GtpVisionError, match=message):
        session.act(given)
    np.testing.assert_array_equal(session.act(second), twin.act(second))


@pytest.mark.parametrize("steps", [0, 1001, 1.5, True])
def test_invalid_steps_are_refused(chunks: Policy, steps: Any) -> None:
    with pytest.raises(GtpVisionError, match=r"steps=.* from 1 to 1000"):
        chunks.session().act(observations(chunks.schema, 1)[0], steps=steps)


def with_file(out: Path, target: Path, name: str, content: bytes | None) -> Path:
    """A copy of an artifact with another file of that name, and a manifest that agrees."""
    shutil.copytree(out, target)
    (target / name).unlink()
    if content is not None:
        (target / name).write_bytes(content)
        write_manifest(target)
    return target


def with_settings(out: Path, changes: dict[str, Any]) -> bytes:
    settings = json.loads((out / artifact.MADE_OF).read_text())
    for path, value in changes.items():
        *inner, last = path.split("__")
        node = settings
        for key in inner:
            node = node[key]
        node[last] = value
    return json.dumps(settings).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4}, "format 4, and this version reads up to 3"),
        ({"schema": []}, "schema is invalid"),
        ({"schema__cameras": {"front": [1 << 40, 16, 3]}}, "schema is invalid .* from 1 to 8192"),
        ({"schema__action_low": [0.0]}, "action bounds"),
        ({"schema__action_high": [float("nan"), 1.0]}, "action bounds"),
        ({"schema__cameras": {}, "schema__states": {}}, "neither cameras nor states"),
        ({"schema__limits": []}, "limits are invalid"),
        ({"schema__limits": asdict(Limits.position((0.0, 0.0), (-1.0, 1.0)))}, "leave nothing of its range"),
        ({"agent__policy__hidden": [32]}, "does not hold the agent"),
        ({"agent__critic__hidden": [90_000, 90_000, 90_000]}, "networks of .* MB"),
        ({"agent__policy__hidden": [1 << 40]}, r"hidden.*1099511627776"),
        ({"agent__name": "gpt"}, "agent.name=gpt .* 'gtp'"),
        ({"agent__surprise": 1}, "AgentConfig"),
        ({"encoder": "x"}, "EncoderConfig"),
        ({"parts": [1]}, "'parts'"),
        ({"parts": ["policy"]}, "does not hold the agent"),
    ],
)
def test_untrusted_settings_are_checked(out: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        gtp_vision.load_policy(with_file(out, tmp_path / "bad", artifact.MADE_OF, with_settings(out, changes)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (artifact.WEIGHTS, None, "missing"),
        (artifact.WEIGHTS, b"\xff" * 64, "not a safetensors file"),
        (artifact.MADE_OF, b"{", "cannot be read"),
        (artifact.PROVENANCE, b"[]", "JSON object"),
        (artifact.PROVENANCE, b" " * (5 << 20), "5242880 bytes"),
    ],
)
def test_damaged_files_are_refused(out: Path, tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    with pytest.raises(GtpVisionError, match=f"{name}.*{message}"):
        gtp_vision.load_policy(with_file(out, tmp_path / "bad", name, content))


def test_other_weights_folders_and_devices_are_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"manifest\.json.*gtp-vision export"):
        gtp_vision.load_policy(tmp_path)
    for device in ("cuda:99", "meta", "nonsense"):
        with pytest.raises(GtpVisionError, match=f"device={device} is not available .*try cpu"):
            gtp_vision.load_policy(out, device=device)
    tensors = load_file(out / artifact.WEIGHTS)
    save_file(tensors | {next(iter(tensors)): torch.zeros(7)}, tmp_path / "other")
    other = with_file(out, tmp_path / "shape", artifact.WEIGHTS, (tmp_path / "other").read_bytes())
    with pytest.raises(GtpVisionError, match="differs; export it again"):
        gtp_vision.load_policy(other)
    copy = Path(shutil.copytree(out, tmp_path / "flipped"))
    data = bytearray((copy / artifact.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / artifact.WEIGHTS).write_bytes(data)
    with pytest.raises(GtpVisionError, match=r"policy\.safetensors"):
        gtp_vision.load_policy(copy)


def test_an_artifact_of_an_earlier_version_has_no_bounds_and_acts_as_it_did(out: Path, tmp_path: Path) -> None:
    kept = {key: x for key, x in load_file(out / artifact.WEIGHTS).items() if not key.endswith((".lower", ".upper"))}
    save_file(kept, tmp_path / "kept")
    old, new = (
        gtp_vision.load_policy(folder)
        for folder in (with_file(out, tmp_path / "old", artifact.WEIGHTS, (tmp_path / "kept").read_bytes()), out)
    )
    seen = observations(new.schema, 1)[0]
    assert len(kept) + 2 == len(load_file(out / artifact.WEIGHTS))
    np.testing.assert_array_equal(old.act(seen), new.act(seen))


def test_a_policy_is_pushed_to_the_hub_and_loaded_from_it(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, hub = gtp_vision.load_policy(out), tmp_path / "hub"

    class Api:  # what huggingface_hub does over the network
        def __init__(self, token: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> None:
            shutil.copytree(folder_path, hub / repo_id)

    def download(repo_id: str, *, allow_patterns: list[str], revision: str | None, **_: object) -> str:
        assert (revision, sorted(allow_patterns)) == ("v1", sorted(artifact.FILES))
        return str(hub / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    policy.push_to_hub("me/policy")
    assert {path.name for path in (hub / "me/policy").iterdir()} == set(artifact.FILES) - {REFERENCE}, "untrained"
    with pytest.raises(GtpVisionError, match=r"nobody/nothing: .*check the name"):
        Policy.from_pretrained("nobody/nothing", local_files_only=True)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: None)  # the hub's own config.json
    monkeypatch.setattr("gtp_vision.serving.policy.snapshot_download", download)
    again = Policy.from_pretrained("me/policy", revision="v1", engine="eager")
    seen = observations(policy.schema, 1)[0]
    np.testing.assert_array_equal(again.act(seen), gtp_vision.load_policy(out).act(seen))
