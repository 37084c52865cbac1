"""Where a run's numbers go: metrics.jsonl, the record, and W&B, which follows it.

In: one dict of numbers a step, from rank 0. Out: a row of metrics.jsonl, flushed at once, and a W&B step.

The record is kept exact through restarts: a resume at step s cuts the rows after s, which the resumed run writes again. W&B
may lose its last rows when a process is killed, so a resume replays the record into a new segment of the same W&B run.
W&B being unreachable, or broken, never stops training.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from training.config import TrackingConfig

logger = logging.getLogger(__name__)


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Opens the file and cuts what lies after `resume_step`, half-written rows of a killed run among it."""
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
    """All whole rows of a record. A last row that a kill cut short is left out; a missing file has no rows."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


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
    ) -> None:
        """Opens the record in `folder` and W&B beside it.

        Args:
            run_id: names the run to W&B; the same after a restart.
            resume_step: last step that the checkpoint holds; 0 for a new run.
        """
        self.metrics = MetricsFile(folder / "metrics.jsonl", resume_step)
        self._wandb = _start_wandb(config, run_name, run_id, folder, resolved_config)
        for row in self.metrics.kept:
            self._follow(row)

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row; `row["step"]` counts optimizer steps from 1."""
        self.metrics.append(row)
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

    def summarize(self, numbers: dict[str, float]) -> None:
        """Sets numbers of the whole run in W&B's summary."""
        if self._wandb is None:
            return
        try:
            self._wandb.summary.update(numbers)
        except Exception as error:
            logger.warning("W&B refused the summary (%s)", error)

    def close(self) -> None:
        self.metrics.close()
        if self._wandb is not None:
            try:
                self._wandb.finish()
            except Exception as error:
                logger.warning("W&B did not finish: %s", error)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _start_wandb(
    config: TrackingConfig, run_name: str, run_id: str, folder: Path, resolved_config: dict[str, Any]
) -> Any | None:
    """A W&B run, or None where it is disabled or does not start."""
    if config.wandb_mode == "disabled":
        return None
    try:
        import wandb

        return wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=run_name,
            id=run_id,
            resume="allow",
            reinit="create_new",  # a run that somebody else has open in this process stays theirs
            mode=config.wandb_mode,
            dir=str(folder),
            config=resolved_config,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Exception as error:
        logger.warning("W&B did not start (%s); the run goes on with metrics.jsonl alone", error)
        return None
