"""Evaluations of a run during training: when one is due, what it records, and what happens when it fails.

In: the plan, and the model after a step, on every rank. Out: rows of the record, on rank 0, and the figures. A step's
checkpoint is written before its evaluation, so that a failure, a kill or a hang of an evaluation costs no steps; its metrics
are added to the checkpoint afterwards. An evaluation that a kill cut short is repeated when the run resumes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch

from model.clip import CLIP
from pipeline.errors import InputError, StorageAwayError
from training.distributed import World, broadcast_buffers, failed_together, gather_objects
from training.errors import EvaluationFailedError
from training.evaluation.figure_names import asks_for_something
from training.evaluation.runner import evaluate
from training.evaluation.watched_pairs import PairSimilarities, PairWatcher
from training.record.run_record import RunRecord
from training.run_plan import RunPlan
from training.step.model_setup import autocast

logger = logging.getLogger(__name__)


class LoopEvaluation:
    """One rank's part in the evaluations of a run. Every rank calls its methods after the same steps."""

    def __init__(self, plan: RunPlan, world: World, alive: Callable[[], None]) -> None:
        """Args:
        alive: called for every batch, since an evaluation may take hours.
        """
        self.figures: dict[str, Any] = {}
        """Figures of the last evaluation; empty if there was none, or if it failed."""
        self._plan, self._world, self._alive = plan, world, alive
        self._config = plan.config.evaluation
        self._watcher = PairWatcher(plan.config, plan.data_sets, world)

    def is_due(self, step: int) -> bool:
        """Returns whether the model is evaluated after a step."""
        every = self._config.every_steps
        return step == self._plan.total_steps or (every is not None and step % every == 0)

    def missed(self, record: RunRecord | None) -> bool:
        """Returns whether the step that the run resumes from was saved, but not evaluated any more.

        The figures of one that was evaluated are read from the record.
        """
        plan, checkpoint = self._plan, self._plan.checkpoint
        if checkpoint is None or checkpoint.storage.uri != plan.run.uri or not self.is_due(plan.start.step):
            return False
        held = gather_objects(None if record is None else record.evaluation_at(plan.start.step), self._world)[0]
        self.figures = held or {}
        return held is None and asks_for_something(self._config)

    def evaluate(self, clip: CLIP, step: int, record: RunRecord | None, save: Callable[[], str]) -> bool:
        """Evaluates, and records the figures. Returns whether there are some.

        Args:
            save: saves the run where it has not been saved at this step, and returns where it is.

        Raises:
            EvaluationFailedError: it failed on every rank alike, for a reason that a person can fix; the run is saved.
        """
        self.figures = {}
        try:
            similarities = self._measure(clip)
        except Exception as error:
            self._handle(error, step, save)
            return False
        if record is not None:
            if self.figures:
                record.log_evaluation(step, self.figures)
            record.log_watched_pairs(step, self._watcher.pairs, similarities)
        return bool(self.figures)

    def _measure(self, clip: CLIP) -> PairSimilarities | None:
        """Sets the figures. Returns the similarities of the watched pairs, on rank 0."""
        broadcast_buffers(clip, self._world)  # batch-norm statistics are rank 0's, as in the checkpoint
        clip.eval()
        try:
            with torch.no_grad(), autocast(self._plan.config.train, self._world.device):
                figures = evaluate(clip, self._config, self._world, self._alive)
                similarities = self._watcher.measure(clip)
        finally:
            clip.train()
        self.figures = figures
        return similarities

    def _handle(self, error: Exception, step: int, save: Callable[[], str]) -> None:
        """Returns if training may continue without the figures; else saves the run and raises."""
        together = failed_together(error, self._world)
        what = f"the evaluation at step {step:,} failed: {str(error) or type(error).__name__}"
        if together and self._config.on_failure == "warn":
            if self._world.is_main:
                logger.warning("%s; training continues without its figures (evaluation.on_failure=warn)", what)
            return
        saved = ""
        with contextlib.suppress(Exception):  # the error of the evaluation says more
            saved = save()
        if together and isinstance(error, InputError) and not isinstance(error, StorageAwayError):
            raise EvaluationFailedError(
                f"{what}\nall steps are saved ({saved or 'by rank 0'}): once the cause is fixed, the same command tries the "
                "evaluation again and continues. To train without it, set evaluation.on_failure=warn, or unset "
                "evaluation.retrieval_uri, zero_shot and linear_probe"
            ) from error
        raise error
