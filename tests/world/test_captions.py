"""A caption is text: bytes are decoded, a list is several captions, and anything else is refused before the run."""

import decimal
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import CaptionConfig, CurateConfig
from pipeline.dataset.manifest import read_manifest, read_sidecar
from pipeline.errors import InputError
from pipeline.versions.curation import Rules, judge
from pipeline.versions.rewrite import rewrite
from tests.support.stored_tables import Stored, ingest, store, write_table
from training.data.shard_reader import ShardReader


def read_by_training(stored: Stored, *sources: str) -> list[tuple[str, ...]]:
    """The captions of each sample, as training draws from them."""
    reader = ShardReader(stored.storage, stored.manifest, sources or ("caption",))
    return [
        sample.captions
        for number, shard in enumerate(stored.manifest.shards)
        for sample in reader.read(number, 0, shard.num_samples)
    ]


def not_utf8(*texts: bytes) -> pa.Array:
    """A column of strings of these bytes."""
    return pa.array(texts, pa.binary()).view(pa.string())


TEXTS: dict[str, tuple[pa.Array, list[str]]] = {
    "bytes": (pa.array([b"a dog", "vier Füße".encode()]), ["a dog", "vier Füße"]),
    "large bytes": (pa.array([b"a dog"], pa.large_binary()), ["a dog"]),
    "views of bytes": (pa.array([b"a dog that is not inline"], pa.binary_view()), ["a dog that is not inline"]),
    "large text": (pa.array(["a dog"], pa.large_string()), ["a dog"]),
    "views of text": (pa.array(["a dog that is not inline"], pa.string_view()), ["a dog that is not inline"]),
    "categories": (pa.array(["a dog", "a cat", "a dog"]).dictionary_encode(), ["a dog", "a cat", "a dog"]),
    "categories of bytes": (pa.array([b"a dog"]).dictionary_encode(), ["a dog"]),
    "integers": (pa.array([42, 2**63 + 5], pa.uint64()), ["42", "9223372036854775813"]),
    "floats": (pa.array([0.1, 3.0]), ["0.1", "3.0"]),
    "floats of 32 bits": (pa.array([0.1, 16777216.0], pa.float32()), ["0.1", "16777216.0"]),
    "floats of 16 bits": (pa.array([np.float16(0.1)], pa.float16()), ["0.1"]),
    "decimals": (pa.array([decimal.Decimal("12.50")]), ["12.50"]),
}
"""Columns of captions, and the captions."""


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_any_type_and_numbers_are_captions(name, tmp_path):
    column, texts = TEXTS[name]
    stored = store(pa.table({"caption": column}), tmp_path)
    assert stored.sidecar["caption"].to_pylist() == stored.texts == texts
    assert read_by_training(stored) == read_by_training(stored, "json.caption") == [(text,) for text in texts]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([None, "x"]),
        pa.array([b"", b"x"]),
        pa.array([float("nan"), 1.0]),
        pa.array([np.float32("nan"), 1], pa.float32()),
        pa.array([[], ["x"]]),
        pa.array([[None, " "], ["x"]]),
        pa.array([None, ["x"]]),
    ],
)
def test_null_nan_and_lists_without_a_text_are_empty_captions(column, tmp_path):
    stored = store(pa.table({"caption": column}), tmp_path)
    assert stored.sidecar["reason"].to_pylist() == ["empty_caption", "success"]


def test_a_column_of_nulls_alone_is_a_column_of_empty_captions(tmp_path):
    stored = store(pa.table({"caption": pa.nulls(2)}), tmp_path)
    assert stored.sidecar["reason"].to_pylist() == ["empty_caption"] * 2


