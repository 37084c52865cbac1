"""docs/python.md's blocks that need Ray, on a real one; and the notebook, cell by cell."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.python_page import BLOCKS, NOTEBOOK, make_place, needs_ray

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("ray_session")
def test_the_blocks_on_ray_run_and_leave_the_process_as_it_was(data_set, tmp_path, monkeypatch):
    import rayclip

    make_place(tmp_path, data_set)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    names: dict = {"rayclip": rayclip, "data": rayclip.DataSet("data/pairs")}
    for block in filter(needs_ray, BLOCKS):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert names["rows"].count() == 64
    row = names["rows"].take(1)[0]
    assert sorted(row) == ["captions", "image", "key", "url", "width"]
    assert names["summary"].counts == {"success": 2}
    assert len(rayclip.DataSet("data/new")) == 2
    result = names["result"]
    assert (result.step, result.finished) == (6, True)
    assert rayclip.load(result.run).architecture.name == "debug-vit"
    assert (Path(result.run) / "report.html").is_file()
    filtered = rayclip.DataSet("data/pairs").filter("shape == 'disc'")
    assert filtered.to_ray().count() == len(filtered)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path):
    """Its cells are executed in one process, as a kernel does; none is installed here, and it would run the same code."""
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    check = "\nassert '2764-FE0F' in [path.stem for path, _ in search('red heart', 3)]\n"
    code = "if __name__ == '__main__':\n" + "\n".join(f"    exec({cell!r}, globals())" for cell in [*cells, check])
    (tmp_path / "notebook.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "runs" / "quickstart" / "result.json").is_file()
