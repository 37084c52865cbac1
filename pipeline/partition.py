"""One partition, end to end, in a bare process: rows -> fetch -> decode -> shard -> storage -> completion record.

In: a row range of a table. Out: its record, the same for everyone: when two workers do one partition, the first completion
record wins, and the other's objects are orphans that no manifest names.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from pipeline.caption import clean_caption
from pipeline.config import IngestConfig
from pipeline.download import Fetcher
from pipeline.image import Picture, prepare_image
from pipeline.manifest import PartitionRecord, ShardRecord, partition_path
from pipeline.plan import PartitionSpec
from pipeline.shard import Row, write_shard
from pipeline.source import read_rows
from pipeline.storage import Storage, open_storage
from pipeline.types import Failure


def ingest_partition(spec: PartitionSpec, config: IngestConfig) -> PartitionRecord:
    """Does one partition. Objects are written before the record that names them; nothing is visible by halves."""
    storage = open_storage(config.output)
    started = datetime.now(UTC)
    source_rows = read_rows(spec.input_path, spec.first_row, spec.num_rows)
    rows = _run(_fetch_all(spec, source_rows, config))
    with tempfile.TemporaryDirectory(prefix="rayclip-") as temporary:
        folder = Path(temporary)
        shard = write_shard(rows, f"{spec.id}-000", config.image.format, started, folder)
        _upload(storage, shard, folder)
    record = PartitionRecord(
        id=spec.id,
        input_path=spec.input_path,
        first_row=spec.first_row,
        num_rows=len(rows),
        rows_sha256=spec.rows_sha256,
        options_fingerprint=spec.options_fingerprint,
        counts=dict(sorted(Counter(row.reason for row in rows).items())),
        shards=(shard,),
    )
    if storage.write_if_absent(record.path, record.model_dump_json(indent=1).encode()):
        return record
    return PartitionRecord.model_validate_json(storage.read(partition_path(spec.id)))


def _upload(storage: Storage, shard: ShardRecord, folder: Path) -> None:
    """Tar, then sidecar, then statistics: who sees the later one may rely on the earlier."""
    for path in (shard.tar_path, shard.sidecar_path, shard.stats_path):
        file = folder / Path(path).name
        if file.exists():
            storage.write_file(path, file)


async def _fetch_all(spec: PartitionSpec, source_rows: list[dict[str, Any]], config: IngestConfig) -> list[Row]:
    """All rows at once, as far as the connection limits let them; decoding beside the event loop."""
    width = max(6, len(str(spec.num_rows)))
    slots = asyncio.Semaphore(config.fetch.concurrency)  # also bounds the undecoded bodies in memory
    with ThreadPoolExecutor(max_workers=1) as decoder:
        async with Fetcher(config.fetch) as fetcher:
            tasks = [
                _one_row(f"{spec.id}-{number:0{width}d}", source, config, fetcher, decoder, slots)
                for number, source in enumerate(source_rows)
            ]
            return await asyncio.gather(*tasks)


async def _one_row(
    key: str,
    source: dict[str, Any],
    config: IngestConfig,
    fetcher: Fetcher,
    decoder: ThreadPoolExecutor,
    slots: asyncio.Semaphore,
) -> Row:
    extra = {name: value for name, value in source.items() if name not in (config.url_column, config.caption_column)}
    caption, url = clean_caption(source[config.caption_column]), source[config.url_column]
    outcome: Picture | Failure
    if isinstance(caption, Failure):
        return Row(key, "" if url is None else str(url), "", caption, extra)
    if not isinstance(url, str) or not url.strip():
        failure = Failure("failed_to_download", "bad_url", "the URL is empty" if not url else "the URL is not text")
        return Row(key, "" if url is None else str(url), caption, failure, extra)
    async with slots:
        fetched = await fetcher.fetch(url)
        if isinstance(fetched, Failure):
            outcome = fetched
        else:
            loop = asyncio.get_running_loop()
            outcome = await loop.run_in_executor(decoder, prepare_image, fetched.body, config.image)
    return Row(key, url, caption, outcome, extra)


def _run(work: Coroutine[Any, Any, list[Row]]) -> list[Row]:
    """On uvloop, in a thread of its own, since the caller's may have a loop."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(uvloop.run, work).result()
