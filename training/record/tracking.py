"""Metrics of a run: metrics.jsonl and probe.jsonl are the record, and W&B follows it.

In: one dict of metrics a step, and each evaluation of the watched pairs, from rank 0. Out: a row of metrics.jsonl or
probe.jsonl, flushed at once, and a W&B step: metrics, and the watched pairs as images.

The record stays exact through restarts: a resume at step s cuts the rows after s, which the resumed run writes again. W&B may
lose its last rows when a process is killed, so a resume replays the record into a new segment of the same W&B run. W&B being
unreachable or broken never stops training; where it could not finish online, the whole record is written to an offline run.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from training.config import TrackingConfig
from training.evaluation.watched_pair_images import draw_found, draw_similarity
from training.evaluation.watched_pairs import pairs_id
from training.record.lineage import declare_inputs
from training.record.wandb_run import finish, open_run, sync_command
from training.wandb_environment import with_environment

METRICS, WATCHED_PAIRS, PAIR_SIMILARITIES = "metrics.jsonl", "probe.json", "probe.jsonl"
logger = logging.getLogger(__name__)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Opens the file and cuts the rows after `resume_step`, including partial rows of a killed run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        rows = read_metrics(path)
        self.kept = [row for row in rows if row["step"] <= resume_step]
        self.cut = [row for row in rows if row["step"] > resume_step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.kept), encoding="utf-8")
        part.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a record. A last row that a kill cut short is skipped; a missing file has no rows."""
    problems: list[str] = []
    rows = list(iter_rows(path.read_bytes(), path.name, problems)) if path.exists() else []
    for problem in problems:
        logger.warning("%s", problem)
    return rows


