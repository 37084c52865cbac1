"""Opens a model that was trained, wherever it is stored: a run, a checkpoint, an export, or weights that others published.

In: an address. Out: a `TrainedModel`. The architecture, the activation and the precision are those that the place states.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.clip import CLIP, uninitialized_clip
from model.config import Activation
from model.weight_folders import CHECKPOINT_RECORD
from model.weights import load_clip
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from training.checkpoint.initial_weights import local_weights
from training.checkpoint.store import Checkpoint, open_checkpoint
from training.config import TrainConfig, TrainingConfig
from training.run_plan import architecture_of

_OF_A_RUN = "run.json"


@dataclass(frozen=True)
class TrainedModel:
    """A model on the CPU, in evaluation mode.

    Attributes:
        train: its `precision` is the one that the model was trained in, or the default.
        address: of the checkpoint or of the weights.
    """

    clip: CLIP
    train: TrainConfig
    address: str


def open_trained_model(
    address: str,
    name: str | None = None,
    activation: Activation | None = None,
    image_size_px: int | None = None,
    allow_torchscript: bool = False,
) -> TrainedModel:
    """Opens the model at an address, local or s3://: of a run the last checkpoint, and the moving average if there is one.

    Args:
        name, activation: the architecture and the activation of weights that do not say them.
        image_size_px: size to interpolate the weights' learned positions to.
        allow_torchscript: load a TorchScript archive, which is a program.

    Raises:
        ConfigError: there is no model, it cannot be read, or it is another one than is told.
    """
    if not _is_of_a_run(address):
        return TrainedModel(open_weights(address, name, activation, image_size_px, allow_torchscript), TrainConfig(), address)
    try:
        checkpoint = open_checkpoint(address)
    except ConfigError as error:  # its message names the key of a run
        raise ConfigError(str(error).replace("run.resume=", "")) from None
    clip, trained = open_model(checkpoint)
    row = clip.architecture
    stated = {"name": row.name, "activation": row.activation, "image_size_px": row.image_size_px}
    for key, told in (("name", name), ("activation", activation), ("image_size_px", image_size_px)):
        if told is not None and told != stated[key]:
            raise ConfigError(f"{key}={told}: {checkpoint.address} was trained with {stated[key]}; omit it")
    return TrainedModel(clip, trained.train, checkpoint.address)


def open_model(checkpoint: Checkpoint) -> tuple[CLIP, TrainingConfig]:
    """Opens a checkpoint's model in evaluation mode (its moving average, if any), and its training configuration."""
    trained = TrainingConfig.model_validate(checkpoint.config)
    clip = uninitialized_clip(architecture_of(trained))
    checkpoint.restore_weights(clip)
    return clip.eval(), trained


def open_weights(
    address: str,
    name: str | None,
    activation: Activation | None,
    image_size_px: int | None = None,
    allow_torchscript: bool = False,
) -> CLIP:
    """Opens weights, a file or a folder, local or s3://. Raises ConfigError if they cannot be loaded.

    Args:
        name: the architecture; None: the one whose shapes the weights have.
    """
    try:
        with local_weights(address) as path:
            try:
                clip, _, _ = load_clip(name, path, activation, image_size_px, allow_torchscript, address=address)
            except ValueError as error:
                raise ConfigError(str(error).replace(str(path), address)) from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return clip.eval()


def _is_of_a_run(address: str) -> bool:
    """True for the folder of a run or of a checkpoint of ours."""
    place = open_storage(address.rstrip("/") or address)
    if (folder := place.local_path("")) is not None and not folder.is_dir():
        return False
    return any(place.exists(name) for name in (CHECKPOINT_RECORD, _OF_A_RUN))
