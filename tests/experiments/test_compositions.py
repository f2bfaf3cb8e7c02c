"""Every family, improvement and critic is composed; what is legal trains, what is not is refused by its name."""

import json
from pathlib import Path

import pytest

from gtp_vision.agents import IMPROVEMENTS
from gtp_vision.experiments.compositions import compositions, every_composition, refusal, table
from gtp_vision.models import FAMILIES
from gtp_vision.models.critic import BACKUPS


def test_compositions_hold_all_parts_and_the_illegal_are_refused_by_name() -> None:
    found = list(every_composition())
    assert {each.config.policy.family for each in found} == set(FAMILIES)
    assert {each.config.improvement.name for each in found} == set(IMPROVEMENTS)
    assert {each.config.critic.backup for each in found} == set(BACKUPS)
    assert len({each.label for each in found}) == len(found)
    refused = [(each, sentence) for each in found if (sentence := refusal(each.config))]
    assert 0.2 < len(refused) / len(found) < 0.5
    for each, sentence in refused:
        names = each.config.improvement.name, each.config.policy.family
        assert any(f"={name}" in sentence for name in names), sentence
        assert "set " in sentence


@pytest.mark.trains
def test_a_sample_of_compositions_stays_finite(tmp_path: Path) -> None:
    results = compositions(tmp_path, steps=3, every=29, progress=False)
    assert json.loads((tmp_path / "compositions.json").read_text()).items() <= results.items()
    assert len(results["trained"]) > 10
    assert not any(what for faults in results["trained"].values() for what in faults.values())
    assert results["acted"] > 3 * len(results["trained"])
    assert "0 not finite" in table(results)[-1]
