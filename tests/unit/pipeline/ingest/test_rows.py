"""Row ranges of tables come back as they were stored."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.rows import read_range


def test_a_row_range_holds_exactly_its_rows(tmp_path):
    table = pa.table({"n": range(10), "text": [f"row {number}" for number in range(10)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    batches = read_range(str(tmp_path / "t.parquet"), 3, 4)
    assert [row for batch in batches for row in batch.to_pylist()] == table.slice(3, 4).to_pylist()
