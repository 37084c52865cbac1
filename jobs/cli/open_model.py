"""Opens the model of a job: a run's last checkpoint, or weights in a file or folder.

In: a configuration, and the options that `add_weights_options` adds. Out: a model and the configuration of its training.
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
    """The last checkpoint of the run. Raises ConfigError if there is none."""
    from pipeline.storage.address import open_storage
    from training.checkpoint.store import CheckpointStore

    store = CheckpointStore(open_storage(config.run.uri))
    checkpoint = store.latest()
    if checkpoint is None:
        raise ConfigError(
            f"run.name={config.run.name}: {store.storage.uri} holds no checkpoint; name a trained run, and with run.dir the "
            "folder of its runs"
        )
    return checkpoint


def check_one_model(options: argparse.Namespace) -> None:
    """Raises ConfigError for options and keys of the other way to name a model: a run has its own settings, weights no run."""
    typed = [override.partition("=")[0] for override in options.overrides]
    if options.weights:
        other, rule = [key for key in typed if key.startswith("run.")], f"--weights={options.weights} is the model"
    else:
        other = [key for key in typed if key.startswith("model.") or key == "train.precision"]
        other += [name for name, value in (("--activation", options.activation),) if value is not None]
        other += ["--allow-torchscript"] if options.allow_torchscript else []
        rule = "the model is that of a run, with the run's own settings"
    if other:
        remedy = "omit it" if options.weights else "omit it, or name --weights"
        raise ConfigError(f"{other[0]}: has no effect: {rule}; {remedy}")


def open_run(config: Config) -> tuple[CLIP, TrainingConfig, str]:
    """Opens the model of a run's last checkpoint and prints which one; also returns the checkpoint's address."""
    from training.trained_model import open_model

    checkpoint = last_checkpoint(config)
    clip, trained = open_model(checkpoint)
    print(f"{trained.model.name} of {checkpoint.address}, {checkpoint.position.samples_seen:,} samples seen")
    return clip, trained, checkpoint.address


def open_weights(config: Config, options: argparse.Namespace) -> CLIP:
    """Opens the model of `--weights`: a file or a folder, local or s3://. Raises ConfigError if it cannot be loaded."""
    from training.trained_model import open_weights as open_weights_at

    model = config.model
    activation = options.activation or model.activation
    allowed = options.allow_torchscript or model.allow_torchscript
    return open_weights_at(options.weights, told_architecture(config, options), activation, model.image_size_px, allowed)


def told_architecture(config: Config, options: argparse.Namespace) -> str | None:
    """The architecture of `--weights` that a person names, by a key or by a recipe; None: the weights tell it."""
    is_typed = any(override.startswith("model.name=") for override in options.overrides)
    return config.model.name if is_typed or options.config != "default" else None


def add_weights_options(result: argparse.ArgumentParser) -> None:
    """Adds the options of jobs that accept weights instead of a run."""
    result.add_argument(
        "--weights",
        metavar="PATH",
        help="a state dict (.safetensors, .pt), a checkpoint or run, or a folder: an export, open_clip's, Hugging Face's",
    )
    result.add_argument("--activation", choices=("quick_gelu", "gelu"), help="activation that the weights were trained with")
    result.add_argument(
        "--allow-torchscript", action="store_true", help="load a TorchScript archive, which is a program (OpenAI's weights)"
    )
