"""The training loop, in a bare process: one rank of a data-parallel CLIP run.

In: a `TrainingConfig` and this rank's `World`. Out: checkpoints, metrics.jsonl, W&B, and a `TrainResult`.

A run is a pure function of its configuration: the global batch of a step does not depend on the number of ranks
(training/sample_order.py), and loss and gradients equal those of one process that holds it (training/loss.py). So a run that
is killed and resumed, at this or another world size, goes on exactly where its checkpoint stood.

`training/worker.py` calls `train` in Ray Train's workers; a test or a notebook calls it as it is:

    train(config, World(rank=0, world_size=1, device=torch.device("cpu")))
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from model.clip import CLIP
from model.layers import to_device
from training.checkpoint import Position
from training.clock import Clock, Lap
from training.config import TrainingConfig
from training.data import Batch, TrainLoader
from training.distributed import World, all_ranks, barrier, broadcast_buffers, parallel
from training.evaluation.runner import evaluate
from training.initial_weights import load_initial_weights
from training.loss import ContrastiveResult, contrastive_loss, sigmoid_loss
from training.micro_batch import resolve_micro_batch_size
from training.optimizer import WeightAverage, build_optimizer, clamp_logit_scale_, limit_gradients_
from training.patch_dropout import kept_patches
from training.plan import RunPlan, batch_norm_caveat, plan_run
from training.prepare import autocast, prepare_model
from training.step import compute_gradients
from training.tracking import Tracker

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reports.

    Attributes:
        run: address of the run's folder.
        checkpoint: the last checkpoint's folder within it.
        final_loss: of the last step; None where no step was left to do.
        evaluation: metric -> value; empty where no evaluation is configured.
    """

    run: str
    checkpoint: str
    step: int
    samples_seen: int
    final_loss: float | None
    evaluation: dict[str, float]


class DivergedError(RuntimeError):
    """A loss, a gradient or the temperature is no number any more."""


def train(config: TrainingConfig, world: World) -> TrainResult:
    """Trains from the last checkpoint, or from the start, to the end of the schedule. Every rank calls it."""
    return Trainer(plan_run(config), world).run()


