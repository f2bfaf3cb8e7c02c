from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import PIXELS, assert_equal, small_run
from stores import make_store

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.datasets.formats import native
from gtp_vision.serving.export import export
from gtp_vision.serving.warm_start import open_source
from gtp_vision.training import trainer
from gtp_vision.training.build import build


@pytest.mark.trains
def test_a_run_begins_with_an_artifact_and_other_data(tmp_path: Path) -> None:
    old, new = (
        native.write(tmp_path / name, make_store((20, 20), cameras={"front": (12, 12, 3)}, seed=seed))
        for seed, name in enumerate(("old.h5", "new.h5"))
    )
    config = small_run(old, tmp_path / "run", *PIXELS, "encoder.share=false", "training.steps=1", "task.n_step=2")
    trainer.train(config, progress=False)
    policy = export(tmp_path / "run", tmp_path / "policy")
    source = open_source(str(tmp_path / "policy"))
    with pytest.raises(GtpVisionError, match="does not name the files of its data; give data with --append"):
        source.new_run([])
    begun = source.new_run(["training.steps=1", f"run_dir={tmp_path / 'new'}"], [str(new)])
    assert begun.task.datasets == [str(new)]
    assert begun.task.n_step == 2
    parts = build(begun, source=source)
    assert parts.initial is not None
    found = {part.name: part for part in parts.initial.parts}
    assert found["policy"].new == found["actor_encoder"].new == found["critic_encoder"].new == 0
    assert found["critic"].loaded == 0
    assert found["critic"].notes == ["the source lacks it"]
    weights = load_file(tmp_path / "policy" / "policy.safetensors")
    own = parts.agent.state_dict()
    assert_equal(weights, {name: own[name] for name in weights})
    assert policy.schema.action_low == tuple(parts.record.action_bounds[0])
    trainer.train(begun, progress=False, open_source=open_source)
    again = export(tmp_path / "new", tmp_path / "again")
    assert [entry["data"][0]["path"] for entry in again.card["rounds"]] == ["old.h5", "new.h5"]
    assert str(tmp_path) not in str(again.card["settings"])
    with pytest.raises(GtpVisionError, match="leave --init-optimizer out"):
        parts.initial.fill_optimizer(parts.optimizer, parts.agent)