LISTS: dict[str, pa.Array] = {
    "text": pa.array([["a dog", "two dogs"], ["one"]]),
    "large lists of large text, as polars writes them": pl.Series([["a dog", "two dogs"], ["one"]]).to_arrow(),
    "bytes": pa.array([[b"a dog", b"two dogs"], [b"one"]]),
    "categories": pa.ListArray.from_arrays([0, 2, 3], pa.array(["a dog", "two dogs", "one"]).dictionary_encode()),
    "views": pa.array([["a dog", "two dogs"], ["one"]], pa.list_view(pa.string())),
    "nulls and blanks among them": pa.array([["a dog", None, " ", "two dogs"], ["", "one"]]),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_texts_is_several_captions_and_training_draws_from_all(name, tmp_path):
    stored = store(pa.table({"caption": LISTS[name]}), tmp_path)
    both = [("a dog", "two dogs"), ("one",)]
    assert read_by_training(stored) == read_by_training(stored, "json.caption") == both
    assert stored.sidecar["caption"].to_pylist() == [list(texts) for texts in both]
    assert stored.texts == ["a dog", "one"], "other readers of tars find the first"


def test_lists_of_one_length_are_several_captions(tmp_path):
    stored = store(pa.table({"caption": pa.array([["a", "b"]], pa.list_(pa.string(), 2))}), tmp_path)
    assert read_by_training(stored) == [("a", "b")]


def test_limits_hold_for_each_caption_of_a_list(tmp_path):
    lists = [["a dog", "a", "a dog that is far too long"], ["a"], ["a dog that is far too long"], []]
    stored = store(pa.table({"caption": lists}), tmp_path, caption=CaptionConfig(min_words=2, max_characters=10))
    assert stored.sidecar["reason"].to_pylist() == ["success", "short_caption", "long_caption", "empty_caption"]
    assert stored.sidecar["caption"].to_pylist() == [["a dog"], *lists[1:]], "a dropped row keeps what it had"


@pytest.mark.parametrize(
    "column",
    [
        not_utf8(b"it\x92s a dog", b"a cat"),
        pa.array([b"it\x92s a dog", b"a cat"]),
        not_utf8(b"it\x92s a dog", b"a cat").dictionary_encode(),
        pa.ListArray.from_arrays([0, 1, 2], not_utf8(b"it\x92s a dog", b"a cat")),
    ],
    ids=["text", "bytes", "categories", "lists"],
)
def test_a_caption_that_is_not_utf8_costs_its_row_alone_and_is_never_trained_on(column, tmp_path):
    stored = store(pa.table({"caption": column}), tmp_path)
    rows = stored.sidecar.to_pylist()
    assert [(row["status"], row["reason"]) for row in rows] == [("dropped", "bad_caption"), ("success", "success")]
    assert rows[0]["error_message"] == "the caption is not UTF-8: invalid start byte at byte 2"
    assert "it\ufffds a dog" in rows[0]["caption"]
    assert stored.texts == ["a cat"]


@pytest.mark.parametrize(
    ("column", "remedy"),
    [
        (pa.array([{"en": "a dog", "n": 1}]), r"one of its fields \(en\) into a column of text"),
        (pa.array([{"n": 1}]), "write the captions into a column of text"),
        (pa.array([[("en", "a dog")]], pa.map_(pa.string(), pa.string())), "write the captions as text"),
        (pa.array([[{"lang": "en", "text": "a dog"}]]), "write the captions as text"),
        (pa.array([[["a dog"]]]), "write the captions as text"),
        (pa.array([[1, 2]]), "write the captions as text"),
        (pa.array([True]), "write the captions as text"),
        (pa.array([0], pa.timestamp("us")), "write the captions as text"),
        (pa.array(['{"en": "a dog"}'], pa.json_()), "write the captions as text"),
    ],
)
def test_a_column_that_holds_no_captions_is_refused_before_a_row_is_fetched(column, remedy, tmp_path):
    table = write_table(pa.table({"caption": column}), tmp_path / "table.parquet")
    with pytest.raises(InputError, match=rf"^ingest\.caption_column=caption: {table} holds .* there; .*{remedy}"):
        ingest(table, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_remedy_for_a_struct_works(tmp_path):
    table = pa.table({"caption": pa.array([{"en": "a dog", "de": "ein Hund"}])})
    texts = table.append_column("caption_en", table["caption"].combine_chunks().field("en"))
    stored = store(texts, tmp_path, caption_column="caption_en")
    assert read_by_training(stored) == [("a dog",)]
    assert stored.sidecar["source_caption"].to_pylist() == [{"en": "a dog", "de": "ein Hund"}]
    assert stored.json_records[0]["source_caption"] == {"en": "a dog", "de": "ein Hund"}


def test_other_columns_of_texts_are_captions_on_request(tmp_path):
    columns = {"alt": pa.array([b"x of bytes"]), "more": pa.array([["y", "z"]]), "no": pa.array([b"\xff"])}
    stored = store(pa.table(columns), tmp_path)
    assert read_by_training(stored, "json.alt", "json.more", "more") == [("x of bytes", "y", "z", "y", "z")]
    with pytest.raises(Exception, match=r"no caption in json\.no"):
        read_by_training(stored, "json.no")


def test_a_table_with_one_caption_and_a_table_with_several_train_together_also_when_compact(tmp_path):
    write_table(pa.table({"caption": ["alone"]}), tmp_path / "1.parquet")
    write_table(pa.table({"caption": [["a", "b"]]}), tmp_path / "2.parquet")
    stored = ingest(tmp_path / "*.parquet", tmp_path / "out")
    assert read_by_training(stored) == [("alone",), ("a", "b")]
    compact = rewrite(stored.storage, list(stored.manifest.shards), "new-000")
    assert read_sidecar(stored.storage, compact)["caption"].to_pylist() == [["alone"], ["a", "b"]]
    (partition, _) = stored.manifest.partitions
    manifest = stored.manifest.model_copy(update={"partitions": (partition.model_copy(update={"shards": (compact,)}),)})
    assert read_by_training(Stored(stored.config, stored.storage, manifest)) == [("alone",), ("a", "b")]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_caption_words": 2}, [True, False]),
        ({"max_caption_characters": 1}, [True, True]),
        ({"where": "caption == 'a'"}, [True, False]),
    ],
)
def test_rules_on_captions_count_each_caption_of_a_sample(options, kept, tmp_path):
    stored = store(pa.table({"caption": [["a", "a dog"], ["b"]]}), tmp_path)
    verdicts, _ = judge(stored.storage, stored.manifest.shards[0], Rules(CurateConfig(**options)))
    assert [not verdict for verdict in verdicts] == kept