class Trainer:
    """One rank's state: model, optimizer, loader, position, and rank 0's record."""

    def __init__(self, plan: RunPlan, world: World) -> None:
        self.plan = plan
        self.config = plan.config
        self.world = world
        self.position = plan.start
        torch.manual_seed(self.config.train.seed)  # the same initial weights on every rank
        self.clip = CLIP(plan.architecture)
        if self.config.model.weights and plan.checkpoint is None:
            load_initial_weights(self.clip, self.config.model)
        self.clip.to(world.device)
        prepare_model(self.clip, self.config)
        self.optimizer = build_optimizer(self.clip, self.config.optimizer)
        decay = self.config.train.ema_decay
        self.average = None if decay is None else WeightAverage(self.clip, decay)
        self.last_checkpoint = plan.checkpoint.folder if plan.checkpoint else ""
        if plan.checkpoint is not None:
            plan.checkpoints.restore(plan.checkpoint, self.clip, self.optimizer, self._averaged())
        self.micro_batch_size = self._settle_micro_batch_size()
        self.model = parallel(self.clip, world)
        self.tracker: Tracker | None = None
        self.final_loss: float | None = None
        self.evaluation: dict[str, float] = {}
        self._clock = Clock()
        self._spoke = -math.inf

    # ---------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> TrainResult:
        """Every step that is left, then the last evaluation and checkpoint."""
        plan = self.plan
        if plan.start.step >= plan.total_steps and plan.run.exists("result.json"):
            if self.world.is_main:
                print(f"run {self.config.run.name!r} has all its {plan.total_steps:,} steps; nothing is left to train")
            return TrainResult(**json.loads(plan.run.read("result.json")))
        with contextlib.ExitStack() as stack:
            if self.world.is_main:
                self.tracker = stack.enter_context(self._open_record())
                self._say_hello()
            loader = stack.enter_context(contextlib.closing(self._open_loader()))
            self._clock.start(self.position.step, self.position.samples_seen, loader.wait_s)
            for batch in loader:
                if self.position.step >= plan.total_steps:
                    break
                self._step(batch, loader)
                self._after_step()
            if plan.start.step >= plan.total_steps:  # stopped between its last checkpoint and its result; the record is whole
                self._evaluate()
            result = TrainResult(
                run=plan.run.uri,
                checkpoint=self.last_checkpoint,
                step=self.position.step,
                samples_seen=self.position.samples_seen,
                final_loss=self.final_loss,
                evaluation=self.evaluation,
            )
            if self.world.is_main:
                plan.run.write("result.json", json.dumps(asdict(result), indent=1).encode())
        if self.world.is_main:
            self._push_record()
        return result

    def _step(self, batch: Batch, loader: TrainLoader) -> None:
        """One optimizer step on this rank's slice of the global batch."""
        config, step = self.config.train, self.position.step + 1
        # What is saved was looked at: numbers that are none must not push good checkpoints out.
        logged = step % config.log_every_steps == 0 or self._is_saved_after(step)
        rate = self.plan.schedule.rate(self.position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.zero_grad(set_to_none=True)
        result = compute_gradients(self.model, self._inputs(batch), self._loss, self.micro_batch_size, self._autocast)
        self.world.communication.backward_ended()
        logit_scale_exp = self.clip.logit_scale.detach().exp()
        grad_norm = limit_gradients_(self.clip, self.config.optimizer.max_grad_norm, measured=logged)
        self.optimizer.step()
        clamp_logit_scale_(self.clip)
        if self.average is not None:
            self.average.update(self.clip, step)

        self.position = Position(step, self.position.samples_seen + config.global_batch_size)
        if logged:
            self._log(batch, loader, result, logit_scale_exp, grad_norm, rate)

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        dropout, row = self.config.train.patch_dropout, self.plan.architecture
        if not dropout:
            return batch.images, batch.texts
        assert row.patch_size_px is not None
        kept = kept_patches(batch.seeds, (row.image_size_px // row.patch_size_px) ** 2, dropout)
        return batch.images, batch.texts, to_device(kept, self.world.device)

    def _loss(self, *features: torch.Tensor) -> ContrastiveResult:
        config = self.config.train
        loss: Callable[..., ContrastiveResult] = sigmoid_loss if config.loss == "sigmoid" else contrastive_loss
        return loss(*features, self.world, config.global_batch_size, config.loss_tile_size)

    def _after_step(self) -> None:
        """Evaluation before the checkpoint, so that what a checkpoint covers is whole in the record."""
        step = self.position.step
        every = self.config.evaluation.every_steps
        if step == self.plan.total_steps or (every is not None and step % every == 0):
            with self._clock.stopped(self.world.communication):
                self._evaluate_and_log()
        if self._is_saved_after(step):
            with self._clock.stopped(self.world.communication):
                self._save()

    def _is_saved_after(self, step: int) -> bool:
        return step == self.plan.total_steps or step % self.config.checkpoint.every_steps == 0

    # ------------------------------------------------------------------------------------------------- around the loop

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.config.train, self.world.device)

    def _settle_micro_batch_size(self) -> int | None:
        """The same on every rank, and said where it was to be found out."""
        config, batch = self.config.train, self.config.train.global_batch_size
        size = resolve_micro_batch_size(config.micro_batch_size, self.clip, self.world, batch, self._autocast)
        if config.micro_batch_size == "auto" and self.world.is_main:
            longest = math.ceil(batch / self.world.world_size)
            print(f"train.micro_batch_size=auto: {size or longest:,} at a time of the {longest:,} samples of a rank")
        return size

    def _open_loader(self) -> TrainLoader:
        return TrainLoader(
            self.plan.data_sets,
            self.plan.order,
            self.world,
            image_size_px=self.plan.architecture.image_size_px,
            context_length=self.plan.architecture.context_length,
            config=self.config.data,
            samples_seen=self.position.samples_seen,
        )

    def _averaged(self) -> CLIP | None:
        """The moving average as a model, where the run keeps one."""
        return None if self.average is None else self.average.clip

    def _evaluate(self) -> None:
        clip = self._averaged() or self.clip
        broadcast_buffers(clip, self.world)  # batch-norm statistics are rank 0's, as in the checkpoint
        clip.eval()
        with torch.no_grad(), self._autocast():
            self.evaluation = evaluate(clip, self.config.evaluation, self.world)
        clip.train()

    def _evaluate_and_log(self) -> None:
        self._evaluate()
        if self.tracker is not None and self.evaluation:
            self.tracker.log({"step": self.position.step, **self.evaluation})
            shown = "  ".join(f"{name.removeprefix('evaluation/')} {value:.3f}" for name, value in self.evaluation.items())
            print(f"evaluation at step {self.position.step:,}: {shown}", flush=True)

    def _save(self) -> None:
        """Rank 0 writes; the others wait for it."""
        if self.world.is_main:
            self._push_record()
            self.last_checkpoint = self.plan.checkpoints.save(
                self.clip,
                self.optimizer,
                self.position,
                order=self.plan.order.identity(),
                data_sets=[one.identity() for one in self.plan.data_sets],
                config=self.config.model_dump(mode="json"),
                average=self._averaged(),
            )
        barrier(self.world)

    # ------------------------------------------------------------------------------------------------------- the record

    def _log(
        self,
        batch: Batch,
        loader: TrainLoader,
        result: ContrastiveResult,
        logit_scale_exp: torch.Tensor,
        grad_norm: torch.Tensor,
        rate: float,
    ) -> None:
        """Global values of one step: one small all-gather, and the only point where a step waits for the device."""
        shares = (
            result.loss_image_to_text,
            result.loss_text_to_image,
            result.accuracy_image_to_text,
            result.accuracy_text_to_image,
        )
        values = torch.stack([share.double() for share in shares]).cpu()  # waits for the device, so that the lap holds its work
        lap = self._clock.lap(self.position.step, self.position.samples_seen, loader.wait_s, self.world.communication)
        counts = (loader.skipped_samples, loader.fingerprint(batch), lap.data_wait_s, lap.compute_s, lap.communication_s)
        own = torch.cat([values, torch.tensor(counts, dtype=torch.float64)])
        ranks = all_ranks(own, self.world).cpu()
        image_to_text, text_to_image, right_image, right_text, skipped, prints = ranks[:, :6].sum(0).tolist()
        data_wait_s, compute_s, communication_s = ranks[:, 6:].mean(0).tolist()
        slowest = ranks[:, 6:].max(0).values.tolist()
        self.final_loss = (image_to_text + text_to_image) / 2
        scale, norm = float(logit_scale_exp), float(grad_norm)
        self._check_finite(scale, norm)
        if self.tracker is None:
            return
        row = {
            "step": self.position.step,
            "samples_seen": self.position.samples_seen,
            "epoch": batch.epoch,
            "loss": self.final_loss,
            "loss_image_to_text": image_to_text,
            "loss_text_to_image": text_to_image,
            "logit_scale": math.log(scale),
            "temperature": 1 / scale,
            "learning_rate": rate,
            "grad_norm": norm,
            "batch_accuracy_image_to_text": right_image,
            "batch_accuracy_text_to_image": right_text,
            "samples_per_s": lap.samples_per_s,
            "data_wait_share": data_wait_s / lap.step_s,
            "data_wait_s": data_wait_s,
            "compute_s": compute_s,
            "communication_s": communication_s,
            "slowest_data_wait_s": slowest[0],
            "slowest_compute_s": slowest[1],
            "slowest_communication_s": slowest[2],
            "skipped_samples": int(skipped),
            "batch_fingerprint": f"{int(prints):014x}",
        }
        if self.config.train.loss == "sigmoid":
            del row["batch_accuracy_text_to_image"]  # it has no columns
        self.tracker.log(row)
        self._say_progress(row, lap)

    def _check_finite(self, scale: float, grad_norm: float) -> None:
        """Every rank has the same numbers, so all of them stop. Raises DivergedError."""
        if math.isfinite(self.final_loss or 0.0) and math.isfinite(grad_norm) and 0 < scale < math.inf:
            return
        raise DivergedError(
            f"step {self.position.step:,}: loss {self.final_loss}, gradient norm {grad_norm}, exp(logit_scale) {scale}: the "
            f"run has diverged; {self.last_checkpoint or 'no checkpoint'} is its last. Lower optimizer.learning_rate, warm up "
            "longer, or set optimizer.max_grad_norm"
        )

    def _say_progress(self, row: dict[str, Any], lap: Lap) -> None:
        now = time.perf_counter()
        if now - self._spoke > PROGRESS_EVERY_S or self.position.step in (1, self.plan.total_steps):
            self._spoke = now
            print(
                f"step {row['step']:,}/{self.plan.total_steps:,}  loss {row['loss']:.4f}  temperature "
                f"{row['temperature']:.4f}  {lap.samples_per_s:,.0f} samples/s  data wait {row['data_wait_share']:.0%}",
                flush=True,
            )

    def _folder(self) -> Path:
        """Where this node writes the record: the run's folder, or a scratch folder where that is in object storage."""
        return self.plan.run.local_path("") or Path(tempfile.gettempdir()) / "rayclip" / self.config.run.name

    def _open_record(self) -> Tracker:
        """The record, cut back to the checkpoint. A node that has not seen this run fetches what it has written."""
        folder, run = self._folder(), self.plan.run
        folder.mkdir(parents=True, exist_ok=True)
        if run.local_path("") is None:
            metrics = run.read("metrics.jsonl") if run.exists("metrics.jsonl") else b""
            (folder / "metrics.jsonl").write_bytes(metrics)
        run.write_if_absent("run.json", json.dumps({"id": f"{self.config.run.name}-{secrets.token_hex(4)}"}).encode())
        resolved = self.config.model_dump(mode="json")
        run.write("config.yaml", yaml.safe_dump(resolved, sort_keys=False).encode())
        return Tracker(
            self.config.tracking,
            self.config.run.name,
            json.loads(run.read("run.json"))["id"],
            folder,
            resolved,
            resume_step=self.position.step,
        )

    def _push_record(self) -> None:
        """Copies the record to a run folder in object storage."""
        if self.plan.run.local_path("") is None:
            self.plan.run.write_file("metrics.jsonl", self._folder() / "metrics.jsonl")

    def _say_hello(self) -> None:
        config, plan = self.config, self.plan
        caveat = batch_norm_caveat(config, plan.architecture, self.world.world_size, self.micro_batch_size)
        if caveat:
            logger.warning(caveat)
        if plan.checkpoint is not None:
            print(f"run {config.run.name!r} resumes from {plan.checkpoint.folder}, {plan.start.samples_seen:,} samples seen")
        else:
            print(f"run {config.run.name!r} starts")
        print(
            f"{config.model.name} on {', '.join(map(str, plan.data_sets))}: {plan.order.epoch_samples:,} samples an epoch, "
            f"{plan.order.steps_per_epoch:,} steps of {config.train.global_batch_size:,} an epoch "
            f"({plan.order.remainder:,} samples left over), {plan.total_steps:,} steps, "
            f"{self.world.world_size} x {self.world.device.type}",
            flush=True,
        )
