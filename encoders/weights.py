"""Trained weights of backbones, out of files that are not trusted.

A file is .safetensors, or a PyTorch file whose reading can run no code (`weights_only`). A folder is a run of this
package, whose actor's first backbone is taken with the statistics that it was trained with.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.encoders.backbone import Backbone, first_line

HUB = "hub"
"""Stands for timm's own weights, from the Hugging Face hub."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")  # of tensors, in checkpoints
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.", "trunk.")  # of wrappers around a backbone
_CLASSIFIERS = ("fc", "head", "head.fc", "classifier", "head_dist", "_fc")
_TOWERS = "actor_encoder.towers."
_DEPTH = 4  # of dictionaries within each other

State = Mapping[str, torch.Tensor]


def of_run(weights: str | None) -> bool:
    """Whether `encoder.weights` names the folder of a run, judged by the name alone: it may be gone when resuming."""
    return weights is not None and weights != HUB and Path(weights).suffix.lower() not in _SUFFIXES


def load(backbone: Backbone, weights: str, who: str, *, place: int = 0) -> None:
    """Fill a backbone.

    Args:
        backbone: to be filled; its pooling is left alone unless the weights are those of a run.
        weights: a file, or the folder of a run or of one of its checkpoints.
        who: the backbone's name.
        place: of the camera among those with a backbone of their own; a run with as many gives it the one that stood
            there, any other its first.

    Raises:
        GtpVisionError: no such file, one that cannot be read, or weights of another architecture.
    """
    path = Path(weights).expanduser()
    if of_run(weights):
        fill(backbone, _tower(path, place), f"{weights} (batch_norm={_norms(backbone)})", who)
        backbone.centred = False  # it goes on with the mean frame that it was trained with
        return
    state = read(path)
    fill(
        backbone.described(),
        state,
        weights,
        who,
        translate=backbone.translated,
        first_layers=backbone.first_layers,
        frames=backbone.shape[0] // backbone.passes,
        # Of the data set that they were trained on, and of its frames' size: no weights.
        kept=("mean", "scale") if backbone.described() is backbone else (),
    )
    if constants := backbone.constants_of(state):
        backbone.scale_as(constants)


def fill(
    module: nn.Module,
    state: State,
    weights: str,
    who: str,
    *,
    translate: Callable[[State], State] = dict,
    first_layers: Collection[str] = (),
    frames: int = 1,
    kept: Collection[str] = (),
) -> None:
    """Fill a module with a file's tensors: all of them, each of its shape.

    Wrappers' prefixes and classifiers that the module does not have are left out. A first layer that sees T frames
    takes the weights of one, repeated and divided by T: a stack of equal frames gives what the frame gave.

    Args:
        module: to be filled.
        state: name to tensor.
        weights: where they are from, for messages.
        who: whose name the messages say.
        translate: to the module's own names and sizes.
        first_layers: names of the layers that see the frames' channels.
        frames: T.
        kept: names that stay as they are, whatever the file holds.

    Raises:
        GtpVisionError: tensors are missing, left over or of another shape: how many, and the first of each.
    """
    present = module.state_dict()
    state = dict(translate(_unwrapped(state, present.keys() - set(kept)))) | {name: present[name] for name in kept}
    for name in list(state):
        if name not in present and name.rpartition(".")[0] in _CLASSIFIERS:
            del state[name]
    for name in (f"{layer}.weight" for layer in first_layers):
        value = state.get(name)
        if value is not None and value.ndim == 4 and value.shape[1] * frames == present[name].shape[1]:
            state[name] = value.repeat(1, frames, 1, 1) / frames
    for name, value in present.items():
        if name.endswith(".num_batches_tracked"):  # older files lack it, and nothing looks at it
            state.setdefault(name, value)
    missing = sorted(present.keys() - state.keys())
    unexpected = sorted(state.keys() - present.keys())
    reshaped = sorted(n for n in state.keys() & present.keys() if state[n].shape != present[n].shape)
    told = [
        f"{len(missing)} tensors are missing (first '{missing[0]}')" if missing else "",
        f"{len(unexpected)} unexpected (first '{unexpected[0]}')" if unexpected else "",
        f"{len(reshaped)} of another shape (first '{reshaped[0]}', {tuple(state[reshaped[0]].shape)} in the file, "
        f"{tuple(present[reshaped[0]].shape)} here)"
        if reshaped
        else "",
    ]
    if any(told):
        raise GtpVisionError(
            f"encoder.weights={weights} does not fit encoder.name={who}: {', '.join(filter(None, told))}; "
            f"{_mend([*missing, *unexpected])}"
        )
    module.load_state_dict(state)


