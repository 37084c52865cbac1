"""Tests of a folder are counted by their outcome; those that fail are named."""

import pytest

from jobs.qualification import gpu_tests
from jobs.qualification.judgement import SkipError
from jobs.qualification.scale import Scale

TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip
def test_elsewhere(): pass
@pytest.fixture
def broken(): raise ValueError
def test_without_its_fixture(broken): pass
"""


def test_failures_are_named_and_miss_their_aim(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name")
    monkeypatch.setattr(gpu_tests, "FOLDER", tmp_path)
    figures = list(gpu_tests.run(Scale("cpu")))
    named = [figure.value.rpartition("/")[2].rpartition("::")[2] for figure in figures if figure.name == "failed test"]
    assert named == ["test_broken.py", "test_bad", "test_without_its_fixture"]
    counts = {figure.name: figure.value for figure in figures}
    assert (counts["failed"], counts["passed"], counts["skipped"], counts["tests found"]) == (3, 1, 1, 5)
    assert figures[0].verdict("cpu") == "missed"


def test_an_installed_rayclip_has_no_tests_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tests, "FOLDER", tmp_path / "none")
    with pytest.raises(SkipError, match="from a checkout"):
        next(gpu_tests.run(Scale("cpu")))
