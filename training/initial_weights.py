"""What a new run starts from: weights that somebody trained before, in a local file or in object storage."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from model.clip import CLIP
from model.config import Activation
from model.weights import load_state, read_weights, resize_positions, settle_activation
from pipeline.storage import open_storage
from training.config import ConfigError, ModelConfig


def initial_activation(config: ModelConfig) -> Activation:
    """What the weights were trained with. Raises ConfigError where nobody says, or the weights cannot be read."""
    _, stated = _read(config.weights)
    try:
        return settle_activation(config.weights, config.activation, stated)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None


def load_initial_weights(clip: CLIP, config: ModelConfig) -> None:
    """Puts the weights in, positions interpolated to the model's image size. Raises ConfigError where they do not fit.

    The bias that SigLIP's loss adds keeps its initial value where the weights have none.
    """
    state, _ = _read(config.weights)
    if clip.logit_bias is not None:
        state = {"logit_bias": clip.logit_bias.detach(), **state}
    try:
        load_state(clip, resize_positions(clip, state), config.weights)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from None


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
