"""Compares new rows with those of other tables that a data set holds.

In: the data set's manifest, and the rows that a run will ingest. Out: an error if these are rows of a table that was copied or
renamed, or retries under other options; a warning if they become samples under other options than the others.
"""

from __future__ import annotations

import logging

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from pipeline.ingest.options import fingerprints_of_alike, other_options
from pipeline.ingest.retry import in_retries, retried_partition
from pipeline.ingest.row_numbers import row_range
from pipeline.ingest.rows_digest import hash_rows
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

REFUSED_ROWS = 100
"""Fewest rows in common for which a table is refused as a copy; of fewer it is said."""
COMPARED_SIZES = 16
"""Sizes of held ranges with which the rows of a new table are compared, the largest ones."""


class OtherTables:
    """The tables of a data set, by their rows."""

    def __init__(self, manifest: Manifest | None, allow_copies: bool = False) -> None:
        self._allow_copies = allow_copies
        self._by_size: dict[int, dict[str, str]] = {}  # number of rows -> their hash -> table
        for record in manifest.partitions if manifest else ():
            self._by_size.setdefault(record.num_rows, {})[record.rows_sha256] = record.input_path
        self._said: set[str] = set()

    def compare(self, table: str, first_row: int, chunk: pa.Table, digest: str) -> None:
        """Compares new rows with other tables' ranges, and remembers them for the tables that follow.

        Args:
            first_row: the chunk's; at a table's beginning, shorter ranges are compared too.

        Raises:
            InputError: the table is a copy of another one.
        """
        if in_retries(table):
            return
        size, other = chunk.num_rows, self._by_size.get(chunk.num_rows, {}).get(digest, table)
        if first_row == 0 and other == table:
            sizes = sorted(size for size in self._by_size if size < chunk.num_rows)[-COMPARED_SIZES:]
            found = ((size, self._by_size[size].get(hash_rows(chunk.slice(0, size)), table)) for size in sizes)
            size, other = next(((size, name) for size, name in found if name != table), (0, table))
        self._by_size.setdefault(chunk.num_rows, {}).setdefault(digest, table)
        if other == table or table in self._said or self._allow_copies:
            return
        if size >= REFUSED_ROWS:
            raise InputError(
                f"ingest.input={table}: has {size:,} rows of {other}, which the data set or this run has: "
                f"{row_range(first_row, size)}; remove the copy; if the table was renamed or moved, give it its old name; to "
                "have these pairs twice, add ingest.allow_copies=true"
            )
        self._said.add(table)
        logger.warning("ingest.input=%s: has rows of %s, too; they become samples of their own", table, other)


def compare_options(storage: Storage, manifest: Manifest, tables: set[str], config: IngestConfig) -> None:
    """Says so if rows of these tables become samples under other options than the data set's. A retry must not."""
    retried = {retried_partition(table) for table in tables if in_retries(table)}
    compared = {record.options_fingerprint for record in manifest.partitions if not retried or record.id in retried}
    others = other_options(storage, compared, config)
    if others is None and not compared & fingerprints_of_alike(config):
        logger.warning(
            "ingest.output=%s: does not tell the options of its rows, which an earlier release wrote; make sure that they had "
            "these options, too: ingest.image.*, ingest.caption.*",
            storage.uri,
        )
    elif others and retried:
        raise InputError(
            f"--retry-failed: these rows' tables were ingested under {', '.join(others)}; retry with the same options"
        )
    elif others:
        logger.warning(
            "ingest.input=%s: the data set also has rows that were ingested under %s; these are under other options",
            config.input,
            ", ".join(others),
        )
