"""Two tasks whose frames look the same and whose right actions are opposite: data, simulator, and a text encoder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from stores import make_store

from gtp_vision.datasets.formats import native
from gtp_vision.datasets.store import Store

LEFT, RIGHT = "go to the left", "go to the right"
SIGN = {LEFT: -1.0, RIGHT: 1.0}
MODULE = '''
import gymnasium
import numpy as np

class Two(gymnasium.Env):
    """The side is drawn by the seed; `only` is the one side of a named environment."""

    observation_space = gymnasium.spaces.Dict(front=gymnasium.spaces.Box(0, 255, (12, 12, 3), np.uint8))
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, only=None, says=True):
        self.only, self.says = only, says

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = self.only or ("left", "right")[seed % 2]
        return self.shown(), {"instruction": f"go to the {self.side}"} if self.says else {}

    def step(self, action):
        success = action[0] * {"left": -1, "right": 1}[self.side] > 0.3
        return self.shown(), 0.0, False, False, {"success": bool(success)}

    def shown(self):
        return {"front": np.full((12, 12, 3), 90, np.uint8)}

gymnasium.register("Two-v0", entry_point=Two, max_episode_steps=2)
gymnasium.register("Left-v0", entry_point=Two, max_episode_steps=2, kwargs={"only": "left"})
gymnasium.register("Right-v0", entry_point=Two, max_episode_steps=2, kwargs={"only": "right"})
gymnasium.register("Silent-v0", entry_point=Two, max_episode_steps=2, kwargs={"says": False})
gymnasium.register("Up-v0", entry_point=Two, max_episode_steps=2, kwargs={"only": "up"})
'''
ENV = "gymnasium/tests_two_tasks"


def two_tasks(texts: Sequence[str] = (LEFT, RIGHT), episodes: int = 20, length: int = 6) -> Store:
    """Episodes of each text in turn; the frames are all the same."""
    tasks = [number % len(texts) for number in range(episodes)]
    store = make_store((length,) * episodes, state=None, cameras={"front": (12, 12, 3)}, actions=1)
    way = np.repeat([SIGN[texts[task]] for task in tasks], length).astype(np.float32)[:, None]
    return replace(
        store,
        observations={"front": np.full((episodes * length, 12, 12, 3), 90, np.uint8)},
        actions=0.9 * way + 0.1 * np.asarray(store.actions),
        attributes={"tasks": list(texts), "episode_tasks": tasks},
    )


def write_two_tasks(path: Path, texts: Sequence[str] = (LEFT, RIGHT)) -> Path:
    """The data set in a file."""
    return native.write(path, two_tasks(texts))


def write_text_encoder(folder: Path) -> Path:
    """A tiny text encoder with random weights and a tokenizer of words, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *["go", "to", "the", "left", "right", "up", "with", "blue", "cup"]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder
