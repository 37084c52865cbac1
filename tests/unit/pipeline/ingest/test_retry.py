"""Failures are ingested again, once for each attempt."""

import pytest

from pipeline.config import CurateConfig, FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.columns import COLUMNS, free_names
from pipeline.dataset.manifest import commit, commit_choice, read_manifest, read_sidecar
from pipeline.ingest.failed_rows import advice, concerned_rows
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.ingest.retry import count_new_retries, is_same_retry, names_in_table, write_retry_tables
from pipeline.storage.address import open_storage
from pipeline.versions.curation import Rules
from pipeline.versions.rewrite import group_partitions, rewrite
from pipeline.versions.takedown import find_holders, purge, with_retries


@pytest.fixture
def config(web, tmp_path, draw_shape):
    rows = ["url,caption,n"]
    for number in range(12):
        rows.append(f"{web.put(f'/{number}.png', draw_shape('red', 'disc', number))},picture {number},{number}")
    rows += [f"{web.address}/gone,gone,12", f"{web.put('/html', b'<html>')},html,13"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    return IngestConfig(
        input=str(tmp_path / "t.csv"),
        output=str(tmp_path / "out"),
        partition_size_rows=5,
        fetch=FetchConfig(allow_addresses=("127.0.0.1/32",)),
        image=ImageConfig(size_px=32, format="png", quality=1),
    )


def ingest(config):
    plan = plan_ingest(config)
    storage = open_storage(config.output)
    return commit(storage, [*plan.adopted, *(ingest_partition(spec, config) for spec in plan.partitions)])


def retry(config, *reasons):
    storage = open_storage(config.output)
    count = write_retry_tables(storage, read_manifest(storage), reasons, config)
    if count:
        ingest(config.model_copy(update={"input": f"{config.output}/retries"}))
    return count


def test_failures_of_a_reason_are_fed_back_once(config, web, draw_shape):
    ingest(config)
    storage = open_storage(config.output)
    assert retry(config, "timeout") == 0
    assert retry(config, "http_404") == 1, "it is still gone, and a new failure"
    assert read_manifest(storage).num_samples == 12
    web.put("/gone", draw_shape("green", "ring", 1))
    assert retry(config, "http_404", "not_an_image") == 2
    manifest = read_manifest(storage)
    assert manifest.num_samples == 13
    assert retry(config, "http_404") == 0, "it has succeeded since"
    rows = [row for shard in manifest.shards for row in read_sidecar(storage, shard).to_pylist()]
    (found,) = [row for row in rows if row["caption"] == "gone" and row["reason"] == "success"]
    assert found["n"] == "12"
    assert found["retry_of"] in {row["key"] for row in rows}
    assert plan_ingest(config).partitions == [], "the table itself is as done as before"


@pytest.mark.parametrize(
    ("stored", "url_column", "names"),
    [
        (["source_width", "lang"], "url", ["width", "lang"]),
        (["source_key_2", "source_key"], "url", ["source_key_2", "source_key"]),
        (["source_key", "source_key_2"], "url", ["source_key", "source_key_2"]),
        (["source_lang", "x_2"], "url", ["source_lang", "x_2"]),
        (["source_url"], "source_url", ["url"]),
        (["source_url"], "link", ["url"]),
    ],
)
def test_columns_of_a_retry_have_names_that_become_those_of_the_sidecar(stored, url_column, names):
    assert names_in_table(stored, IngestConfig(url_column=url_column)) == names
    assert free_names(names, COLUMNS.names) == stored


def test_an_input_may_have_a_column_with_the_name_of_ours(config, web, draw_shape, tmp_path):
    lines = ["url,caption,retry_of", f"{web.address}/gone,gone,mine"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    ingest(config)
    storage = open_storage(config.output)
    assert retry(config, "http_404") == 1
    web.put("/gone", draw_shape("green", "ring", 1))
    assert retry(config, "http_404") == 1, "a retry of a retry"
    rows = [row for shard in read_manifest(storage).shards for row in read_sidecar(storage, shard).to_pylist()]
    first, second, third = sorted(rows, key=lambda row: (row["reason"] == "success", "source_retry_of" in row))
    assert first["retry_of"] == "mine"
    assert (second["retry_of"], third["retry_of"]) == (first["key"], second["key"])
    assert second["source_retry_of"] == third["source_retry_of"] == "mine"


def test_what_a_retry_would_fetch_is_counted_without_a_write(config):
    ingest(config)
    storage = open_storage(config.output)
    manifest, reasons = read_manifest(storage), ["http_404", "not_an_image"]
    before = {item.path for item in storage.list("")}
    assert count_new_retries(storage, manifest, reasons, config) == 2
    assert {item.path for item in storage.list("")} == before
    assert write_retry_tables(storage, manifest, reasons[:1], config) == 1
    assert count_new_retries(storage, manifest, reasons, config) == 1, "the other row waits"


def test_a_retry_that_was_killed_and_one_for_more_reasons_fetch_each_row_once(config):
    storage = open_storage(config.output)
    assert write_retry_tables(storage, ingest(config), ["http_404"], config) == 1
    assert retry(config, "http_404", "not_an_image") == 1
    rows = [row for shard in read_manifest(storage).shards for row in read_sidecar(storage, shard).to_pylist()]
    assert sorted(row["caption"] for row in rows if row.get("retry_of")) == ["gone", "html"]


def test_failures_of_some_partitions_only_are_retried(config):
    storage = open_storage(config.output)
    manifest = ingest(config)
    ids = [record.id for record in manifest.partitions if "http_404" in record.counts]
    assert write_retry_tables(storage, manifest, ["http_404"], config, among=set()) == 0
    assert not any(storage.list("retries/"))
    assert write_retry_tables(storage, manifest, ["http_404"], config, among=ids) == 1


def test_a_folder_of_a_persons_own_that_is_called_retries_holds_no_retries(config, tmp_path):
    (tmp_path / "retries").mkdir()
    (tmp_path / "t.csv").rename(tmp_path / "retries" / "t.csv")
    config = config.model_copy(update={"input": str(tmp_path / "retries" / "t.csv")})
    ingest(config)
    assert retry(config, "http_404") == 1


def test_a_table_of_retries_is_known_where_the_data_set_was_moved_to():
    name = "retries/0123456789abcdef-0123456789ab.parquet"
    assert is_same_retry(f"/old/{name}", f"s3://new/{name}")
    assert not is_same_retry(f"/old/{name}", f"/old/{name.replace('ab.', 'ac.')}")
    assert not is_same_retry("/old/t.parquet", "/new/t.parquet")


def test_a_rewritten_data_set_is_retried_once_too(config, web, draw_shape):
    """Compact shards hold the rows of several partitions, under the first of them."""
    ingest(config)
    storage = open_storage(config.output)
    web.put("/html", draw_shape("green", "ring", 1))
    assert retry(config, "not_an_image") == 1
    manifest = read_manifest(storage)
    (group,) = group_partitions(manifest, 1 << 30)
    shard = rewrite(storage, list(manifest.shards), f"{group[0].id}-000")
    changed = [record.model_copy(update={"shards": (shard,) if record is group[0] else ()}) for record in group]
    manifest = commit_choice(storage, manifest, changed)
    assert manifest.num_samples == 13
    web.put("/gone", draw_shape("green", "disc", 1))
    assert retry(config, "not_an_image") == 0, "it has succeeded before"
    assert retry(config, "http_404") == 1
    assert retry(config, "http_404") == 0
    assert read_manifest(storage).num_samples == 14


def make_compact(config):
    """What jobs/curate.py --materialize does, without Ray: all shards become one, of the first partition."""
    storage = open_storage(config.output)
    manifest = read_manifest(storage)
    first, *others = manifest.partitions
    whole = rewrite(storage, list(manifest.shards), f"{first.id}-000")
    changed = [record.model_copy(update={"shards": ()}) for record in others]
    return commit_choice(storage, manifest, [first.model_copy(update={"shards": (whole,)}), *changed])


def test_compact_shards_hide_no_failure_and_no_retry(config, web, draw_shape):
    ingest(config)
    make_compact(config)
    web.put("/gone", draw_shape("green", "ring", 1))
    assert retry(config, "http_404") == 1, "the row of the third partition is in a shard of the first"
    manifest = make_compact(config)
    assert (retry(config, "http_404"), manifest.num_samples) == (0, 13)
    assert retry(config, "not_an_image") == 1
    rows = [
        row for shard in make_compact(config).shards for row in read_sidecar(open_storage(config.output), shard).to_pylist()
    ]
    assert retry(config, "not_an_image") == 1, "a retry of a retry"
    assert len(rows) == 16


@pytest.mark.parametrize("what", ["the URL", "the key of the failure", "the key of the retry"])
def test_what_was_purged_after_a_retry_is_gone_and_stays_away(config, web, draw_shape, what):
    ingest(config)
    storage, url = open_storage(config.output), f"{web.address}/gone"
    web.put("/gone", draw_shape("green", "ring", 1))
    assert retry(config, "http_404") == 1
    rows = [row for shard in read_manifest(storage).shards for row in read_sidecar(storage, shard).to_pylist()]
    failure, success = sorted((row for row in rows if row["url"] == url), key=lambda row: row["reason"])
    line = {"the URL": url, "the key of the failure": failure["key"], "the key of the retry": success["key"]}[what]
    rules = with_retries(storage, Rules(CurateConfig(), removed=frozenset([line])))
    holders = find_holders(storage, rules)
    assert (holders.found & rules.removed, holders.waiting) == ({line}, frozenset())
    manifest = purge(storage, rules, holders)
    assert manifest.num_samples == 12
    assert all(url.encode() not in storage.read(item.path) for item in storage.list("")), "in no table that waits either"
    for reason in ("http_404", "not_an_image", "removed"):
        retry(config, reason)
    assert read_manifest(storage).num_samples == 12
    assert advice(storage, manifest, [record.id for record in manifest.partitions], config)
    changed = config.model_copy(update={"fetch": FetchConfig(allow_addresses=("127.0.0.1/32",), attempts=5)})
    tables = {record.input_path for record in manifest.partitions}
    assert concerned_rows(storage, manifest, [], tables, changed).all_counted


def test_a_shard_that_an_earlier_purge_left_without_its_column_is_read(config, web, draw_shape, monkeypatch):
    monkeypatch.setattr("pipeline.versions.rewrite._retry_of", lambda extra: None)
    ingest(config)
    storage = open_storage(config.output)
    assert retry(config, "http_404") == 1
    rules = Rules(CurateConfig(), removed=frozenset([f"{web.address}/gone"]))
    purge(storage, rules, find_holders(storage, rules))
    assert retry(config, "not_an_image") == 1
