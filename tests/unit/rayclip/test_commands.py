"""The wheel's content: everything below `rayclip`, under names of its own, also where commands are named in texts."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from rayclip import commands

ROOT = Path(__file__).parents[3]
ROOMS = ("pipeline", "model", "training", "jobs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that a wheel would install."""
    folder = tmp_path_factory.mktemp("build")
    build = ["egg_info", "--egg-base", str(folder), "build", "--build-base", str(folder)]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, check=True, capture_output=True)
    return folder / "lib"


def run_in(installed: Path, code: str) -> str:
    """Output of a program that finds only the installed packages: an editable install's finder is removed."""
    start = "import sys; sys.meta_path[:] = [one for one in sys.meta_path if 'editable' not in repr(one)]\n"
    start += f"sys.path[:] = [{str(installed)!r}, *(one for one in sys.path if one and one != {str(ROOT)!r})]\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, cwd=installed, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_under_one_name(installed):
    code = f"""
import importlib, pathlib
root = pathlib.Path({str(installed)!r})
found = sorted(path for path in (root / "rayclip").rglob("*.py"))
for path in found:
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] not in ("__main__", "image_server", "stored_tars"):
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
print(len(found), sorted(set(sys.modules) & set({ROOMS!r})))
"""
    count, _, taken = run_in(installed, code).partition(" ")
    ours = [path for room in ("rayclip", *ROOMS) for path in (ROOT / room).rglob("*.py")]
    assert int(count) == len(ours)
    assert taken == "[]\n"
    assert [path.name for path in installed.iterdir()] == ["rayclip"]


def test_data_files_are_there_and_texts_name_the_command(installed):
    root = installed / "rayclip"
    assert {path.name for path in (root / "jobs" / "recipes").iterdir()} == {
        path.name for path in (ROOT / "jobs" / "recipes").iterdir()
    }
    for path in (path for path in root.rglob("*") if path.suffix in (".py", ".yaml", ".html")):
        assert not re.search(r"python jobs/[a-z_]+\.py", path.read_text("utf-8")), path
    page = run_in(installed, "from rayclip.__main__ import main; main(['train', '--help'])")
    assert page.startswith("usage: rayclip train")
    assert "    rayclip train --config demo data.uri=data/demo/train" in page
    assert not re.search(r"jobs/[a-z_]+\.py", page)


def test_a_job_of_an_installed_rayclip_names_itself_and_others_by_their_commands(installed):
    code = """
from rayclip.jobs.cli import job_keys
print(job_keys.shown("train"), job_keys.import_job("train").__name__)
print(job_keys.refusal("train", "ingest"))
"""
    lines = run_in(installed, code).splitlines()
    assert lines[0] == "rayclip train rayclip.jobs.train"
    assert lines[1].startswith("rayclip train does not use the section ingest (used by rayclip")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from training.loss import X", "from rayclip.training.loss import X"),
        ("def f():\n    from model import clip\n", "def f():\n    from rayclip.model import clip\n"),
        ("import jobs\n", "from rayclip import jobs\n"),
        ("from modeling import x\n", "from modeling import x\n"),
        ('"""from training.loss import X"""\n', '"""from training.loss import X"""\n'),
        ('A = "python jobs/train.py --check"\n', 'A = "rayclip train --check"\n'),
        ("# see jobs/benchmarks/ranking.py\n", "# see jobs/benchmarks/ranking.py\n"),
    ],
)
def test_imports_are_rewritten_and_nothing_else(monkeypatch, source, expected):
    monkeypatch.setattr("setuptools.setup", lambda **arguments: None)
    rewrite = runpy.run_path(str(ROOT / "setup.py"))["under_one_name"]
    assert rewrite(source, "a.py") == expected


@pytest.mark.parametrize("source", ["import training.loss", "import os, jobs"])
def test_an_import_without_a_form_below_the_name_fails_the_build(monkeypatch, source):
    monkeypatch.setattr("setuptools.setup", lambda **arguments: None)
    rewrite = runpy.run_path(str(ROOT / "setup.py"))["under_one_name"]
    with pytest.raises(ValueError, match="write `from"):
        rewrite(source, "a.py")


def test_commands_are_the_files_of_jobs():
    assert commands.names() == sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))
