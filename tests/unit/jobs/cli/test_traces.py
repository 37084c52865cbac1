"""Tracebacks are kept in files, without secrets."""

import tempfile
from pathlib import Path

from jobs.cli.traces import without_secrets, write_trace

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted+secret/key",
    "WANDB_API_KEY": "planted-wandb",
    "PWD": "/home/someone",
    "KEY": "abc",
}


def test_values_of_secret_variables_passwords_and_signatures_are_hidden():
    text = "planted+secret/key http://u:planted-pass@h/x?X-Amz-Signature=0a1b&a=2 planted-wandb /home/someone/a.py abc"
    shown = without_secrets(text, SECRETS)
    assert shown == "*** http://***@h/x?X-Amz-Signature=***&a=2 *** /home/someone/a.py abc"


def test_a_trace_is_in_the_jobs_folder_or_in_the_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("WANDB_API_KEY", "planted-wandb")
    own = Path(write_trace("train", "a planted-wandb key", [str(tmp_path / "none"), str(tmp_path)]))
    assert (own.parent, own.read_text()) == (tmp_path / "errors", "a *** key")
    assert not (tmp_path / "none").exists()
    assert Path(write_trace("train", "text", [str(tmp_path / "none")])).parent == tmp_path / "tmp" / "rayclip" / "errors"


def test_a_folder_that_takes_no_file_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "errors").write_text("a file is in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert write_trace("train", "text", [str(tmp_path)]).startswith(str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    assert write_trace("train", "text", [str(tmp_path)]) == ""
