"""A unit of work whose worker dies each time is tried a few times only, and the message names its rows."""

import pickle

import pytest

from pipeline.config import IngestConfig
from pipeline.errors import WorkerDiedError
from pipeline.ingest.attempts import MOST_ATTEMPTS, Attempts, deadly_rows
from pipeline.ingest.plan import PartitionSpec

HELD: dict[str, str] = {}
KILLED = []
"""Contexts that are never left."""


def put(key: str, value: str) -> None:
    HELD[key] = value


def get(key: str) -> str:
    return HELD.get(key, "")


def delete(key: str) -> None:
    HELD.pop(key, None)


@pytest.fixture
def attempts():
    HELD.clear()
    yield Attempts(put, get, delete)
    KILLED.clear()


def die(attempts: Attempts, unit: str) -> None:
    """As a worker that is killed: nothing after the beginning is done."""
    KILLED.append(attempts.at(unit))
    KILLED[-1].__enter__()


def test_a_unit_over_which_workers_die_is_refused_after_a_few_of_them_and_others_are_not(attempts):
    for _ in range(MOST_ATTEMPTS):
        die(attempts, "s3://b/1.tar")
        die(pickle.loads(pickle.dumps(attempts)), "s3://b/2.tar")
    with pytest.raises(WorkerDiedError, match=r"s3://b/1\.tar: 4 workers in a row died over it .*; use fewer workers"):
        die(attempts, "s3://b/1.tar")
    die(attempts, "s3://b/3.tar")
    die(Attempts(put, get, delete), "s3://b/1.tar")  # another run


def test_a_worker_that_lives_ends_the_count_also_with_an_error(attempts):
    for _ in range(2 * MOST_ATTEMPTS):
        die(attempts, "1.tar")
        with pytest.raises(ValueError, match="of ours"), attempts.at("1.tar"):
            raise ValueError("of ours")
    assert not HELD


def spec(first_row: int, num_rows: int) -> PartitionSpec:
    return PartitionSpec(f"{first_row:016x}", "t.csv", first_row, num_rows, "", "", "", 0)


def test_rows_over_which_workers_died_are_named_with_what_to_type(attempts):
    config = IngestConfig(url_column="link")
    many = str(deadly_rows([spec(number * 10_000, 10_000) for number in range(5)], config)).splitlines()
    assert many[0].startswith("ingest.input=t.csv: rows 0 to 9,999: 4 workers in a row died over it")
    assert many[3] == "... and 2 more such partitions"
    assert many[4].endswith("add ingest.partition_size_rows=100")
    (_, one) = str(deadly_rows([spec(1234, 1)], config)).splitlines()
    assert one.endswith("leave its link empty in the table: the row then fails, and the others stay")
