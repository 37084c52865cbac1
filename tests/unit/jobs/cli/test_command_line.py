"""All jobs alike: one clear message for an error, and an exit code."""

import subprocess
import sys

import pytest

from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NOT_MEANT, EXIT_STOPPED, check_folder, parser, run
from jobs.cli.stopping import EXIT_INTERRUPTED
from pipeline.errors import ConfigError, InputError, NotMeantError, StorageAwayError
from training.errors import RunError


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", EXIT_STOPPED), ("SIGINT", EXIT_INTERRUPTED)])
def test_a_job_that_is_told_to_stop_ends_with_its_own_exit_code_and_a_line(number, code):
    source = "import os, signal, sys, ray\nfrom jobs.cli import command_line\nray.init = ray.shutdown = lambda **_: None\n"
    source += "def job(config, _):\n    command_line.connect_ray(config.cluster)\n"
    source += f"    os.kill(os.getpid(), signal.{number})\n    print('goes on')\n"
    source += "sys.exit(command_line.run(command_line.parser(None), job, ['--config', 'debug_cpu']))"
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr == "stopped; committed work is kept, and the same command resumes\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a=1: is wrong; set it to 2"), EXIT_BAD_INPUT, "prog: bad input:\n  a=1: is wrong; set it to 2\n"),
        (InputError("a\nb"), EXIT_BAD_INPUT, "prog: bad input:\n  a\n  b\n"),
        (StorageAwayError("s3://a: cannot be reached"), EXIT_FAILED, "prog: s3://a: cannot be reached\n"),
        (RunError("the run failed"), EXIT_FAILED, "prog: the run failed\n"),
        (NotMeantError("a\nb"), EXIT_NOT_MEANT, "prog: done, but not what was meant:\n  a\n  b\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_a_message_and_an_exit_code(capsys, error, code, said):
    def job(_config, _options):
        raise error

    arguments = parser(None)
    arguments.prog = "prog"
    assert run(arguments, job, ["--config", "debug_cpu"]) == code
    assert capsys.readouterr().err == said


def test_a_job_that_returns_nothing_is_a_success():
    assert run(parser(None), lambda _config, _options: None, ["--config", "debug_cpu"]) == 0


def test_the_folder_of_an_options_file_must_exist(tmp_path):
    check_folder("--json", None)
    check_folder("--json", str(tmp_path / "figures.json"))
    with pytest.raises(ConfigError, match=r"^--json=.*none/figures.json: there is no folder .*; create it"):
        check_folder("--json", str(tmp_path / "none" / "figures.json"))


@pytest.mark.parametrize("is_a_job", [True, False])
def test_the_watch_that_ends_a_process_without_a_head_is_for_a_process_of_a_job(is_a_job, monkeypatch):
    import ray

    from jobs.cli import command_line
    from training.config import ClusterConfig

    watched = []
    context = type("Context", (), {"gcs_address": "127.0.0.1:1"})
    monkeypatch.setattr(ray, "init", lambda **_: monkeypatch.setattr(ray, "is_initialized", lambda: True))
    monkeypatch.setattr(ray, "get_runtime_context", context)
    monkeypatch.setattr(command_line, "sort_worker_lines", lambda _: None)
    monkeypatch.setattr(command_line.HEAD, "start", lambda address, _: watched.append(address))
    monkeypatch.setattr("jobs.cli.last_line._ends_process", is_a_job)
    for name, value in command_line.RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
    command_line._init(ClusterConfig())
    assert watched == ["127.0.0.1:1"] * is_a_job
