"""jobs/curate.py without Ray: what it refuses, and the account of a selection. tests/system/test_curate.py runs it on Ray."""

from pathlib import Path

import pytest

from jobs import curate
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_NOT_MEANT, run
from jobs.curate import _replace_shards, _summary
from pipeline.dataset.manifest import Manifest, Selection, read_manifest, read_samples
from pipeline.storage.address import open_storage
from pipeline.versions.curation import judge, select
from tests.support.odd_s3 import ignores


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(curate, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))


def test_bad_input_costs_no_cluster(data_set, tmp_path, capsys):
    data = f"curate.data={data_set}"
    cases = {
        ("curate.min_side_px=3",): "curate.data: is empty; name the folder",
        (data,): "curate: no rule is set; set keys of curate.*",
        (data, "--remove", "x", "--allow-missing"): "--allow-missing: allows --purge",
        (data, "--materialize", "--allow-repeated"): "--allow-repeated: allows --remove",
        (data, "curate.min_side_px=3", "--runs", "x"): "--runs: lists the runs",
        (data, "--remove", "/dev/null", "--runs", f"{tmp_path}/rnus"): "rnus: holds no run with a checkpoint",
        (data, "--purge"): "--purge: there is nothing to purge; list the samples with --remove FILE",
        (f"curate.data={tmp_path}", "curate.min_side_px=3"): "there is no data set",
        (data, "curate.where=nobody > 3"): "curate.where",
    }
    for arguments, message in cases.items():
        assert run(curate.arguments(), curate.job, list(arguments)) == EXIT_BAD_INPUT, arguments
        assert message in capsys.readouterr().err, arguments


def test_only_partitions_whose_shards_change_are_replaced_and_drops_are_counted(data_set):
    base = read_manifest(open_storage(data_set))
    shard = base.shards[1]
    selection = Selection(name="a", size_bytes=1, sha256="0" * 64, tar_samples=shard.num_samples, drops={"too_small": 2})
    changed = _replace_shards(base, {1: shard.model_copy(update={"selection": selection}).model_dump_json()})
    assert [shard.selection for partition in changed for shard in partition.shards if shard.selection] == [selection]
    assert _replace_shards(base, {1: shard.model_dump_json()}) == []
    ids = {partition.id: partition for partition in changed}
    partitions = tuple(ids[one.id] if one.id in ids else one for one in base.partitions)
    after = Manifest(
        **({name: getattr(base, name) for name in Manifest.model_fields} | {"partitions": partitions, "version": 2})
    )
    lines = _summary(base, after).splitlines()
    assert lines[1].split() == ["too_small", "-2"]


