"""jobs/index.py without Ray: what it refuses. tests/system/test_curate.py runs it on Ray."""

import pytest

from jobs import index
from jobs.cli.command_line import EXIT_BAD_INPUT, run


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


def test_tars_that_the_data_set_holds_are_not_read_again(make_data_set, tmp_path, capsys):
    from jobs.benchmarks.stored_tars import index as index_here
    from jobs.benchmarks.stored_tars import write_tars

    write_tars(tmp_path / "tars", ["a thing"] * 3, shard_samples=2)
    index_here(str(tmp_path / "tars"), str(tmp_path / "out"))
    assert run(index.arguments(), index.job, [f"index.input={tmp_path / 'tars'}", f"index.output={tmp_path / 'out'}"]) == 0
    assert "nothing to do: " in capsys.readouterr().out
