"""jobs/curate.py without Ray: what it refuses, and the account of a selection. tests/system/test_curate.py runs it on Ray."""

import pytest

from jobs import curate
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.curate import _replace_shards, _summary
from pipeline.dataset.manifest import Manifest, Selection, read_manifest
from pipeline.storage.address import open_storage
from tests.support.odd_s3 import ignores


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(curate, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))


def test_bad_input_costs_no_cluster(data_set, tmp_path, capsys):
    data = f"curate.data={data_set}"
    cases = {
        ("curate.min_side_px=3",): "curate.data: is empty; name the folder",
        (data,): "curate: no rule is set; set keys of curate.*",
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
