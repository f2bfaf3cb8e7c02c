import inspect
from collections.abc import Mapping
from typing import Any

import pytest

from gtp_vision import agents
from gtp_vision.bench import profile
from gtp_vision.bench.profile import NETWORKS, Network, agent_config, table
from gtp_vision.encoders import EncoderConfig

NAMES = ["gtp", "diffusion_ql", "fql"]
SMALL = {"2x16": Network((16, 16), "mish", layer_norm=False), "1x8": Network((8,), "gelu", layer_norm=True)}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return profile.bench_profile(rounds=1, names=NAMES, networks=SMALL, progress=False)


@pytest.mark.processes
def test_every_agent_has_times_parameters_and_memory_by_network(results: Mapping[str, Any]) -> None:
    assert list(results["networks"]) == list(SMALL)
    assert (results["agents"], results["ratios"]) == tuple(results["networks"]["2x16"].values())
    encoder = EncoderConfig(name="state", share=True)
    for title, network in results["networks"].items():
        gtp, ql, fql = (network["agents"][name] for name in NAMES)
        assert [list(costs["act_ms"]) for costs in (gtp, ql, fql)] == [[1, 2, 5], [5], [1]]
        assert list(ql["act_ms_candidates"]) == [50]
        for name, costs in network["agents"].items():
            assert costs["peak_mb"] >= 0
            agent = agents.create({"state": (1, 29)}, 8, agent_config(name, SMALL[title]), encoder)
            assert costs["params"] == sum(p.numel() for p in agent.parameters() if p.requires_grad)
        assert network["ratios"] == {
            "gtp_step_vs_diffusion_ql": pytest.approx(gtp["step_ms"] / ql["step_ms"], abs=0.05),
            "gtp_act_2_vs_diffusion_ql": pytest.approx(gtp["act_ms"][2] / ql["act_ms"][5], abs=1e-3),
            "gtp_act_1_vs_fql": pytest.approx(gtp["act_ms"][1] / fql["act_ms"][1], abs=1e-3),
        }


@pytest.mark.processes
def test_the_table_shows_published_numbers_beside_ours(results: dict[str, Any]) -> None:
    text = table(results)
    assert all(number in text for number in ("(3.8 h, 4.3 h)", "(0.67)", "(0.94)"))
    assert max(map(len, text.splitlines())) <= 120


def test_all_agents_get_the_same_networks_and_keep_their_other_settings() -> None:
    network = NETWORKS["3x256 mish"]
    for name in list(agents.AGENTS)[::4]:
        config = agent_config(name, network)
        assert tuple(config.policy.hidden) == tuple(config.critic.hidden) == network.hidden
        assert config.policy.activation == config.critic.activation == network.activation
        assert agents.label(config) == name


def test_without_names_it_measures_every_agent_that_needs_no_goals() -> None:
    names = inspect.signature(profile.bench_profile).parameters["names"].default
    for name in names:
        config = agent_config(name, SMALL["1x8"])
        agents.create({"state": (1, 29)}, 8, config, EncoderConfig(name="state", share=True))
    assert set(agents.AGENTS) - set(names) == {"crl", "gcbc", "gciql", "gcivl", "gtp_hiql", "hiql", "qrl"}


@pytest.mark.processes
def test_a_larger_network_takes_more_memory() -> None:
    networks = [Network((width, width), "relu", layer_norm=False) for width in (64, 1024)]
    small, large = profile._peaks([agent_config("gaussian_bc", each) for each in networks], progress=False)
    # 1.1 million parameters, gradients, both moments of Adam and the slow copy are 22 MB; and there are activations
    assert 0 <= small < 10 < 22 < large < 60
