"""Each exit code through the shell, by faults that are caused: the message is last, and there is no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import IndexConfig
from pipeline.dataset.manifest import commit
from pipeline.storage.address import open_storage
from pipeline.versions.foreign_tars import index_tar
from tests.conftest import S3_ENVIRONMENT, free_port
from tests.support.small_disk import has_namespaces, run_on_disk
from tests.support.tars import packed, pairs

ROOT = Path(__file__).parents[2]
needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="this user may not make mount namespaces")


def job(name: str, *words: object) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, words)]


def shell(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=200
    )


def check(result: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """`says`: in the message, which is all that is on standard error."""
    assert result.returncode == code, result.stdout + result.stderr
    assert says in result.stderr, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    name = result.args[1] if result.args[0] == sys.executable else next(word for word in result.args if word.endswith(".py"))
    assert result.stderr.startswith(f"{Path(name).name}: "), result.stderr


def test_a_data_set_that_is_whole_is_a_success_and_one_with_a_problem_is_not(make_data_set, tmp_path):
    data = make_data_set(str(tmp_path / "data"), (3,))
    assert shell(job("ingest", f"ingest.output={data}", "--verify")).returncode == 0
    next(Path(data).glob("shards/*.tar")).unlink()
    assert shell(job("ingest", f"ingest.output={data}", "--verify")).returncode == 1


def test_an_s3_that_is_away_is_tried_again_but_a_bucket_that_is_not_there_is_bad_input(s3_environment):
    verify = job("ingest", "ingest.output=s3://no-such-bucket/pairs", "--verify")
    away = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    check(shell(verify, **away), 1, "S3 cannot be reached (EndpointConnectionError)")
    check(shell(verify, **s3_environment), 2, "there is no such bucket")


def test_an_index_without_a_sample_and_a_takedown_of_an_ambiguous_key_are_not_what_was_meant(tmp_path, draw_shape):
    config = IndexConfig(output=str(tmp_path / "empty"))
    (tmp_path / "a.tar").write_bytes(packed([("0.txt", b"x")]))
    commit(open_storage(config.output), [index_tar(f"{tmp_path}/a.tar", config)])
    check(
        shell(job("index", f"index.input={tmp_path}/a.tar", f"index.output={config.output}")), 3, "done, but not what was meant"
    )

    config = IndexConfig(output=str(tmp_path / "repeated"))
    tars = [f"{tmp_path}/{colour}.tar" for colour in ("red", "blue")]
    for tar in tars:
        Path(tar).write_bytes(packed(pairs(draw_shape(Path(tar).stem, "disc", 0), "0")))
    commit(open_storage(config.output), [index_tar(tar, config) for tar in tars])
    (tmp_path / "keys.txt").write_text("0\n")
    remove = job("curate", f"curate.data={config.output}", "--remove", tmp_path / "keys.txt")
    check(shell(remove), 3, "is that of different samples")


@needs_namespaces
def test_a_full_disk_is_tried_again_and_a_read_only_one_is_bad_input(tmp_path):
    run, disk = ROOT / "tests" / "fixtures" / "version_0_1" / "run", tmp_path / "disk"
    report = job("report", f"run.dir={run.parent}", "run.name=run", "--output", disk / "report.html")
    check(run_on_disk("size=8k", disk, report, cwd=ROOT), 1, f"{disk}/report.html: no space is left on the disk; make room")
    check(run_on_disk("ro", disk, report, cwd=ROOT), 2, f"{disk}/report.html: Read-only file system")
    assert not (run / "errors").exists(), "the run is only read"
