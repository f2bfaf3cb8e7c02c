from pathlib import Path

import numpy as np
from PIL import Image
from small_runs import composed

from gtp_vision.config.schema import Config
from gtp_vision.training import pictures
from gtp_vision.training.build import build

TINY = [
    *("task=demo", "training=demo", "agent=gtp_bc_demo", "encoder=demo", "training.batch_size=8"),
    *("training.eval_episodes=0", "agent.policy.hidden=[16]", "encoder.features=16", "training.steps=2"),
]
COLORS = ["encoder.augmentation.brightness=0.5", "encoder.augmentation.hue=0.2", "encoder.augmentation.erase=0.3"]


def _config(folder: Path, *more: str) -> Config:
    return composed(*TINY, f"run_dir={folder}", *more)


def test_each_row_has_its_recorded_frame_and_seven_draws(tmp_path: Path) -> None:
    parts = build(_config(tmp_path, *COLORS))
    batch = parts.frames.batch(0)
    pictures.augmentation(tmp_path / "sheet.png", batch, parts)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    (frames,) = (x[:, -1].permute(0, 2, 3, 1).numpy() for x in batch.observation.values() if x.ndim == 5)
    factor = 192 // max(frames.shape[1:3])
    side = factor * frames.shape[1]
    assert sheet.shape == (16 + 4 + 4 * (side + 16 + 4), 4 + 8 * (side + 4), 3)
    for row in range(4):
        top = 16 + 4 + row * (side + 16 + 4)
        cells = [sheet[top : top + side, 4 + n * (side + 4) :][::factor, :side:factor] for n in range(8)]
        assert np.array_equal(cells[0], frames[row])
        assert len({cell.tobytes() for cell in cells}) == 8


def test_the_sheet_has_full_strength_and_the_first_batch_that_of_training(tmp_path: Path) -> None:
    sheets = {}
    for name, warmup in (("at once", []), ("warming up", ["encoder.augmentation.warmup_steps=100"])):
        parts = build(_config(tmp_path, *COLORS, *warmup))
        pictures.augmentation(tmp_path / "sheet.png", parts.frames.batch(0), parts)
        pictures.first_batch(tmp_path / "first.png", parts.frames.batch(0), parts)
        sheets[name] = ((tmp_path / "sheet.png").read_bytes(), (tmp_path / "first.png").read_bytes())
    assert sheets["at once"][0] == sheets["warming up"][0]
    assert sheets["at once"][1] != sheets["warming up"][1]
    parts = build(_config(tmp_path, "encoder.augmentation.shift_probability=0"))
    pictures.augmentation(tmp_path / "none.png", parts.frames.batch(0), parts)
    assert not (tmp_path / "none.png").exists(), "without augmentation"
