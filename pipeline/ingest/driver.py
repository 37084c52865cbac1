"""Ingestion on Ray Data: sends partitions to actors, and commits their records as new versions of the data set.

In: an `IngestConfig`; Ray is initialised. Out: the data set's next version, and a summary (summary.py). The work itself is done
in pipeline/ingest/partition.py, without Ray.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest, PartitionRecord, commit, list_versions, read_manifest
from pipeline.errors import WorkerDiedError
from pipeline.ingest.attempts import Attempts, deadly_rows
from pipeline.ingest.outcome import Ledger
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import IngestPlan, PartitionSpec, plan_ingest
from pipeline.ingest.progress import Progress
from pipeline.ingest.summary import IngestSummary, with_verdict
from pipeline.metrics import INGESTION, Publisher, publish_requests
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage

Log = Callable[[dict[str, float]], None]
"""Called with the state of a running job whenever a partition is finished."""


def run_ingest(
    config: IngestConfig,
    plan: IngestPlan | None = None,
    log: Log | None = None,
    describe: Callable[[], str] | None = None,
    attempts: Attempts | None = None,
) -> IngestSummary:
    """Fetches the rows that the data set lacks and commits them, every `commit_every_s` and at the end.

    Args:
        plan: a recent result of `plan_ingest`; None: plan here.
        log: called with rows, rows_per_s, success_share and the rows of each reason.
        describe: says what the cluster has, for a job that waits.
        attempts: bounds those at a partition whose worker dies each time; None: Ray's own, without end.

    Raises:
        InputError: bad input; no worker was started.
        WorkerDiedError: too many workers died over some partitions; all others are committed.
        RuntimeError: a partition returned no record; it was not committed.
    """
    began = time.perf_counter()
    storage = open_storage(config.output, bool(config.single_writer))
    plan = plan or plan_ingest(config)
    rows_held, counts = plan.rows_held, Counter[str]()
    before = read_manifest(storage) if list_versions(storage) else None
    ledger = Ledger(storage, config, plan.attempted_tables, before)
    library = _ray_metrics() if plan.partitions else None  # Ray is started only if there is work
    publish_requests(library, data_set=storage.uri)
    with Publisher(INGESTION, {"data_set": storage.uri}, library) as metrics:
        while plan.partitions or plan.adopted:
            manifest = _commit(storage, plan.adopted, ledger, metrics) if plan.adopted else None
            records = list(plan.adopted)
            for batch in _run_partitions(plan, config, log, metrics, describe, attempts):
                manifest = _commit(storage, batch, ledger, metrics)
                records += batch
            assert manifest is not None
            held = {record.id for record in manifest.partitions}
            for record in records:
                counts.update(record.counts if record.id in held else {})
            if held.issuperset(record.id for record in records):
                break
            # Another run has committed some of these rows first; plan the rest again.
            plan = plan_ingest(config, output_is_checked=True)
        manifest = read_manifest(storage) if list_versions(storage) else None
        if manifest is not None:
            _write_notes(storage, manifest, plan)
        ledger.close({record.id for record in manifest.partitions} if manifest else set())
        summary = IngestSummary(
            output=storage.uri,
            version=manifest.version if manifest else 0,
            rows_held=rows_held,
            counts=dict(counts),
            num_samples=manifest.num_samples if manifest else 0,
            duration_s=time.perf_counter() - began,
        )
        if manifest is not None:
            summary = with_verdict(summary, storage, manifest, config, ledger)
        metrics.add("not_meant", bool(summary.shortfall))
    return summary


def _commit(storage: Storage, records: Sequence[PartitionRecord], ledger: Ledger, metrics: Publisher) -> Manifest:
    ledger.add(records)
    manifest = commit(storage, records)
    metrics.add("commits")
    metrics.set("version", manifest.version)
    metrics.set("samples", manifest.num_samples)
    return manifest


def _write_notes(storage: Storage, manifest: Manifest, plan: IngestPlan) -> None:
    """Writes the notes of tables whose rows are all held."""
    rows: Counter[str] = Counter()
    for record in manifest.partitions:
        rows[record.input_path] += record.num_rows
    for note in plan.notes:
        if rows[note.input_path] == note.num_rows:
            storage.write(note.path, note.model_dump_json(indent=1).encode())


class _PartitionActor:
    """Ray Data's actor: each worker imports and reads the configuration once."""

    def __init__(self, config: IngestConfig, attempts: Attempts | None) -> None:
        self.config, self.attempts = config, attempts
        publish_requests(_ray_metrics(), data_set=open_storage(config.output).uri)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        specs = [PartitionSpec(**_plain(batch, index)) for index in range(len(batch["id"]))]
        return {"id": [spec.id for spec in specs], "record": [self._ingest(spec) for spec in specs]}

    def _ingest(self, spec: PartitionSpec) -> str:
        """The partition's record, or "" if too many workers have died over it."""
        try:
            with self.attempts.at(spec.id) if self.attempts else contextlib.nullcontext():
                return ingest_partition(spec, self.config).model_dump_json()
        except WorkerDiedError:
            return ""


