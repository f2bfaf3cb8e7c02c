import json
from collections.abc import Mapping
from typing import Any

import pytest
from tqdm import tqdm

from gtp_vision import agents
from gtp_vision.bench import profile
from gtp_vision.bench.profile import NETWORKS, PUBLISHED, Network, configuration, table
from gtp_vision.cli.main import main
from gtp_vision.encoders import EncoderConfig

NAMES = ["gtp", "diffusion_ql", "fql"]
SMALL = {"2x16": Network((16, 16), "mish", layer_norm=False), "1x8": Network((8,), "gelu", layer_norm=True)}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return profile.bench_profile(rounds=2, names=NAMES, networks=SMALL, progress=False)


def test_every_agent_has_its_times_its_parameters_and_its_memory_by_network(told: Mapping[str, Any]) -> None:
    assert list(told["networks"]) == list(SMALL)
    assert (told["agents"], told["ratios"]) == tuple(told["networks"]["2x16"].values())
    for network in told["networks"].values():
        assert list(network["agents"]) == NAMES
        for name, agent in network["agents"].items():
            assert set(agent) - {"act_ms_candidates"} == {"step_ms", "act_ms", "params", "peak_mb"}
            assert list(agent["act_ms"]) == {"gtp": [1, 2, 5], "diffusion_ql": [5], "fql": [1]}[name]
            assert list(agent.get("act_ms_candidates", {})) == ([50] if name == "diffusion_ql" else [])
            times = [agent["step_ms"], *agent["act_ms"].values(), *agent.get("act_ms_candidates", {}).values()]
            assert all(0 < ms < 10_000 for ms in times)
            assert 0 <= agent["peak_mb"] < 200
    assert told["published"] == {name: PUBLISHED[name] for name in NAMES}


def test_ratios_are_those_of_the_times_told(told: Mapping[str, Any]) -> None:
    for network in told["networks"].values():
        gtp, ql, fql = (network["agents"][name] for name in NAMES)
        assert network["ratios"] == {
            "gtp_step_vs_diffusion_ql": pytest.approx(gtp["step_ms"] / ql["step_ms"], abs=1e-3),
            "gtp_act_2_vs_diffusion_ql": pytest.approx(gtp["act_ms"][2] / ql["act_ms"][5], abs=1e-3),
            "gtp_act_1_vs_fql": pytest.approx(gtp["act_ms"][1] / fql["act_ms"][1], abs=1e-3),
        }


def test_parameters_are_those_that_are_trained(told: Mapping[str, Any]) -> None:
    encoder = EncoderConfig(name="state", share=True)
    for title, network in SMALL.items():
        for name in NAMES:
            agent = agents.create({"state": (1, 29)}, 8, configuration(name, network), encoder)
            trained = sum(p.numel() for p in agent.parameters() if p.requires_grad)
            assert told["networks"][title]["agents"][name]["params"] == trained


def test_all_agents_get_the_same_networks_and_keep_what_else_is_theirs() -> None:
    for network in NETWORKS.values():
        for name in agents.AGENTS:
            config = configuration(name, network)
            assert tuple(config.policy.hidden) == tuple(config.critic.hidden) == network.hidden
            assert config.policy.activation == config.critic.activation == network.activation
            assert (config.policy.architecture, config.critic.layer_norm) == ("mlp", network.layer_norm)
            assert agents.label(config) == name
    assert configuration("gtp", NETWORKS["3x256 mish"]).critic.next_steps == 5


def test_a_larger_network_takes_more_memory() -> None:
    networks = [Network((width, width), "relu", layer_norm=False) for width in (64, 1024)]
    small, large = profile._peaks([configuration("gaussian_bc", each) for each in networks], tqdm(disable=True))
    # 1.1 million parameters, gradients, both moments of Adam and the slow copy are 22 MB; and there are activations
    assert 0 <= small < 10 < 22 < large < 60


def test_the_cli_prints_one_json_object_or_a_table(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(profile, "bench_profile", lambda **given: asked.append(given) or told)
    assert main(["bench", "profile", "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agents"]["gtp"]["act_ms"]["2"] == told["agents"]["gtp"]["act_ms"][2]
    assert main(["bench", "profile"]) == 0
    assert capsys.readouterr().out == table(told) + "\n"
    assert asked == [{"rounds": 3, "progress": False}, {"rounds": 15, "progress": True}]


def test_the_table_sets_times_beside_what_was_published(told: Mapping[str, Any]) -> None:
    text = table(told)
    (gtp,) = [line for line in text.splitlines() if line.startswith("gtp ")][:1]
    assert "(3.8 h, 4.3 h)" in gtp
    assert "(0.67)" in gtp
    assert "(0.94)" in gtp
    assert max(map(len, text.splitlines())) <= 120


def test_rounds_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "profile", "--rounds", "0"]) == 2
    assert "--rounds 0" in capsys.readouterr().err
