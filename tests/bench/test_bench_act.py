import pytest
from small_runs import composed

from gtp_vision import agents
from gtp_vision.bench.act import table, ways_of


@pytest.mark.parametrize(
    ("overrides", "holds_critic", "expected"),
    [
        ("agent=gtp", True, {1: 5, 2: 5, 5: 5}),
        ("agent=gtp", False, {1: 1, 2: 1, 5: 1}),
        ("agent=gtp improvement=q_gradient", True, {1: 5, 2: 0, 5: 0}),  # Q improves its one jump
        ("agent=fql", True, {1: 3, 2: 3, 5: 3}),  # no beam
    ],
)
def test_an_agent_acts_in_every_way_it_can(overrides: str, holds_critic: bool, expected: dict[int, int]) -> None:
    config = composed(
        "task=demo", *overrides.split(), "agent.policy.hidden=[8]", "agent.critic.hidden=[8]", "encoder=state"
    )
    agent = agents.create({"state": (1, 3)}, 2, config.agent, config.encoder)
    if not holds_critic:
        del agent.critic_target
    ways = dict(ways_of(agent, ["agent.acting.candidates=9", "agent.acting.branch=2"]))
    assert {k: sum(key[1] == k for key in ways) for k in expected} == expected
    if ("single", 2) in ways and len(ways) == 15:
        assert [name for name, k in ways if k == 2] == [
            *("single", "best of 9", "best of 41", "beam, 41 in all", "and a step along Q")
        ]
        assert ways["beam, 41 in all", 2].renoise == config.agent.acting.renoise


def test_the_table_has_a_line_for_each_way_and_engine() -> None:
    results = {
        **{"agent": "gtp", "steps": 2, "rounds": 3, "ms": {"eager": 1.0}, "against_eager": {"eager": 1.0}},
        **{"difference": None, "graphless": "onnx is not installed"},
        "ways": {"single": {"1": {"eager": 1.0, "compile": 0.5}, "2": {"eager": 2.0, "compile": 0.7}}},
    }
    text = table(results)
    assert "onnx is not installed" in text
    assert [line.split() for line in text.splitlines() if "compile" in line] == [
        ["single", "compile", "0.500", "0.700", "-"]
    ]
    assert "export it with acting=beam" in text
