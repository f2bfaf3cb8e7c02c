import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import make_store

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.experiments import encoders
from gtp_vision.training.evaluate import restore

pytestmark = pytest.mark.processes
ROW = "impala_small from scratch"
OPTIONS: dict[str, Any] = {"rows": [ROW], "demonstrations": 2, "seeds": 1, "steps": 1, "cameras": ["front"]}


@pytest.fixture
def files(tmp_path: Path, cache: Path) -> tuple[Path, Path]:
    """Demonstrations, and a file in place of weights that the row does not read."""
    data = native.write(tmp_path / "demos.h5", make_store(lengths=(5, 4, 6), cameras={"front": (16, 16, 3)}))
    weights = tmp_path / "weights.pth"
    weights.touch()
    return data, weights


def test_a_row_is_trained_on_the_first_demonstrations_and_judged_on_the_rest(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (data, weights), out = files, tmp_path / "out"
    command = ["experiment", "encoders", "--data", str(data), "--weights", str(weights), "--out", str(out)]
    command += ["--rows", ROW, "--demonstrations", "2", "--cameras", "front", "--seeds", "1", "--train-steps", "1"]
    assert main([*command, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert json.loads((out / "encoders.json").read_text()) == results
    few, held_out = native.read(next(out.glob("2-*.h5"))), native.read(data).select(["front"]).subset([2])
    assert few.episodes == 2
    actions = held_out.actions[held_out.transitions]
    constant = np.abs(actions - few.actions[few.transitions].mean(0)).mean()
    assert results["constant"] == pytest.approx(float(constant), rel=1e-5)
    assert main(command) == 0, "finished runs are kept"
    assert f"{results['rows'][ROW]['error'][0]:.4f}" in capsys.readouterr().out

    run = next(out.glob("*/seed0"))
    assert [encoders.held_out_error(run, held_out)] == results["rows"][ROW]["error"]
    zeros = torch.zeros(len(held_out.transitions) * 8, held_out.action_dim)
    monkeypatch.setattr(type(restore(run)[1].agent.improvement), "act", lambda *_: zeros)
    assert encoders.held_out_error(run, held_out) == pytest.approx(float(np.abs(actions).mean()))
    other = make_store(lengths=(5, 4, 6), cameras={"front": (16, 16, 3)}, seed=1)
    with pytest.raises(GtpVisionError, match="holds a run of other settings"):
        encoders.encoders(native.write(tmp_path / "others.h5", other), weights, out, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ["pretraned, partial"]}, "'pretraned, partial': did you mean 'pretrained, partial'"),
        ({"demonstrations": 3}, "--demonstrations 3 must leave some of the 3"),
        ({"weights": Path("/no/such.pth")}, "/no/such.pth is not a file"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], message: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(GtpVisionError, match=message):
        encoders.encoders(**({"data": files[0], "weights": files[1], "out": tmp_path} | OPTIONS | options))
