"""Places of captions are resolved by the ends of sidecars and a few samples; tests/world/test_found_early.py has the inputs."""

import pytest

from pipeline.dataset.manifest import Manifest, PartitionRecord, ShardRecord, read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from training.data import caption_columns
from training.data.caption_columns import check_captions, samples_without_captions


def opened(uri):
    storage = open_storage(uri)
    return storage, read_manifest(storage)


def test_columns_of_our_data_sets_are_places_and_others_are_not(data_set):
    for place in ("caption", "shape", "json.shape", "json.caption"):
        check_captions([opened(data_set)], [place], "data.captions")
    for place in ("colour", "width", "json.colour", "sha256_"):
        with pytest.raises(ConfigError, match=r"^data\.captions="):
            check_captions([opened(data_set)], [place], "data.captions")


def test_a_column_of_numbers_is_named_for_what_it_is(data_set):
    with pytest.raises(ConfigError, match=r"has no captions there: width holds int32, not text; name one of caption, shape"):
        check_captions([opened(data_set)], ["width"], "data.captions")


def test_samples_are_counted_over_all_places(data_set):
    assert samples_without_captions(opened(data_set), ["caption"]) == 0
    assert samples_without_captions(opened(data_set), ["shape", "json.shape"]) == 0
    assert samples_without_captions(opened(data_set), ["exif"]) == 0, "it holds text, whatever it says"
    assert samples_without_captions(opened(data_set), ["reason", "error_message"]) == 0
    assert samples_without_captions(opened(data_set), ["error_message"]) == 64, "of samples, which have no error"


def test_no_sidecar_is_read_whole_and_each_is_looked_at_once(data_set, monkeypatch):
    caption_columns._schema_of.cache_clear()
    reads = []
    store = type(open_storage(data_set))
    monkeypatch.setattr(
        store, "open", lambda self, path, size, before=store.open: reads.append(path) or before(self, path, size)
    )
    for _ in range(3):
        check_captions([opened(data_set)], ["shape"], "data.captions")
    assert len(reads) == len(set(reads)) == 3


def test_of_many_shards_one_of_each_table_is_looked_at():
    def shard(number: int) -> ShardRecord:
        sizes = {"tar_size_bytes": 1, "tar_sha256": "", "sidecar_size_bytes": 1, "sidecar_sha256": ""}
        return ShardRecord(name=str(number), num_rows=1, num_samples=1, **sizes)

    partitions = tuple(
        PartitionRecord(
            id=str(number), input_path=f"table-{number % 7}", first_row=number, num_rows=1, rows_sha256="",
            options_fingerprint="", counts={}, shards=(shard(number),),
        )
        for number in range(300)
    )  # fmt: skip
    many, few = (Manifest(version=1, created="2026-01-01T00:00:00Z", partitions=one) for one in (partitions, partitions[:20]))
    assert (len(caption_columns._chosen(many)), len(caption_columns._chosen(few))) == (7, 20)
