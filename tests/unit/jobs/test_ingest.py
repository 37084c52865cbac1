"""jobs/ingest.py without Ray: bad input costs no cluster, and the actions that need none."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, run
from pipeline.ingest import driver
from pipeline.ingest.partition import ingest_partition
from pipeline.storage.address import open_storage
from tests.support.odd_s3 import answers, ignores, keeps


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


@pytest.fixture
def in_this_process(monkeypatch):
    """Ingests here what Ray would send to workers."""

    class OneProcess:
        def __init__(self, plan, config):
            self.plan, self.config = plan, config

        def iter_rows(self):
            for spec in self.plan.partitions:
                yield {"record": ingest_partition(spec, self.config).model_dump_json()}

    monkeypatch.setattr(ingest, "connect_ray", lambda _cluster: None)
    monkeypatch.setattr(driver, "_ray_metrics", lambda: None)
    monkeypatch.setattr(driver, "_stream", OneProcess)


@pytest.fixture
def images(tmp_path, draw_shape):
    """Arguments for a table of four rows that holds its images, in two partitions."""
    path = tmp_path / "images.parquet"
    drawn = [draw_shape("red", "disc", number) for number in range(4)]
    pq.write_table(pa.table({"jpg": drawn, "caption": ["a red disc"] * 4}), path)
    return [f"ingest.input={path}", "ingest.bytes_column=jpg", "ingest.partition_size_rows=2", "ingest.output=s3://bucket/data"]


ODD_STORES = pytest.mark.parametrize("store", [ignores, answers(501, "NotImplemented")], ids=["ignores", "501"], indirect=True)


@ODD_STORES
def test_a_store_without_put_if_absent_is_refused_before_any_work(store, images, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("url,caption\nhttp://127.0.0.1:1/a,a\n")
    for arguments in (images, [f"ingest.input={tmp_path / 't.csv'}", images[-1]]):
        assert complaint(*arguments) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert f"s3://bucket/data: {store.address} (server: OddStore/1.0) does not keep put-if-absent" in said
        assert "ingest.single_writer=NAME" in said
        assert not store.objects


@ODD_STORES
def test_a_dry_run_asks_the_store_nothing(store, images):
    assert complaint(*images, "--dry-run") == 0
    assert {method for method, _ in store.requests} == {"GET"}
    assert not store.of_probe()


@ODD_STORES
def test_a_single_writer_ingests_into_such_a_store_and_others_are_refused(store, images, in_this_process, capsys):
    assert complaint(*images, "ingest.single_writer=nightly") == 0
    said = capsys.readouterr()
    assert "s3://bucket/data: single writer nightly: " in said.err
    assert "version 1: 4 samples" in said.out
    larger = [argument.replace("images.parquet", "*.parquet") for argument in images]
    table = images[0].removeprefix("ingest.input=")
    pq.write_table(pq.read_table(table), table.replace("images", "more"))
    assert complaint(*larger) == EXIT_BAD_INPUT
    assert "is marked for a single writer, nightly" in capsys.readouterr().err
    assert complaint(*larger, "ingest.single_writer=nightly") == 0
    assert "version 2: 8 samples" in capsys.readouterr().out
    assert complaint(images[-1], "--verify") == 0


def test_one_run_tests_the_store_once_and_leaves_nothing_that_counts_as_data(store, images, in_this_process, capsys):
    assert complaint(*images) == 0
    assert store.of_probe() == ["PUT", "PUT", "GET"]
    assert complaint(images[-1], "--verify") == 0
    assert "0 problems" in capsys.readouterr().out
    assert complaint(images[-1], "--clean", "--older-than-h", "0") == 0
    assert "0 objects removed" in capsys.readouterr().out
    store.requests.clear()
    assert complaint(*images) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not store.of_probe()


def test_a_retry_tests_the_store_once_and_before_it_writes(store, images, tmp_path, in_this_process, capsys):
    pq.write_table(pa.table({"url": ["not a url"], "caption": ["a"]}), tmp_path / "bad.parquet")
    assert complaint(f"ingest.input={tmp_path / 'bad.parquet'}", images[-1]) == 0
    there = dict(store.objects)
    store.put = ignores
    assert complaint(images[-1], "--retry-failed", "bad_url") == EXIT_BAD_INPUT
    assert "does not keep put-if-absent" in capsys.readouterr().err
    assert {key for key in there if "_probe" not in key} == set(store.objects)
    store.put = keeps
    store.requests.clear()
    assert complaint(images[-1], "--retry-failed", "bad_url") == 0
    assert store.of_probe() == ["PUT", "PUT", "GET"]
