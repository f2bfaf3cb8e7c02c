"""Trained weights of backbones, from untrusted files.

A file is .safetensors, or a PyTorch file that is read without running code (`weights_only`). A folder is a run of this
package, whose actor's backbone is loaded together with its statistics.
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

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.tied import aliases, with_aliases
from gtp_vision.encoders.backbone import SHARED, Backbone, tower_name

HUB = "hub"
"""The value of `encoder.weights` for timm's own weights from the Hugging Face hub."""
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")  # in checkpoints
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.", "trunk.")  # of wrappers around a backbone
_CLASSIFIERS = ("fc", "head", "head.fc", "classifier", "head_dist", "_fc")
_TOWERS = "actor_encoder.towers."
_DEPTH = 4  # of nested dictionaries

State = Mapping[str, torch.Tensor]


def of_run(weights: str | None) -> bool:
    """Whether `encoder.weights` names a run folder, by its name alone: the folder may be gone when resuming."""
    return weights is not None and weights != HUB and Path(weights).suffix.lower() not in _SUFFIXES


def load(backbone: Backbone, weights: str, name: str, *, camera: str = "", index: int = 0) -> None:
    """Load trained weights, from a file, or from the folder of a run or of one of its checkpoints, into a backbone.

    Its pooling is changed only by the weights of a run, which gives the backbone of the camera of the same name, or
    else of its first camera by name; a run of earlier versions, which numbered them, that of this `index`, or its
    first. Raises GtpVisionError: a missing or unreadable file, or weights of another architecture.
    """
    path = Path(weights).expanduser()
    if of_run(weights):
        state = _read_run(path, camera, index)
        backbone.loaded = fill(backbone, state, f"{weights} (batch_norm={_norm_kind(backbone)})", name)
        backbone.keep_normalization()  # of the mean frame that it was trained with
        return
    state = read(path)
    module = backbone.weights_module()
    backbone.loaded = fill(
        module,
        state,
        weights,
        name,
        convert=backbone.convert_weights,
        first_layers=backbone.first_layers,
        frames=backbone.shape[0] // backbone.passes,
        # These depend on the data set that the file was trained on, and on the size of its frames.
        unchanged=("mean", "scale") if module is backbone else (),
    )
    if constants := backbone.normalization_of(state):
        backbone.set_normalization(constants)


def fill(
    module: nn.Module,
    state: State,
    weights: str,
    name: str,
    *,
    convert: Callable[[State], State] = dict,
    first_layers: Collection[str] = (),
    frames: int = 1,
    unchanged: Collection[str] = (),
) -> str:
    """Load a file's tensors into a module, which must receive all of its tensors, each of its shape.

    Prefixes of wrappers are removed, and classifiers that the module lacks are dropped. A first layer that sees T
    frames takes the weights of one, repeated and divided by T: a stack of equal frames gives what the frame gave.
    `convert` gives the module's own names and sizes; tensors `unchanged` are not loaded. Returns for people what was
    taken, left out and changed.

    Raises:
        GtpVisionError: missing, unexpected or differently shaped tensors, or some with NaN or infinite numbers: how
            many, and the first of each.
    """
    own = module.state_dict()
    found = _unwrapped(state, own.keys() - set(unchanged))
    state = dict(convert(found))
    resized = [key for key in state.keys() & found.keys() if state[key].shape != found[key].shape]
    state |= {key: own[key] for key in unchanged}
    dropped = [key for key in found if key not in own and key.rpartition(".")[0] in _CLASSIFIERS]
    for key in dropped:
        state.pop(key, None)  # `convert` may have left it out, too
    repeated = []
    for key in (f"{layer}.weight" for layer in first_layers):
        value = state.get(key)
        if value is not None and value.ndim == 4 and value.shape[1] * frames == own[key].shape[1]:
            state[key] = value.repeat(1, frames, 1, 1) / frames
            repeated += [key] if frames > 1 else []
    state = with_aliases(state, module)
    for key, value in own.items():
        if key.endswith(".num_batches_tracked"):  # missing in older files, and unused
            state.setdefault(key, value)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = sorted(key for key in state.keys() & own.keys() if state[key].shape != own[key].shape)
    untied = sorted(key for key, first in aliases(module).items() if not reshaped and _differ(state, key, first))
    broken = sorted(key for key in state.keys() & own.keys() if not bool(torch.isfinite(state[key]).all()))
    faults = []
    if broken:
        faults.append(f"{len(broken)} tensors hold numbers that are not finite (first '{broken[0]}')")
    if missing:
        faults.append(f"{len(missing)} tensors are missing (first '{missing[0]}')")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected (first '{unexpected[0]}')")
    if reshaped:
        first = reshaped[0]
        faults.append(
            f"{len(reshaped)} of another shape (first '{first}', {tuple(state[first].shape)} in the file, "
            f"{tuple(own[first].shape)} here)"
        )
    if untied:
        faults.append(f"{len(untied)} differ from tensors that they are one with here (first '{untied[0]}')")
    if faults:
        advice = (
            "give weights of a training that did not fail"
            if broken and len(faults) == 1
            else _advice([*missing, *unexpected])
        )
        raise GtpVisionError(
            f"encoder.weights={weights} does not fit encoder.name={name}: {', '.join(faults)}; {advice}"
        )
    module.load_state_dict(state)
    changes = {"left out": dropped, "resized": resized, f"repeated for {frames} frames": repeated}
    notes = "".join(f"; {what} {', '.join(sorted(keys))}" for what, keys in changes.items() if keys)
    return f"{weights}, {len(own) - len(unchanged)} tensors{notes}"


