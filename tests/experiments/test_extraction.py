import numpy as np
import pytest

from gtp_vision.core.random import counter_rng
from gtp_vision.experiments import extraction


def test_recorded_actions_go_to_one_of_four_targets_and_weights_prefer_the_first() -> None:
    features, actions = extraction._draw(20_000, counter_rng(0, 0))
    distance, weight = extraction._distance(features, actions), extraction._weights(features, actions)
    assert 0.25 < (distance < extraction.NEAR).mean() < 0.36  # a quarter, and targets on the same way
    assert np.average(distance < extraction.NEAR, weights=weight) > 0.7
    assert weight.min() > 0
    assert weight.max() <= extraction.CLIP
    judged = extraction._judge(features, actions, weight)
    assert judged["q"] == pytest.approx(-np.average(distance**2, weights=weight))


@pytest.mark.trains
def test_weights_lead_to_the_best_action() -> None:
    assert extraction.train("gaussian", 300, 0)[1]["q_still"] > -0.4  # of recorded actions -1.9
    results = extraction.extraction(steps=5, progress=False)
    assert set(results["families"]["gtp"]) == {1, 2, 5}
    assert "gtp, K=5" in "\n".join(extraction.table(results))
