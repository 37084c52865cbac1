"""jobs/ingest.py without Ray: bad input costs no cluster, and the actions that need none."""

import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NOT_MEANT, run
from jobs.cli.config import load_config
from pipeline.dataset.manifest import read_manifest
from pipeline.ingest.outcome import read_outcomes
from pipeline.ingest.retry import write_retry_tables
from pipeline.storage.address import open_storage
from tests.support.ingestions import Ingestion, without_ray
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
    capsys.readouterr()
    for reasons in ("http503", "HTTP_503", "success", "timeout,http_5", ","):
        assert complaint(f"ingest.output={uri}", "--retry-failed", reasons) == EXIT_BAD_INPUT
        assert "is no reason for a failure; name those" in capsys.readouterr().err
    assert complaint(f"ingest.output={uri}", "--retry-failed", "timeout, http_503") == 0


@pytest.fixture
def in_this_process(monkeypatch):
    without_ray(monkeypatch)


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
    assert complaint(f"ingest.input={tmp_path / 'bad.parquet'}", images[-1]) == EXIT_NOT_MEANT
    there = dict(store.objects)
    store.put = ignores
    assert complaint(images[-1], "--retry-failed", "bad_url") == EXIT_BAD_INPUT
    assert "does not keep put-if-absent" in capsys.readouterr().err
    assert {key for key in there if "_probe" not in key} == set(store.objects)
    store.put = keeps
    store.requests.clear()
    assert complaint(images[-1], "--retry-failed", "bad_url") == EXIT_NOT_MEANT
    assert store.of_probe() == ["PUT", "PUT", "GET"]


# ------------------------------------------------------------------------------- done, but not what was meant, and what to type


@pytest.fixture
def ingestion(tmp_path, capsys, monkeypatch):
    without_ray(monkeypatch)
    return Ingestion(tmp_path, capsys)