def _mend(differing: Collection[str]) -> str:
    """What to do about tensors that one side lacks."""
    if any(".base_layer." in name or ".lora_" in name for name in differing):
        return "it holds LoRA adapters: give weights without them, e.g. those that its run began with"
    statistics = (".running_mean", ".running_var", ".num_batches_tracked")
    if differing and all(name.endswith(statistics) for name in differing):
        return (
            "batch statistics stand on one side only: set encoder.batch_norm to frozen, or to group, as they were made"
        )
    return "give weights of this architecture, or name the one that they are of"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, out of whatever dictionaries hold them.

    Raises:
        GtpVisionError: no such file, not readable, Python objects in it, or no tensors.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            held: object = load_file(path)
        else:
            _check_zip(path)
            with torch.serialization.safe_globals([argparse.Namespace]):  # a plain record, in timm's checkpoints
                held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise GtpVisionError(f"encoder.weights={path}: there is no such file; check the path") from error
    except pickle.UnpicklingError as error:
        raise GtpVisionError(
            f"encoder.weights={path} is damaged or holds Python objects, whose reading can run code, and is not read; "
            f"save the model's state_dict() alone, best as .safetensors"
        ) from error
    except GtpVisionError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in torch's reader
        raise GtpVisionError(f"encoder.weights={path} cannot be read ({first_line(error)}); fetch it anew") from error
    state = _tensors(held)
    if not state:
        raise GtpVisionError(f"encoder.weights={path} holds no tensors by name; save a model's state_dict()")
    return state


def _check_zip(path: Path) -> None:
    """PyTorch stores its tensors uncompressed; what is compressed could swell beyond any memory.

    Raises:
        GtpVisionError: compressed entries.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise GtpVisionError(
                    f"encoder.weights={path} is a compressed archive, which torch.save never makes; save it anew"
                )


def _tensors(held: object, depth: int = 0) -> dict[str, torch.Tensor]:
    if not isinstance(held, Mapping) or depth > _DEPTH:
        return {}
    for key in _HOLDERS:
        if isinstance(held.get(key), Mapping):
            return _tensors(held[key], depth + 1)
    return {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def _unwrapped(state: State, present: Collection[str]) -> State:
    """Without the prefixes of wrappers, taken off until a name is one of those present."""
    while not any(name in present for name in state):
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def _tower(folder: Path, place: int) -> dict[str, torch.Tensor]:
    """A backbone of a run's actor, as its last checkpoint or the one that is named holds it.

    Raises:
        GtpVisionError: no checkpoint there, or one without cameras.
    """
    for file in (folder / "agent.safetensors", folder / "checkpoints" / "last" / "agent.safetensors"):
        if file.is_file():
            held = read(file)
            prefix = next((p for p in (f"{_TOWERS}{place}.", f"{_TOWERS}0.") if any(n.startswith(p) for n in held)), "")
            state = {
                name.removeprefix(prefix): value for name, value in held.items() if prefix and name.startswith(prefix)
            }
            if not state:
                raise GtpVisionError(f"encoder.weights={folder} is a run without cameras; name one that has some")
            return state
    raise GtpVisionError(
        f"encoder.weights={folder} is no file of weights ({', '.join(_SUFFIXES[:3])}) and no run with a checkpoint; "
        f"check the path"
    )


def _norms(backbone: Backbone) -> str:
    kinds = (nn.GroupNorm, "group"), (nn.BatchNorm2d, "frozen or train")
    return next((name for kind, name in kinds if any(isinstance(m, kind) for m in backbone.modules())), "auto")
