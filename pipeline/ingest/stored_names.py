"""Keeps a stored name like `source_caption` for one column of the tables of a data set.

A table's column `caption` that is not the captions is stored as `source_caption`, and so is a column of that name itself. In
one data set only one of them may be there, or two meanings would stand in one column. In: the columns of the tables that have
new rows. Out: an InputError, or `columns/NAME` in the data set with the column that the name stands for. Earlier releases wrote
no such file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.config import IngestConfig
from pipeline.dataset.columns import COLUMNS, PREFIX, free_names
from pipeline.errors import InputError
from pipeline.ingest.delimited import BAD_ROW
from pipeline.ingest.json_lines import ROW_TEXT
from pipeline.ingest.retry import in_retries
from pipeline.storage.base import Storage

FOLDER = "columns"


class StoredNames:
    """The names of this kind that a data set and the run's tables have so far."""

    def __init__(self, storage: Storage, config: IngestConfig) -> None:
        self._storage, self._config = storage, config
        self._columns: dict[str, str] = {}  # stored name -> column
        self._tables: dict[str, str] = {}  # stored name -> the run's table that has it, or the data set

    def add(self, table: str, columns: Sequence[str]) -> None:
        """Adds a table's columns. Raises InputError if one would be stored under a name that stands for another column."""
        if in_retries(table):  # they have the names that they were stored under
            return
        for column, stored in self._ambiguous(columns):
            if stored not in self._columns:
                self._columns[stored], self._tables[stored] = self._read(stored) or (column, table)
            if self._columns[stored] != column:
                raise InputError(
                    f"ingest.input={table}: its column {column} would be stored as {stored}, which stands for the column "
                    f"{self._columns[stored]} of {self._tables[stored]}; rename {column}, or choose another ingest.output"
                )

    def keep(self) -> None:
        """Writes the names into the data set. Raises InputError if another run has just written another meaning."""
        for stored, column in self._columns.items():
            if not self._storage.write_if_absent(f"{FOLDER}/{stored}", column.encode()):
                held = self._storage.read(f"{FOLDER}/{stored}").decode()
                if held != column:
                    raise InputError(
                        f"ingest.output={self._storage.uri}: another run has just stored its column {held} as {stored}, and "
                        f"{self._tables[stored]} would store its column {column} so; rename it, or choose another ingest.output"
                    )

    def _ambiguous(self, columns: Sequence[str]) -> Iterator[tuple[str, str]]:
        own = {self._config.url_column, self._config.caption_column, self._config.bytes_column, BAD_ROW, ROW_TEXT}
        others = [name for name in columns if name not in own]
        for column, stored in zip(others, free_names(others, COLUMNS.names), strict=True):
            if stored.removeprefix(PREFIX) in COLUMNS.names and stored.startswith(PREFIX):
                yield column, stored

    def _read(self, stored: str) -> tuple[str, str] | None:
        try:
            return self._storage.read(f"{FOLDER}/{stored}").decode(), "other tables of the data set"
        except FileNotFoundError:
            return None
