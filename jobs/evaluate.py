"""Evaluates a run's last checkpoint, or weights in a file or folder (ours, open_clip's, Hugging Face's), on held-out data.

    python jobs/evaluate.py run.name=demo evaluation.retrieval_uri=data/demo/heldout
    python jobs/evaluate.py --weights weights.pt --activation quick_gelu evaluation.retrieval_uri=data/pairs
    python jobs/evaluate.py --weights exports/demo evaluation.retrieval_uri=data/demo/heldout
    python jobs/evaluate.py run.name=demo evaluation.zero_shot.uri=data/wds_cifar10
    python jobs/evaluate.py run.name=demo 'evaluation.linear_probe={train_uri: data/pets/train, test_uri: data/pets/test}'
    ray job submit --working-dir . -- python jobs/evaluate.py run.dir=s3://BUCKET/runs run.name=vit_b_32 cluster.num_workers=8

Without evaluation.* keys, the run's own evaluation is repeated. Retrieval gives R@1, R@5, R@10 and the median rank, both ways;
zero-shot classification and the linear probe give accuracies. Each comes with its chance level and a 95% confidence interval.
An address names a data set written by jobs/ingest.py (its classes are in label_column), a folder of clip-benchmark tars, or a
folder with one folder of images per class. Runs in this process, without Ray, unless cluster.num_workers is above 1.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from jobs.cli.command_line import check_folder, connect_ray, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.open_model import add_weights_options, check_one_model, open_run, open_weights
from jobs.cli.room import refuse_on_a_ray_of_our_own, training_demand
from jobs.cli.whole_file import write_whole
from pipeline.errors import ConfigError
from training.config import EvaluationConfig, TrainingConfig

if TYPE_CHECKING:
    from model.clip import CLIP


def job(config: Config, options: argparse.Namespace) -> None:
    from training.evaluation.figures import table
    from training.evaluation.runner import check_evaluation

    check_one_model(options)
    trained: TrainingConfig = config
    if options.weights:
        clip, evaluation = open_weights(config, options), config.evaluation
    else:
        clip, evaluation, trained = run_to_evaluate(config)
    check_there_is_something_to_measure(evaluation)
    check_evaluation(evaluation)
    check_folder("--json", options.json)
    # The precision is that of the run; the device is that of this command.
    train = trained.train.model_copy(update={"device": config.train.device})
    settings = config.model_copy(update={"evaluation": evaluation, "train": train})
    metrics = _on_workers(clip, settings) if config.cluster.max_workers > 1 else _here(clip, settings)
    print(table(metrics))
    if options.json:
        write_whole(options.json, json.dumps(metrics, indent=1))


def _here(clip: CLIP, config: TrainingConfig) -> dict[str, float]:
    import torch

    from training.distributed import World, pick_device
    from training.evaluation.runner import evaluate
    from training.step.model_setup import autocast

    device = pick_device(config.train.device)
    clip.to(device).eval()
    with torch.no_grad(), autocast(config.train, device):
        return evaluate(clip, config.evaluation, World(rank=0, world_size=1, device=device))


def _on_workers(clip: CLIP, config: TrainingConfig) -> dict[str, float]:
    connect_ray(config.cluster)
    refuse_on_a_ray_of_our_own(training_demand(config.cluster))
    from training.worker import run_evaluation

    return run_evaluation(clip, config)


def _asks_for_something(evaluation: EvaluationConfig) -> bool:
    return any((evaluation.retrieval_uri, evaluation.zero_shot, evaluation.linear_probe))


def check_there_is_something_to_measure(evaluation: EvaluationConfig) -> None:
    """Raises ConfigError unless an evaluation is configured."""
    if not _asks_for_something(evaluation):
        raise ConfigError(
            "evaluation.retrieval_uri, zero_shot, linear_probe: none is set; name a data set to evaluate on, "
            "e.g. evaluation.retrieval_uri=data/demo/heldout"
        )


def run_to_evaluate(config: Config) -> tuple[CLIP, EvaluationConfig, TrainingConfig]:
    """Loads a run's last checkpoint.

    Returns:
        The model, the evaluation (of the command line, else of the run), and the configuration of its training.
    """
    clip, trained, _ = open_run(config)
    requested = config.evaluation
    if not _asks_for_something(requested):
        defaults = EvaluationConfig()
        names = [name for name in EvaluationConfig.model_fields if getattr(requested, name) != getattr(defaults, name)]
        given = {name: getattr(requested, name) for name in names}
        requested = trained.evaluation.model_copy(update=given)
    return clip, requested, trained


def arguments() -> JobParser:
    result = parser(__doc__, "evaluate")
    add_weights_options(result)
    result.add_argument("--json", metavar="FILE", help="also write the figures to FILE, as JSON")
    return result


if __name__ == "__main__":
    main(arguments(), job)
