"""Loads and saves a CLIP's weights: strictly, without unsafe unpickling, and never with a guessed activation.

QuickGELU and GELU weights have the same keys and shapes, but give wrong features with the other activation. So a file is loaded
only if its activation is known: from metadata in a safetensors file, from a configuration, or from the caller.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model.clip import CLIP, uninitialized_clip
from model.config import ARCHITECTURES, PUBLISHED, Activation, Architecture, get_architecture
from model.fitting_architectures import fitting_architectures
from model.foreign_config import check_stated
from model.preprocess import Preprocess
from model.tokenizer import tokenize
from model.weight_files import Weights, read_weights

logger = logging.getLogger(__name__)

Tokenize = Callable[..., Tensor]
_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")


def load_clip(
    name: str | None,
    weights: str | Path | None = None,
    activation: Activation | None = None,
    image_size_px: int | None = None,
    allow_torchscript: bool = False,
    address: str = "",
) -> tuple[CLIP, Preprocess, Tokenize]:
    """Loads a model with its matching preprocess and tokenizer.

    Args:
        name: the architecture; None: the one whose shapes the weights have.
        weights: a file or folder to load (`read_weights`); None: the published initialisation.
        activation: the activation that the weights were trained with. Optional for files that `save_weights` wrote, and if a
            configuration of open_clip or Hugging Face is stored beside the weights.
        image_size_px: size to interpolate learned positions to; None: the size of the weights, or the architecture's.
        allow_torchscript: load a TorchScript archive, which is a program; only for archives from a trusted origin.
        address: where the weights came from, for log lines about what was chosen in them; empty: `weights`.

    Raises:
        ValueError: the weights cannot be read or do not fit the architecture, or their activation is unknown or differs.
    """
    if name is None and weights is None:
        raise ValueError(f"name: is needed where no weights tell the architecture; give one of {', '.join(ARCHITECTURES)}")
    architecture = None if name is None else get_architecture(name)
    state = None
    if weights is not None:
        found = read_weights(Path(weights), allow_torchscript)
        for notice in found.notices:
            logger.warning("weights=%s: %s", address or weights, notice)
        state = found.state
        architecture = architecture or _fitting(state, str(weights))
        check_stated(architecture, found.stated, str(weights))
        architecture = replace(
            architecture,
            activation=activation_of(found, architecture, str(weights), activation),
            image_size_px=_image_size_px(state, architecture),
            has_logit_bias="logit_bias" in state,
        )
    assert architecture is not None
    if weights is None and activation is not None:
        architecture = replace(architecture, activation=activation)
    if image_size_px is not None:
        architecture = replace(architecture, image_size_px=image_size_px)
    clip = CLIP(architecture) if state is None else uninitialized_clip(architecture)
    if state is not None:
        load_state(clip, resize_positions(clip, state), str(weights))
    tokens = functools.partial(tokenize, context_length=architecture.context_length)
    return clip.eval(), Preprocess(architecture.image_size_px), tokens


def _fitting(state: dict[str, Tensor], source: str) -> Architecture:
    """The architecture that weights have the shapes of; of two that differ in nothing else, the one of their image size."""
    rows = [get_architecture(name) for name in fitting_architectures(state)]
    if not rows:
        raise ValueError(
            f"weights={source}: no row of model/config.py has the shapes of these weights; give those of one of "
            f"{', '.join(PUBLISHED)}"
        )
    return next((row for row in rows if row.image_size_px == _image_size_px(state, row)), rows[0])


def save_weights(clip: CLIP, path: Path) -> None:
    """Writes a safetensors file with the architecture and activation in its metadata."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in clip.state_dict().items()}
    save_readable(tensors, path, weights_metadata(clip.architecture))


