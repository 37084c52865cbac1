"""Compares a whole training run with the same run in open_clip.

In: the demo's data sets, which are created if missing. For each seed, both sides start from the same weights and see the same
batches with the same hyper-parameters: ours in `training.trainer.train`, theirs in open_clip_train's own epoch. Out: the losses
of every 50th step, and recall at 1 on the held-out pairs. Needs the `test` extra.

The model is a small ViT, whose losses stay together for the whole run. The losses of the demo's convolutional model diverge
because batch norm and a high learning rate amplify rounding errors; `control` shows this with one thread less on our side.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from jobs.cli.config import Config, load_config

if TYPE_CHECKING:
    from training.run_plan import RunPlan

EVERY_STEPS = 50
LEARNING_RATES = {"debug-vit": 1e-3, "demo": 2e-3}
BOUND = 0.02
"""Largest relative difference of the losses at every 50th step."""


@dataclass(frozen=True)
class Seed:
    """Results of one seed: the loss of every step, and held-out recall at 1 (image to text, text to image) at the end.

    Attributes:
        control_losses: of our side with another order of summation; empty unless requested.
    """

    seed: int
    our_losses: list[float]
    peer_losses: list[float]
    our_recall: tuple[float, float]
    peer_recall: tuple[float, float]
    control_losses: list[float] = field(default_factory=list)

    def largest_difference(self) -> float:
        """Largest relative difference of the losses at every 50th step."""
        pairs = list(zip(self.our_losses, self.peer_losses, strict=True))[EVERY_STEPS - 1 :: EVERY_STEPS]
        return max(abs(ours / theirs - 1) for ours, theirs in pairs)


def run(model: str, steps: int, seeds: int, data_dir: str, control: bool) -> str:
    """Compares the sides and prints each seed. Returns the summary.

    Args:
        control: also run our side with one thread less.
    """
    import torch

    uris = demo_data(data_dir)
    found = []
    threads = torch.get_num_threads()
    for seed in range(seeds):
        one = compare(seed, steps, uris, *settings_of(model))
        if control:
            torch.set_num_threads(max(1, threads - 1))
            one = replace(one, control_losses=train_ours(seed, steps, uris, *settings_of(model))[0])
            torch.set_num_threads(threads)
        found.append(one)
        print(_table(found[-1]), flush=True)
    return summary(found)


def summary(found: list[Seed]) -> str:
    """Summarises the largest difference of losses, and the recalls over the seeds."""
    lines = [
        f"largest difference of a loss at every {EVERY_STEPS}th step: {max(one.largest_difference() for one in found):.2%}"
    ]
    for way, name in enumerate(("image->text", "text->image")):
        ours, theirs = ([getattr(one, side)[way] for one in found] for side in ("our_recall", "peer_recall"))
        spread = [f"{mean(values):.1%} +- {stdev(values) if len(values) > 1 else 0:.1%}" for values in (ours, theirs)]
        lines.append(f"held-out R@1 {name}, mean and deviation over {len(found)} seeds: {spread[0]} and open_clip {spread[1]}")
    return "\n".join(lines)


def demo_data(data_dir: str) -> dict[str, str]:
    """The demo's data sets by split; created on a local Ray if missing."""
    from jobs.demo import data_uris, make_data_sets
    from pipeline.dataset.manifest import list_versions
    from pipeline.storage.address import open_storage

    uris = data_uris(data_dir)
    if not all(list_versions(open_storage(uri)) for uri in uris.values()):
        make_data_sets(data_dir, load_config("demo"))
    return uris


def settings_of(model: str) -> tuple[str, ...]:
    """Overrides of the demo's recipe for another small model."""
    return f"model.name={model}", f"optimizer.learning_rate={LEARNING_RATES[model]}"


def compare(seed: int, steps: int, uris: dict[str, str], *overrides: str) -> Seed:
    """Runs both sides one after the other in this process. `overrides`: of the recipe."""
    with planned(seed, steps, uris, *overrides) as plan:
        peer, peer_losses = train_peer(plan)
        peer_recall = _recall(_evaluate(peer, plan))
    our_losses, our_recall = train_ours(seed, steps, uris, *overrides)
    return Seed(seed, our_losses, peer_losses, our_recall, peer_recall)


def train_ours(seed: int, steps: int, uris: dict[str, str], *overrides: str) -> tuple[list[float], tuple[float, float]]:
    """Trains our side. Returns the loss of every step, and held-out recall."""
    from pipeline.storage.address import open_storage
    from training.distributed import World, pick_device
    from training.trainer import train

    with planned(seed, steps, uris, *overrides) as plan:
        result = train(plan.config, World(rank=0, world_size=1, device=pick_device("cpu")))
        rows = [json.loads(line) for line in open_storage(result.run).read("metrics.jsonl").splitlines()]
        return [row["loss"] for row in rows if "loss" in row], _recall(result.evaluation)