def _differ(state: State, name: str, other: str) -> bool:
    return name in state and other in state and not torch.equal(state[name], state[other])


def _advice(differing: Collection[str]) -> str:
    """What the user can do about tensors that only the file or only the module has."""
    if any(".base_layer." in name or ".lora_" in name for name in differing):
        return "it contains LoRA adapters: give weights without them, e.g. those that its run began with"
    statistics = (".running_mean", ".running_var", ".num_batches_tracked")
    if differing and all(name.endswith(statistics) for name in differing):
        return "only one of the two has batch statistics: set encoder.batch_norm to frozen, or to group, as in the file"
    return "give weights of this architecture, or set encoder.name to theirs"


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by name, from whatever nested dictionaries hold them; refuse Python objects."""
    try:
        if path.suffix.lower() == ".safetensors":
            content: object = load_file(path)
        else:
            _check_zip(path)
            with torch.serialization.safe_globals([argparse.Namespace]):  # a plain record, in timm's checkpoints
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise GtpVisionError(f"encoder.weights={path}: file not found; check the path") from error
    except pickle.UnpicklingError as error:
        raise GtpVisionError(
            f"encoder.weights={path} is damaged or contains Python objects, which can run code when they are loaded; "
            f"save only the model's state_dict(), best as .safetensors"
        ) from error
    except GtpVisionError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in torch's reader
        raise GtpVisionError(
            f"encoder.weights={path} cannot be read ({first_line(error).partition('. ')[0]}); download or copy it again"
        ) from error
    state = _tensors(content)
    if not state:
        raise GtpVisionError(f"encoder.weights={path} contains no named tensors; save a model's state_dict()")
    return state


def _check_zip(path: Path) -> None:
    """Refuse compressed archives, which could expand beyond all memory; PyTorch stores tensors uncompressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise GtpVisionError(
                    f"encoder.weights={path} is a compressed archive, which torch.save does not write; save it again"
                )


def _tensors(content: object, depth: int = 0) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return {}
    for key in _STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key], depth + 1)
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def _unwrapped(state: State, own: Collection[str]) -> State:
    """Remove the prefixes of wrappers until a name is one of the module's own."""
    while not any(name in own for name in state):
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def _read_run(folder: Path, camera: str, index: int) -> dict[str, torch.Tensor]:
    """Read a backbone of a run's actor from its last checkpoint, or from a checkpoint's folder."""
    for file in (folder / "agent.safetensors", folder / "checkpoints" / "last" / "agent.safetensors"):
        if file.is_file():
            towers: dict[str, dict[str, torch.Tensor]] = {}
            for name, tensor in read(file).items():
                if name.startswith(_TOWERS):
                    key, _, inner = name.removeprefix(_TOWERS).partition(".")
                    towers.setdefault(key, {})[inner] = tensor
            if not towers:
                raise GtpVisionError(f"encoder.weights={folder} is a run without cameras; name one that has some")
            names = (tower_name(camera), SHARED, str(index), min(towers))
            return next(towers[name] for name in names if name in towers)
    raise GtpVisionError(
        f"encoder.weights={folder} is neither a weights file ({', '.join(_SUFFIXES[:3])}) nor a run with a checkpoint; "
        f"check the path"
    )


def _norm_kind(backbone: Backbone) -> str:
    kinds = (nn.GroupNorm, "group"), (nn.BatchNorm2d, "frozen or train")
    return next((name for kind, name in kinds if any(isinstance(m, kind) for m in backbone.modules())), "auto")
