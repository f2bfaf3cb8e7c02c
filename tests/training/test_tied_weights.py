"""An encoder with tied weights, as CoaT's, in all that is done with a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engines_of import engine_of
from small_runs import assert_close, assert_equal, saved, small_run
from stores import make_store

from gtp_vision import load_policy
from gtp_vision.config.schema import Config
from gtp_vision.core.tied import aliases
from gtp_vision.datasets.formats import native
from gtp_vision.serving.export import export
from gtp_vision.training import trainer
from gtp_vision.training.build import build

pytestmark = pytest.mark.trains
COAT = ("encoder=timm", "encoder.name=timm/coat_lite_tiny", "encoder.features=8", "task.frame_stack=1")
SHAPE = (32, 48, 3)


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., Config]:
    """The configuration of a run of four steps, by its folder's name."""
    data = native.write(tmp_path / "data.h5", make_store((9, 8), cameras={"front": SHAPE}))
    short = ("training.batch_size=4", "training.steps=4")
    return lambda run, *more: small_run(data, tmp_path / run, *COAT, *short, *more, agent="gtp_bc")


def test_tied_weights_are_trained_resumed_exported_and_taken_over(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    run, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer.train(config_of("whole"), progress=False)
    whole = saved(run)
    names = {name for name in whole if "cpe1" in name or ".cpe." in name}
    assert names
    assert not any(".cpe." in name for name in names), "each is stored once"

    shutil.copytree(run, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "step_4")
    trainer.train(config_of("resumed"), resume=True, progress=False)
    assert_equal(saved(resumed), whole)

    policy = export(run, tmp_path / "policy")
    seen = {"front": np.full(SHAPE, 9, np.uint8), "state": np.ones(3, np.float32)}
    assert np.array_equal(policy.session().act(seen), load_policy(tmp_path / "policy").session().act(seen))

    taken = build(config_of("taken", f"encoder.weights={run}")).agent.actor_encoder.state_dict()
    towers = {name: x for name, x in taken.items() if name.startswith("towers.")}
    assert len(towers) > len(names)
    assert all(torch.equal(x, whole[key]) for name, x in towers.items() if (key := f"actor_encoder.{name}") in whole)


def test_a_step_as_a_function_trains_tied_weights_as_pytorch_does(config_of: Callable[..., Config]) -> None:
    ends = []
    for kind in ("eager", "function"):
        config = config_of(kind)
        parts = build(config)
        engine = engine_of(kind, config, [parts])
        for step in range(2):
            engine.step(step, engine.source.fetch(step))
        assert aliases(parts.agent)
        ends.append(dict(parts.agent.state_dict()))
    assert_close(*ends, rtol=1e-2, atol=2e-3)
