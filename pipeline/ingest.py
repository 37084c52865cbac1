"""Ingestion on Ray Data: partitions to actors, their records into a new version of the data set.

In: an `IngestConfig`; Ray is initialised. Out: the manifest's next version, and a summary. The work itself is in
pipeline/partition.py, which knows no Ray.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from pipeline.config import IngestConfig
from pipeline.manifest import PartitionRecord, commit, list_versions, read_manifest
from pipeline.partition import ingest_partition
from pipeline.plan import IngestPlan, PartitionSpec, plan_ingest
from pipeline.storage import open_storage


@dataclass(frozen=True)
class IngestSummary:
    """What a run of ingestion did.

    Attributes:
        version: of the data set after the run; 0 where there is none.
        rows_held: rows of the input that it held before.
        counts: rows of this run by reason, `success` among them.
    """

    output: str
    version: int
    rows_held: int
    counts: dict[str, int]
    num_samples: int
    duration_s: float

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.rows and not self.version:
            return "nothing to do: the input has no rows yet"
        if not self.rows:
            return f"nothing to do: {self.output} version {self.version} holds all {self.rows_held:,} rows"
        rate = self.rows / max(self.duration_s, 1e-9)
        lines = [f"{self.rows:,} rows in {self.duration_s:.1f} s ({rate:,.0f} a second)"]
        for reason, count in sorted(self.counts.items(), key=lambda item: (item[0] != "success", -item[1])):
            lines.append(f"  {reason:20} {count:>10,}  {count / self.rows:7.2%}")
        lines.append(f"{self.output} version {self.version}: {self.num_samples:,} samples")
        return "\n".join(lines)


def run_ingest(config: IngestConfig) -> IngestSummary:
    """Fetches what the data set lacks and commits it.

    Raises:
        InputError: bad input; no worker was started.
        RuntimeError: a partition came back neither done nor failed; nothing of it was committed.
    """
    began = time.perf_counter()
    plan = plan_ingest(config)
    records = list(plan.adopted)
    if plan.partitions:
        records += _run_partitions(plan, config)
    storage = open_storage(config.output)
    if records:
        manifest = commit(storage, records)
    elif list_versions(storage):
        manifest = read_manifest(storage)
    else:
        return IngestSummary(storage.uri, 0, 0, {}, 0, time.perf_counter() - began)
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    return IngestSummary(
        output=storage.uri,
        version=manifest.version,
        rows_held=plan.rows_held,
        counts=dict(counts),
        num_samples=manifest.num_samples,
        duration_s=time.perf_counter() - began,
    )


class _PartitionActor:
    """What Ray Data keeps in each worker; imports and options are paid for once."""

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        specs = [PartitionSpec(**_plain(batch, index)) for index in range(len(batch["id"]))]
        return {"record": [ingest_partition(spec, self.config).model_dump_json() for spec in specs]}


def _run_partitions(plan: IngestPlan, config: IngestConfig) -> list[PartitionRecord]:
    """The Ray Data graph. A partition that does not come back is an error, never a silence."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts rows and successes
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    most = min(config.num_workers or cpus, len(plan.partitions))
    stream = ray.data.from_items(
        [asdict(spec) for spec in plan.partitions], override_num_blocks=len(plan.partitions)
    ).map_batches(
        _PartitionActor,
        fn_constructor_args=(config,),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
    )
    records = []
    rows = sum(spec.num_rows for spec in plan.partitions)
    with tqdm(total=rows, unit="rows", desc="ingest", mininterval=1.0) as bar:
        successes = 0
        for item in stream.iter_rows():
            record = PartitionRecord.model_validate_json(item["record"])
            records.append(record)
            successes += record.counts["success"] if "success" in record.counts else 0
            bar.update(record.num_rows)
            bar.set_postfix_str(f"{successes / max(bar.n, 1):.1%} success")
    missing = {spec.id for spec in plan.partitions} - {record.id for record in records}
    if missing:
        raise RuntimeError(f"{len(missing)} partitions did not come back, {min(missing)} among them; run the job again")
    return records


def _plain(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """One row of a columnar batch, numpy scalars as Python's."""
    return {name: value.item() if hasattr(value := column[index], "item") else value for name, column in batch.items()}