@pytest.fixture
def photos(tmp_path, draw_shape):
    """A folder with 20 images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.png").write_bytes(draw_shape("red", "disc", number))
    return folder


def test_a_night_that_fetches_nothing_is_not_done_nor_are_the_nights_after_it(ingestion):
    ingestion.add([f"ftp://e.org/{number}" for number in range(300)])
    code, text = ingestion.run()
    assert code == EXIT_NOT_MEANT
    assert "version 1: 0 samples: there is nothing to train on" in text
    assert "done, but not what was meant:\n  0 of 300 rows became samples (0.00%): less than ingest.min_success_share" in text
    assert read_manifest(open_storage(str(ingestion.output))).num_rows == 300, "what is committed stays"
    for words in ((), ("--retry-failed", "unknown_scheme"), ("--retry-failed", "timeout"), ()):
        code, text = ingestion.run(*words)
        assert code == EXIT_NOT_MEANT, (words, text)
    assert "holds all 300 rows, of which 300 failed" in text
    assert ingestion.run("ingest.min_success_share=0")[0] == 0, "a recipe may mean it"


def test_paths_that_may_not_be_read_are_foreseen_while_the_run_is_planned(ingestion, photos, caplog):
    ingestion.add([str(photos / f"{number}.png") for number in range(3)])
    assert ingestion.run("--dry-run")[0] == 0
    assert (
        f"its first rows are paths, such as {photos}/0.png: paths are read only in folders that you allow; add: " in caplog.text
    )
    assert f"ingest.fetch.allow_files=[{photos}]" in caplog.text
    caplog.clear()
    assert ingestion.run("--dry-run", f"ingest.fetch.allow_files=[{photos}]")[0] == 0
    ingestion.add(["https://e.org/1.jpg"], table="other.csv")
    assert ingestion.run("--dry-run", table="other.csv")[0] == 0
    assert "paths" not in caplog.text


def test_one_in_a_hundred_is_not_what_was_meant_until_rows_succeed(ingestion, photos):
    allowed = f"ingest.fetch.allow_files=[{photos}]"
    ingestion.add([str(photos / f"{number}.png") for number in range(2)] + [f"ftp://e.org/{number}" for number in range(198)])
    assert ingestion.run(allowed)[0] == EXIT_NOT_MEANT
    ingestion.add(["ftp://e.org/more"])
    code, text = ingestion.run(allowed)
    assert (code, "UTC, and no row has succeeded since: 2 of 200 rows" in text) == (EXIT_NOT_MEANT, True)
    ingestion.add([str(photos / "3.png")])
    assert ingestion.run(allowed)[0] == 0
    code, text = ingestion.run(allowed)
    assert (code, "holds all 202 rows, of which 199 failed (unknown_scheme 199)" in text) == (0, True)


def test_a_fall_far_below_the_history_is_not_what_was_meant(ingestion, photos):
    allowed = f"ingest.fetch.allow_files=[{photos}]"
    good = [str(photos / f"{number}.png") for number in range(20)]
    ingestion.add(good * 5)
    assert ingestion.run(allowed)[0] == 0
    ingestion.add([*good, *(f"ftp://e.org/{number}" for number in range(100))])
    code, text = ingestion.run(allowed)
    assert code == EXIT_NOT_MEANT
    assert "20 of 120 rows became samples (16.67%): less than ingest.min_share_of_history=0.5 of the 100.00%" in text
    assert ingestion.run(allowed)[0] == EXIT_NOT_MEANT
    assert ingestion.run(allowed, "ingest.min_share_of_history=0")[0] == 0


def test_a_failed_table_is_not_cleared_by_another_one(ingestion, photos):
    ingestion.add([f"ftp://e.org/{number}" for number in range(120)])
    assert ingestion.run()[0] == EXIT_NOT_MEANT
    ingestion.add([str(photos / "1.png")], table="other.csv")
    allowed = f"ingest.fetch.allow_files=[{photos}]"
    assert ingestion.run(allowed, table="other.csv")[0] == 0
    assert ingestion.run(allowed, table="other.csv")[0] == 0
    assert ingestion.run()[0] == EXIT_NOT_MEANT


def test_a_run_that_dies_after_its_commit_hides_nothing(ingestion, monkeypatch):
    from pipeline.ingest import driver

    ingestion.add([f"ftp://e.org/{number}" for number in range(120)])
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_write_notes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingestion.run()
    assert read_outcomes(open_storage(str(ingestion.output)))[0].rows == 120
    code, text = ingestion.run()
    assert (code, "nothing to do" in text) == (EXIT_NOT_MEANT, True)


def test_each_reason_has_a_line_and_examples_and_a_change_of_settings_gives_the_command(ingestion, photos, capsys):
    paths = [str(photos / f"{number}.png") for number in range(20)]
    ingestion.add([*paths, *(f"http://127.0.0.1:9/{number}?sig=SECRET" for number in range(5))])
    code, text = ingestion.run()
    assert code == EXIT_NOT_MEANT
    assert f"  bad_url: paths are read only in folders that you allow; add: 'ingest.fetch.allow_files=[{photos}]'" in text
    assert [line.strip() for line in text.splitlines() if " row " in line] == [
        *(f"t.csv row {number + 1}: {paths[number]}" for number in range(3)),
        *(f"t.csv row {21 + number}: http://127.0.0.1:9/{number}?..." for number in range(3)),
    ]
    assert "ingest.fetch.allow_addresses=[127.0.0.1/32]" in text
    assert "SECRET" not in text
    assert "the settings have changed" not in text

    changed = f"ingest.fetch.allow_files=[{photos}]"
    code, text = ingestion.run(changed)
    assert "the settings have changed for 20 rows that failed before (bad_url 20); this fetches them again:" in text
    (command,) = [line.strip() for line in text.splitlines() if line.strip().startswith("python jobs/ingest.py")]
    words = shlex.split(command)[2:]
    assert words[-2:] == ["--retry-failed", "bad_url"]
    assert run(ingest.arguments(), ingest.job, words) == 0
    assert "success                      20  100.00%" in capsys.readouterr().out
    code, text = ingestion.run(changed)
    assert (code, "the settings have changed" in text) == (0, False)
    assert "holds all 25 rows, of which 5 failed" in text


def test_a_dry_retry_writes_nothing(ingestion):
    ingestion.add([f"ftp://e.org/{number}" for number in range(3)])
    ingestion.run()
    storage = open_storage(str(ingestion.output))
    before = {item.path for item in storage.list("")}
    assert ingestion.run("--retry-failed", "unknown_scheme", "--dry-run") == (0, "3 failed rows to fetch again\n")
    assert ingestion.run("--retry-failed", "timeout", "--dry-run") == (0, "0 failed rows to fetch again\n")
    assert {item.path for item in storage.list("")} == before
    manifest = read_manifest(storage)
    write_retry_tables(
        storage, manifest, ["unknown_scheme"], load_config("default", [f"ingest.output={ingestion.output}"]).ingest
    )
    text = "3 failed rows to fetch again, 3 of them left unfinished by an earlier retry\n"
    assert ingestion.run("--retry-failed", "unknown_scheme", "--dry-run") == (0, text)
    assert "3 rows in" in ingestion.run("--retry-failed", "unknown_scheme")[1]


def test_a_retry_is_of_the_input_s_tables_if_it_is_set(ingestion, capsys):
    for table, count in (("t.csv", 2), ("u.csv", 3)):
        ingestion.add([f"ftp://e.org/{table}/{number}" for number in range(count)], table=table)
        ingestion.run(table=table)
    words = ("--retry-failed", "unknown_scheme", "--dry-run")
    (ingestion.folder / "u.csv").unlink()
    assert [ingestion.run(*words, table=table)[1][0] for table in ("t.csv", "u.csv", "*.csv")] == ["2", "3", "5"]
    code, text = ingestion.run(*words, table="v.csv")
    assert (code, "the data set has none of them (it has " in text) == (EXIT_BAD_INPUT, True)
    assert complaint(f"ingest.output={ingestion.output}", *words) == 0
    assert complaint(f"ingest.output={ingestion.output}", "ingest.input=''", *words) == 0
    assert capsys.readouterr().out == "5 failed rows to fetch again\n" * 2
    assert "2 rows in" in ingestion.run(*words[:2])[1]


def test_dropped_rows_are_named_apart_from_failed_ones(ingestion, photos):
    ingestion.add([str(photos / "1.png"), "ftp://e.org/1"])
    with (ingestion.folder / "t.csv").open("a") as file:
        file.write(f"{photos / '2.png'},\n")
    allowed = f"ingest.fetch.allow_files=[{photos}]"
    assert ingestion.run(allowed)[0] == 0
    assert ", of which 1 failed, 1 dropped by a rule (" in ingestion.run(allowed)[1]
