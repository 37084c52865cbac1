"""Ingestion on a real Ray: every row once with its reason, no fetch repeated, locally and on S3."""

import io
import json

import pytest
from PIL import Image

from jobs.cli.config import load_config
from pipeline.dataset.manifest import read_manifest, read_sidecar
from pipeline.ingest.attempts import MOST_ATTEMPTS
from pipeline.ingest.driver import run_ingest
from pipeline.storage.address import open_storage
from tests.support.killing_page import KILLED, kill_who_asks
from tests.support.wandb_file import artifacts_of, history_of

pytestmark = pytest.mark.usefixtures("ray_session")


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (number % 256, number // 256, 9)).save(file, "PNG")
    return file.getvalue()


def write_table(path, web, first, stop):
    """Append rows [first, stop) to a table; of every ten URLs one is dead, one is not an image and one is truncated."""
    lines = ["url,caption,n"] if first == 0 else []
    for number in range(first, stop):
        body = {3: b"<html>not a picture</html>", 7: png(number)[:60]}.get(number % 10, png(number))
        url = f"{web.address}/gone/{number}" if number % 10 == 5 else web.put(f"/{number}.png", body)
        lines.append(f"{url},picture {number},{number}")
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def all_rows(uri):
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    return [row for shard in manifest.shards for row in read_sidecar(storage, shard).to_pylist()], manifest


@pytest.mark.parametrize("place", ["local", "s3"])
def test_rows_are_ingested_once_with_their_reasons_and_a_grown_table_fetches_its_new_rows_only(web, tmp_path, request, place):
    output = str(tmp_path / "out") if place == "local" else f"{request.getfixturevalue('bucket')}/out"
    table = tmp_path / "t.csv"
    write_table(table, web, 0, 70)
    settings = [
        f"ingest.input={table}",
        f"ingest.output={output}",
        "ingest.partition_size_rows=25",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
        "ingest.image.size_px=32",
    ]
    config = load_config("default", settings).ingest
    first = run_ingest(config)
    assert first.counts == {"success": 49, "http_404": 7, "not_an_image": 7, "decode": 7}
    assert (first.version, first.num_samples, first.rows_held) == (1, 49, 0)
    assert "http_404" in str(first)

    asked = len(web.requests)
    second = run_ingest(config)
    assert (second.rows, second.version, second.rows_held) == (0, 1, 70)
    assert "nothing to do" in str(second)
    assert len(web.requests) == asked, "nothing was fetched again"

    write_table(table, web, 70, 80)
    third = run_ingest(config)
    assert third.counts == {"success": 7, "http_404": 1, "not_an_image": 1, "decode": 1}
    assert (third.version, third.num_samples) == (2, 56)
    rows, manifest = all_rows(output)
    assert [int(row["n"]) for row in rows] == list(range(80)), "each row once, in the order of the table"
    assert len({row["key"] for row in rows}) == 80
    assert read_manifest(open_storage(output), 1).num_samples == 49, "the old version is unchanged"
    assert manifest.num_rows == 80


def test_a_run_that_died_before_its_commit_is_finished_by_the_next(web, tmp_path):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write_table(table, web, 0, 30)
    settings = [
        f"ingest.input={table}",
        f"ingest.output={output}",
        "ingest.partition_size_rows=10",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
    ]
    config = load_config("default", settings).ingest
    run_ingest(config)
    manifest = read_manifest(open_storage(str(output)))
    (output / "manifests" / "00000001.json").unlink()  # as if it had been killed just before
    asked = len(web.requests)
    again = run_ingest(config)
    assert len(web.requests) == asked
    assert again.counts == {"success": 21, "http_404": 3, "not_an_image": 3, "decode": 3}
    assert read_manifest(open_storage(str(output))).partitions == manifest.partitions


def command_line(capsys, *words):
    """Run jobs/ingest.py; return (exit code, output)."""
    from jobs.cli.command_line import run
    from jobs.ingest import arguments, job

    code = run(arguments(), job, list(words))
    return code, "".join(capsys.readouterr())


def test_rows_that_kill_their_worker_each_time_end_the_run_with_their_numbers_and_cost_no_other_row(web, tmp_path, capsys):
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write_table(table, web, 0, 30)
    web.put("/14.png", kill_who_asks)
    where = [f"ingest.input={table}", f"ingest.output={output}", "ingest.fetch.allow_addresses=[127.0.0.1/32]"]
    code, text = command_line(capsys, *where, "ingest.partition_size_rows=10")
    message = text[text.index("ingest.input=") :].splitlines()
    assert (code, len(KILLED)) == (1, MOST_ATTEMPTS)
    assert message[0].startswith(f"ingest.input={table}: rows 10 to 19: 4 workers in a row died over it")
    assert message[1].startswith("all other rows are committed; for more memory")
    assert message[1].endswith("ingest.partition_size_rows=1")
    assert len(message) == 2
    assert sorted(int(row["n"]) for row in all_rows(str(output))[0]) == [*range(10), *range(20, 30)]

    code, text = command_line(capsys, *where, "ingest.partition_size_rows=1", "ingest.num_workers=1")
    assert code == 1
    assert f"ingest.input={table}: row 14: 4 workers in a row died over it" in text
    assert text.rstrip().endswith("leave its url empty in the table: the row then fails, and the others stay")
    table.write_text(table.read_text().replace(f"{web.address}/14.png", ""))
    assert command_line(capsys, *where)[0] == 0
    assert {int(row["n"]): row["status"] for row in all_rows(str(output))[0]}[14] == "failed_to_download"


def test_the_commands_around_an_ingestion(web, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, output = tmp_path / "t.csv", tmp_path / "out"
    write_table(table, web, 0, 30)
    where = [f"ingest.input={table}", f"ingest.output={output}", "ingest.fetch.allow_addresses=[127.0.0.1/32]"]

    code, text = command_line(capsys, *where, "--dry-run")
    assert code == 0
    assert "30 rows to fetch, in 1 partitions of 1 tables" in text
    assert not output.exists()
    assert web.requests == []

    summary = tmp_path / "summary.json"
    code, text = command_line(capsys, *where, "--summary", str(summary), "--wandb", "tracking.wandb_mode=offline")
    assert code == 0
    assert json.loads(summary.read_text())["counts"] == {"success": 21, "http_404": 3, "not_an_image": 3, "decode": 3}
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    (made,) = artifacts_of(written)
    assert (made["type"], made["used"], made["aliases"]) == ("dataset", False, ["latest", "version-1"])
    assert history_of(written, 1)[0]["rows"] == 30, "the progress was sent to W&B"

    for number in range(0, 30):
        web.put(f"/gone/{number}", png(number))
    code, text = command_line(capsys, *where, "--retry-failed", "http_404")
    assert code == 0
    assert "success                       3" in text
    assert "nothing to do" in command_line(capsys, *where, "--retry-failed", "http_404")[1]
    assert "nothing to do" in command_line(capsys, *where)[1]

    assert command_line(capsys, *where, "--verify")[0] == 0
    shard = next(item for item in (output / "shards").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    code, text = command_line(capsys, *where, "--verify")
    assert code == 1
    assert f"{shard.name}: its sha256 is not the manifest's" in text

    (output / "shards" / "0123456789abcdef-000-orphan.tar").write_bytes(b"x")
    code, text = command_line(capsys, *where, "--clean")
    assert "0 objects removed" in text, "it is too young"
    code, text = command_line(capsys, *where, "--clean", "--older-than-h", "0")
    assert "0123456789abcdef-000-orphan.tar" in text
    assert shard.exists()
