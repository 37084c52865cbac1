"""Ingests one partition in one process: rows -> fetch -> decode -> shards -> storage -> completion record.

In: a row range of a table. Out: its completion record. If two workers ingest the same partition, the first record wins and
both return it; the other's objects are orphans that no manifest names.

Rows start in order and are written in order, but may finish in any order. fetch/memory_budget.py limits how many are in flight.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import PartitionRecord, ShardRecord, partition_path
from pipeline.dataset.purged_urls import MESSAGE, is_purged, read_purged
from pipeline.dataset.shard import Row, ShardWriter, StoredImage, publish
from pipeline.errors import Failure, InputError
from pipeline.fetch.http_client import Fetched
from pipeline.fetch.image_source import ImageSource
from pipeline.fetch.memory_budget import Claim, Memory
from pipeline.ingest.plan import PartitionSpec
from pipeline.ingest.rows import SourceRow, iter_rows
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.url_credentials import without_userinfo
from pipeline.transform.caption import clean_captions, display_caption
from pipeline.transform.image import prepare_image

LONG_WORK_BYTES = 2 << 20
"""Images with more bytes are prepared in a thread, so that they do not block the event loop."""

Result = TypeVar("Result")


def ingest_partition(spec: PartitionSpec, config: IngestConfig) -> PartitionRecord:
    """Ingests a partition, unless that is done already. Objects are written before the record that names them.

    Raises:
        InputError: the table no longer holds these rows.
        ExceptionGroup: holds the errors of a storage.
    """
    storage = open_storage(config.output, bool(config.single_writer))
    path = partition_path(spec.id)
    if storage.exists(path):  # another run, or a worker that was thought lost, has finished it
        return PartitionRecord.model_validate_json(storage.read(path))
    with tempfile.TemporaryDirectory(prefix="rayclip-") as temporary:
        try:
            shards, counts = _run(_ingest_rows(spec, config, storage, Path(temporary)))
        except* InputError as group:
            raise group.exceptions[0] from None
    record = PartitionRecord(
        id=spec.id,
        input_path=spec.input_path,
        first_row=spec.first_row,
        num_rows=spec.num_rows,
        rows_sha256=spec.rows_sha256,
        options_fingerprint=spec.options_fingerprint,
        text_reader=spec.text_reader,
        counts=dict(sorted(counts.items())),
        shards=tuple(shards),
    )
    if storage.write_if_absent(path, record.model_dump_json(indent=1).encode()):
        return record
    return PartitionRecord.model_validate_json(storage.read(path))


async def _ingest_rows(
    spec: PartitionSpec, config: IngestConfig, storage: Storage, folder: Path
) -> tuple[list[ShardRecord], Counter[str]]:
    """Writes every row into a shard, in order, and every shard into the storage."""
    shards: list[ShardRecord] = []
    counts: Counter[str] = Counter()
    writer: ShardWriter | None = None
    async with (
        _workshop(config, spec.source_table or spec.input_path, read_purged(storage)) as workshop,
        asyncio.TaskGroup() as tasks,
    ):
        async for row, claim in _start_rows(spec, workshop, tasks):
            if writer is None:
                prefix = f"{spec.id}-{len(shards):03d}"
                writer = ShardWriter(prefix, config.image.format, datetime.now(UTC), folder)
            writer.add(row)
            claim.settle(0)
            counts[row.reason] += 1
            if writer.tar_size_bytes >= config.shard_size_bytes:
                shards.append(await asyncio.to_thread(publish, writer, storage, folder))
                writer = None
        if writer is not None:
            shards.append(await asyncio.to_thread(publish, writer, storage, folder))
    return shards, counts


@dataclass(frozen=True)
class _Workshop:
    """Resources that all rows of a partition share.

    Attributes:
        purged: hashes of URLs that are not fetched.
    """

    config: IngestConfig
    source: ImageSource
    memory: Memory
    purged: frozenset[str]


@asynccontextmanager
async def _workshop(config: IngestConfig, table: str, purged: frozenset[str]) -> AsyncIterator[_Workshop]:
    async with ImageSource(config.fetch, table) as source:
        yield _Workshop(config, source, Memory(config.memory_bytes), purged)


async def _start_rows(spec: PartitionSpec, workshop: _Workshop, tasks: asyncio.TaskGroup) -> AsyncIterator[tuple[Row, Claim]]:
    """Starts rows as far as the memory allows, and yields the finished rows in order."""
    width = max(6, len(str(spec.num_rows)))
    ahead: asyncio.Queue[asyncio.Task[tuple[Row, Claim]]] = asyncio.Queue()

    async def start() -> None:
        # Rows that were put aside while planning stay as they are; a table may have been written again since.
        digest = "" if spec.rows_path else spec.rows_sha256
        source_rows = iter_rows(spec.rows_path or spec.input_path, spec.rows_first, spec.num_rows, workshop.config, digest)
        for number, source in enumerate(source_rows):
            await workshop.memory.room()
            claim = workshop.memory.claim(number)
            claim.settle(len(source.image))
            ahead.put_nowait(tasks.create_task(_one_row(f"{spec.id}-{number:0{width}d}", source, workshop, claim)))

    tasks.create_task(start())
    for _ in range(spec.num_rows):
        yield await (await ahead.get())


async def _one_row(key: str, source: SourceRow, workshop: _Workshop, claim: Claim) -> tuple[Row, Claim]:
    """Processes one row; its claim holds the bytes of the stored image."""
    config = workshop.config
    if source.problem is not None:
        return Row(key, "", "", Failure("failed_to_read", "bad_row", source.problem), source.extra), claim
    url = source.url.decode("utf-8", "replace") if isinstance(source.url, bytes) else source.url
    address = "" if url is None else without_userinfo(str(url))
    if is_purged(address, workshop.purged):
        return Row(key, "", "", Failure("dropped", "removed", MESSAGE)), claim
    caption = clean_captions(source.caption, config.caption)
    if isinstance(caption, Failure):
        return Row(key, address, display_caption(source.caption), caption, source.extra), claim
    outcome: StoredImage | Failure
    fetched = await _bytes_of(source, workshop, claim)
    if isinstance(fetched, Failure):
        outcome = fetched
    else:
        if len(fetched.body) > LONG_WORK_BYTES:
            outcome = await asyncio.to_thread(prepare_image, fetched.body, config.image)
        else:  # for a small image, switching threads would cost a sixth of its time
            outcome = prepare_image(fetched.body, config.image)
    claim.settle(len(outcome.data) if isinstance(outcome, StoredImage) else 0)
    return Row(key, address, caption, outcome, source.extra), claim


async def _bytes_of(source: SourceRow, workshop: _Workshop, claim: Claim) -> Fetched | Failure:
    """The bytes that the row holds, or that its URL points to."""
    column = workshop.config.bytes_column
    if column:
        empty = Failure("failed_to_download", "empty_body", f"column {column} holds no bytes")
        return Fetched(source.image) if source.image else empty
    if isinstance(source.url, bytes):
        return Failure("failed_to_download", "bad_url", "the URL is not UTF-8")
    if not source.url or not source.url.strip():
        return Failure("failed_to_download", "bad_url", "the URL is empty")
    return await workshop.source.fetch(source.url, claim)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine on uvloop, in a new thread, since the caller's thread may have a running event loop."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(uvloop.run, work).result()