@pytest.mark.parametrize("action", [("curate.min_side_px=3",), ("--remove", "GONE"), ("--materialize",)])
def test_a_store_without_put_if_absent_is_refused_before_any_work(store, make_data_set, tmp_path, capsys, action):
    data = make_data_set("s3://bucket/data", (2,))
    (tmp_path / "gone.txt").write_text("http://e.org/1\n")
    there, store.put = dict(store.objects), ignores
    rest = [str(tmp_path / "gone.txt") if argument == "GONE" else argument for argument in action]
    assert run(curate.arguments(), curate.job, [f"curate.data={data}", *rest]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{store.address} (server: OddStore/1.0) does not keep put-if-absent" in said
    assert "curate.single_writer=NAME" in said
    assert store.objects == there


def test_the_name_of_a_single_writer_is_no_rule(data_set, capsys):
    assert run(curate.arguments(), curate.job, [f"curate.data={data_set}", "curate.single_writer=a"]) == EXIT_BAD_INPUT
    assert "curate: no rule is set" in capsys.readouterr().err


@pytest.fixture
def take_down(make_data_set, tmp_path, capsys, monkeypatch):
    """Runs the takedown of some lines, with its selection in this process; returns exit code, output and the data set."""
    storage = open_storage(make_data_set(str(tmp_path / "data"), (4, 3)))
    monkeypatch.setattr(curate, "connect_ray", lambda _cluster: None)

    def choose(storage, base, rules):
        records = {
            number: select(storage, shard, judge(storage, shard, rules)[0]).model_dump_json()
            for number, shard in enumerate(base.shards)
        }
        return _replace_shards(base, records)

    monkeypatch.setattr(curate, "_choose", choose)

    def job(lines, *options, storage=storage):
        (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
        words = [f"curate.data={storage.uri}", "--remove", str(tmp_path / "lines.txt"), *options]
        code = run(curate.arguments(), curate.job, words)
        return code, "".join(capsys.readouterr()), storage

    return job


def objects(storage):
    return {item.path for item in storage.list("shards/")}


def test_a_takedown_with_a_mistyped_line_removes_what_matched_and_purges_nothing(take_down):
    _, _, storage = take_down([])
    before = objects(storage)
    code, text, _ = take_down(["http://e.org/1", "http://user:SECRET@e.org/mistyped"], "--purge")
    assert code == EXIT_NOT_MEANT
    assert "done, but not what was meant:" in text
    assert "1 of 2 lines matched; not found: http://***@e.org/mistyped" in text
    assert "nothing was purged; a line is a key or a URL, as in the sidecars" in text
    assert "or pass --allow-missing to purge what matched" in text
    assert "no object holds" not in text
    assert "can no longer be read" not in text
    assert objects(storage) >= before
    assert "http://e.org/1" not in urls(storage)


def urls(storage):
    shards = read_manifest(storage).shards
    return [url for shard in shards for url in read_samples(storage, shard, ["url"])["url"].to_pylist()]


def test_a_purge_is_allowed_to_skip_missing_lines_but_not_to_find_nothing(take_down):
    code, text, _ = take_down(["http://e.org/1", "http://e.org/mistyped"], "--purge", "--allow-missing")
    assert (code, "no object holds the removed samples any more" in text) == (0, True)
    assert "1 of 2 lines matched; not found: http://e.org/mistyped" in text
    code, text, _ = take_down(["http://e.org/mistyped"], "--purge", "--allow-missing")
    assert (code, "0 of 1 lines matched" in text, "no object holds" in text) == (EXIT_NOT_MEANT, True, False)
    assert "--allow-missing" not in text, "it would not help"


def test_a_takedown_without_purge_names_missing_lines_and_stays_a_success_with_none(take_down):
    assert take_down(["http://e.org/2"])[0] == 0
    code, text, _ = take_down(["http://e.org/2", *(f"http://e.org/none/{number}" for number in range(30))])
    assert code == EXIT_NOT_MEANT
    assert "1 of 31 lines matched; not found: " in text
    assert "... and 10 more" in text
    assert "purged" not in text
    code, text, _ = take_down([])
    assert (code, "has no lines, so nothing was removed" in text) == (0, True)


def test_a_key_of_different_samples_removes_none_of_them_without_a_sign(take_down, draw_shape, tmp_path):
    from pipeline.config import IndexConfig
    from pipeline.dataset.manifest import commit
    from pipeline.versions.foreign_tars import index_tar
    from tests.support.tars import packed, pairs

    config = IndexConfig(output=str(tmp_path / "indexed"))
    storage, tars = open_storage(config.output), [f"{tmp_path}/{number}.tar" for number in range(3)]
    for tar, colour, more in zip(tars, ("red", "blue", "red"), ("a", "b", "c"), strict=True):
        Path(tar).write_bytes(packed(pairs(draw_shape(colour, "disc", 0), "0", more)))
    commit(storage, [index_tar(tar, config) for tar in tars])
    code, text, _ = take_down(["0", "a"], storage=storage)
    assert (code, len(read_manifest(storage).shards), read_manifest(storage).num_samples) == (EXIT_NOT_MEANT, 3, 6)
    assert f"the key 0 is that of different samples, in {tars[0]}, {tars[1]}; nothing was removed" in text
    assert take_down(["a"], storage=storage)[0] == 0
    assert read_manifest(storage).num_samples == 5
    assert take_down(["0"], "--allow-repeated", storage=storage)[0] == 0
    assert read_manifest(storage).num_samples == 2


def test_a_takedown_says_what_brings_its_samples_back(take_down):
    code, text, storage = take_down(["http://e.org/1", "http://e.org/3"])
    assert (code, "a later table or retry that has them brings them back; after --purge none does" in text) == (0, True)
    assert "1 lines name rows that are no samples, and that a retry may still fetch: http://e.org/3" in text
    code, text, _ = take_down(["http://e.org/1", "http://e.org/3"], "--purge")
    assert (code, "no object holds the removed samples any more" in text) == (0, True)
    assert "later rows with their URLs are dropped as `removed`, by the list in takedowns/" in text
    assert "remove the samples from your tables, too" in text
    assert "may still fetch" not in text
    code, text, _ = take_down(["http://e.org/1"], "--purge")
    assert (code, "no object holds the removed samples any more" in text) == (0, True), "a job may repeat its list"
    storage.write("shards/unfinished.tar", b"")
    code, text, _ = take_down(["http://e.org/2"], "--purge")
    assert (code, "no object of a version here holds the removed samples" in text) == (EXIT_NOT_MEANT, True)
    assert (
        "1 are tars without a sidecar, and may hold some, such as unfinished; an ingestion is in progress or was killed" in text
    )


def test_a_tar_that_others_have_is_named_when_it_still_holds_what_was_purged(take_down, draw_shape, tmp_path):
    from pipeline.config import IndexConfig
    from pipeline.dataset.manifest import commit, commit_choice
    from pipeline.versions.foreign_tars import index_tar
    from pipeline.versions.rewrite import rewrite
    from tests.support.tars import packed, pairs

    (tmp_path / "0.tar").write_bytes(packed(pairs(draw_shape("red", "disc", 0), "0", "1")))
    storage = open_storage(str(tmp_path / "indexed"))
    manifest = commit(storage, [index_tar(f"{tmp_path}/0.tar", IndexConfig(output=storage.uri))])
    copy = rewrite(storage, list(manifest.shards), "copy-000")
    commit_choice(storage, manifest, [manifest.partitions[0].model_copy(update={"shards": (copy,)})])
    code, text, _ = take_down(["0"], "--purge", storage=storage)
    assert code == EXIT_NOT_MEANT
    assert f"1 tars that were indexed in place hold removed samples, such as {tmp_path}/0.tar: remove the samples there" in text
    assert "no object of a version here holds the removed samples" in text
    assert "they have no URL by which later rows could be told" in text


def test_an_earlier_version_is_refused_where_later_rows_would_escape_the_rules(take_down, make_data_set, tmp_path, capsys):
    assert take_down(["http://e.org/1"])[0] == 0
    data = f"curate.data={tmp_path}/data"
    for action in (("curate.min_side_px=3",), ("--remove", str(tmp_path / "lines.txt"))):
        assert run(curate.arguments(), curate.job, [data, "curate.version=1", *action]) == EXIT_BAD_INPUT
        assert "curate.version=1: version 2 has rows or selections that this one lacks" in capsys.readouterr().err
    assert run(curate.arguments(), curate.job, [data, "curate.version=2", "curate.min_side_px=3"]) == 0
