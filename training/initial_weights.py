"""What a new run starts from: weights that somebody trained before, in a local file or in object storage."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.clip import CLIP
from model.config import Activation, Architecture
from model.weights import check_state, load_state, read_weights, resize_positions, settle_activation
from pipeline.storage import open_storage
from training.config import ConfigError, ModelConfig


def initial_activation(config: ModelConfig) -> Activation:
    """What the weights were trained with. Raises ConfigError where nobody says, or the weights cannot be read."""
    _, stated = _read(config.weights)
    try:
        return settle_activation(config.weights, config.activation, stated)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None


def check_initial_weights(architecture: Architecture, config: ModelConfig) -> None:
    """Raises ConfigError where the weights are not those of the architecture, at no cost of making the model."""
    with torch.device("meta"):
        clip = CLIP(architecture)
    with _as_config_error():
        check_state(clip, _fitted(clip, config), config.weights)


def load_initial_weights(clip: CLIP, config: ModelConfig) -> None:
    """Puts the weights in, positions interpolated to the model's image size. Raises ConfigError where they do not fit."""
    with _as_config_error():
        load_state(clip, _fitted(clip, config), config.weights)
    _read.cache_clear()


def _fitted(clip: CLIP, config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of the file, made for this model.

    SigLIP's loss begins with its own temperature and bias where the weights have no bias: the temperature that another loss
    has found, beside the initial bias, would begin with a loss of thousands.
    """
    state, _ = _read(config.weights)
    if clip.logit_bias is not None and "logit_bias" not in state:
        state = state | {"logit_bias": clip.logit_bias.detach(), "logit_scale": clip.logit_scale.detach()}
    elif clip.logit_bias is None and "logit_bias" in state:
        raise ConfigError(f"model.weights={config.weights}: were trained with train.loss=sigmoid; set it, it needs their bias")
    return resize_positions(clip, state)


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None


@functools.lru_cache(maxsize=1)  # the plan checks what the model then loads: large, and perhaps far away
def _read(uri: str) -> tuple[dict[str, Tensor], str | None]:
    try:
        with _local(uri) as path:
            try:
                return read_weights(path)
            except ValueError as error:
                raise ConfigError(f"model.{str(error).replace(str(path), uri)}") from None
    except FileNotFoundError:
        raise ConfigError(f"model.weights={uri}: there is no such object; give the address of a state dict") from None


@contextlib.contextmanager
def _local(uri: str) -> Iterator[Path]:
    if "://" not in uri:
        yield Path(uri)
        return
    folder, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(open_storage(folder).read(name))
        yield path
