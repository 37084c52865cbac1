"""Metrics of a run: metrics.jsonl and probe.jsonl are the record, and W&B follows it.

In: one dict of metrics a step, and each evaluation of the watched pairs, from rank 0. Out: a row of metrics.jsonl or
probe.jsonl, flushed at once, and a W&B step: metrics, and the watched pairs as images.

The record stays exact through restarts: a resume at step s cuts the rows after s, which the resumed run writes again. W&B may
lose its last rows when a process is killed, so a resume replays the record into a new segment of the same W&B run. W&B being
unreachable or broken never stops training.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from training.config import TrackingConfig
from training.evaluation.watched_pair_images import draw_found, draw_similarity
from training.evaluation.watched_pairs import pairs_id
from training.record.lineage import declare_inputs, open_run, why_server_is_away

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
        self._wandb: Any = None
        if config.wandb_mode != "disabled":
            self._wandb = _open_wandb(config, run_name, run_id, folder, resolved_config)
        if self._wandb is not None:
            with only_a_warning("W&B does not know the data sets of the run"):
                declare_inputs(self._wandb, data_sets)
        self._replay(folder)

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row; `row["step"]` counts optimizer steps from 1."""
        self.metrics.append(row)
        self._follow(row)

    def log_watched_pairs(self, pairs: Mapping[str, Any], similarities: dict[str, Any]) -> None:
        """Appends the watched pairs' similarities (`PairSimilarities.as_row`), and shows them in W&B."""
        self.similarities.append(similarities)
        self._show(pairs, similarities)

    def _replay(self, folder: Path) -> None:
        """Logs to W&B the kept rows that it lacks, in the order of their steps, since it accepts no earlier step."""
        if self._wandb is None:
            return
        first = self._wandb.starting_step  # those before it have arrived
        pairs: dict[str, Any] = {}
        with only_a_warning("W&B gets no images of earlier steps"):
            pairs = json.loads((folder / WATCHED_PAIRS).read_bytes()) if self.similarities.kept else {}
        shown = [(row["step"], 1, row) for row in self.similarities.kept if pairs and row["pairs"] == pairs_id(pairs)]
        for step, kind, row in sorted([*((row["step"], 0, row) for row in self.metrics.kept), *shown], key=lambda one: one[:2]):
            if step < first:
                continue
            if kind:
                self._show(pairs, row)
            else:
                self._follow(row)

    def _follow(self, row: dict[str, Any]) -> None:
        if self._wandb is None:
            return
        try:
            numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
            self._wandb.log(numbers, step=row["step"])
        except Exception as error:
            logger.warning("W&B refused step %s (%s); metrics.jsonl has it; W&B is off from here", row["step"], error)
            self._wandb = None

    def _show(self, pairs: Mapping[str, Any], similarities: Mapping[str, Any]) -> None:
        if self._wandb is None:
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
        if self._wandb is not None:
            with only_a_warning("W&B refused the summary"):
                self._wandb.summary.update(numbers)

    def close(self) -> None:
        self.metrics.close()
        self.similarities.close()
        if self._wandb is not None:
            folder = self._wandb.settings.sync_dir
            with only_a_warning(f"W&B did not finish; upload what is left: wandb sync --no-skip-online {folder}"):
                self._wandb.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open_wandb(config: TrackingConfig, run_name: str, run_id: str, folder: Path, resolved_config: dict[str, Any]) -> Any:
    """A W&B run; an offline one if the server does not answer; None if there can be none."""
    with only_a_warning("W&B did not start; the run continues with metrics.jsonl only"):
        away = config.wandb_mode == "online" and why_server_is_away()
        if away:
            config = config.model_copy(update={"wandb_mode": "offline"})
        run = open_run(config, run_name, run_id, str(folder), resolved_config, job_type=None, holds_all=True)
        if away:
            logger.warning("W&B is logged offline: %s; once it answers: wandb sync %s", away, run.settings.sync_dir)
        return run


@contextlib.contextmanager
def only_a_warning(what: str) -> Iterator[None]:
    """Logs an exception as a warning and continues; for work that a run does not depend on."""
    try:
        yield
    except Exception as error:
        logger.warning("%s (%s: %s)", what, type(error).__name__, error)
