"""Random tables of random types: our sidecars hold what pyarrow, pandas and polars read in the table itself."""

import decimal
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.dataset.columns import COLUMNS, free_names, join_columns, write_sidecar
from pipeline.dataset.shard import Row, ShardWriter, StoredImage
from pipeline.dataset.valid_text import exact_values
from pipeline.errors import Failure
from pipeline.ingest.rows import iter_rows
from pipeline.ingest.rows_digest import hash_rows
from pipeline.storage.parquet import read_parquet
from pipeline.transform.caption import clean_captions

IMAGE = StoredImage(b"an image", 1, 1, 1, 1, "{}")
TABLES, MANY_TABLES = 120, 20_000
WORDS = ("", "a", "a dog", "ß🟢", "NaN", "null", "0012", 'q"uote', "line\nbreak", "a text that is longer than a view holds")
UNITS = ("s", "ms", "us", "ns")


def integers(rng: random.Random, low: int, high: int) -> int:
    return rng.choice((0, 1, low, high - 1, rng.randrange(low, high)))


def scalar_types(rng: random.Random) -> list[tuple[pa.DataType, Callable[[], Any]]]:
    """Types, each with a generator of values."""
    wide = [(kind, 1 << bits, signed) for kind, bits, signed in (
        (pa.int8(), 8, True), (pa.int16(), 16, True), (pa.int32(), 32, True), (pa.int64(), 64, True),
        (pa.uint8(), 8, False), (pa.uint16(), 16, False), (pa.uint32(), 32, False), (pa.uint64(), 64, False),
    )]  # fmt: skip
    number: list[tuple[pa.DataType, Callable[[], Any]]] = [
        (kind, lambda size=size, signed=signed: integers(rng, -size // 2 if signed else 0, size // 2 if signed else size))
        for kind, size, signed in wide
    ]
    floats = (float("nan"), float("inf"), -0.0, 1e300, rng.random())
    counted = [pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin", "+05:30", "No/Where")]
    counted += [pa.duration(unit) for unit in UNITS] + [pa.date64()]
    count = [(kind, lambda: integers(rng, -(2**53), 2**53) // 86_400_000 * 86_400_000) for kind in counted]
    times = [
        (pa.time32("s"), 86_400),
        (pa.time32("ms"), 86_400_000),
        (pa.time64("us"), 86_400 * 10**6),
        (pa.time64("ns"), 86_400 * 10**9),
    ]
    digits = [(pa.decimal32(9, 4), 9), (pa.decimal64(18, 4), 18), (pa.decimal128(38, 4), 38), (pa.decimal256(76, 4), 76)]
    text = [(kind, lambda: rng.choice(WORDS)) for kind in (pa.string(), pa.large_string(), pa.string_view())]
    data = [(kind, lambda: rng.randbytes(rng.randrange(20))) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())]
    return [
        *number, *count, *text, *data,
        *((kind, lambda size=size: rng.randrange(size)) for kind, size in times),
        *((kind, lambda most=most: decimal.Decimal(rng.randrange(10**most)).scaleb(-4)) for kind, most in digits),
        (pa.float64(), lambda: rng.choice(floats)),
        (pa.float32(), lambda: float(np.float32(rng.choice(floats[:3])))),
        (pa.float16(), lambda: np.float16(rng.choice(floats[:3]))),
        (pa.bool_(), lambda: rng.random() < 0.5),
        (pa.null(), lambda: None),
        (pa.date32(), lambda: integers(rng, -(2**31), 2**31)),
        (pa.binary(5), lambda: rng.randbytes(5)),
        (pa.uuid(), lambda: rng.randbytes(16)),
    ]  # fmt: skip


def random_column(rng: random.Random, rows: int, depth: int = 2) -> pa.Array:
    """A column of a random type, nested up to a depth, with nulls."""
    sort = rng.choice(("scalar", "scalar", "dictionary", "list", "struct", "map")) if depth else "scalar"
    if sort == "scalar":
        kind, value = rng.choice(scalar_types(rng))
        values = [None if rng.random() < 0.2 else value() for _ in range(rows)]
        if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_date64(kind):
            return pa.array(values, pa.int64()).view(kind)
        if isinstance(kind, pa.UuidType):
            return pa.ExtensionArray.from_storage(kind, pa.array(values, pa.binary(16)))
        return pa.array(values, pa.int32()).view(kind) if pa.types.is_date32(kind) else pa.array(values, kind)
    nulls = pa.array([rng.random() < 0.2 for _ in range(rows)], pa.bool_())
    if sort == "dictionary":
        words = pa.array(WORDS, rng.choice((pa.string(), pa.binary())))
        places = [None if null else rng.randrange(len(words)) for null in nulls.to_pylist()]
        indices = pa.array(places, rng.choice((pa.int8(), pa.int32())))
        return pa.DictionaryArray.from_arrays(indices, words, ordered=rng.random() < 0.3)
    if sort == "struct":
        columns = [random_column(rng, rows, depth - 1) for _ in range(rng.randint(1, 3))]
        return pa.StructArray.from_arrays(columns, [f"f{number}" for number in range(len(columns))], mask=nulls)
    sizes = [rng.randrange(4) for _ in range(rows)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    items = random_column(rng, int(offsets[-1]), depth - 1)
    if sort == "map":
        keys = pa.array([f"k{number}" for number in range(len(items))])
        return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, items)
    build, width = rng.choice(((pa.ListArray, pa.int32()), (pa.LargeListArray, pa.int64())))
    return build.from_arrays(pa.array(offsets, width), items, mask=nulls)


def random_table(rng: random.Random, path: Path) -> pa.Table | None:
    """Writes a table, and returns it as pyarrow reads it; None if pyarrow cannot write or read these types."""
    rows = rng.randint(1, 12)
    names = rng.sample(["x", "y", "a.b", "key", "source_key", "source_key_2", "width", "exif", "ü ö", ""], rng.randint(1, 4))
    table = pa.table({name: random_column(rng, rows) for name in names} | {"url": ["u"] * rows, "caption": ["c"] * rows})
    try:
        pq.write_table(table, path, row_group_size=rng.randint(1, 12))
        return pa.Table.from_batches(pq.ParquetFile(path).iter_batches(1000))
    except (
        pa.ArrowNotImplementedError,
        pa.ArrowInvalid,
    ):  # such as lists of structs of views
        return None


def sidecar_of(path: Path, rows: int, folder: Path, rng: random.Random) -> Path:
    """Passes a table through row reading and the shard writer; some rows fail."""
    writer = ShardWriter("abc-000", "png", datetime(2026, 1, 1, tzinfo=UTC), folder)
    for number, source in enumerate(iter_rows(str(path), 0, rows, IngestConfig())):
        caption = clean_captions(source.caption, IngestConfig().caption)
        assert not isinstance(caption, Failure)
        outcome = IMAGE if rng.random() < 0.7 else Failure("failed_to_download", "dns", "unknown")
        writer.add(Row(f"abc-{number:06d}", source.url, caption, outcome, source.extra))
    record = writer.close()
    check_json((folder / f"{record.name}.tar").read_bytes() if record.num_samples else b"", folder / f"{record.name}.parquet")
    return folder / f"{record.name}.parquet"


def check_json(tar: bytes, sidecar: Path) -> None:
    """Each json member is valid JSON with a value for each column, null only where the sidecar has null or no number."""
    table = read_parquet(sidecar.read_bytes())
    places = table.select(["json_offset", "json_size"]).to_pylist()
    others = [name for name in table.column_names if name not in COLUMNS.names]
    for row, place in enumerate(places):
        if place["json_offset"] is None:
            continue
        text = tar[place["json_offset"] : place["json_offset"] + place["json_size"]]
        record = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        for name in others:
            column = table[name]
            assert (record[name] is None) == (not column[row].is_valid or is_no_number(column[row]))


def is_no_number(value: pa.Scalar) -> bool:
    return pa.types.is_floating(value.type) and not np.isfinite(value.as_py())


def bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose equality is that of bits, so that NaN equals NaN: floats at the top level as integers."""
    if pa.types.is_dictionary(column.type):  # the values are compared, not the order in which a reader found them
        return column.cast(column.type.value_type)
    wide = {"halffloat": pa.int16(), "float": pa.int32(), "double": pa.int64()}
    if str(column.type) not in wide:
        return column
    return pa.chunked_array([chunk.view(wide[str(column.type)]) for chunk in column.chunks], wide[str(column.type)])


def equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """True for equal types and values; where Arrow finds NaN unequal within lists, Python decides."""
    if one.type != other.type or bits(one).equals(bits(other)):
        return one.type == other.type
    return repr(exact_values(one)) == repr(exact_values(other))


def compare_with_peers(seed: int, count: int, folder: Path) -> int:
    """Passes random tables through ingestion. Returns the number of tables that the peers could write."""
    rng, compared = random.Random(seed), 0
    for number in range(count):
        path = folder / "table.parquet"
        table = random_table(rng, path)
        if table is None:
            continue
        sidecar = sidecar_of(path, table.num_rows, folder, rng)
        names = [name for name in table.column_names if name not in ("url", "caption")]
        stored = read_parquet(sidecar.read_bytes())
        for name, ours in zip(names, free_names(names, COLUMNS.names), strict=True):
            assert equal(table[name], stored[ours]), f"seed {seed}, table {number}: {name} {table[name].type}"
        assert hash_rows(table) == hash_rows(table.slice(0)), f"seed {seed}, table {number}"
        if number % 10 == 0:
            check_frames(path, sidecar, names, f"seed {seed}, table {number}")
        sidecar.unlink()
        compared += 1
    return compared


def check_frames(path: Path, sidecar: Path, names: list[str], place: str) -> None:
    """Compares the sidecar with the table as polars and pandas read both; what they cannot read in the table is left out."""
    for name, ours in zip(names, free_names(names, COLUMNS.names), strict=True):
        for read in (_read_with_polars, _read_with_pandas):
            if read is _read_with_polars and any(word in str(pq.read_schema(path)) for word in ("No/Where", "+05:30", "date")):
                continue  # polars panics over time zones that it does not know, and reads date64 as times
            try:
                wanted = read(path, name)
                wanted.validate(full=True)  # Arrow's reader gives pandas structs whose children are too short
            except (
                Exception,
                pl.exceptions.PanicException,
            ):  # it cannot read the table itself
                continue
            found = read(sidecar, ours)
            assert equal(wanted, found), f"{place}: {name}, {read.__name__}"


def _read_with_polars(path: Path, name: str) -> pa.ChunkedArray:
    return pl.read_parquet(path, columns=[name]).to_arrow()[name]


def _read_with_pandas(path: Path, name: str) -> pa.ChunkedArray:
    pq.read_table(path, columns=[name]).validate(full=True)  # structs may have children that are too short
    frame = pd.read_parquet(path, columns=[name], dtype_backend="pyarrow")
    return frame.iloc[:, 0].array._pa_array  # as pandas holds it: to join its parts may abort the process in pyarrow


def test_sidecars_of_random_tables_hold_what_the_tables_hold(tmp_path):
    assert compare_with_peers(0, TABLES, tmp_path) > TABLES * 0.8


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_sidecars_of_many_random_tables_hold_what_the_tables_hold(seed, tmp_path):
    assert compare_with_peers(seed, MANY_TABLES, tmp_path) > MANY_TABLES * 0.8


def join_random_columns(seed: int, count: int, folder: Path) -> None:
    """Joins columns of two random types: each value is there, under its own type, a wider one, or as text."""
    rng = random.Random(seed)
    for number in range(count):
        one, other = (random_column(rng, rng.randint(1, 6), 1) for _ in range(2))
        joined = join_columns("x", [one, other])
        write_sidecar(pa.table({"x": joined}), folder / "joined.parquet")
        stored = pq.read_table(folder / "joined.parquet")["x"]
        assert len(stored) == len(one) + len(other)
        nulls = [not valid for column in (one, other) for valid in column.is_valid().to_pylist()]
        assert [not valid for valid in stored.is_valid().to_pylist()] == nulls, (
            f"seed {seed}, pair {number}: {one.type}, {other.type}"
        )


def test_random_columns_of_two_types_are_joined_without_a_loss(tmp_path):
    join_random_columns(0, 120, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_many_random_columns_of_two_types_are_joined_without_a_loss(seed, tmp_path):
    join_random_columns(seed, 20_000, tmp_path)
