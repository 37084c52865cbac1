"""The training loop, in a bare process: one rank of a data-parallel CLIP run.

In: a `TrainingConfig` and this rank's `World`. Out: checkpoints, metrics.jsonl, W&B, and a `TrainResult`.

The global batch of a step follows from the configuration and the pinned versions of its data sets, not from the number of
ranks (training/data/sample_order.py), and loss and gradients equal those of one process that holds it, up to rounding
(training/loss.py). So a run that is killed and resumed, at this or another world size, continues where its checkpoint stood.
The losses of a ResNet also depend on the world size, since its batch norm sees a rank's slice (`batch_norm_caveat`).
Checkpoints are written while training continues (training/checkpoint/writer.py); ranks agree on requests to save or stop
(training/save_and_stop.py).

`training/worker.py` calls `train` in Ray Train's workers; a test or a notebook calls it directly:

    train(config, World(rank=0, world_size=1, device=torch.device("cpu")))
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from model.clip import CLIP
from model.layers import to_device
from training.checkpoint.initial_weights import load_initial_weights
from training.checkpoint.snapshot import Stager
from training.checkpoint.writer import CheckpointWriter
from training.clock import Clock
from training.config import TrainingConfig
from training.data.loader import Batch, TrainLoader
from training.distributed import World, parallel
from training.errors import RunError
from training.loop_evaluation import LoopEvaluation
from training.loss import ContrastiveResult, contrastive_loss, sigmoid_loss
from training.optimizer import GradientNorms, WeightAverage, build_optimizer, clamp_logit_scale_, limit_gradients_
from training.record.goodput import Launch
from training.record.run_record import RunRecord, TrainResult
from training.run_plan import RunPlan, agree_on_plan, batch_norm_caveat
from training.save_and_stop import Link, Request, Requests, listening
from training.step.gradients import compute_gradients
from training.step.loss_scale import LossScale
from training.step.micro_batch import resolve_micro_batch_size
from training.step.model_setup import autocast, chosen, compile_towers, precision_of, prepare_model
from training.step.non_finite import DivergedError, Guard
from training.step.patch_dropout import kept_patches
from training.step.repeated_captions import number_captions, repeated_share
from training.step.step_metrics import StepMetrics, gather_totals, rank_shares
from training.stop_signals import StoppedError
from training.watchdog import LONGER_AT_FIRST, Watchdog

logger = logging.getLogger(__name__)


def train(config: TrainingConfig, world: World, link: Link | None = None, launch: Launch | None = None) -> TrainResult:
    """Trains from the last checkpoint, or from the start, to the end of the schedule. Every rank calls it.

    In a process's main thread, SIGINT and SIGTERM save a checkpoint and end the run.

    Args:
        link: source of other requests to the run, for rank 0.
        launch: the job that this is part of, where it may start workers more than once.
    """
    began = time.time()
    return Trainer(agree_on_plan(config, world), world, launch or Launch(began=began), began).run(link)


class Trainer:
    """One rank's state: model, optimizer, loader, position, and rank 0's record."""

    def __init__(self, plan: RunPlan, world: World, launch: Launch | None = None, began: float | None = None) -> None:
        self.launch, self.began = launch or Launch(), began or time.time()
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
        self.loss_scale = LossScale(world.device, precision_of(self.config.train, world.device) == "float16")
        decay = self.config.train.ema_decay
        self.average = None if decay is None else WeightAverage(self.clip, decay)
        if plan.checkpoint is not None:
            plan.checkpoint.restore(self.clip, self.optimizer, self._averaged(), self.loss_scale.state)
        self.micro_batch_size = self._choose_micro_batch_size()
        compile_towers(self.clip, self.config.train)
        self.model = parallel(self.clip, world)
        self.guard = Guard(self.optimizer, world, self.loss_scale)
        self.requests = Requests(world)
        self.watchdog = Watchdog(world.rank, self.config.train.hang_timeout_s, lambda: world.communication.is_waiting)
        self.record: RunRecord | None = None
        self.final_loss: float | None = None
        self.evaluation = LoopEvaluation(plan, world, lambda: self.watchdog.phase("evaluating", LONGER_AT_FIRST))
        self._writer, self._stager = CheckpointWriter(), Stager()
        if plan.checkpoint is not None and plan.checkpoint.storage.uri == plan.run.uri:
            self._writer.last_folder = plan.checkpoint.folder
        self._metrics: dict[str, float] = {}  # of the step that was done last
        self._link: Link | None = None
        self._saved_at = time.monotonic()
        self._saves = self._stops = False
        self._clock = Clock()

    # ---------------------------------------------------------------------------------------------------------- the loop

    def run(self, link: Link | None = None) -> TrainResult:
        """Runs the remaining steps, the last evaluation and the last checkpoint; or stops early where asked to."""
        plan = self.plan
        if plan.start.step >= plan.total_steps and plan.run.exists("result.json"):
            before = TrainResult(**json.loads(plan.run.read("result.json")))
            if before.step == plan.total_steps:
                if self.world.is_main:
                    print(f"run {self.config.run.name!r} has all its {plan.total_steps:,} steps; nothing is left to train")
                return before
        if self.world.is_main:
            self.record = RunRecord(plan, self.launch, self.began, self.world.world_size, self.world.device.type, link)
            size = self.micro_batch_size
            caveat = batch_norm_caveat(self.config, plan.architecture, self.world.world_size, size)
            self.record.announce(caveat)
        self._link = link
        with contextlib.ExitStack() as stack:
            if self.record is not None:
                stack.enter_context(self.record)
            stack.callback(self.watchdog.close)
            stack.enter_context(listening(self.requests, link if self.world.is_main else None))
            loader = stack.enter_context(contextlib.closing(self._open_loader()))
            self._loop(loader)
            self.requests.close()
            result = self._finish()
        return result if self.record is None else replace(result, wandb_sync=self.record.wandb_sync)

    def _loop(self, loader: TrainLoader) -> None:
        """Takes steps until the schedule ends or a request stops the run."""
        if self.record is not None:
            self.record.ready(chosen(self.config.train, self.world, self.micro_batch_size))
        self._clock.start(self.position.step, self.position.samples_seen, loader.wait_s)
        self.watchdog.start()
        if self.evaluation.missed(self.record):
            self._evaluate()
        elif self.evaluation.figures:  # a kill may have kept them from the checkpoint
            self._add_to_checkpoint()
        if self.position.step >= self.plan.total_steps:
            return
        self.watchdog.step_begins(self.position.step + 1, slow=True)
        for batch in loader:
            self.watchdog.phase("computing")
            self._step(batch, loader)
            self._after_step()
            if self._stops or self.position.step >= self.plan.total_steps:
                return
            self.watchdog.step_begins(self.position.step + 1, slow=self._saves)  # others may wait for the one that saves
        moved = self.position.step > self.plan.start.step
        if moved:  # the data did not come, and the run is to stop: the weights are those of the last step
            self._saved()
        if not moved or self.world.world_size > 1:  # the other ranks are in the middle of a step
            raise StoppedError(f"rank {self.world.rank} got no data, and the run was asked to stop")

    def _finish(self) -> TrainResult:
        """Waits for the last checkpoint, and closes the record."""
        result = TrainResult(
            run=self.plan.run.uri,
            checkpoint=self._writer.last_folder,
            step=self.position.step,
            samples_seen=self.position.samples_seen,
            final_loss=self.final_loss,
            evaluation=self.evaluation.figures,
            finished=self.position.step >= self.plan.total_steps,
        )
        if self.record is None:
            return result
        self.watchdog.phase("writing the last checkpoint", LONGER_AT_FIRST)
        with self._clock.stopped("checkpoint", self.world.communication):
            self._writer.finish()
        rest = self._clock.stopped_s
        spent = self.record.sum_up(self._clock.open_s(self.position.step), rest["evaluation"], rest["checkpoint"])
        result = replace(result, checkpoint=self._writer.last_folder, spent=spent.as_row())
        if result.finished:
            self.plan.run.write("result.json", json.dumps(asdict(result), indent=1).encode())
        else:
            print(
                f"stopped at step {result.step:,}/{self.plan.total_steps:,} on request; saved in {result.checkpoint}",
                flush=True,
            )
        print(spent, flush=True)
        self.record.push()
        return result

    def _step(self, batch: Batch, loader: TrainLoader) -> None:
        """Takes one optimizer step on this rank's slice of the global batch."""
        config, step = self.config.train, self.position.step + 1
        logged = step % config.log_every_steps == 0 or step == self.plan.total_steps
        rate = self.plan.schedule.rate(self.position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.zero_grad(set_to_none=True)
        buffers = self.guard.copies(self.clip) if config.on_non_finite == "skip" else []
        positives = self._caption_numbers(batch) if config.repeated_captions == "positives" else None
        loss = functools.partial(self._loss, positives)
        result = compute_gradients(self.model, self._inputs(batch), loss, self.micro_batch_size, self._autocast)
        self.world.communication.backward_ended()
        self.loss_scale.unscale_(self.clip)
        logit_scale_exp = self.clip.logit_scale.detach().exp()
        norms = limit_gradients_(self.clip, self.config.optimizer.max_grad_norm)
        self._check_for_skip()  # of the previous step; its flag's asynchronous copy has completed
        self.guard.arm(step, norms.joint, logit_scale_exp, batch.keys, buffers)
        self.optimizer.step()
        clamp_logit_scale_(self.clip)
        if self.average is not None:
            self.average.update(self.clip, step)

        self.position = replace(self.position, step=step, samples_seen=self.position.samples_seen + config.global_batch_size)
        self._metrics = {}
        if logged:
            self._check_for_skip()
            captions = self._caption_numbers(batch) if positives is None else positives
            self._log(batch, loader, result, captions, logit_scale_exp, norms, rate)

    def _check_for_skip(self) -> None:
        """Checks whether the last step was skipped for a non-finite gradient. Raises DivergedError."""
        step, train = self.guard.settle(), self.config.train
        if step is None:
            return
        why = self.guard.explain()
        skipped = self.position.skipped_steps + 1
        if train.on_non_finite == "skip" and skipped <= train.max_skipped_steps:
            self.position = replace(self.position, skipped_steps=skipped)
            if self.world.is_main:
                logger.warning("step %s: loss or gradient is non-finite (%s): skipped, no. %s of this run", step, why, skipped)
            return
        with contextlib.suppress(RunError):  # every rank raises the error below, which says more
            self._writer.wait()
        raise DivergedError(
            f"step {step:,}: loss or gradient is non-finite ({why}): the run has diverged; its last checkpoint is "
            f"{self._writer.last_folder or 'none'}. Lower optimizer.learning_rate, warm up longer, set "
            f"optimizer.max_grad_norm, or train.on_non_finite=skip (train.max_skipped_steps={train.max_skipped_steps})"
        )

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        dropout, row = self.config.train.patch_dropout, self.plan.architecture
        if not dropout:
            return batch.images, batch.texts
        assert row.patch_size_px is not None
        kept = kept_patches(batch.seeds, (row.image_size_px // row.patch_size_px) ** 2, dropout)
        return batch.images, batch.texts, to_device(kept, self.world.device)

    def _caption_numbers(self, batch: Batch) -> torch.Tensor:
        return number_captions(batch.texts, self.config.train.global_batch_size, self.world)

    def _loss(self, positives: torch.Tensor | None, *features: torch.Tensor) -> ContrastiveResult:
        config = self.config.train
        self.guard.note_bad_samples(*features[:2])
        loss: Callable[..., ContrastiveResult] = sigmoid_loss if config.loss == "sigmoid" else contrastive_loss
        result = loss(*features, self.world, config.global_batch_size, config.loss_tile_size, positives)
        return replace(result, loss=self.loss_scale.scaled(result.loss))

    def _after_step(self) -> None:
        """Saves before it evaluates, so that an evaluation that fails costs no steps."""
        step, total, config = self.position.step, self.plan.total_steps, self.config
        minutes = config.checkpoint.every_minutes
        if self.world.is_main and minutes is not None and time.monotonic() - self._saved_at > minutes * 60:
            self._saved_at = time.monotonic()
            self.requests.ask(Request.SAVE)
        asked = self.requests.agreed()
        self._stops = Request.STOP in asked and step < total
        every = config.checkpoint.every_steps
        self._saves = step == total or bool(asked) or (every is not None and step % every == 0)
        if self._saves:
            self._check_for_skip()
            self.watchdog.phase("saving a checkpoint", LONGER_AT_FIRST)
            with self._clock.stopped("checkpoint", self.world.communication):
                self._save()
        if self.evaluation.is_due(step):
            self._evaluate()
        self._writer.check()

    # ------------------------------------------------------------------------------------------------- around the loop

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.config.train, self.world.device)

    def _choose_micro_batch_size(self) -> int | None:
        """The micro-batch size, the same on every rank. With fewer workers than the maximum, none takes more memory."""
        config, batch = self.config.train, self.config.train.global_batch_size
        requested = config.micro_batch_size
        if requested is None and self.world.world_size < self.config.cluster.max_workers:
            requested = math.ceil(batch / self.config.cluster.max_workers)
        lengths = self.plan.caption_lengths() if requested == "auto" else None
        return resolve_micro_batch_size(requested, self.clip, self.optimizer, self.world, batch, self._autocast, lengths)

    def _open_loader(self) -> TrainLoader:
        plan, row, seen = self.plan, self.plan.architecture, self.position.samples_seen
        sizes, stops = (row.image_size_px, row.context_length), lambda: self.requests.is_to_stop(self._link)
        return TrainLoader(plan.data_sets, plan.order, self.world, *sizes, self.config.data, seen, stops)

    def _averaged(self) -> CLIP | None:
        """The moving average as a model, if the run keeps one."""
        return None if self.average is None else self.average.clip

    def _evaluate(self) -> None:
        """Evaluates, and adds the figures to the step's checkpoint."""
        self.watchdog.phase("evaluating", LONGER_AT_FIRST)
        with self._clock.stopped("evaluation", self.world.communication):
            self._writer.wait()  # a kill would take the checkpoint along
            clip = self._averaged() or self.clip
            if self.evaluation.evaluate(clip, self.position.step, self.record, self._saved):
                self._add_to_checkpoint()

    def _add_to_checkpoint(self) -> None:
        """Adds the figures to the checkpoint of this step, if there is one, by which the best ones are then kept."""
        if self.record is not None:
            store, figures, check = self.plan.checkpoints, self.evaluation.figures, self.record.before_commit
            folder = store.folder(self.position.step)
            self._writer.amend(folder, lambda: store.add_metrics(folder, figures, check))

    def _saved(self) -> str:
        """Saves the run unless its last checkpoint is of this step. Returns the checkpoint's folder, on rank 0."""
        if self._writer.last_folder != self.plan.checkpoints.folder(self.position.step):
            self._check_for_skip()
            self._save()
            self._writer.wait()
        return self._writer.last_folder

    def _save(self) -> None:
        """Copies rank 0's state, which a thread then writes; the other ranks continue."""
        if self.record is None:
            return
        self._saved_at = time.monotonic()
        self._writer.wait()
        snapshot = self._stager.stage(self.clip, self.optimizer, self.position, self._averaged(), self.loss_scale.state)
        about = self.plan.about(self._metrics)
        store, check = self.plan.checkpoints, self.record.before_commit
        self._writer.begin(
            self.position.step,
            write=lambda: store.write(snapshot, about, check),
            committed=self._link.saving() if self._link is not None else lambda _step: None,
        )

    def _log(
        self,
        batch: Batch,
        loader: TrainLoader,
        result: ContrastiveResult,
        captions: torch.Tensor,
        logit_scale_exp: torch.Tensor,
        norms: GradientNorms,
        rate: float,
    ) -> None:
        """Records the step's metrics: one small all-gather, and the only point where a step waits for the device."""
        shares = rank_shares(result, self.world)  # before the lap ends, so that it includes the device's work
        lap = self._clock.lap(self.position.step, self.position.samples_seen, loader.wait_s, self.world.communication)
        totals = gather_totals(shares, loader.skipped_samples, loader.fingerprint(batch), lap, self.world)
        scale = float(logit_scale_exp)
        norm, norm_image, norm_text, norm_scale = torch.cat([norms.joint[None], norms.by_tower()]).tolist()
        self.final_loss = totals.loss
        self._metrics = {"loss": totals.loss} if math.isfinite(totals.loss) else {}
        if self.record is None:
            return
        metrics = StepMetrics(
            step=self.position.step,
            samples_seen=self.position.samples_seen,
            epoch=batch.epoch,
            loss=totals.loss,
            loss_image_to_text=totals.loss_image_to_text,
            loss_text_to_image=totals.loss_text_to_image,
            logit_scale=math.log(scale),
            temperature=1 / scale,
            learning_rate=rate,
            grad_norm=norm,
            grad_norm_image=norm_image,
            grad_norm_text=norm_text,
            grad_norm_logit_scale=norm_scale,
            batch_accuracy_image_to_text=totals.batch_accuracy_image_to_text,
            batch_accuracy_text_to_image=None if self.config.train.loss == "sigmoid" else totals.batch_accuracy_text_to_image,
            repeated_caption_share=repeated_share(captions),
            samples_per_s=lap.samples_per_s,
            data_wait_share=totals.data_wait_s / lap.step_s,
            data_wait_s=totals.data_wait_s,
            compute_s=totals.compute_s,
            communication_s=totals.communication_s,
            slowest_data_wait_s=totals.slowest_data_wait_s,
            slowest_compute_s=totals.slowest_compute_s,
            slowest_communication_s=totals.slowest_communication_s,
            skipped_samples=int(totals.skipped_samples),
            skipped_steps=self.position.skipped_steps,
            **self.loss_scale.figures(),
            batch_fingerprint=f"{int(totals.batch_fingerprint):014x}",
        )
        self.record.log_step(metrics.as_row(), lap.train_s, lap.stopped_s["evaluation"], lap.stopped_s["checkpoint"])
