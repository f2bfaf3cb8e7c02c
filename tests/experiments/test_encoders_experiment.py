import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gtp_vision.cli.main import main
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.experiments import encoders
from gtp_vision.training.evaluate import restore

ROW = "impala_small from scratch"


@pytest.fixture
def files(tmp_path: Path, make_store: Callable[..., Store], cache: Path) -> tuple[Path, Path]:
    """Demonstrations, and a file that stands for weights nobody reads here."""
    data = native.write(tmp_path / "demos.h5", make_store(lengths=(5, 4, 6), cameras={"front": (16, 16, 3)}))
    weights = tmp_path / "weights.pth"
    weights.touch()
    return data, weights


def test_a_row_is_trained_on_the_first_demonstrations_and_judged_on_the_rest(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, weights = files
    out = tmp_path / "out"
    command = ["experiment", "encoders", "--data", str(data), "--weights", str(weights), "--out", str(out)]
    command += ["--rows", ROW, "--demonstrations", "2", "--cameras", "front", "--seeds", "2", "--train-steps", "2"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["demonstrations"], told["held_out"], told["seeds"]) == (2, 1, 2)
    assert len(told["rows"][ROW]["error"]) == 2
    assert json.loads((out / "encoders.json").read_text()) == told
    store = native.read(data)
    few, held_out = native.read(next(out.glob("2-*.h5"))), store.subset([2])
    assert few.episodes == 2
    expected = np.abs(held_out.actions[held_out.transitions] - few.actions[few.transitions].mean(0)).mean()
    assert told["constant"] == pytest.approx(float(expected), rel=1e-5)
    assert main(command) == 0, "it goes on with what stands there"
    shown = capsys.readouterr().out
    assert f"{np.mean(told['rows'][ROW]['error']):.4f}" in shown


def test_the_error_is_that_of_the_mean_action(files: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = files
    encoders.encoders(
        *(data, weights, tmp_path / "out"),
        rows=[ROW],
        demonstrations=2,
        seeds=1,
        steps=1,
        cameras=["front"],
        progress=False,
    )
    run = next((tmp_path / "out").glob("*/seed0"))
    store = native.read(data).select(["front"]).subset([2])
    found = encoders.held_out_error(run, store)
    _, parts = restore(run)

    def silent(*_: object) -> torch.Tensor:
        return torch.zeros(len(store.transitions) * 8, store.action_dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(parts.agent.improvement), "act", silent)
        assert encoders.held_out_error(run, store) == pytest.approx(
            float(np.abs(store.actions[store.transitions]).mean())
        )
    assert found > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rows": ["pretraned, partial"]}, r"no row 'pretraned, partial' here: did you mean 'pretrained, partial'"),
        ({"demonstrations": 3}, r"--demonstrations 3 must leave some of the 3"),
        ({"weights": Path("/no/such.pth")}, r"/no/such.pth is no file; name the weights"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, object], told: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    arguments: dict[str, object] = {"data": files[0], "weights": files[1], "out": tmp_path, "cameras": ["front"]}
    with pytest.raises(GtpVisionError, match=told):
        encoders.encoders(**(arguments | settings))  # type: ignore[arg-type]


def test_other_demonstrations_in_the_same_folder_are_refused(
    files: tuple[Path, Path], tmp_path: Path, make_store: Callable[..., Store]
) -> None:
    def run(data: Path) -> None:
        encoders.encoders(
            *(data, files[1], tmp_path / "out"),
            **{"rows": [ROW], "demonstrations": 2, "seeds": 1, "steps": 1, "cameras": ["front"], "progress": False},  # type: ignore[arg-type]
        )

    run(files[0])
    other = make_store(lengths=(5, 4, 6), cameras={"front": (16, 16, 3)}, seed=1)
    with pytest.raises(GtpVisionError, match=r"holds a run of other settings"):
        run(native.write(tmp_path / "others.h5", other))
