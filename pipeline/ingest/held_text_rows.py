"""Finds where the rows that the first reader has read end in a text table, and checks that they have not changed.

In: an open text table, and the records of its rows. Out: the stretches of the file that are read by the reader of today, under
row numbers that continue those of the first reader. What lies between is held, and is checked by the reader that hashed it
(pipeline/ingest/first_text_reader.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.dataset.manifest import PartitionRecord
from pipeline.errors import InputError
from pipeline.ingest import first_text_reader
from pipeline.ingest.first_text_reader import ends_of_rows, first_batches, swallowed_lines
from pipeline.ingest.row_numbers import row_range
from pipeline.ingest.rows_digest import hash_rows_as_before
from pipeline.ingest.tables import cut_chunks
from pipeline.ingest.text_tables import TextTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """A part of a text table, from one place in its file to another; None: to its end. Its rows count from `first_row`."""

    first_row: int
    start: int
    stop: int | None


@dataclass(frozen=True)
class _Held:
    """Ranges of the first reader, by row, and the places in the file where they begin and end."""

    records: list[PartitionRecord]
    places: dict[int, int]

    @property
    def num_rows(self) -> int:
        return _end(self.records[-1])


def divide(
    table: TextTable,
    held: list[PartitionRecord],
    unfinished: list[PartitionRecord],
    change_since: Callable[[PartitionRecord], object] = lambda _record: "",
) -> tuple[list[Stretch], list[PartitionRecord]]:
    """Divides a table into what the first reader has read and what is read today.

    Args:
        held: records of the data set, by row.
        unfinished: completion records of the same table that were not committed.
        change_since: describes how the table's columns have changed since a record; for the error.

    Returns:
        (stretches to be read today, those unfinished records of the first reader that still hold).

    Raises:
        InputError: rows of the first reader have changed since.
    """
    old = [record for record in held if record.text_reader == first_text_reader.READER]
    candidates = _without_overlaps(held, [one for one in unfinished if one.text_reader == first_text_reader.READER])
    if not old and not candidates:
        return [Stretch(0, 0, None)], []
    known, adopted = _locate(table, old, candidates, change_since)
    if not known.records:
        return [Stretch(0, 0, None)], []
    stop = known.places[known.num_rows]
    _say_what_was_swallowed(table, stop)
    gaps = [gap for gap in _gaps(known) if _is_even(table, gap, known)]
    return [*gaps, Stretch(known.num_rows, stop, None)], adopted


def _locate(
    table: TextTable,
    old: list[PartitionRecord],
    candidates: list[PartitionRecord],
    change_since: Callable[[PartitionRecord], object],
) -> tuple[_Held, list[PartitionRecord]]:
    """(the first reader's ranges that are still in the table as they were, those of them that are not committed)."""
    records = sorted([*old, *candidates], key=lambda record: record.first_row)
    bounds = [bound for record in records for bound in (record.first_row, _end(record))]
    places = ends_of_rows(table.source, bounds) if records else {}
    for record in old:
        if _end(record) not in places:
            raise edited(table.source.address, record, change_since(record))
    records = [record for record in records if _end(record) in places]
    if not records:
        return _Held([], places), []
    held = _Held(records, places)
    digests = _digests(table, held, places[held.num_rows])
    if any(_differs(record, digests) for record in records):  # a jsonl was typed by its first block, and may have been longer
        longer = _digests(table, held, _end_of_lines(table))
        digests = longer if not any(_differs(record, longer) for record in old) else digests
    for record in old:
        if _differs(record, digests):
            raise edited(table.source.address, record, change_since(record))
    records = [record for record in records if not _differs(record, digests)]
    return _Held(records, places), [record for record in records if record in candidates]


def _end_of_lines(table: TextTable) -> int:
    """The place of the file's last line end; its size, if nobody writes to it."""
    source = table.source
    if source.settled:
        return source.size_bytes
    place = end = 0
    for block in source.blocks():
        last = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
        end = place + last if last else end
        place += len(block)
    return end


def _digests(table: TextTable, held: _Held, stop: int) -> dict[int, tuple[int, str]]:
    """{first row: (number of rows, hash)} of the ranges, as the first reader reads the file up to `stop`."""
    found, row, starts = {}, 0, {record.first_row for record in held.records}
    try:
        for chunk in cut_chunks(first_batches(table.source, stop), _sizes(held)):
            if row in starts:
                found[row] = chunk.num_rows, hash_rows_as_before(chunk)
            row += chunk.num_rows
            if row >= held.num_rows:
                break
    except (pa.ArrowException, UnicodeDecodeError):
        return found
    return found


def _sizes(held: _Held) -> Iterator[int]:
    """Sizes of consecutive chunks, so that each range is one."""
    position = 0
    for record in held.records:
        if record.first_row > position:
            yield record.first_row - position
        yield record.num_rows
        position = _end(record)
    yield 1


def _differs(record: PartitionRecord, digests: dict[int, tuple[int, str]]) -> bool:
    return record.first_row not in digests or digests[record.first_row] != (record.num_rows, record.rows_sha256)


def _gaps(held: _Held) -> Iterator[Stretch]:
    position = 0
    for record in held.records:
        if record.first_row > position:
            yield Stretch(position, held.places[position] if position else 0, held.places[record.first_row])
        position = _end(record)


def _is_even(table: TextTable, gap: Stretch, held: _Held) -> bool:
    """True if a gap has as many rows for the reader of today as for the first: the numbers of the rows after it are taken."""
    stop = next(record.first_row for record in held.records if record.first_row > gap.first_row)
    rows = sum(batch.num_rows for batch in table.batches(gap.start, gap.stop))
    if rows != stop - gap.first_row:
        logger.warning(
            "ingest.input=%s: %s were left unfinished by an earlier version, which read several lines as one row; "
            "they are %d rows now, for which there is no room: put these lines into a new table",
            table.source.address, row_range(gap.first_row, stop - gap.first_row), rows,
        )  # fmt: skip
    return rows == stop - gap.first_row


def _say_what_was_swallowed(table: TextTable, stop: int) -> None:
    found = swallowed_lines(table.source, table, stop)
    if found:
        places = ", ".join(f"{first} to {last}" for first, last in found)
        logger.warning(
            "ingest.input=%s: an earlier version read these lines as one row, because of a quote: %s; put those after the "
            "first of each, which were not ingested, into a new table",
            table.source.address, places,
        )  # fmt: skip


def _without_overlaps(held: list[PartitionRecord], candidates: list[PartitionRecord]) -> list[PartitionRecord]:
    """The candidates that share no row with the data set or with a candidate before them."""
    taken, free = list(held), []
    for record in sorted(candidates, key=lambda record: (record.first_row, record.id)):
        if all(_end(record) <= other.first_row or _end(other) <= record.first_row for other in taken):
            taken.append(record)
            free.append(record)
    return free


def _end(record: PartitionRecord) -> int:
    return record.first_row + record.num_rows


def edited(table: str, record: PartitionRecord, change: object = "") -> InputError:
    """The error for a table whose rows are no longer those of a record.

    Args:
        change: what is known about the columns; "" if they are the same.
    """
    also = f" ({change})" if str(change) else ""
    return InputError(
        f"ingest.input={table}: {row_range(record.first_row, record.num_rows)} have changed since they were ingested{also}; "
        "a table may only grow at its end: restore it, or put changed rows into a new table"
    )
