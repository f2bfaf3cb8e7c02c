import runpy
from pathlib import Path

import numpy as np
import pytest

from gtp_vision.experiments import problems

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "img" / "method.py"


@pytest.mark.trains
def test_they_are_drawn(tmp_path: Path) -> None:
    error, shares = runpy.run_path(str(SCRIPT))["draw"](tmp_path, steps=3)
    assert shares[0] == 1, "the exact equation ends on a mode always"
    assert max(shares[1:]) < 0.5, "three steps of training do not"
    assert error > 0.1
    for name in ("method-map.png", "method-jumps.png"):
        assert (tmp_path / name).stat().st_size > 10_000
        assert SCRIPT.with_name(name).is_file()


def test_the_drawn_paths_are_the_equations() -> None:
    script, problem = runpy.run_path(str(SCRIPT)), problems.gaussian()
    x = script["starts"](problem, 50)
    assert x.std(0) == pytest.approx([2, 2], rel=0.3)
    drawn = script["paths"](problem, x, np.array([script["START"], 1.0, 0.0]))
    assert np.allclose(drawn[0], x)
    shrink = np.sqrt((0.2**2 + 1) / (0.2**2 + script["START"] ** 2))
    assert np.allclose(drawn[1], problem.means + shrink * (x - problem.means))
