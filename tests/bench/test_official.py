"""Official FQL takes turns with ours; here its driver refuses, and a driver without JAX answers."""

import sys
from pathlib import Path

import pytest

from gtp_vision.bench import official
from gtp_vision.core.errors import GtpVisionError

pytestmark = pytest.mark.processes
ANSWERS = """
import sys
assert sys.argv[1:5] == ["--checkout", "there", "--time", "--hidden"]
print("ready", flush=True)
for line in sys.stdin:
    sum(range(1000 * int(line)))
    print(1.0, flush=True)
"""


def test_a_checkout_that_the_driver_refuses_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(GtpVisionError, match=r"official FQL cannot be timed: .* is not a checkout of seohongpark/fql"):
        official.official_fql(tmp_path, Path(sys.executable), rounds=1)


def test_both_are_timed_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "benchmarks" / "peers" / "fql.py"
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(GtpVisionError, match="run this in a clone"):
            official.official_fql(Path("there"), Path(sys.executable))
        driver.parent.mkdir(parents=True)
        driver.write_text(ANSWERS)
        patch.setattr(official, "NETWORKS", {"1x8": (8,)})
        patch.setattr(official, "has_compiler", lambda: False)
        found = official.official_fql(Path("there"), Path(sys.executable), rounds=1, progress=False)
    one = found["1x8"]
    assert one["vs_official"] == pytest.approx(one["ms"]["eager"] / one["official_ms"], rel=0.05)
    assert "1x8" in official.line(found)
