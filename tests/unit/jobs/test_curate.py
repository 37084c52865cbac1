"""jobs/curate.py without Ray: what it refuses, and the account of a selection. tests/system/test_curate.py runs it on Ray."""

import pytest

from jobs import curate
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.curate import _replace_shards, _summary
from pipeline.dataset.manifest import Manifest, Selection, read_manifest
from pipeline.storage.address import open_storage


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
