"""Averages the weights before and after fine-tuning (WiSE-FT), and evaluates points on the line between them.

    python jobs/average.py run.name=finetune evaluation.retrieval_uri=data/heldout
    python jobs/average.py run.name=finetune --points 3 --alpha 0.5 --save clip.safetensors

alpha 0 is the start (the run's model.weights), 1 the end. In between, a model often keeps more of its earlier abilities and is
better on new data too (arXiv 2109.01903). Without evaluation.* keys, the run's own evaluation is repeated; the figure of an
alpha chosen on the same data is too optimistic. Runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import json

from jobs.cli.command_line import check_folder, main, parser
from jobs.cli.config import Config
from jobs.cli.job_parser import JobParser
from jobs.cli.whole_file import whole_file, write_whole
from jobs.evaluate import check_there_is_something_to_measure, run_to_evaluate
from pipeline.errors import ConfigError
from training.config import TrainingConfig


def job(config: Config, options: argparse.Namespace) -> None:
    from model.clip import CLIP
    from model.weights import interpolate, load_state, save_weights
    from training.checkpoint.initial_weights import load_initial_weights
    from training.distributed import World, pick_device
    from training.evaluation.figures import headline
    from training.evaluation.runner import evaluate
    from training.step.model_setup import autocast

    check_folder("--json", options.json)
    check_folder("--save", options.save)
    clip, evaluation, trained = run_to_evaluate(config)
    if not trained.model.weights:
        raise ConfigError(f"run.name={config.run.name}: started without model.weights; name a fine-tuning run")
    if options.points:
        check_there_is_something_to_measure(evaluation)
    _check_start(config, trained)
    first = CLIP(clip.architecture)
    load_initial_weights(first, trained.model)
    start, end = first.state_dict(), {key: value.clone() for key, value in clip.state_dict().items()}
    device = pick_device(config.train.device)
    clip.to(device).eval()
    found = []
    for point in range(options.points):
        alpha = point / (options.points - 1) if options.points > 1 else options.alpha
        load_state(clip, interpolate(start, end, alpha), "average")
        with autocast(trained.train, device):
            metrics = evaluate(clip, evaluation, World(rank=0, world_size=1, device=device))
        found.append({"alpha": alpha, **metrics})
        if point == 0:
            print("alpha  " + "  ".join(headline(metrics)))
        print(f"{alpha:5.2f}  " + "  ".join(f"{value:{len(name)}.4f}" for name, value in headline(metrics).items()))
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1))
    if options.save:
        load_state(clip, interpolate(start, end, options.alpha), "average")
        with whole_file(options.save) as path:
            save_weights(clip, path)
        print(f"{options.save}: {trained.model.name} at alpha {options.alpha}")


def _check_start(config: Config, trained: TrainingConfig) -> None:
    """Raises ConfigError if model.weights are not those that the run started from, as when a run's folder is named."""
    from pipeline.storage.address import open_storage
    from training.checkpoint.initial_weights import initial_weights_sha256
    from training.record.run_record import STARTS
    from training.record.tracking import iter_rows

    run = open_storage(config.run.uri)
    starts = list(iter_rows(run.read(STARTS) if run.exists(STARTS) else b"", STARTS, []))
    recorded = [row["weights_sha256"] for row in starts if "weights_sha256" in row]
    if not recorded:
        print(f"the run has not recorded what it started from; alpha 0 is model.weights={trained.model.weights} as it is now")
    elif initial_weights_sha256(trained.model) != recorded[-1]:
        raise ConfigError(
            f"run.name={config.run.name}: started from model.weights={trained.model.weights}, which holds other weights now; "
            "restore them"
        )


def arguments() -> JobParser:
    result = parser(__doc__, "average")
    result.add_argument("--points", type=int, default=11, help="points to evaluate, both ends included (default: %(default)s)")
    result.add_argument(
        "--alpha", type=_share, default=0.5, help="share of the end in the weights that --save writes (default: %(default)s)"
    )
    result.add_argument("--save", metavar="FILE", help="write averaged weights to FILE (.safetensors)")
    result.add_argument("--json", metavar="FILE", help="also write the figures to FILE, as JSON")
    return result


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be between 0 (the start) and 1 (the end)")
    return value


if __name__ == "__main__":
    main(arguments(), job)
