"""jobs/index.py without Ray: what it refuses, and says of untidy tars. tests/system/test_curate.py runs it on Ray."""

import pytest

from jobs import index
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NOT_MEANT, run
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import StorageAwayError
from pipeline.ingest.attempts import MOST_ATTEMPTS
from pipeline.storage.address import open_storage
from tests.support.odd_s3 import ignores


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(index, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))


def test_bad_input_costs_no_cluster(tmp_path, capsys):
    cases = {
        (f"index.input={tmp_path}",): "index.output",
        (f"index.output={tmp_path / 'out'}",): "index.input",
        (f"index.input={tmp_path}/none.tar", f"index.output={tmp_path / 'out'}"): "index.input=",
        (f"index.input={tmp_path}", f"index.output={tmp_path / 'out'}", "ingest.input=a"): "does not use the section ingest",
    }
    for arguments, message in cases.items():
        assert run(index.arguments(), index.job, list(arguments)) == EXIT_BAD_INPUT, arguments
        assert message in capsys.readouterr().err, arguments


@pytest.mark.parametrize(("name", "program"), [("a.tar.gz", "gzip"), ("a.TGZ", "gzip"), ("a.tar.zst", "zstd")])
def test_a_compressed_tar_costs_no_cluster(tmp_path, capsys, name, program):
    (tmp_path / name).write_bytes(b"x")
    for given in (tmp_path, tmp_path / name):
        assert run(index.arguments(), index.job, [f"index.input={given}", f"index.output={tmp_path / 'out'}"]) == EXIT_BAD_INPUT
        assert f"{program} -dc {name} > {name.partition('.')[0]}.plain.tar" in capsys.readouterr().err


def test_tars_that_the_data_set_holds_are_not_read_again(make_data_set, tmp_path, capsys):
    from jobs.benchmarks.stored_tars import index as index_here
    from jobs.benchmarks.stored_tars import write_tars

    write_tars(tmp_path / "tars", ["a thing"] * 3, shard_samples=2)
    index_here(str(tmp_path / "tars"), str(tmp_path / "out"))
    assert run(index.arguments(), index.job, [f"index.input={tmp_path / 'tars'}", f"index.output={tmp_path / 'out'}"]) == 0
    assert "nothing to do: " in capsys.readouterr().out


class OneProcess:
    """A stand-in for Ray Data that runs each task here."""

    def __init__(self, rows):
        self.rows = rows

    def map(self, task):
        return OneProcess([task(row) for row in self.rows])

    def iter_rows(self):
        return iter(self.rows)


KILLS = "deadly.tar"
"""A tar over which workers have died in this run already."""


@pytest.fixture
def in_one_process(monkeypatch):
    import ray

    kept = (lambda _key, _value: None, lambda key: str(MOST_ATTEMPTS) if key.endswith(KILLS) else "", lambda _key: None)
    monkeypatch.setattr(index, "KEY_VALUES", kept)
    monkeypatch.setattr(index, "connect_ray", lambda _cluster: None)
    monkeypatch.setattr(ray.data, "from_items", lambda rows, **_options: OneProcess(rows))


@pytest.fixture
def index_tars(in_one_process, tmp_path, capsys):
    """Runs the job on tars/, and returns its exit code and output."""

    def job():
        code = run(index.arguments(), index.job, [f"index.input={tmp_path}/tars", f"index.output={tmp_path}/out"])
        return code, capsys.readouterr()

    return job


def test_whole_tars_are_committed_and_others_named_in_a_line_each(index_tars, tmp_path):
    from jobs.benchmarks.stored_tars import write_tars

    write_tars(tmp_path / "tars", ["a thing"] * 8, shard_samples=2)
    good = (tmp_path / "tars" / "00002.tar").read_bytes()
    (tmp_path / "tars" / "00002.tar").write_bytes(good[:5000])
    (tmp_path / "tars" / "00003.tar").write_bytes(b"<html>")
    code, output = index_tars()
    assert code == EXIT_BAD_INPUT
    assert "version 1: 4 samples in 2 tars" in output.out
    lines = [line for line in output.err.splitlines() if "index.input=" in line]
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines] == ["00002.tar", "00003.tar"]
    (tmp_path / "tars" / "00002.tar").write_bytes(good)
    (tmp_path / "tars" / "00003.tar").unlink()
    code, output = index_tars()
    assert (code, "version 2: 6 samples in 3 tars" in output.out) == (0, True), output
    assert (
        read_manifest(open_storage(str(tmp_path / "out")), 2).partitions[:2]
        == read_manifest(open_storage(str(tmp_path / "out")), 1).partitions
    )
    assert "nothing to do" in index_tars()[1].out


def test_without_a_whole_tar_there_is_no_data_set(index_tars, tmp_path):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(b"x" * 3000)
    code, output = index_tars()
    assert (code, output.out) == (EXIT_BAD_INPUT, "")
    assert not list((tmp_path / "out").glob("*"))


