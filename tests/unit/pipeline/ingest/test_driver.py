"""The notes of finished tables; the Ray Data graph runs in tests/system/test_ingest.py."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import PartitionRecord, ShardRecord, commit
from pipeline.ingest.driver import _write_notes
from pipeline.ingest.plan import PartitionSpec, plan_ingest
from pipeline.storage.address import open_storage

ROWS = [{"url": f"http://e.org/{i}.jpg", "caption": f'caption "{i}", of many', "n": i} for i in range(10)]


def write(path, rows=ROWS):
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    elif path.suffix == ".jsonl":
        import json

        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pyarrow.csv.write_csv(table, path, options)
    return str(path)


def plan(table, output, **options):
    return plan_ingest(IngestConfig(input=str(table), output=str(output), **({"partition_size_rows": 4} | options)))


def record_of(spec: PartitionSpec) -> PartitionRecord:
    shard = ShardRecord(
        name=spec.id,
        num_rows=spec.num_rows,
        num_samples=0,
        tar_size_bytes=0,
        tar_sha256="",
        sidecar_size_bytes=0,
        sidecar_sha256="",
    )
    fields = {name: value for name, value in vars(spec).items() if name in PartitionRecord.model_fields}
    return PartitionRecord(**fields, counts={"success": spec.num_rows}, shards=(shard,))


def test_a_table_with_rows_missing_is_not_noted(tmp_path):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write(table)
    first = plan(table, output)
    storage = open_storage(str(output))
    manifest = commit(storage, [record_of(spec) for spec in first.partitions if spec.first_row != 4])
    _write_notes(storage, manifest, first)
    gap = plan(table, output, partition_size_rows=3)
    assert [(spec.first_row, spec.num_rows) for spec in gap.partitions] == [(4, 3), (7, 1)]
