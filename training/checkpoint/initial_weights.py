"""Initial weights of a new run, trained elsewhere: a file or a folder, local or in object storage."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.clip import CLIP
from model.config import Activation, Architecture, get_architecture
from model.file_formats import INDEX_SUFFIX
from model.foreign_config import check_stated
from model.weight_files import Weights, read_weights
from model.weight_folders import DESCRIPTIONS, choose_files, files_of, shards_of
from model.weights import activation_of, check_state, load_state, resize_positions, state_sha256
from pipeline.errors import ConfigError, InputError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.config import ModelConfig

logger = logging.getLogger(__name__)
_MAX_OBJECTS = 10_000
"""Objects of a folder's listing in which weights are looked for."""


def initial_activation(config: ModelConfig) -> Activation:
    """The activation that the weights were trained with. Raises ConfigError if it is unknown or the weights cannot be read."""
    with _as_config_error():
        return activation_of(_read(config), get_architecture(config.name), config.weights, config.activation)


def check_initial_weights(architecture: Architecture, config: ModelConfig) -> None:
    """Raises ConfigError if the weights do not fit the architecture, without allocating the model."""
    with torch.device("meta"):
        clip = CLIP(architecture)
    with _as_config_error():
        check_state(clip, _fitted(clip, config), config.weights)
    for notice in _read(config).notices:
        logger.warning("model.weights=%s: %s", config.weights, notice)


def load_initial_weights(clip: CLIP, config: ModelConfig) -> None:
    """Loads the weights, positions interpolated to the model's image size. Raises ConfigError if they do not fit."""
    with _as_config_error():
        load_state(clip, _fitted(clip, config), config.weights)
    _read_once.cache_clear()


def initial_weights_sha256(config: ModelConfig) -> str:
    """sha256 of the tensors at model.weights, by which a job that reads them later sees whether they are still the same."""
    with _as_config_error():
        return state_sha256(_read(config).state)


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
        yield Path(uri).expanduser()
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = _fetched(uri.rstrip("/"), Path(temporary))
        except InputError:
            raise
        except ValueError as error:
            raise ValueError(f"weights={uri}: {error}") from None
        yield path


def _fetched(uri: str, folder: Path) -> Path:
    """Copies the files at an address that are read into a folder. Returns the path of the file, or the folder."""
    parent, _, name = uri.rpartition("/")
    beside = None if parent.endswith("/") else open_storage(parent)  # without one, the address is a bucket's
    if beside is not None and beside.exists(name):
        _fetch(beside, files_of(name, [name, *filter(beside.exists, DESCRIPTIONS)]), folder)
        return folder / name
    place = open_storage(uri)
    names = [item.path for item in itertools.islice(place.list(""), _MAX_OBJECTS)]
    if not names:
        raise ValueError("there is no such object; give the address of a state dict, or of a folder of one")
    _fetch(place, choose_files(names), folder)
    return folder


def _fetch(place: Storage, names: Sequence[str], folder: Path) -> None:
    """Copies files, and the shards that the first of them names, if it is an index."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(place.read(name))
    if names[0].endswith(INDEX_SUFFIX):
        parent = names[0].rpartition("/")[0]
        for shard in shards_of(folder / names[0]):
            path = f"{parent}/{shard}" if parent else shard
            if place.exists(path):  # reading names one that is missing
                (folder / path).write_bytes(place.read(path))