URLS: dict[str, pa.Array] = {
    "bytes": pa.array([b"/a", b"/\xff"]),
    "text": not_utf8(b"/a", b"/\xff"),
    "views": pa.array(["/a", None], pa.string_view()),
}


@pytest.mark.parametrize("name", URLS)
def test_a_url_of_bytes_is_asked_for_and_one_that_is_not_utf8_costs_its_row(name, tmp_path, web):
    web.put("/a", b"no image")
    urls = [web.address.encode() + path if path else None for path in URLS[name].cast(pa.binary()).to_pylist()]
    column = pa.array(urls, pa.binary()).view(pa.string())
    column = column.cast(pa.string_view()) if name == "views" else column.cast(pa.binary()) if name == "bytes" else column
    fetch = {"allow_addresses": ("127.0.0.1/32",)}
    stored = store(pa.table({"url": column}), tmp_path, bytes_column="", fetch=fetch)
    assert stored.sidecar["reason"].to_pylist() == ["not_an_image", "bad_url"]
    assert stored.sidecar["url"].to_pylist()[0] == f"{web.address}/a"


@pytest.mark.parametrize("column", [pa.array([["http://e.org/1"]]), pa.array([{"src": "http://e.org/1"}]), pa.array([1])])
def test_a_column_that_holds_no_urls_is_refused_before_a_row_is_fetched(column, tmp_path):
    table = write_table(pa.table({"url": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"^ingest\.url_column=url: .* holds .* there; a URL is text: write one URL"):
        ingest(table, tmp_path / "out", bytes_column="")
    stored = ingest(table, tmp_path / "out")
    assert stored.sidecar["url"].to_pylist() == [""], "beside images it is a column like any other"
    assert stored.sidecar["source_url"].to_pylist() == column.to_pylist()


@pytest.mark.parametrize("column", [pa.array(["iVBORw0KGgo="]), pa.array([[1, 2]]), pa.array([{"path": "a.png"}])])
def test_a_column_that_holds_no_images_is_refused_before_the_run(column, tmp_path):
    table = write_table(pa.table({"image": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"^ingest\.bytes_column=image: .* holds .* there; images are bytes, or a struct"):
        ingest(table, tmp_path / "out")


def test_a_table_whose_captions_were_lists_before_they_were_read_as_such_can_grow(tmp_path):
    table = write_table(pa.table({"caption": [["a", "b"]]}), tmp_path / "table.parquet")
    ingest(table, tmp_path / "out")
    write_table(pa.table({"caption": [["a", "b"], ["c"]]}), table)
    stored = ingest(table, tmp_path / "out")
    assert read_by_training(stored) == [("a", "b"), ("c",)]
    assert read_manifest(stored.storage).num_samples == 2


def test_captions_of_json_lines_are_lists_too(tmp_path):
    rows = [{"url": "", "caption": ["a", "b"]}, {"url": "", "caption": []}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = ingest(tmp_path / "t.jsonl", tmp_path / "out", bytes_column="")
    assert stored.sidecar["reason"].to_pylist() == ["bad_url", "empty_caption"]
    assert stored.sidecar["caption"].to_pylist() == [["a", "b"], []]
    assert pq.read_table(tmp_path / "out" / stored.manifest.shards[0].sidecar_path).num_rows == 2
