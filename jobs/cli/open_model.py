"""The model that a job works with: a run's last checkpoint, or weights in a file or folder.

In: a configuration, and the options that `add_weights_options` adds. Out: a model, and what it was trained with.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jobs.cli.config import Config
from pipeline.errors import ConfigError
from training.config import TrainingConfig

if TYPE_CHECKING:
    from model.clip import CLIP
    from training.checkpoint.store import Checkpoint


def last_checkpoint(config: Config) -> Checkpoint:
    """Of the run that is named. Raises ConfigError where it has none."""
    from pipeline.storage.address import open_storage
    from training.checkpoint.store import CheckpointStore

    store = CheckpointStore(open_storage(config.run.uri))
    checkpoint = store.latest()
    if checkpoint is None:
        raise ConfigError(f"run.name={config.run.name}: {store.storage.uri} holds no checkpoint; name a run that was trained")
    return checkpoint


def open_model(checkpoint: Checkpoint) -> tuple[CLIP, TrainingConfig]:
    """A checkpoint's model in evaluation mode (the moving average, where there is one), and what it was trained with."""
    from model.clip import CLIP
    from training.run_plan import architecture_of

    trained = TrainingConfig.model_validate(checkpoint.config)
    clip = CLIP(architecture_of(trained))
    checkpoint.restore_weights(clip)
    return clip.eval(), trained


def open_run(config: Config) -> tuple[CLIP, TrainingConfig, str]:
    """Likewise of a run's last checkpoint, which is named in a line; and the checkpoint's address."""
    checkpoint = last_checkpoint(config)
    clip, trained = open_model(checkpoint)
    print(f"{trained.model.name} of {checkpoint.address}, {checkpoint.position.samples_seen:,} samples seen")
    return clip, trained, checkpoint.address


def open_weights(config: Config, options: argparse.Namespace) -> CLIP:
    """The model of `--weights`: a file or a folder, local or s3://. Raises ConfigError where it cannot be."""
    from model.weights import load_clip
    from training.checkpoint.initial_weights import local_weights

    model = config.model
    allowed = options.allow_torchscript or model.allow_torchscript
    try:
        with local_weights(options.weights) as path:
            try:
                clip, _, _ = load_clip(model.name, path, options.activation or model.activation, model.image_size_px, allowed)
            except ValueError as error:
                raise ConfigError(str(error).replace(str(path), options.weights)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return clip.eval()


def add_weights_options(result: argparse.ArgumentParser) -> None:
    """For jobs that take weights instead of a run's checkpoint."""
    result.add_argument(
        "--weights",
        metavar="PATH",
        help="a state dict (.safetensors, .pt), or a folder of one: an export, open_clip's, Hugging Face's",
    )
    result.add_argument("--activation", choices=("quick_gelu", "gelu"), help="what the weights were trained with")
    result.add_argument("--allow-torchscript", action="store_true", help="load an archive that is a program, as OpenAI's are")
