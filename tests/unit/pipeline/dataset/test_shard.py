"""Shards are deterministic, say where every byte lies, and are read by webdataset without our help."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.dataset.columns import COLUMNS, Extra
from pipeline.dataset.shard import Row, StoredImage, sidecar_table, write_shard
from pipeline.errors import Failure

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


# open_clip 3.3.0 stumbles over the marker that newer webdataset versions put at the end of every tar, whoever wrote it.
OPEN_CLIP_TRAIN = """
import functools, multiprocessing, sys
multiprocessing.set_start_method("fork")  # its loader has functions that the default of Python 3.14 cannot send to a process
import open_clip_train.data
open_clip_train.data.tar_file_expander = functools.partial(open_clip_train.data.tar_file_expander, eof_value=None)
from open_clip_train.main import main
main(sys.argv[1:])
"""


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def rows() -> list[Row]:
    def row(number: int, outcome: StoredImage | Failure) -> Row:
        extra = Extra(pa.RecordBatch.from_pylist([{"licence": "cc0", "width": 77, "score": number / 2}]))
        return Row(f"abc-{number:06d}", f"http://e.org/{number}", f"caption {number} é", outcome, extra.row(0))

    good = [row(number, StoredImage(png(number), 8, 6, 80, 60, "{}")) for number in (0, 2, 3)]
    failed = row(1, Failure("failed_to_download", "http_404", "HTTP status 404"))
    dropped = row(4, Failure("dropped", "empty_caption", "the caption is empty"))
    return [good[0], failed, *good[1:], dropped]


@pytest.fixture
def shard(tmp_path):
    return write_shard(rows(), "abc-000", "png", STARTED, tmp_path), tmp_path


def test_the_same_samples_give_the_same_bytes_and_name(shard, tmp_path_factory):
    record, folder = shard
    other = tmp_path_factory.mktemp("other")
    again = write_shard(rows(), "abc-000", "png", datetime.now(UTC), other)
    assert again == record
    assert (other / f"{record.name}.tar").read_bytes() == (folder / f"{record.name}.tar").read_bytes()
    assert record.name == f"abc-000-{record.tar_sha256[:12]}-{record.sidecar_sha256[:8]}"


def test_attempts_that_differ_in_a_reason_alone_have_other_names(shard, tmp_path_factory):
    record, _ = shard
    changed = [
        Row(row.key, row.url, row.caption, Failure("failed_to_download", "timeout", "later"))
        if row.reason != "success"
        else row
        for row in rows()
    ]
    again = write_shard(changed, "abc-000", "png", STARTED, tmp_path_factory.mktemp("other"))
    assert again.tar_sha256 == record.tar_sha256
    assert again.name != record.name, "or the one's sidecar would be put in the place of the other's"


def test_offsets_point_at_exactly_the_members_data(shard):
    record, folder = shard
    tar = (folder / f"{record.name}.tar").read_bytes()
    table = pq.read_table(folder / f"{record.name}.parquet").to_pylist()
    for row in table:
        if row["status"] != "success":
            assert row["jpg_offset"] is None
            continue
        number = int(row["key"][-6:])

        def data(kind: str, row=row) -> bytes:
            return tar[row[f"{kind}_offset"] : row[f"{kind}_offset"] + row[f"{kind}_size"]]

        assert data("jpg") == png(number)
        assert data("txt").decode() == f"caption {number} é"
        assert json.loads(data("json"))["url"] == f"http://e.org/{number}"


def test_the_sidecar_has_every_row_and_every_column_failures_too(shard):
    record, folder = shard
    table = pq.read_table(folder / f"{record.name}.parquet")
    assert table.schema.names[: len(COLUMNS.names)] == COLUMNS.names
    assert [table.schema.field(name).type for name in COLUMNS.names] == COLUMNS.types
    found = table.to_pylist()
    assert [row["key"] for row in found] == [row.key for row in rows()]
    assert [row["reason"] for row in found] == ["success", "http_404", "success", "success", "empty_caption"]
    assert [row["status"] for row in found] == ["success", "failed_to_download", "success", "success", "dropped"]
    assert found[1]["error_message"] == "HTTP status 404"
    assert found[0]["width"] == 8
    assert found[0]["source_width"] == 77
    assert found[0]["licence"] == "cc0"
    assert found[3]["score"] == 1.5
    assert (record.num_rows, record.num_samples) == (5, 3)


def test_the_statistics_are_img2datasets(shard):
    record, folder = shard
    stats = json.loads((folder / f"{record.name}_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"], stats["failed_to_resize"]) == (5, 3, 1, 0)
    assert stats["status_dict"] == {"success": 3, "http_404": 1, "empty_caption": 1}
    assert {"duration", "start_time", "end_time"} <= set(stats)


def test_webdatasets_own_reader_reads_the_tar(shard):
    record, folder = shard
    samples = list(webdataset.WebDataset(str(folder / f"{record.name}.tar"), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == ["abc-000000", "abc-000002", "abc-000003"]
    assert [sample["txt"] for sample in samples] == ["caption 0 é", "caption 2 é", "caption 3 é"]
    assert samples[1]["png"].size == (8, 6)
    assert samples[1]["json"]["licence"] == "cc0"


def test_open_clips_training_runs_on_the_tar(shard, tmp_path):
    record, folder = shard
    options = {
        "train-data": str(folder / f"{record.name}.tar"),
        "train-num-samples": "3",
        "dataset-type": "webdataset",
        "model": "ViT-S-32-alt",
        "batch-size": "3",
        "epochs": "1",
        "warmup": "1",
        "workers": "1",
        "logs": str(tmp_path / "logs"),
        "name": "run",
        "device": "cpu",
        "precision": "fp32",
    }
    command = [sys.executable, "-c", OPEN_CLIP_TRAIN, *(f"--{name}={value}" for name, value in options.items())]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Train Epoch: 0 [3/3 (100%)]" in log


def test_a_shard_of_failures_alone_has_no_tar(tmp_path):
    record = write_shard([row for row in rows() if row.reason != "success"], "abc-000", "png", STARTED, tmp_path)
    assert (record.num_rows, record.num_samples, record.tar_size_bytes, record.tar_sha256) == (2, 0, 0, "")
    assert not (tmp_path / f"{record.name}.tar").exists()
    assert pq.read_table(tmp_path / f"{record.name}.parquet").num_rows == 2


def test_of_several_captions_the_tar_holds_the_first_and_the_sidecar_all_without_its_place(tmp_path):
    image = StoredImage(png(1), 8, 6, 8, 6, "{}")
    captions = (["a", "b"], ["c"])
    several = [Row(f"abc-{number:06d}", "", texts, image) for number, texts in enumerate(captions)]
    record = write_shard(several, "abc-000", "png", STARTED, tmp_path)
    table = pq.read_table(tmp_path / f"{record.name}.parquet")
    assert table["caption"].to_pylist() == list(captions)
    assert table["txt_offset"].to_pylist() == [None, None]
    samples = list(webdataset.WebDataset(str(tmp_path / f"{record.name}.tar"), shardshuffle=False).decode())
    assert [(sample["txt"], sample["json"]["caption"]) for sample in samples] == [("a", ["a", "b"]), ("c", ["c"])]


def test_records_of_any_values_become_columns():
    own = dict.fromkeys(COLUMNS.names) | {"caption": ""}
    values = {"big": [2**63 + 5, 1], "bigger": [2**64, 1], "mixed": ["x", {"a": 1}], "half": ["\ud800", "b"], "n": [1, 0.5]}
    records = [own | {name: column[number] for name, column in values.items()} for number in range(2)]
    table = sidecar_table(records)
    assert table.schema.field("big").type == pa.uint64()
    assert {name: table[name].to_pylist() for name in values} == values | {
        "bigger": ["18446744073709551616", "1"],
        "mixed": ['"x"', '{"a": 1}'],
        "half": ["?", "b"],
        "n": [1.0, 0.5],
    }
