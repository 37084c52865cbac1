"""Initial weights of a new run, trained elsewhere: a file or a folder, local or in object storage."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.clip import CLIP
from model.config import Activation, Architecture
from model.foreign_config import CONFIGS, check_stated
from model.weight_files import Weights, choose_files, files_of, read_weights
from model.weights import check_state, load_state, resize_positions, settle_activation
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.config import ModelConfig


def initial_activation(config: ModelConfig) -> Activation:
    """The activation that the weights were trained with. Raises ConfigError if it is unknown or the weights cannot be read."""
    with _as_config_error():
        return settle_activation(config.weights, config.activation, _read(config).activation)


def check_initial_weights(architecture: Architecture, config: ModelConfig) -> None:
    """Raises ConfigError if the weights do not fit the architecture, without allocating the model."""
    with torch.device("meta"):
        clip = CLIP(architecture)
    with _as_config_error():
        check_state(clip, _fitted(clip, config), config.weights)


def load_initial_weights(clip: CLIP, config: ModelConfig) -> None:
    """Loads the weights, positions interpolated to the model's image size. Raises ConfigError if they do not fit."""
    with _as_config_error():
        load_state(clip, _fitted(clip, config), config.weights)
    _read_once.cache_clear()


def _fitted(clip: CLIP, config: ModelConfig) -> dict[str, Tensor]:
    """The file's state dict, adapted to this model.

    SigLIP's loss begins with its own temperature and bias where the weights have no bias: another loss's temperature with the
    initial bias would begin with a loss of thousands.
    """
    found = _read(config)
    check_stated(clip.architecture, found.stated, config.weights)
    state = found.state
    if clip.logit_bias is not None and "logit_bias" not in state:
        state = state | {"logit_bias": clip.logit_bias.detach(), "logit_scale": clip.logit_scale.detach()}
    elif clip.logit_bias is None and "logit_bias" in state:
        raise ConfigError(
            f"model.weights={config.weights}: were trained with train.loss=sigmoid; set it, since it uses their bias"
        )
    return resize_positions(clip, state)


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None


def _read(config: ModelConfig) -> Weights:
    return _read_once(config.weights, config.allow_torchscript)


@functools.lru_cache(maxsize=1)  # the plan checks weights that the model then loads: large, and perhaps remote
def _read_once(uri: str, allow_torchscript: bool) -> Weights:
    with local_weights(uri) as path:
        try:
            return read_weights(path, allow_torchscript)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), uri)) from None


@contextlib.contextmanager
def local_weights(uri: str) -> Iterator[Path]:
    """A local path of the weights at an address, file or folder; from object storage, a copy of the files that are read.

    Raises:
        ValueError: the address holds nothing, or no weights.
    """
    if "://" not in uri:
        yield Path(uri)
        return
    parent, _, name = uri.rstrip("/").rpartition("/")
    beside = open_storage(parent)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if beside.exists(name):
            _fetch(beside, files_of(name, [name, *filter(beside.exists, CONFIGS)]), folder)
            yield folder / name
            return
        place = open_storage(uri.rstrip("/"))
        names = [item.path for item in place.list("") if "/" not in item.path]
        if not names:
            raise ValueError(f"weights={uri}: there is no such object; give the address of a state dict, or of a folder of one")
        try:
            files = choose_files(names)
        except ValueError as error:
            raise ValueError(f"weights={uri}: {error}") from None
        _fetch(place, files, folder)
        yield folder


def _fetch(place: Storage, names: Iterable[str], folder: Path) -> None:
    for name in names:
        (folder / name).write_bytes(place.read(name))
