"""How far the command is from the loss: the frames of our own code, as docs/design.md lists them."""

import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from gtp_vision.cli.main import main
from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store
from gtp_vision.models.gtp import GTPPolicy

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.trains
def test_the_stack_from_the_command_to_the_loss_is_short_and_documented(
    tmp_path: Path, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack: list[tuple[str, str]] = []
    loss = GTPPolicy.loss

    def recording(self: GTPPolicy, batch: object) -> object:
        if not stack:
            frames = [
                frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT / "gtp_vision")
            ]
            stack.extend((str(Path(frame.filename).relative_to(ROOT)), frame.name) for frame in frames)
            stack.append(("gtp_vision/models/gtp.py", "loss"))
        return loss(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(GTPPolicy, "loss", recording)
    data = native.write(tmp_path / "data.h5", make_store())
    settings = ["agent=gtp", "encoder=state", "training.steps=1", "training.batch_size=4", "training.eval_episodes=0"]
    small = ["agent.policy.hidden=[8]", "agent.critic.hidden=[8]", "training.device=cpu", f"run_dir={tmp_path / 'run'}"]
    assert (
        main(["train", "task=own", "task.name=small", "task.env=null", f"task.dataset={data}", *settings, *small]) == 0
    )
    assert len(stack) <= 9
    assert len({file for file, _ in stack}) <= 6
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert re.findall(r"^(gtp_vision/\S+\.py) +(\w+)$", page, re.MULTILINE) == stack
