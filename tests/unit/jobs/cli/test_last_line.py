"""The end of a job: its message is the last line, and its exit code is its own, whatever threads and libraries do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED
from jobs.cli.config import load_config
from jobs.cli.last_line import OUTPUTS, _own_folders

ROOT = Path(__file__).parents[4]
TINY_JOB = [sys.executable, str(ROOT / "tests" / "support" / "tiny_job.py"), "--config", "debug_cpu", "--end"]


def end(how: str) -> tuple[int, list[str]]:
    result = subprocess.run([*TINY_JOB, how], capture_output=True, text=True, check=False, timeout=120)
    return result.returncode, result.stderr.splitlines()


def test_nothing_that_other_threads_write_follows_the_message():
    code, lines = end("lines-after")
    assert (code, lines[-2:]) == (EXIT_BAD_INPUT, ["tiny_job.py: bad input:", "  a=1: is wrong; set it to 2"])


def test_an_unexpected_error_is_one_message_that_names_the_file_of_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code, lines = end("unexpected")
    assert (code, lines[0]) == (EXIT_FAILED, "tiny_job.py: unexpected error: KeyError: 'a mistake of ours'")
    (file,) = re.findall(r"^traceback: (.*)$", "\n".join(lines), re.MULTILINE)
    assert (len(lines), Path(file).parents[2]) == (2, tmp_path)
    assert "in job" in Path(file).read_text()


def fails_while(threads: str) -> None:
    code, lines = end(threads)
    assert code == EXIT_FAILED, lines
    assert lines[-2].startswith("tiny_job.py: unexpected error: ValueError: while "), lines


def test_a_job_that_fails_while_threads_of_pyarrow_run_is_not_aborted():
    fails_while("arrow-threads")


@pytest.mark.soak
@pytest.mark.parametrize("threads", ["arrow-threads", "gloo-threads"])
def test_no_job_of_twenty_that_fail_while_threads_of_libraries_run_is_aborted(threads):
    for _ in range(20):
        fails_while(threads)


def test_the_folder_of_a_job_is_the_one_that_it_writes_if_it_is_on_this_machine():
    config = load_config("default", ["ingest.output=/data/pairs", "run.dir=s3://bucket/runs"])
    assert _own_folders("ingest", config) == ["/data/pairs"]
    assert _own_folders("train", config) == []
    assert _own_folders("train", None) == []
    local = load_config("debug_cpu", ["run.dir=/runs"])
    assert _own_folders("train", local) == ["/runs/debug_cpu"]
    assert _own_folders("report", local) == [], "it reads a run, and leaves nothing there"
    for key in OUTPUTS.values():
        section, _, name = key.partition(".")
        assert hasattr(getattr(config, section), name)
