"""The qualification on a CPU with tiny sizes, on a machine that has torch and little else; its options and its exit code."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs import qualify
from jobs.qualification.judgement import Aim, Figure, Outcome
from jobs.qualification.sections import SECTIONS

ROOT = Path(__file__).parents[3]
STATED = ("torch", "numpy", "pyarrow", "pytest", "torchvision", "pydantic", "simplejpeg", "ftfy", "tokenizers", "yaml")
STATED = (*STATED, "safetensors", "PIL")
THEY_NEED = ("_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "pydantic_core", "annotated_types", "wcwidth")
THEY_NEED = (*THEY_NEED, "typing_inspection", "typing_extensions", "torchgen", "functorch", "sympy", "mpmath", "networkx")
THEY_NEED = (*THEY_NEED, "jinja2", "markupsafe", "fsspec", "filelock", "setuptools", "triton", "nvidia", "cuda")
NAMES = [section.name for section in SECTIONS]
ON_A_CPU = {"allocator": "skipped", "allocator-expandable": "skipped"}


@pytest.fixture(scope="module")
def bare_machine(tmp_path_factory):
    """(all sections in tiny sizes with few packages: the process, the folder)"""
    folder = tmp_path_factory.mktemp("qualification")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'tests/support/bare_machine'}:{ROOT}",
        "BARE_MACHINE_PACKAGES": ",".join(STATED + THEY_NEED),
    }
    command = [sys.executable, "jobs/qualify.py", "--tiny", "--output", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False), folder


def outcome(folder, name):
    return Outcome.from_json(json.loads((folder / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_a_section_works_with_few_packages(bare_machine, name):
    found = outcome(bare_machine[1], name)
    assert found.status == (ON_A_CPU[name] if name in ON_A_CPU else "done"), f"{found.reason}\n{found.traceback}\n{found.log}"
    assert bool(found.figures) == (found.status == "done")
    assert [str(figure) for figure in found.figures if figure.verdict("cpu") == "missed"] == []


def test_the_table_has_every_figure_and_the_code_says_that_no_aim_was_missed(bare_machine):
    process, folder = bare_machine
    assert process.returncode == 0, process.stderr
    text = (folder / "table.md").read_text()
    assert text.strip() in process.stdout
    assert text.endswith("no aim was missed\n")
    for name in NAMES:
        for figure in outcome(folder, name).figures:
            assert f" {figure.name} " in text
    assert "| not judged |" in text
    assert "not installed: no comparison" in text


def test_the_packages_that_are_not_stated_were_absent():
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'tests/support/bare_machine'}:{ROOT}",
        "BARE_MACHINE_PACKAGES": "numpy",
    }
    code = """
import importlib.metadata as m, importlib.util as u
print([name for name in ("numpy", "ray", "wandb", "boto3", "training") if u.find_spec(name)])
print(sorted(one.metadata["Name"] for one in m.distributions()))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['numpy', 'training']", "['numpy']"]


def fake_sections(monkeypatch, **outcomes):
    """Replaces the run of a section by its outcome. Returns the names of those that ran."""
    ran = []

    def run(section, scale, folder, limit_s):
        ran.append((section.name, limit_s))
        found = outcomes[section.name] if section.name in outcomes else Outcome(section.name, "done")
        found.card, found.tiny = "cpu", scale.tiny
        (folder / f"{section.name}.json").write_text(json.dumps(found.as_json()))
        return found

    monkeypatch.setattr(qualify, "run_guarded", run)
    return ran


def test_a_missed_aim_ends_with_3_and_is_named_last(monkeypatch, tmp_path, capsys):
    figures = [Figure("relative difference", 0.5, aim=Aim(most=1e-4))]
    fake_sections(monkeypatch, forced=Outcome("forced", "done", figures=figures))
    assert qualify.main(["--tiny", "--output", str(tmp_path)]) == 3
    assert "- forced: relative difference = 0.5, aim <= 0.0001" in capsys.readouterr().out.splitlines()


def test_a_section_that_failed_ends_with_3(monkeypatch, tmp_path, capsys):
    fake_sections(monkeypatch, loss=Outcome("loss", "timed out", reason="after 120 s"))
    assert qualify.main(["--tiny", "--output", str(tmp_path)]) == 3
    assert "- loss: timed out: after 120 s" in capsys.readouterr().out.splitlines()


def test_the_same_command_continues_after_what_was_done(monkeypatch, tmp_path, capsys):
    ran = fake_sections(monkeypatch, loss=Outcome("loss", "failed"))
    qualify.main(["--tiny", "--output", str(tmp_path), "--only", "machine", "loss"])
    assert [name for name, _ in ran] == ["machine", "loss"]
    ran.clear()
    qualify.main(["--tiny", "--output", str(tmp_path)])
    assert [name for name, _ in ran] == [name for name in NAMES if name != "machine"]
    ran.clear()
    qualify.main(["--tiny", "--output", str(tmp_path), "--only", "machine"])
    assert [name for name, _ in ran] == ["machine"]
    assert "machine: done before; --only machine measures it again" in capsys.readouterr().out


def test_the_time_for_all_sections_bounds_each(monkeypatch, tmp_path, capsys):
    ran = fake_sections(monkeypatch)
    assert qualify.main(["--tiny", "--output", str(tmp_path), "--minutes", "0.1"]) == 0
    assert all(limit_s <= 6 for _, limit_s in ran)
    ran.clear()
    assert qualify.main(["--tiny", "--output", str(tmp_path / "none"), "--minutes", "0"]) == 0
    assert not ran
    assert "machine: no time is left; the same command continues here" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
@pytest.mark.parametrize(("device", "told"), [("auto", "no GPU is found; --tiny"), ("cuda", "finds no GPU or no driver")])
def test_a_machine_without_a_gpu_is_told_so_in_one_line(device, told, tmp_path, capsys):
    assert qualify.main(["--device", device, "--output", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_section_with_its_processes_and_keeps_what_was_done(tmp_path, signal_number, code):
    command = [sys.executable, "jobs/qualify.py", "--tiny", "--output", str(tmp_path), "--only", "machine", "forced", "trainer"]
    marked = os.environ | {"STARTED_BY": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=marked, **pipes) as process:
        while not (tmp_path / "forced.json").exists() or not outcome(tmp_path, "forced").figures:
            time.sleep(0.02)
        process.send_signal(signal_number)
        said, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert told == "stopped; committed work is kept, and the same command resumes\n"
    assert said.startswith("machine: done")
    assert outcome(tmp_path, "machine").status == "done"
    deadline = time.monotonic() + 10
    while processes_with(f"STARTED_BY={tmp_path}"):  # the server of forks ends when it notices
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_with(variable):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += [path] if variable in path.read_text(errors="replace").split("\0") else []
    return found