def iter_rows(record: bytes, name: str, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a record, without a last one that is still being written.

    Args:
        name: that of the record, for the problem.
        problems: gets a line about rows that cannot be read, as a power loss or a merge may leave them.
    """
    bad = []
    for number, line in enumerate(io.BytesIO(record), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield row
        elif line.endswith(b"\n"):
            bad.append(number)
    if bad:
        problems.append(f"{name}: {len(bad)} lines cannot be read and are skipped; the first is line {bad[0]}")


class Tracker:
    """The record and W&B of one run, on rank 0."""

    def __init__(
        self,
        config: TrackingConfig,
        run_name: str,
        run_id: str,
        folder: Path,
        resolved_config: dict[str, Any],
        resume_step: int,
        data_sets: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Opens the record in `folder` and W&B beside it.

        Args:
            run_id: id of the run in W&B; the same after a restart.
            resume_step: last step that the checkpoint holds; 0 for a new run.
            data_sets: identities of those that the run reads (`DataSet.identity`).
        """
        self.metrics = MetricsFile(folder / METRICS, resume_step)
        self.similarities = MetricsFile(folder / PAIR_SIMILARITIES, resume_step)
        self.sync_command = ""
        self._config, self._folder, self._data_sets = config, folder, data_sets
        self._summary: dict[str, float] = {}
        self._wandb: Any = None
        self._lost = False
        self._open: Callable[[TrackingConfig], Any] = lambda tracking: open_run(
            tracking, run_name, run_id, str(folder), resolved_config, job_type=None, holds_all=True
        )
        if with_environment(config, os.environ).wandb_mode != "disabled":
            self._start(config, self.metrics.kept, self.similarities.kept)

    def _start(self, config: TrackingConfig, rows: list[dict[str, Any]], similarities: list[dict[str, Any]]) -> None:
        """Opens W&B, and logs the rows of the record that it lacks."""
        with only_a_warning("W&B did not start; the run continues with metrics.jsonl only"):
            self._wandb = self._open(config)
        if self._wandb is not None:
            with only_a_warning("W&B does not know the data sets of the run"):
                declare_inputs(self._wandb, self._data_sets)
            self._replay(rows, similarities)

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row; `row["step"]` counts optimizer steps from 1."""
        self.metrics.append(row)
        self._follow(row)

    def log_watched_pairs(self, pairs: Mapping[str, Any], similarities: dict[str, Any]) -> None:
        """Appends the watched pairs' similarities (`PairSimilarities.as_row`), and shows them in W&B."""
        self.similarities.append(similarities)
        self._show(pairs, similarities)

    def _replay(self, rows: list[dict[str, Any]], similarities: list[dict[str, Any]]) -> None:
        """Logs rows to W&B in the order of their steps, since it accepts no earlier step."""
        first = self._wandb.starting_step  # those before it have arrived
        pairs: dict[str, Any] = {}
        with only_a_warning("W&B gets no images of earlier steps"):
            pairs = json.loads((self._folder / WATCHED_PAIRS).read_bytes()) if similarities else {}
        shown = [(row["step"], 1, row) for row in similarities if pairs and row["pairs"] == pairs_id(pairs)]
        for step, kind, row in sorted([*((row["step"], 0, row) for row in rows), *shown], key=lambda one: one[:2]):
            if step < first:
                continue
            if kind:
                self._show(pairs, row)
            else:
                self._follow(row)

    def _follow(self, row: dict[str, Any]) -> None:
        if self._wandb is None or self._lost:
            return
        try:
            numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
            self._wandb.log(numbers, step=row["step"])
        except Exception as error:
            logger.warning("W&B refused step %s (%s); metrics.jsonl has it; W&B is off until the end", row["step"], error)
            self._lost = True

    def _show(self, pairs: Mapping[str, Any], similarities: Mapping[str, Any]) -> None:
        if self._wandb is None or self._lost:
            return
        with only_a_warning(f"W&B shows no watched pairs of step {similarities['step']}"):
            import wandb

            words = f"{len(similarities['similarity'])} images (rows) and their captions (columns), step {similarities['step']}"
            media = {
                "probe/similarity": wandb.Image(draw_similarity(similarities["similarity"]), caption=words),
                "probe/text_to_image": [
                    wandb.Image(strip, caption=caption) for strip, caption in draw_found(pairs, similarities)
                ],
            }
            self._wandb.log(media, step=similarities["step"])

    def summarize(self, numbers: dict[str, float]) -> None:
        """Sets values of the whole run in W&B's summary."""
        self._summary |= numbers
        if self._wandb is not None and not self._lost:
            with only_a_warning("W&B refused the summary"):
                self._wandb.summary.update(numbers)

    def close(self) -> None:
        """Ends the record and W&B. Then `sync_command` uploads the run, and is empty if it has arrived."""
        self.metrics.close()
        self.similarities.close()
        if self._wandb is None:
            return
        try:
            finish(self._wandb)
        except Exception as error:
            logger.warning("W&B did not finish (%s); the whole run is written to an offline one", error)
            self._lost = True
        if self._lost:
            self._write_offline()
        if self._wandb is not None:
            self.sync_command, self._wandb = sync_command(self._wandb), None

    def _write_offline(self) -> None:
        """Writes all rows to an offline run. What was sent online cannot be continued by `wandb sync`, only replaced."""
        offline, self._wandb, self._lost = self._config.model_copy(update={"wandb_mode": "offline"}), None, False
        self._start(offline, read_metrics(self.metrics.path), read_metrics(self.similarities.path))
        if self._wandb is not None:
            with only_a_warning("the offline run lacks its summary, or its last rows"):
                self._wandb.summary.update(self._summary)
                self._wandb.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if error is not None and self.sync_command:  # else the job's last lines say so
            logger.warning("W&B has this run once you upload it: %s", self.sync_command)


@contextlib.contextmanager
def only_a_warning(what: str) -> Iterator[None]:
    """Logs an exception as a warning and continues; for work that a run does not depend on."""
    try:
        yield
    except Exception as error:
        logger.warning("%s (%s: %s)", what, type(error).__name__, error)
