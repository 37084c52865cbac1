"""`make` finds a Python that fits, says what to install where none does, and makes the environment of another Python again."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION = ".".join(map(str, sys.version_info[:2]))
NEWEST = "3.14"


def make(folder: Path, target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make with the Pythons of a folder, and the programs of this machine that are none."""
    for name in ("touch", "sh"):
        (folder / name).symlink_to(f"/bin/{name}")
    command = ["/usr/bin/make", f"VENV={folder / 'env'}", *variables, f"{folder / 'env'}/{target}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))}
    environment["PATH"] = str(folder)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def an_earlier_python(path: Path) -> None:
    """A Python that says it is 3.10, and does not fit."""
    program(path, 'case "$2" in *sys.exit*) exit 1;; *) echo 3.10;; esac')


def test_a_machine_without_a_fitting_python_is_told_what_to_install_in_one_line(tmp_path):
    an_earlier_python(tmp_path / "python3")
    done = make(tmp_path, ".installed-demo", f"PYTHON={tmp_path / 'python3'}")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "RayCLIP" in line)
    assert line.startswith(f"make: RayCLIP needs Python 3.11 to {NEWEST}; {tmp_path / 'python3'} is 3.10. Install one, e.g. ")
    assert "`apt-get install python3.12 python3.12-venv`" in line
    assert not (tmp_path / "env").exists()


def test_another_python_of_the_machine_is_found_and_a_stale_environment_is_made_again(tmp_path):
    an_earlier_python(tmp_path / "python3")
    (tmp_path / f"python{VERSION}").symlink_to(Path(sys.executable).resolve())
    stale = tmp_path / "env" / "bin" / "python"
    stale.parent.mkdir(parents=True)
    an_earlier_python(stale)
    for stamp in (".python-3.10", ".installed-demo", ".installed-test"):
        (tmp_path / "env" / stamp).touch()
    done = make(tmp_path, f".python-{VERSION}")
    assert done.returncode == 0, done.stderr
    asked = subprocess.run([stale, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == str(tmp_path / "env")
    assert sorted(path.name for path in (tmp_path / "env").glob(".*")) == [f".python-{VERSION}"]


def test_the_makefile_and_the_package_accept_the_same_pythons():
    assert f'requires-python = ">=3.11,<3.{int(NEWEST.split(".")[1]) + 1}"' in (ROOT / "pyproject.toml").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in (ROOT / "Makefile").read_text()
