"""The command `rayclip`, as it is typed."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.command_line import EXIT_CODES
from rayclip import commands
from rayclip.__main__ import main

ROOT = Path(__file__).parents[3]


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rayclip", *words], capture_output=True, text=True, cwd=ROOT, check=False)


def test_help_lists_every_file_of_jobs_with_its_first_line(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for path in sorted((ROOT / "jobs").glob("[a-z]*.py")):
        assert f"\n    {path.stem} " in page
    assert "    train      Trains CLIP on a data set" in page
    assert "\nexit codes" not in page


def test_no_command_is_bad_input_and_shows_the_help(capsys):
    assert main([]) == 2
    assert "commands:\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "trian: there is no such command; did you mean train?"),
        (["xyzzy"], "xyzzy: there is no such command; `rayclip --help` lists the commands"),
        (["--completion"], "give one of bash"),
        (["--completion", "cmd"], "--completion cmd: is no shell that is known; give one of bash"),
    ],
)
def test_what_is_misspelled_is_named(capsys, words, says):
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_a_job_speaks_as_the_command_it_was_called_by():
    page = typed("train", "--help")
    assert page.returncode == 0
    assert page.stdout.startswith("usage: rayclip train [--config RECIPE]")
    wrong = typed("train", "train.max_stebs=3")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("rayclip train: bad input:\n")
    assert "did you mean train.max_steps?" in wrong.stderr
    assert wrong.returncode in EXIT_CODES


def test_versions_are_told_for_a_bug_report(capsys):
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:4] == ["rayclip", "python", "ray", "torch"]
    assert lines[-1].startswith("cuda ")


def test_a_shell_completes_commands_options_recipes_and_keys(tmp_path):
    script = tmp_path / "completion.sh"
    script.write_text(commands.completion("bash"))
    asked = f"""source {script}
ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_rayclip; echo "${{COMPREPLY[@]}}"; }}
ask rayclip tr; ask rayclip train --sh; ask rayclip train --config vit_l; ask rayclip train optimizer.l
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train", "--show-config", "vit_l_14 vit_l_14_336px", "optimizer.learning_rate="]
