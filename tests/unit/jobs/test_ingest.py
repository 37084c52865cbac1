"""jobs/ingest.py without Ray: bad input costs no cluster, and the actions that need none."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, run
from pipeline.storage.address import open_storage


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ingest, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))


def complaint(*arguments: str) -> int:
    return run(ingest.arguments(), ingest.job, list(arguments))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/a"], "caption": ["a"]}), path)
    return str(path)


def test_ingestion_refuses_bad_input_before_ray_starts(table, tmp_path, bucket, capsys, monkeypatch):
    out = f"ingest.output={tmp_path / 'out'}"
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    cases = {
        ("ingest.inputs=x",): "did you mean ingest.input?",
        ("ingest.partition_size_rows=many",): "ingest.partition_size_rows='many'",
        (f"ingest.input={tmp_path}/none.parquet", out): "there is no such file",
        (f"ingest.input={tmp_path}/broken.parquet", out): "cannot be read",
        (f"ingest.input={table}", out, "ingest.url_column=link"): "has the columns url, caption",
        (f"ingest.input={table}",): "ingest.output: is empty",
        (f"ingest.input={table}", "ingest.output=s3://no-such-bucket/x"): "there is no such bucket",
        (f"ingest.input={table}", f"ingest.output={table}/below"): "cannot be written",
    }
    for arguments, message in cases.items():
        assert complaint(*arguments) == EXIT_BAD_INPUT, arguments
        assert message in capsys.readouterr().err, arguments


def test_a_storage_that_does_not_answer_is_a_failure_that_may_pass_and_no_bad_input(table, bucket, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert complaint(f"ingest.input={table}", f"ingest.output={bucket}/x") == EXIT_FAILED
    message = capsys.readouterr().err
    assert "cannot be reached" in message
    assert "bad input" not in message
    assert "planted-secret" not in message


def test_a_dry_run_prints_the_plan_and_writes_nothing(table, tmp_path, capsys):
    output = tmp_path / "out"
    assert complaint(f"ingest.input={table}", f"ingest.output={output}", "--dry-run") == 0
    assert "1" in capsys.readouterr().out
    assert not output.exists()


def test_a_data_set_is_verified_and_a_changed_shard_is_a_failure(make_data_set, tmp_path, capsys):
    uri = make_data_set(str(tmp_path / "data"), (2,))
    assert complaint(f"ingest.output={uri}", "--verify") == 0
    assert "0 problems" in capsys.readouterr().out
    storage = open_storage(uri)
    (tar,) = [item.path for item in storage.list("") if item.path.endswith(".tar")]
    storage.local_path(tar).write_bytes(b"damaged")
    assert complaint(f"ingest.output={uri}", "--verify") == EXIT_FAILED


def test_cleaning_removes_only_what_no_version_names(make_data_set, tmp_path, capsys):
    uri = make_data_set(str(tmp_path / "data"), (2,))
    before = {item.path for item in open_storage(uri).list("")}
    assert complaint(f"ingest.output={uri}", "--clean", "--older-than-h", "0") == 0
    assert "0 objects removed" in capsys.readouterr().out
    assert {item.path for item in open_storage(uri).list("")} == before


def test_without_failures_there_is_nothing_to_retry(make_data_set, tmp_path, capsys):
    uri = make_data_set(str(tmp_path / "data"), (2,))
    assert complaint(f"ingest.output={uri}", "--retry-failed", "timeout") == 0
    assert "nothing to do: " in capsys.readouterr().out
    assert complaint(f"ingest.output={uri}", "ingest.bytes_column=jpg", "--retry-failed", "timeout") == EXIT_BAD_INPUT
    assert complaint(f"ingest.output={uri}", "--retry-failed", "timeout,bad_row") == EXIT_BAD_INPUT