@contextlib.contextmanager
def planned(seed: int, steps: int, uris: dict[str, str], *overrides: str) -> Iterator[RunPlan]:
    """Plans a run whose initial weights depend only on the seed."""
    import torch

    from model.clip import build_clip
    from model.weights import save_weights
    from training.run_plan import plan_run

    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start.safetensors"
        config = recipe(uris, steps, seed, f"run.dir={temporary}", f"model.weights={start}", *overrides)
        torch.manual_seed(seed)
        save_weights(build_clip(config.model.name), start)
        yield plan_run(config)


def recipe(uris: dict[str, str], steps: int, seed: int, *overrides: str) -> Config:
    """The demo's recipe, in one process."""
    settings = (
        f"data.uri={uris['train']}",
        f"train.max_steps={steps}",
        f"train.seed={seed}",
        f"evaluation.retrieval_uri={uris['heldout']}",
        "evaluation.every_steps=null",
        "evaluation.zero_shot=null",
        f"checkpoint.every_steps={steps}",
        "tracking.wandb_mode=disabled",
        "cluster.num_workers=1",
    )
    return load_config("demo", [*settings, *overrides])


def train_peer(plan: RunPlan) -> tuple[Any, list[float]]:
    """Trains open_clip's model as planned, from the same weights. Returns it, and the loss of every step."""
    import torch
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    from jobs.benchmarks.open_clip_peer import build_peer, build_peer_optimizer
    from model.clip import CLIP
    from training.checkpoint.initial_weights import load_initial_weights

    config, losses = plan.config, []
    clip = CLIP(plan.architecture)
    load_initial_weights(clip, config.model)
    peer = build_peer(clip, output_dict=True)
    optimizer = build_peer_optimizer(peer, config.optimizer)
    schedule = cosine_lr(optimizer, config.optimizer.learning_rate, plan.schedule.warmup_steps, plan.total_steps)

    class Writer:
        """Collects the losses that open_clip writes to TensorBoard."""

        def add_scalar(self, name: str, value: float, step: int) -> None:
            if name == "train/loss":
                losses.append(value)

    options = Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        grad_clip_norm=config.optimizer.max_grad_norm,
        horovod=False,
        rank=0,
        world_size=1,
        batch_size=config.train.global_batch_size,
        log_every_n_steps=1,
        wandb=False,
    )
    torch.manual_seed(config.train.seed)
    data = {"train": _PeerData(plan)}
    train_one_epoch(peer, data, ClipLoss(), 0, optimizer, None, schedule, None, options, Writer())
    return peer, losses


class _PeerData:
    """The run's batches as open_clip's loop expects them: padded captions, one epoch as long as the run."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self.num_batches = plan.total_steps
        self.num_samples = plan.total_steps * plan.config.train.global_batch_size
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the plan's epochs follow each other within open_clip's single epoch."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch
        import torch.nn.functional as F

        from model.preprocess import normalize_images
        from training.data.loader import TrainLoader
        from training.distributed import World

        row = self._plan.architecture
        world = World(rank=0, world_size=1, device=torch.device("cpu"))
        loader = TrainLoader(
            self._plan.data_sets, self._plan.order, world, row.image_size_px, row.context_length, self._plan.config.data, 0
        )
        with contextlib.closing(loader):
            for batch in itertools.islice(loader, self.num_batches):
                padding = row.context_length - batch.texts.shape[1]
                yield normalize_images(batch.images).contiguous(), F.pad(batch.texts, (0, padding))


def _evaluate(peer: Any, plan: RunPlan) -> dict[str, float]:
    """Evaluates open_clip's weights with our code; features are the same (tests/unit/model/test_clip.py)."""
    import torch

    from model.clip import CLIP
    from model.weights import load_state
    from training.distributed import World
    from training.evaluation.runner import evaluate

    clip = CLIP(plan.architecture)
    load_state(clip, peer.state_dict(), "open_clip")
    return evaluate(clip.eval(), plan.config.evaluation, World(rank=0, world_size=1, device=torch.device("cpu")))


def _recall(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["evaluation/image_to_text_r1"], metrics["evaluation/text_to_image_r1"]


def _table(found: Seed) -> str:
    lines = [f"seed {found.seed}\n{'step':>6}{'ours':>10}{'open_clip':>11}{'difference':>12}"]
    if found.control_losses:
        lines[0] += f"{'rounding alone':>16}"
    for step, (ours, theirs) in enumerate(zip(found.our_losses, found.peer_losses, strict=True), start=1):
        if step % EVERY_STEPS == 0 or step == 1:
            line = f"{step:>6}{ours:>10.5f}{theirs:>11.5f}{abs(ours / theirs - 1):>12.3%}"
            if found.control_losses:
                line += f"{abs(found.control_losses[step - 1] / ours - 1):>16.3%}"
            lines.append(line)
    lines.append(f"held-out R@1: {_both(found.our_recall)} and open_clip {_both(found.peer_recall)}")
    return "\n".join(lines)


def _both(recall: tuple[float, float]) -> str:
    return f"{recall[0]:.1%} image->text, {recall[1]:.1%} text->image"
