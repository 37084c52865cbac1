"""Rank 0's record of a run besides checkpoints: metrics.jsonl, starts.jsonl, W&B, and lines of progress.

```
run.json        the run's id, for W&B; written once
owner.json      the process that writes the run now: the latest to start
config.yaml     the resolved configuration, itself a recipe
metrics.jsonl   one row for each logged step and each evaluation
starts.jsonl    one row for each start of the workers
probe.json      the watched pairs of every evaluation, with small images (training/evaluation/watched_pairs.py)
probe.jsonl     one row for each evaluation of them
result.json     result of a finished run
report.html     page that jobs/report.py makes of all this
```

A run folder in object storage gets the records with each checkpoint; until then they are in a scratch folder of the node.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import platform
import secrets
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from pipeline.errors import StorageError
from pipeline.storage.base import Storage
from pipeline.storage.put_if_absent import ensure_put_if_absent
from training.checkpoint.writer import RunTakenError
from training.evaluation.figures import headline, notes_of
from training.evaluation.watched_pairs import PairSimilarities, WatchedPairs
from training.record.goodput import Launch, Ledger, Spent
from training.record.tracking import METRICS, PAIR_SIMILARITIES, WATCHED_PAIRS, Tracker, only_a_warning, read_metrics
from training.run_plan import RunPlan
from training.save_and_stop import Link

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = (5.0, 60.0)
"""Pause between lines of progress: 5 s at first, growing to 60 s (elapsed / 12)."""
STARTS, RESULT, RUN_ID = "starts.jsonl", "result.json", "run.json"
RECORDS = (METRICS, STARTS, PAIR_SIMILARITIES, WATCHED_PAIRS)
PACKAGES = ("rayclip", "torch", "ray", "numpy", "pillow", "simplejpeg", "opencv-python-headless", "safetensors", "wandb")
"""Packages whose versions are recorded at each start."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        run: address of the run's folder.
        checkpoint: the last checkpoint's folder within it.
        final_loss: of the last step; None if no step was left.
        evaluation: metric -> value; empty if no evaluation is configured.
        finished: False if it was stopped before its last step; the same configuration resumes it.
        spent: seconds by kind, and goodput (training/record/goodput.py).
        wandb_sync: the command that uploads the run to W&B; empty if it has arrived, or W&B is disabled.
    """

    run: str
    checkpoint: str
    step: int
    samples_seen: int
    final_loss: float | None
    evaluation: dict[str, float]
    finished: bool = True
    spent: dict[str, float] = field(default_factory=dict)
    wandb_sync: str = ""


class RunRecord:
    """The record of one run, continued by one start of its workers."""

    def __init__(
        self, plan: RunPlan, launch: Launch, began: float, world_size: int, device: str, link: Link | None = None
    ) -> None:
        """Takes the run over from its previous writer, and cuts the record back to the checkpoint."""
        self._link = link
        self._plan, self._run, self._name = plan, plan.run, plan.config.run.name
        self._world_size, self._device = world_size, device
        self._owner = {"process": uuid.uuid4().hex, "launch": launch.id}
        self._fetch()
        starts = read_metrics(self._folder / STARTS)
        self._starts = len(starts) + 1
        if any(start["launch"] == launch.id for start in starts):  # a launch that lost the run must not take it back
            self._check_owner("launch")
        self._run.write("owner.json", json.dumps(self._owner).encode())
        try:
            plan.checkpoints.remove_unfinished(after_step=plan.start.step)
        except StorageError as error:  # failing to tidy up must not stop a run
            logger.warning("unfinished files of a killed run were not removed: %s", error)
        if plan.start.step < plan.total_steps:
            self._run.delete(RESULT)  # of the run before it was extended: it would say "finished" while this one continues
        if not self._run.exists(RUN_ID):  # of a run that began on a store which ignores the condition, it must stay
            self._run.write_if_absent(RUN_ID, json.dumps({"id": f"{self._name}-{secrets.token_hex(4)}"}).encode())
        resolved = plan.config.model_dump(mode="json")
        self._run.write("config.yaml", yaml.safe_dump(resolved, sort_keys=False).encode())
        run_id = json.loads(self._run.read(RUN_ID))["id"]
        data_sets = [one.identity() for one in plan.data_sets]
        self._tracker = Tracker(plan.config.tracking, self._name, run_id, self._folder, resolved, plan.start.step, data_sets)
        self._ledger = Ledger(launch, starts, self._tracker.metrics.kept, self._tracker.metrics.cut, began)
        self._spoke = self._began = -math.inf
        self._said: set[str] = set()

    def announce(self, caveat: str) -> None:
        """Prints the first lines of a start. `caveat`: what the result depends on because of batch norm, or empty."""
        plan, config = self._plan, self._plan.config
        if caveat:
            logger.warning(caveat)
        if plan.checkpoint is not None:
            own = plan.checkpoint.storage.uri == self._run.uri
            where = plan.checkpoint.folder if own else plan.checkpoint.address
            print(f"run {self._name!r} resumes from {where}, {plan.start.samples_seen:,} samples seen")
            for line in plan.changes:
                print(f"  changed: {line}")
            if plan.rate_change:
                print(f"  {plan.rate_change}")
        else:
            print(f"run {self._name!r} starts")
        print(
            f"{config.model.name} on {', '.join(map(str, plan.data_sets))}: {plan.order.epoch_samples:,} samples an epoch, "
            f"{plan.order.steps_per_epoch:,} steps of {config.train.global_batch_size:,} an epoch "
            f"({plan.order.remainder:,} samples left over), {plan.total_steps:,} steps, "
            f"{self._world_size} x {self._device}",
            flush=True,
        )
        streams = plan.order.layout.num_streams
        if streams != config.data.num_streams:
            print(
                f"data.num_streams: {streams} instead of {config.data.num_streams}, so that no more than a batch is left over"
            )

    def ready(self, chosen: dict[str, Any]) -> None:
        """Ends the start-up: the first step begins. `chosen`: the values that keys with `auto` have in this start."""
        self._began = time.perf_counter()
        row = self._ledger.ready(self._plan.start.step, self._world_size)
        row |= {"total_steps": self._plan.total_steps, "device": self._device, "packages": _versions()}
        row |= {"chosen": chosen} | ({"weights_sha256": self._plan.weights_sha256} if self._plan.weights_sha256 else {})
        with (self._folder / STARTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._tell(row | {"starts": self._starts, "time": time.time()})
        self.push()

    def log_step(self, row: dict[str, Any], train_s: float, evaluation_s: float, checkpoint_s: float) -> None:
        """Records a step's metrics, with the times since the last logged row. Non-finite values are recorded as null."""
        spent = self._ledger.add(train_s, evaluation_s, checkpoint_s)
        times = {"train_s": train_s, "evaluation_s": evaluation_s, "checkpoint_s": checkpoint_s}
        row = row | times | {"goodput": spent.goodput, "time": time.time()}
        self._log({key: _finite_or_none(value) for key, value in row.items()})
        now, (often_s, seldom_s) = time.perf_counter(), PROGRESS_EVERY_S
        pause_s = max(often_s, min(seldom_s, (now - self._began) / 12))
        if now - self._spoke > pause_s or row["step"] in (1, self._plan.total_steps):
            self._spoke = now
            print(
                f"step {row['step']:,}/{self._plan.total_steps:,}  loss {row['loss']:.4f}  temperature "
                f"{row['temperature']:.4f}  {row['samples_per_s']:,.0f} samples/s  data wait {row['data_wait_share']:.0%}",
                flush=True,
            )

    def log_evaluation(self, step: int, values: dict[str, Any]) -> None:
        """Records the figures of an evaluation, and prints them; a note on them is printed once."""
        self._log({"step": step, **values})
        notes = notes_of(values)
        starred = {name for names in notes.values() for name in names}
        shown = "  ".join(f"{name} {value:.3f}{'*' * (name in starred)}" for name, value in headline(values).items())
        print(f"evaluation at step {step:,}: {shown}", flush=True)
        for note in sorted(notes.keys() - self._said):
            print(f"  * {note}", flush=True)
        self._said |= notes.keys()

    def evaluation_at(self, step: int) -> dict[str, Any] | None:
        """Returns the figures that an earlier start has recorded for a step; None if there are none."""
        rows = [row for row in self._tracker.metrics.kept if row["step"] == step and headline(row)]
        return {name: value for name, value in rows[-1].items() if name != "step"} if rows else None

    def log_watched_pairs(self, step: int, watched: WatchedPairs | None, similarities: PairSimilarities | None) -> None:
        """Records the similarities of the watched pairs. A failure to write them is only a warning."""
        if watched is None or similarities is None:
            return
        try:
            pairs = watched.as_dict()
            (self._folder / WATCHED_PAIRS).write_text(json.dumps(pairs), encoding="utf-8")
            self._tracker.log_watched_pairs(pairs, similarities.as_row(step, pairs))
        except Exception as error:
            logger.warning("the watched pairs of step %s were not recorded (%s: %s)", step, type(error).__name__, error)

    def _log(self, row: dict[str, Any]) -> None:
        self._tracker.log(row)
        self._tell(row)

    def _tell(self, row: dict[str, Any]) -> None:
        if self._link is not None:
            with only_a_warning("a row of the record was not published"):
                self._link.recorded(row)

    def before_commit(self) -> None:
        """Pushes the record to the run's folder, and checks that this process still owns the run. Raises RunTakenError."""
        self._check_owner("process")
        self.push()
        self._check_owner("process")

    def _fetch(self) -> None:
        """Makes this node's folder of the record, and fetches the records of a run in object storage."""
        address = hashlib.sha256(self._run.uri.encode()).hexdigest()[:8]
        self._folder = self._run.local_path("") or Path(tempfile.gettempdir()) / "rayclip" / f"{self._name}-{address}"
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._run.local_path("") is None:
            for name in RECORDS:
                pushed, ours = self._run.read(name) if self._run.exists(name) else b"", self._folder / name
                if not pushed:
                    ours.unlink(missing_ok=True)
                elif not ours.exists() or not ours.read_bytes().startswith(pushed):
                    ours.write_bytes(pushed)  # else this node has later rows, whose time counts

    def _check_owner(self, what: str) -> None:
        owner = json.loads(self._run.read("owner.json"))
        if owner[what] != self._owner[what]:
            error = RunTakenError(
                f"run.name={self._name}: another process has taken over this run ({self._run.uri}); exiting. "
                "Give concurrent runs different names"
            )
            error.by_own_launch = owner["launch"] == self._owner["launch"]
            raise error

    def sum_up(self, train_s: float, evaluation_s: float, checkpoint_s: float) -> Spent:
        """Adds the time since the last row. Returns the account of the run's time."""
        spent = self._ledger.add(train_s, evaluation_s, checkpoint_s)
        self._tracker.summarize({f"time/{name}": value for name, value in spent.as_row().items()})
        return spent

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tracker.close()

    @property
    def wandb_sync(self) -> str:
        """Once it is closed: `TrainResult.wandb_sync`."""
        command = self._tracker.sync_command
        return f"on {platform.node()}: {command}" if command and self._run.local_path("") is None else command

    def push(self) -> None:
        """Copies the record to a run folder in object storage."""
        if self._run.local_path("") is None:
            for name in RECORDS:
                if (self._folder / name).exists():
                    self._run.write_file(name, self._folder / name)


def check_run_folder(run: Storage, single_writer: str) -> None:
    """Tests what the id of a new run rests on, put-if-absent; a run that has its id rests on it no more.

    Raises:
        InputError: the run's folder breaks the promise (`ensure_put_if_absent`).
    """
    if not run.exists(RUN_ID):
        ensure_put_if_absent(run, single_writer, "run.single_writer")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # a package may be installed under another name
            found[package] = version(package)
    return found


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