def save_readable(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file with the default permissions of new files; `save_file` makes it readable only by its owner."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def weights_metadata(row: Architecture) -> dict[str, str]:
    """Metadata of a safetensors file with weights of an architecture."""
    return {"format": "pt", "architecture": row.name, "activation": row.activation}


def _image_size_px(state: dict[str, Tensor], architecture: Architecture) -> int:
    """Image size that the weights' learned positions are for; the architecture's if they do not tell."""
    for key in _POSITIONS:
        if key in state and _side(state[key]) > 0:
            return _side(state[key]) * architecture.image_step_px
    return architecture.image_size_px


def _side(positions_PD: Tensor) -> int:
    """Side of the square grid that learned positions are for; 0 if they are of another kind."""
    if positions_PD.ndim != 2:
        return 0
    side = math.isqrt(max(0, len(positions_PD) - 1))
    return side if side * side + 1 == len(positions_PD) else 0


def resize_positions(clip: CLIP, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Interpolates the image encoder's learned positions in a state dict to the model's image size (bicubic)."""
    own = clip.state_dict()
    resized = dict(state)
    for key in _POSITIONS:
        if key not in own or key not in state or own[key].shape == state[key].shape or not _side(state[key]):
            continue
        old_side, new_side, width = _side(state[key]), _side(own[key]), state[key].shape[1]
        # The first position is the class token's, or the mean's. (H * W, D) -> (1, D, H, W) and back
        grid = state[key][1:].float().T.reshape(1, width, old_side, old_side)
        grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", antialias=True, align_corners=False)
        resized[key] = torch.cat([state[key][:1].float(), grid.flatten(2)[0].T]).to(state[key].dtype)
    return resized


def interpolate(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * start + share * end for every weight and statistic (WiSE-FT, arXiv 2109.01903, equation 1).

    Raises:
        ValueError: the two differ in names or shapes.
    """
    if {key: value.shape for key, value in start.items()} != {key: value.shape for key, value in end.items()}:
        raise ValueError("the two state dicts differ in names or shapes; only weights of one architecture can be averaged")
    mixed = {}
    for key, value in end.items():
        floats = torch.lerp(start[key].double(), value.double(), share)
        mixed[key] = (floats if value.is_floating_point() else floats.round()).to(value.dtype)
    return mixed


def load_state(clip: CLIP, state: dict[str, Tensor], source: str) -> None:
    """Loads strictly. Raises ValueError that names the first keys or shapes that differ."""
    check_state(clip, state, source)
    clip.load_state_dict(state, strict=True)


def check_state(clip: CLIP, state: dict[str, Tensor], source: str) -> None:
    """Raises ValueError if the state dict does not fit the model, which may be on the meta device."""
    own = clip.state_dict()
    problems = [f"lacks {key}" for key in own if key not in state]
    problems += [f"has {key}, which the model does not" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        name, fitting = clip.architecture.name, fitting_architectures(state)
        if name in fitting:
            remedy = "the rest is a whole one's: save the state_dict of the whole model, and nothing else, again"
        elif fitting:
            remedy = f"its model.name is {' or '.join(fitting)}"
        else:
            remedy = "no row of model/config.py has these shapes: name the architecture of the weights, or give others"
        raise ValueError(f"weights={source}: does not fit {name}: {shown}; {remedy}")


def activation_of(found: Weights, row: Architecture, source: str, told: Activation | None) -> Activation:
    """The activation of weights that were read, as `settle_activation`; weights that fit no such model are refused first.

    Raises:
        ValueError: the activation is unknown, or the one that is told differs.
    """
    try:
        return settle_activation(source, told, found.activation)
    except ValueError:
        with torch.device("meta"):
            clip = CLIP(replace(row, has_logit_bias="logit_bias" in found.state))
        check_state(clip, resize_positions(clip, found.state), source)
        if told is None and found.unstated:
            raise ValueError(f"weights={source}: {found.unstated}") from None
        raise


def settle_activation(path: str, told: Activation | None, found: str | None) -> Activation:
    """The activation that the caller gives or the file states; if both are known, they must agree."""
    if told is not None and found is not None and told != found:
        raise ValueError(f"activation={told}: {path} says that it was trained with {found}; omit or correct it")
    settled = told if told is not None else found
    if settled == "quick_gelu":
        return "quick_gelu"
    if settled == "gelu":
        return "gelu"
    raise ValueError(
        f"activation: {path} does not say which one it was trained with, and both have the same keys; give quick_gelu "
        "(OpenAI's weights, and open_clip's -quickgelu models) or gelu (most other open_clip models)"
    )


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 of the names, types, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