def test_rows_that_are_no_samples_are_counted_and_a_tar_without_samples_is_a_warning(index_tars, tmp_path):
    from tests.support.tars import packed

    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(packed([("0.txt", b"x"), ("._0.jpg", b"x"), ("1.txt", b"x")]))
    (tmp_path / "tars" / "b.tar").write_bytes(packed([]))
    code, output = index_tars()
    assert code == EXIT_NOT_MEANT
    assert "version 1: 0 samples in 2 tars: there is nothing to train on" in output.out
    assert "none of the tars read last has a sample" in output.err
    assert "no_image: 2 rows; the first is 0 in " in output.err
    assert "files without a key: 1 members skipped; the first is ._0.jpg in " in output.err
    assert output.err.count("WARNING: ") == 2


def test_an_index_without_a_sample_is_not_what_was_meant_in_any_run_until_tars_have_samples(index_tars, tmp_path):
    from jobs.benchmarks.stored_tars import write_tars
    from tests.support.tars import packed

    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(packed([("0.txt", b"x")]))
    assert index_tars()[0] == EXIT_NOT_MEANT
    code, output = index_tars()
    assert (code, "holds all these tars, and those read last have no sample" in output.out) == (EXIT_NOT_MEANT, True)
    write_tars(tmp_path / "more", ["a thing"] * 2, shard_samples=2)
    (tmp_path / "more" / "00000.tar").rename(tmp_path / "tars" / "00000.tar")
    assert [index_tars()[0], index_tars()[0]] == [0, 0]
    (tmp_path / "tars" / "b.tar").write_bytes(packed([("0.txt", b"x")]))
    assert [index_tars()[0], index_tars()[0]] == [EXIT_NOT_MEANT, EXIT_NOT_MEANT], "another run does not launder it"


def test_a_storage_that_is_away_costs_no_whole_tar(index_tars, tmp_path, monkeypatch):
    from jobs.benchmarks.stored_tars import write_tars
    from pipeline.versions import foreign_tars

    read_tar = foreign_tars.read_tar

    def away(address, config):
        if address.endswith("00001.tar"):
            raise StorageAwayError(f"{address}: does not answer; try again")
        return read_tar(address, config)

    monkeypatch.setattr(foreign_tars, "read_tar", away)
    write_tars(tmp_path / "tars", ["a thing"] * 4, shard_samples=2)
    code, output = index_tars()
    assert code == EXIT_FAILED
    assert "version 1: 2 samples in 1 tars" in output.out
    assert "00001.tar: does not answer" in output.err


def test_a_tar_over_which_workers_die_costs_no_other_tar(index_tars, tmp_path):
    from jobs.benchmarks.stored_tars import write_tars

    write_tars(tmp_path / "tars", ["a thing"] * 4, shard_samples=2)
    (tmp_path / "tars" / "00001.tar").rename(tmp_path / "tars" / KILLS)
    code, output = index_tars()
    assert code == EXIT_FAILED
    assert "version 1: 2 samples in 1 tars" in output.out
    assert f"{tmp_path}/tars/{KILLS}: {MOST_ATTEMPTS} workers in a row died over it" in output.err


def test_a_tar_that_was_replaced_is_named_and_the_others_are_indexed(index_tars, tmp_path):
    from jobs.benchmarks.stored_tars import write_tars
    from tests.support.tars import packed

    write_tars(tmp_path / "tars", ["a thing"] * 2, shard_samples=1)
    assert index_tars()[0] == 0
    (tmp_path / "tars" / "00000.tar").write_bytes(packed([]))
    (tmp_path / "tars" / "00001.tar").rename(tmp_path / "tars" / "00002.tar")
    code, output = index_tars()
    assert code == EXIT_BAD_INPUT
    assert "00000.tar: has 10,240 bytes, but had " in output.err
    assert "version 2: 3 samples in 3 tars" in output.out


def test_a_tar_that_was_edited_and_kept_its_size_is_named_also_if_nothing_is_new(index_tars, tmp_path):
    from jobs.benchmarks.stored_tars import write_tars

    write_tars(tmp_path / "tars", ["a thing"] * 2, shard_samples=1)
    assert index_tars()[0] == 0
    assert index_tars()[0] == 0
    tar = tmp_path / "tars" / "00000.tar"
    before = tar.read_bytes()
    tar.write_bytes(before.replace(b"a thing", b"a place"))
    assert tar.read_bytes() != before
    code, output = index_tars()
    assert code == EXIT_BAD_INPUT
    assert "00000.tar: has as many bytes as when it was indexed, but others" in output.err
    assert "nothing to do" not in output.out


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_store_without_put_if_absent_is_refused_before_any_work(store, tmp_path, capsys):
    from jobs.benchmarks.stored_tars import write_tars

    write_tars(tmp_path / "tars", ["a thing"] * 3, shard_samples=2)
    arguments = [f"index.input={tmp_path / 'tars'}", "index.output=s3://bucket/data"]
    assert run(index.arguments(), index.job, arguments) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{store.address} (server: OddStore/1.0) does not keep put-if-absent" in said
    assert "index.single_writer=NAME" in said
    assert not store.objects
