"""Sentence features by a text encoder of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import importing

_LONGEST = 256  # tokens of a sentence


@torch.no_grad()
def sentence_features(texts: Sequence[str], source: str) -> np.ndarray:
    """The mean over a sentence's tokens of an encoder's last layer, float32 (texts, D), on the CPU.

    Args:
        texts: sentences; what is longer than 256 tokens is left out.
        source: a folder with a model and its tokenizer, or the name of one on the hub; of a model with a decoder, or
            of images and texts, its text encoder is taken. Only safetensors are read, and no code of the model.

    Raises:
        GtpVisionError: transformers is missing, or there is no such model.
    """
    with importing("language", "task.instructions=text"):
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(source).expanduser()
    name = str(folder) if folder.is_dir() else source
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModel.from_pretrained(name, use_safetensors=True)
    except Exception as error:  # of transformers, of the hub, of files
        raise GtpVisionError(
            f"the text encoder '{source}' cannot be loaded ({first_line(error)}); set task.text_encoder to the folder "
            f"of a model with its tokenizer, or to one on the hub"
        ) from error
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    model = getattr(model, "text_model", model).eval()
    features = []
    for text in texts:  # each alone, so that none depends on the others
        tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=_LONGEST)
        states = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        features.append(states[0].float().mean(0).numpy())
    return np.stack(features)
