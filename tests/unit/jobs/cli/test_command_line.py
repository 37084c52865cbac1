"""All jobs alike: one clear message for an error, and an exit code."""

import subprocess
import sys

import pytest

from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NOT_MEANT, EXIT_STOPPED, check_folder, parser, run
from pipeline.errors import ConfigError, InputError, NotMeantError, StorageAwayError
from training.errors import RunError


def test_a_job_that_is_told_to_stop_ends_with_its_own_exit_code_and_a_line():
    code = "import os, signal, ray\nfrom jobs.cli.command_line import connect_ray\nfrom training.config import ClusterConfig\n"
    code += "ray.init = lambda **_: None\nconnect_ray(ClusterConfig())\nos.kill(os.getpid(), signal.SIGTERM)\nprint('goes on')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (EXIT_STOPPED, "")
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
