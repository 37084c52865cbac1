"""Bounds the attempts at a unit of work whose worker dies each time, since Ray starts it again without end.

In: functions that put, get and delete a value of the cluster, and the unit that a worker begins. Out: a WorkerDiedError in
place of another attempt. The cluster's head keeps the count, so that it outlives every worker. It is of one run: workers that
end with a job that is stopped are no fault of their unit.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.config import IngestConfig
from pipeline.errors import WorkerDiedError
from pipeline.ingest.plan import PartitionSpec

MOST_ATTEMPTS = 4
"""Attempts at a unit whose workers die, the first one included; as many as Ray makes at a task that is not of Ray Data."""
SHOWN_PARTITIONS = 3
PARTS = 100
"""Partitions into which the remedy divides one whose rows are to be told apart."""
DIED = (
    f"{MOST_ATTEMPTS} workers in a row died over it without an error of their own, as if killed (SIGKILL): memory ran out, or "
    "a library crashed"
)


@dataclass(frozen=True)
class Attempts:
    """Counts how many workers have begun each unit of a run, and died over it.

    Attributes:
        put, get, delete: of the cluster's key-value store; an unknown key gives an empty string.
    """

    put: Callable[[str, str], None]
    get: Callable[[str], str]
    delete: Callable[[str], None]
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @contextlib.contextmanager
    def at(self, unit: str) -> Iterator[None]:
        """Context of a worker that works on a unit.

        Args:
            unit: its name, for the message.

        Raises:
            WorkerDiedError: too many workers have died over it.
        """
        key = f"attempts/{self.run}/{unit}"
        died = int(self.get(key) or 0)
        if died >= MOST_ATTEMPTS:
            raise WorkerDiedError(f"{unit}: {DIED}; use fewer workers at a time or nodes with more memory")
        self.put(key, str(died + 1))
        try:
            yield
        finally:
            self.delete(key)


def deadly_rows(specs: Sequence[PartitionSpec], config: IngestConfig) -> WorkerDiedError:
    """The error for partitions over which too many workers have died, while all others were ingested."""
    lines = [f"ingest.input={spec.input_path}: {_rows(spec)}: {DIED}" for spec in specs[:SHOWN_PARTITIONS]]
    if len(specs) > SHOWN_PARTITIONS:
        lines.append(f"... and {len(specs) - SHOWN_PARTITIONS:,} more such partitions")
    largest = max(spec.num_rows for spec in specs)
    memory = "for more memory, set ingest.num_workers or ingest.memory_bytes lower"
    if largest > 1:
        narrower = max(1, largest // PARTS)
        crash = f"to find the row over which a library crashes, add ingest.partition_size_rows={narrower}"
    else:
        column = config.bytes_column or config.url_column
        crash = f"if a library crashes over it, leave its {column} empty in the table: the row then fails, and the others stay"
    return WorkerDiedError("\n".join([*lines, f"all other rows are committed; {memory}; {crash}"]))


def _rows(spec: PartitionSpec) -> str:
    last = spec.first_row + spec.num_rows - 1
    return f"row {last:,}" if spec.num_rows == 1 else f"rows {spec.first_row:,} to {last:,}"
