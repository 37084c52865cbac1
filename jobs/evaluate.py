"""Evaluates a run's last checkpoint, or weights in a file or folder (ours, open_clip's, Hugging Face's), on held-out data.

    python jobs/evaluate.py run.name=demo evaluation.retrieval_uri=data/demo/heldout
    python jobs/evaluate.py --weights weights.pt --activation quick_gelu model.name=ViT-B/32 evaluation.retrieval_uri=data/pairs
    python jobs/evaluate.py --weights exports/demo model.name=demo evaluation.retrieval_uri=data/demo/heldout
    ray job submit --working-dir . -- python jobs/evaluate.py run.dir=s3://BUCKET/runs run.name=vit_b_32

Without evaluation.* keys it is measured on what the run itself was configured to evaluate on. Retrieval is R@1, R@5 and R@10
both ways; zero-shot classification needs evaluation.zero_shot.{uri,label_column}. Runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import parser, run
from jobs.config import Config
from training.config import ConfigError, EvaluationConfig, TrainingConfig

if TYPE_CHECKING:
    from model.clip import CLIP


def job(config: Config, options: argparse.Namespace) -> None:
    import torch

    from training.distributed import World, pick_device
    from training.evaluation.runner import evaluate
    from training.prepare import autocast

    clip, evaluation, trained = _from_weights(config, options) if options.weights else open_run(config)
    check_there_is_something_to_measure(evaluation)
    device = pick_device(config.train.device)
    clip.to(device).eval()
    with torch.no_grad(), autocast(trained.train, device):  # as the run itself is evaluated
        metrics = evaluate(clip, evaluation, World(rank=0, world_size=1, device=device))
    for name, value in metrics.items():
        print(f"{name.removeprefix('evaluation/'):32} {value:.4f}")
    if options.json:
        Path(options.json).write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def check_there_is_something_to_measure(evaluation: EvaluationConfig) -> None:
    """Raises ConfigError where no evaluation is configured."""
    if evaluation.retrieval_uri is None and evaluation.zero_shot is None:
        raise ConfigError(
            "evaluation.retrieval_uri, evaluation.zero_shot: neither is set; name a data set to evaluate on, "
            "e.g. evaluation.retrieval_uri=data/demo/heldout"
        )


def open_run(config: Config) -> tuple[CLIP, EvaluationConfig, TrainingConfig]:
    """The model of a run's last checkpoint, what to evaluate it on (the command line's wish, else the run's own), and the
    configuration that it was trained with.
    """
    from model.clip import CLIP
    from pipeline.storage import open_storage
    from training.checkpoint import CheckpointStore
    from training.plan import architecture_of

    store = CheckpointStore(open_storage(config.run.uri))
    checkpoint = store.latest()
    if checkpoint is None:
        raise ConfigError(f"run.name={config.run.name}: {store.storage.uri} holds no checkpoint; name a run that was trained")
    trained = TrainingConfig.model_validate(checkpoint.config)
    clip = CLIP(architecture_of(trained))
    checkpoint.restore_weights(clip)
    print(f"{trained.model.name} of {store.storage.uri}/{checkpoint.folder}, {checkpoint.position.samples_seen:,} samples seen")
    wished = config.evaluation
    asked = wished.retrieval_uri is not None or wished.zero_shot is not None
    return clip, wished if asked else trained.evaluation, trained


def _from_weights(config: Config, options: argparse.Namespace) -> tuple[CLIP, EvaluationConfig, TrainingConfig]:
    return open_weights(config, options), config.evaluation, config


def open_weights(config: Config, options: argparse.Namespace) -> CLIP:
    """The model of `--weights`: a file or a folder, local or s3://. Raises ConfigError where it cannot be."""
    from model.weights import load_clip
    from training.initial_weights import local_weights

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
    return clip


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    add_weights_options(result)
    result.add_argument("--json", metavar="FILE", help="also write the figures there")
    return result


def add_weights_options(result: argparse.ArgumentParser) -> None:
    """For jobs that take weights instead of a run's checkpoint."""
    result.add_argument(
        "--weights",
        metavar="PATH",
        help="a state dict (.safetensors, .pt), or a folder of one: an export, open_clip's, Hugging Face's",
    )
    result.add_argument("--activation", choices=("quick_gelu", "gelu"), help="what the weights were trained with")
    result.add_argument("--allow-torchscript", action="store_true", help="load an archive that is a program, as OpenAI's are")


if __name__ == "__main__":
    sys.exit(run(arguments(), job))