def _run_partitions(
    plan: IngestPlan,
    config: IngestConfig,
    log: Log | None,
    metrics: Publisher,
    describe: Callable[[], str] | None,
    attempts: Attempts | None,
) -> Iterator[list[PartitionRecord]]:
    """Runs the Ray Data graph; yields finished partitions in the batches that are committed together.

    Raises:
        WorkerDiedError: too many workers died over some partitions; raised when all others are finished.
        RuntimeError: a partition returned no record.
    """
    if not plan.partitions:
        return
    missing, deadly = {spec.id for spec in plan.partitions}, set[str]()
    metrics.set("partitions_left", len(missing))
    finished: list[PartitionRecord] = []
    due = time.monotonic() + config.commit_every_s
    with _Progress(plan.num_rows, log, describe) as progress:
        for item in _stream(_shuffled(plan), config, attempts).iter_rows():
            missing.discard(item["id"])
            if not item["record"]:
                deadly.add(item["id"])
                continue
            record = PartitionRecord.model_validate_json(item["record"])
            finished.append(record)
            progress.update(record)
            _publish(record, len(missing), metrics)
            if time.monotonic() >= due:
                yield finished
                finished, due = [], time.monotonic() + config.commit_every_s
    if finished:
        yield finished
    if deadly:
        raise deadly_rows([spec for spec in plan.partitions if spec.id in deadly], config)
    if missing:
        raise RuntimeError(f"{len(missing)} partitions returned no record, e.g. {min(missing)}; run the job again")


def _shuffled(plan: IngestPlan) -> IngestPlan:
    """The plan in random order: otherwise two overlapping runs would fetch the same partitions side by side to the end."""
    return replace(plan, partitions=random.sample(plan.partitions, len(plan.partitions)))


def _stream(plan: IngestPlan, config: IngestConfig, attempts: Attempts | None) -> Any:
    """Sends partitions to a pool of actors; the data set that it returns has one row for each finished partition.

    The pool starts with the CPUs that the cluster has and grows with it; its demand makes an autoscaling cluster grow.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    # A large partition, or a wait for nodes, may take over 30 minutes.
    DataContext.get_current().execution_no_progress_timeout_s = -1
    most = min(config.num_workers or len(plan.partitions), len(plan.partitions))
    room = max(1, int(ray.cluster_resources().get("CPU", 0)))
    return ray.data.from_items(
        [asdict(spec) for spec in plan.partitions], override_num_blocks=len(plan.partitions)
    ).map_batches(
        _PartitionActor,
        fn_constructor_args=(config, attempts),
        batch_size=1,
        # Keep Ray's default of two tasks in flight per actor: with fewer the pool would never grow.
        compute=ActorPoolStrategy(min_size=1, initial_size=min(room, most), max_size=most),
        num_cpus=1,
    )


def _publish(record: PartitionRecord, partitions_left: int, metrics: Publisher) -> None:
    for reason, rows in record.counts.items():
        metrics.add("rows", rows, reason=reason)
    metrics.add("stored_bytes", sum(shard.tar_size_bytes + shard.sidecar_size_bytes for shard in record.shards))
    metrics.add("partitions")
    metrics.set("partitions_left", partitions_left)


def _ray_metrics() -> Any:
    import ray.util.metrics

    return ray.util.metrics


class _Progress:
    """Reports finished rows, with the share of successes and the most frequent reasons for failure."""

    def __init__(self, num_rows: int, log: Log | None, describe: Callable[[], str] | None) -> None:
        self._bar = Progress(num_rows, "rows", "ingest", describe)
        self._counts: Counter[str] = Counter()
        self._log, self._began = log, time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, record: PartitionRecord) -> None:
        self._counts.update(record.counts)
        text = f"{self._counts['success'] / max(self._counts.total(), 1):.1%} success"
        failures = [item for item in self._counts.most_common() if item[0] != "success"]
        self._bar.update(record.num_rows, ", ".join([text, *(f"{reason} {count:,}" for reason, count in failures[:2])]))
        if self._log is not None:
            state = {"rows": self._bar.n, "rows_per_s": self._bar.n / max(time.monotonic() - self._began, 1e-9)}
            state["success_share"] = self._counts["success"] / max(self._bar.n, 1)
            self._log(state | {f"reason/{reason}": count for reason, count in self._counts.items()})


def _plain(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """One row of a columnar batch, with numpy scalars converted to Python's."""
    return {name: value.item() if hasattr(value := column[index], "item") else value for name, column in batch.items()}
