"""How far the command is from the loss: the frames of our own code, as docs/design.md lists them."""

import re
import traceback
from pathlib import Path

import pytest
from small_runs import STATES, small

from gtp_vision.cli.main import main
from gtp_vision.models.gtp import GTPPolicy

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.trains
def test_the_stack_from_the_command_to_the_loss_is_short_and_documented(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack: list[tuple[str, str]] = []
    loss = GTPPolicy.loss

    def recording(self: GTPPolicy, batch: object) -> object:
        if not stack:
            ours = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT / "gtp_vision")]
            stack.extend((str(Path(frame.filename).relative_to(ROOT)), frame.name) for frame in ours)
            stack.append(("gtp_vision/models/gtp.py", "loss"))
        return loss(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(GTPPolicy, "loss", recording)
    paths = [f"task.dataset={data}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *STATES, *small("gtp"), *paths, "training.steps=1"]) == 0
    assert len(stack) <= 9
    assert len({file for file, _ in stack}) <= 6
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert re.findall(r"^(gtp_vision/\S+\.py) +(\w+)$", page, re.MULTILINE) == stack
